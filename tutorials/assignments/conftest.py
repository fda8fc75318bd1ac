"""pytest a1_attention --impl my_file.py --seed 3: grades a file, prints its points and a message a mistake."""

import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]  # what the tests share, and the package, installed or not

from grading import Wrong, functions_of, load, need, said  # noqa: E402

torch.set_num_threads(1)
MODULES = {}  # folder of an assignment -> the module that is graded
POINTS = {}  # node id -> (points that were won, points there are, line of the summary)


def pytest_addoption(parser):
    group = parser.getgroup("assignments")
    group.addoption("--impl", default=None, metavar="FILE", help="file to grade; default: student.py beside the tests")
    group.addoption("--seed", default=0, type=int, metavar="N", help="of the inputs; default 0")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Load what is graded once, before any test: a wrong path or a missing function is one sentence."""
    for item in items:
        folder = item.path.parent
        if folder.parent != HERE or folder in MODULES:
            continue
        path = Path(config.getoption("impl") or folder / "student.py")
        try:
            MODULES[folder] = need(load(path), functions_of(folder / "student.py"), path)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None


@pytest.fixture
def impl(request):
    """The module that is graded."""
    return MODULES[request.path.parent]


@pytest.fixture
def seed(request):
    """The seed of the inputs."""
    return request.config.getoption("seed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    worth = getattr(getattr(item, "function", None), "points", None)
    if worth is None:
        return report
    if call.excinfo is not None and report.failed:
        error = call.excinfo.value
        report.longrepr = str(error) if isinstance(error, Wrong) else f"{said(error)}\n{where(call.excinfo)}"
    if call.when == "call":
        won = worth if report.passed else 0
        POINTS[item.nodeid] = won, worth, f"{won:3d} of {worth:2d}   {item.path.parent.name}: {item.name}"
        item.user_properties += [("points", won), ("of", worth)]  # they stand in the JUnit XML
        report.user_properties = item.user_properties
    return report


def where(excinfo):
    """The last line of the graded file that an error went through."""
    ours = {module.__file__ for module in MODULES.values()}
    lines = [f"  line {entry.lineno + 1} of {Path(entry.path).name}: {str(entry.statement).strip()}"
             for entry in excinfo.traceback if str(entry.path) in ours]
    return lines[-1] if lines else f"  in {excinfo.traceback[-1].name}"


def pytest_terminal_summary(terminalreporter):
    if POINTS:
        terminalreporter.section("points")
        for *_, line in POINTS.values():
            terminalreporter.line(line)
        won, worth = (sum(line[i] for line in POINTS.values()) for i in (0, 1))
        terminalreporter.line(f"points: {won} of {worth}")
