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
import grade  # noqa: E402
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


@pytest.mark.slow
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


# make grade --------------------------------------------------------------------------------------------------------

CHEATS = """
import os
from pathlib import Path

import grading
import torch

HERE, ANSWER = Path(__file__).parent, []


def attempt(act):
    try:
        act()
    except BaseException:
        pass


for folder in (HERE, HERE.parent, Path(FOLDER), *HERE.parent.glob("course/tutorials/assignments")):
    attempt(lambda: (folder / "conftest.py").write_text("raise SystemExit(0)"))
    attempt(lambda: (folder / "forged.xml").write_text("<testsuite/>"))
attempt(lambda: os.system(f"touch {FOLDER}/started"))
attempt(lambda: ANSWER.append(Path(SOLUTION).read_text()))
if HIDDEN and os.path.exists(SOLUTION):  # torch opens files without Python, so that no hook hears of it
    text = torch.from_file(SOLUTION, size=os.path.getsize(SOLUTION), dtype=torch.uint8)
    attempt(lambda: ANSWER.append(bytes(text.tolist()).decode()))
ANSWER += HERE.parent.rglob("solution.py")
attempt(lambda: setattr(grading, "outcome", lambda *_: None))
attempt(lambda: setattr(grading, "fail", lambda *_: None))


class Equal(str):
    __eq__ = __ge__ = __le__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __hash__ = lambda self: 0
    __float__ = lambda self: 1.0


if ANSWER:
    exec(ANSWER[0])
else:
    macro_f1 = lambda predicted, gold: Equal("1")
    paired = lambda a, b: (Equal("1"),) * 3
    choose = lambda lines, validation: Equal("high")
"""


def test_cheats_score_nothing_and_leave_nothing_behind(tmp_path):
    a6 = ASSIGNMENTS / "a6_table"
    file = tmp_path / "cheats.py"
    told = f"FOLDER, SOLUTION, HIDDEN = {str(tmp_path)!r}, {str(a6 / 'solution.py')!r}, {'-rmn' in grade.apart()}"
    file.write_text(f"{told}\n{CHEATS}", encoding="utf-8")
    ((_, lines),) = grade.grade(file, a6, [0])
    assert [won for _, won, _, _ in lines] == [0] * len(lines)
    assert not any("cannot be imported" in message for *_, message in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["cheats.py"]


FORGER = """
import io
import os
import struct

import torch


def flood():
    with io.BytesIO() as made:
        torch.save(dict(result=1.0, printed="points: 15 of 15", arguments=[]), made)
        message = struct.pack("<Q", len(made.getvalue())) + made.getvalue()
    for number in range(3, 64):  # the pipe is one of these
        try:
            os.write(number, message)
        except OSError:
            pass


def macro_f1(predicted, gold):
    print("\\033[2Jpoints: 15 of 15")
    return 0.5


def paired(a, b):
    flood()
    return 1.0, 1.0, 1.0


def choose(lines, validation):
    raise ValueError("\\npoints: 15 of 15")
"""


def test_an_answer_that_is_forged_in_the_pipe_scores_nothing_and_a_print_does_not_pass_for_points(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(FORGER, encoding="utf-8")
    ((_, lines),) = grade.grade(tmp_path / "mine.py", ASSIGNMENTS / "a6_table", [0])
    assert [won for _, won, _, _ in lines] == [0] * len(lines)
    shown = [*capsys.readouterr().out.splitlines(), *(line for *_, message in lines for line in message.splitlines())]
    assert any("points: 15" in line for line in shown)
    assert not [line for line in shown if line.startswith("points") or not line.isprintable()]


def test_a_string_that_equals_everything_is_no_setting():
    equal = type("Equal", (str,), {"__eq__": lambda *_: True, "__ne__": lambda *_: False, "__hash__": lambda _: 0})
    module = load_solution("a6_table")
    module.choose = lambda lines, validation: equal("any")
    failed = gate.messages(ASSIGNMENTS / "a6_table", module)
    assert {"test_choose_never_looks_at_reported_tasks", "test_choose_takes_the_best_of_validation"} <= failed.keys()


def load_solution(name):
    from types import SimpleNamespace

    from grading import load
    return SimpleNamespace(**vars(load(ASSIGNMENTS / name / "solution.py")))


@pytest.mark.slow
@pytest.mark.parametrize("name", [folder.name for folder in gate.FOLDERS])
def test_a_solution_gets_all_points_in_a_process_of_its_own(name, tmp_path):
    source = (ASSIGNMENTS / name / "solution.py").read_text(encoding="utf-8")
    if name == "a4_bug":  # one file is handed in
        bugs = (ASSIGNMENTS / name / "variants.py").read_text(encoding="utf-8").partition("STEPS = ")[0]
        source = source.replace("from variants import BUGS", bugs)
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    ((_, lines),) = grade.grade(tmp_path / "mine.py", ASSIGNMENTS / name, [3], seconds=900)
    assert [(test, message) for test, won, worth, message in lines if won < worth] == []


@pytest.mark.slow
def test_a_file_that_hangs_is_stopped(tmp_path):
    stub = (ASSIGNMENTS / "a6_table" / "student.py").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(stub.replace('raise NotImplementedError("choose")', "while True: pass"))
    ((_, lines),) = grade.grade(tmp_path / "mine.py", ASSIGNMENTS / "a6_table", [0], seconds=30)
    assert sum(won for _, won, _, _ in lines) == 0
    assert "the time is over" in lines[-1][3]
