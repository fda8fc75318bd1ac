"""nanoct COMMAND … is the same as python -m nanoct.COMMAND …

A command is any module of the package that can be run as a program. The folders io, runs and costs are left out of its
name: nanoct gguf is nanoct/io/gguf.py.
"""

import ast
import runpy
import sys
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

from nanoct import cli

HERE = Path(__file__).parent


def commands():
    """{name: (module, first line of its docstring)} of all commands, in the order of their files."""
    found = {}
    for file in sorted(HERE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if '\nif __name__ == "__main__":\n' in text and file != Path(__file__):
            module = ".".join(file.relative_to(HERE).with_suffix("").parts).removesuffix(".__main__")
            name = module.removeprefix("io.").removeprefix("runs.").removeprefix("costs.")
            found[name] = module, ast.get_docstring(ast.parse(text)).split("\n")[0]
    return found


def answer():
    found = commands()
    listed = "\n".join(f"  {name:18}{line}" for name, (_, line) in found.items())
    p = cli.Parser(prog="nanoct", description=__doc__, epilog=listed, formatter_class=RawDescriptionHelpFormatter)
    p.add_argument("command", choices=found, metavar="COMMAND", help="one of these; nanoct COMMAND --help says more")
    module, _ = found[p.parse_args(sys.argv[1:2]).command]
    del sys.argv[1]
    runpy.run_module(f"nanoct.{module}", run_name="__main__", alter_sys=True)


def main():
    cli.run(answer)  # handles what goes wrong while the command is imported; after that the command does so itself


if __name__ == "__main__":
    main()
