"""nanoct COMMAND … is the same as python -m nanoct.COMMAND …

A command is any module of the package that can be run as a program.
"""

import ast
import runpy
import sys
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

from nanoct import cli

HERE = Path(__file__).parent


def commands():
    """{name: first line of the docstring} of all commands, in the order of their files."""
    found = {}
    for file in sorted(HERE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if '\nif __name__ == "__main__":\n' in text and file != Path(__file__):
            name = ".".join(file.relative_to(HERE).with_suffix("").parts).removesuffix(".__main__")
            found[name] = ast.get_docstring(ast.parse(text)).split("\n")[0]
    return found


def main():
    found = commands()
    listed = "\n".join(f"  {name:18}{line}" for name, line in found.items())
    p = cli.Parser(prog="nanoct", description=__doc__, epilog=listed, formatter_class=RawDescriptionHelpFormatter)
    p.add_argument("command", choices=found, metavar="COMMAND", help="one of these; nanoct COMMAND --help says more")
    name = p.parse_args(sys.argv[1:2]).command
    del sys.argv[1]
    runpy.run_module(f"nanoct.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
