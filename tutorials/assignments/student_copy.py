"""Makes the copy that students get: make student DEST=folder, or python tutorials/assignments/student_copy.py folder.

The copy is what is committed, by git archive, and has no history. It is a list of what goes in, not of what stays out:
a file that nobody thought of is not in it. Of each assignment that is everything but the ANSWERS; beside them only what
the tests and stubs import. The rest of the package stays out, as nearly every part of it answers something:

    A1      model, gpt2                 A3, A4  fewshot, methods, optimise, score; tutorials
    A2      packing; tutorials          A5, A6  footprint, costs, score, studies

What is left of it, readers of files and of text, does not run without these. A model that a later assignment imports
is an answer to A1: with --only it comes along no earlier than that assignment.
"""

import argparse
import ast
import io
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ANSWERS = ("solution", "mutants", "imports", "alternatives", "variants", "steps")  # files and folders of an assignment
BESIDE = ("README.md", "AGENTS.md")
PYTEST = "[pytest]\ntestpaths = tutorials/assignments\npythonpath = .\n"  # plain pytest finds tests, options, imports


def git(*arguments):
    """What git says, as bytes. ValueError in a sentence if it does not work here."""
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or str(error).encode()
        raise ValueError(f"git {arguments[0]} does not work in {ROOT}, and the copy is made of what is committed: "
                         f"{said.decode().strip()}") from error


def committed(folder):
    """Paths of the committed files in a folder, from the root on."""
    return git("ls-tree", "-r", "--name-only", "HEAD", f"{folder.relative_to(ROOT).as_posix()}/").decode().splitlines()


def is_answer(path):
    """Whether a file of an assignment gives it away."""
    return any(part.partition(".")[0] in ANSWERS for part in path.relative_to(HERE).parts[1:])


def imported(files):
    """The files of this folder and of the package that some files import, and what these import."""
    found, waiting = set(), list(files)
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for file in (file for name in names for file in places(name)):
                if file not in found:
                    found.add(file)
                    waiting.append(file)
    return found


def places(name):
    """The files that an imported name stands for: of this folder, or of the package with the packages it is in."""
    parts = name.split(".")
    if parts[0] != "nanoct":
        files = [HERE / f"{name}.py"]
    else:
        files = [ROOT.joinpath(*parts[: n + 1], "__init__.py") for n in range(len(parts))]
        files.append(ROOT.joinpath(*parts).with_suffix(".py"))
    return [file for file in files if file.is_file()]


def chosen(only=()):
    """Paths of what goes into the copy, from the root on. ValueError if there is no such assignment."""
    folders = sorted(folder for folder in HERE.glob("a[0-9]_*") if folder.is_dir())
    if unknown := sorted(set(only) - {folder.name for folder in folders}):
        raise ValueError(f"There is no assignment {unknown[0]!r}: they are {', '.join(f.name for f in folders)}.")
    files = [HERE / "conftest.py", *(HERE / name for name in BESIDE)]
    for folder in folders:
        if not only or folder.name in only:
            files += [ROOT / path for path in committed(folder) if not is_answer(ROOT / path)]
    files += imported(file for file in files if file.suffix == ".py")
    found = sorted({file.relative_to(ROOT).as_posix() for file in files})
    return ["LICENSE", "requirements.txt", "constraints.txt", *found]


def make(destination, only=()):
    """Write the copy into a folder that is empty or not there. ValueError otherwise."""
    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"{destination} is not an empty folder: the copy wants one of its own, so that nothing else "
                         "is handed out with it.")
    archive = git("archive", "--format=zip", "HEAD", "--", *chosen(only))
    destination.mkdir(parents=True, exist_ok=True)
    zipfile.ZipFile(io.BytesIO(archive)).extractall(destination)
    within = destination / HERE.relative_to(ROOT)
    (within / "AGENTS.md").rename(destination / "AGENTS.md")  # where coding assistants look
    (destination / "pytest.ini").write_text(PYTEST, encoding="utf-8")
    return sorted(file.relative_to(destination).as_posix() for file in destination.rglob("*") if file.is_file())


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("destination", help="a folder that is empty or not there yet")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="assignments, such as a1_attention")
    arguments = parser.parse_args()
    try:
        files = make(arguments.destination, arguments.only)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(f"{len(files)} files in {arguments.destination}; students begin with tutorials/assignments/README.md")


if __name__ == "__main__":
    main()
