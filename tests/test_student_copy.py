"""The copy that students get: it holds no answer, nothing but what is listed, and its stubs run and fail there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nanoct

ROOT = Path(__file__).parents[1]
ASSIGNMENTS = ROOT / "tutorials" / "assignments"
if not ASSIGNMENTS.exists() or not (ROOT / ".git").exists():
    pytest.skip("the copy is made of a git checkout, and this is none", allow_module_level=True)
sys.path.insert(0, str(ASSIGNMENTS))

import gate  # noqa: E402
import student_copy  # noqa: E402

IN_A_FOLDER = r"tutorials/assignments/a\d_\w+/"
MAY_BE_IN = [r"LICENSE", r"(requirements|constraints)\.txt", r"AGENTS\.md", r"pytest\.ini",
             r"tutorials/assignments/README\.md",
             r"tutorials/assignments/(conftest|grading|reference|given|mistakes)\.py",
             IN_A_FOLDER + r"(handout\.md|student\.py|test_a\d\.py)", r"nanoct/(__init__|model)\.py",
             r"tutorials/assignments/a4_bug/(draw\.py|sealed\.txt)"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course") / "copy"
    student_copy.make(folder)
    return folder


def test_the_copy_holds_what_is_listed_and_nothing_else(copy):
    files = [file.relative_to(copy).as_posix() for file in copy.rglob("*") if file.is_file()]
    assert not [file for file in files if not any(re.fullmatch(pattern, file) for pattern in MAY_BE_IN)]
    assert not re.findall(r".*(?:solution|mutant|imports|alternative|variant|instructor|gate).*", "\n".join(files))
    for folder in gate.FOLDERS:
        there = {file.name for file in (copy / folder.relative_to(ROOT)).iterdir()}
        assert {"handout.md", "student.py"} <= there and len(there) >= 3


def bodies(file):
    """{a function's body with its names numbered, so that renaming hides nothing: the function} of a file."""
    found = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
            continue
        body = node.body if isinstance(node.body, list) else [node.body]
        if ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None:
            body = body[1:]
        if sum(1 for part in body for _ in ast.walk(part)) < 40:
            continue  # a line that anyone would write so
        names = {}
        number = lambda match, names=names: f"{match[1]}'{names.setdefault(match[2], len(names))}'"
        text = " ".join(ast.dump(part) for part in body)
        found[re.sub(r"(\b(?:id|arg|name)=)'(\w+)'", number, text)] = f"{file}: {getattr(node, 'name', 'lambda')}"
    return found


def test_no_function_of_the_copy_is_one_of_an_answer(copy):
    answers = [file for file in ASSIGNMENTS.glob("a[0-9]_*/**/*.py") if student_copy.is_answer(file)]
    package = [*Path(nanoct.__file__).parent.rglob("*.py"), *(ROOT / "tutorials").glob("*.py")]
    given = list((copy / "nanoct").rglob("*.py"))  # of the package, what a test imports
    ours = [file for file in copy.rglob("*.py") if file not in given]
    for known, handed in ((answers, ours + given), (package, ours)):
        known = {body: place for file in known for body, place in bodies(file).items()}
        handed = [pair for file in handed for pair in bodies(file).items()]
        assert min(len(known), len(handed)) > 5
        assert not {place: known[body] for body, place in handed if body in known}


def test_renaming_does_not_hide_a_copied_function(tmp_path):
    source = (ASSIGNMENTS / "a2_row" / "solution.py").read_text(encoding="utf-8")
    mine = tmp_path / "mine.py"
    mine.write_text(source.replace("seen", "shown").replace("def visible", "def other"), encoding="utf-8")
    assert bodies(mine).keys() == bodies(ASSIGNMENTS / "a2_row" / "solution.py").keys()


WITH_NO_OTHER_NANOCT = """
import os, sys
from importlib.machinery import PathFinder

class Copy:  # nanoct is what lies in the copy, or is not there
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "nanoct":
            spec = PathFinder.find_spec(name, path or [os.getcwd()])
            if spec is None:
                raise ModuleNotFoundError(f"{name} is not in the copy")
            return spec

sys.meta_path.insert(0, Copy)
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_the_stubs_run_in_the_copy_and_fail_every_test(copy):
    run = subprocess.run([sys.executable, "-c", WITH_NO_OTHER_NANOCT, "-q", "-p", "no:cacheprovider"], cwd=copy,
                         text=True, capture_output=True)
    n_tests = sum(len(gate.tests(folder)) for folder in gate.FOLDERS)
    points = sum(test.points for folder in gate.FOLDERS for test in gate.tests(folder).values())
    assert run.returncode == 1, run.stdout + run.stderr
    assert f"points: 0 of {points}" in run.stdout
    assert re.search(rf"^{n_tests} failed", run.stdout, re.M) and "error" not in run.stdout.splitlines()[-1]
    assert "not written yet" in run.stdout


def test_a_folder_that_is_not_empty_is_refused_in_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "mine.py").touch()
    monkeypatch.setattr(sys, "argv", ["student_copy.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="is not an empty folder") as refused:
        student_copy.main()
    assert len(str(refused.value).splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["mine.py"]


def test_some_assignments_alone_come_with_what_they_import_alone(tmp_path):
    files = student_copy.make(tmp_path / "copy", ["a1_attention"])
    assert {Path(file).parts[2] for file in files if file.startswith("tutorials")} == {
        "README.md", "a1_attention", "conftest.py", "grading.py", "reference.py"}
    with pytest.raises(ValueError, match="no assignment 'a9'"):
        student_copy.chosen(["a9"])
