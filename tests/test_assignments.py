"""The gate: whoever grades is graded. Solutions pass, stubs and mutants fail, and the message names the cause."""

import sys
from pathlib import Path

import pytest

ASSIGNMENTS = Path(__file__).parents[1] / "tutorials" / "assignments"
if not ASSIGNMENTS.exists():
    pytest.skip("the assignments are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(ASSIGNMENTS))

import gate  # noqa: E402

name_of = lambda path: path.name
by_folder = pytest.mark.parametrize("folder", gate.FOLDERS, ids=name_of)
CORRECT = [(folder, file) for folder in gate.FOLDERS for file in gate.correct(folder)]
MUTANTS = [(folder, mutant) for folder in gate.FOLDERS for mutant in gate.mutants(folder)]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("folder, file", CORRECT, ids=lambda part: getattr(part, "stem", None))
def test_what_is_correct_gets_all_points(folder, file, seed):
    assert gate.graded(folder, file, seed) == {}


@by_folder
def test_stubs_fail_every_test(folder):
    assert gate.graded(folder, folder / "student.py").keys() == gate.tests(folder).keys()


@pytest.mark.parametrize("folder, mutant", MUTANTS, ids=lambda part: part.name)
def test_a_mutant_fails_the_test_that_is_named_for_it_and_its_message_names_the_cause(folder, mutant):
    message = gate.caught(folder, mutant)
    assert message is not None, "it passed"
    assert mutant.keyword.lower() in message.lower(), message


def test_there_are_50_mutants():
    assert len(MUTANTS) >= 50
