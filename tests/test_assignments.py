"""The gate: whoever grades is graded. Solutions pass, stubs and mutants fail, and the message names the cause."""

import sys
import types
from pathlib import Path

import pytest
import torch

ASSIGNMENTS = Path(__file__).parents[1] / "tutorials" / "assignments"
if not ASSIGNMENTS.exists():
    pytest.skip("the assignments are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(ASSIGNMENTS))

import gate  # noqa: E402
from grading import Wrong, functions_of, load  # noqa: E402

name_of = lambda path: path.name
by_folder = pytest.mark.parametrize("folder", gate.FOLDERS, ids=name_of)
CORRECT = [(folder, file) for folder in gate.FOLDERS for file in gate.correct(folder)]
MUTANTS = [(folder, mutant) for folder in gate.FOLDERS for mutant in gate.mutants(folder)]


@pytest.fixture
def few_rounds(monkeypatch):
    """A test of A4 is asked twice of each step; it is 23 times where somebody is graded."""
    monkeypatch.setattr(gate.test_module(A4), "ROUNDS", 2)


def is_seldom(folder, file):
    """Other layouts, and the package where that takes long: these are graded by the slow tests."""
    is_long = folder.name in ("a3_ct_kv", "a4_bug", "a6_table")
    return file.parent.name == "alternatives" or file.stem == "imports" and is_long


def param(folder, part, file):
    return pytest.param(folder, part, marks=pytest.mark.slow if is_seldom(folder, file) else ())


@pytest.mark.parametrize("folder, file", [param(folder, file, file) for folder, file in CORRECT],
                         ids=lambda part: getattr(part, "stem", None))
def test_what_is_correct_gets_all_points(folder, file, few_rounds):
    assert gate.graded(folder, file) == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 10))
@pytest.mark.parametrize("folder, file", CORRECT, ids=lambda part: getattr(part, "stem", None))
def test_what_is_correct_gets_all_points_on_ten_seeds(folder, file, seed, few_rounds):
    assert gate.graded(folder, file, seed) == {}


A4 = next(folder for folder in gate.FOLDERS if folder.name == "a4_bug")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("step", [file.stem for file in sorted((A4 / "steps").glob("*.py"))])
def test_a_correct_step_is_that_of_the_reference_on_ten_seeds(step, seed):
    gate.test_module(A4).compare(gate.step(step), seed, step)


@pytest.mark.slow
def test_no_solved_test_fails_on_a_correct_step_that_it_was_not_written_for():
    for name, catch in load(A4 / "solution.py").CATCH.items():
        error, said, returned = gate.test_module(A4).verdict(catch, gate.step("one_by_one"))
        assert (error, said, returned) == (None, "", None), name


@by_folder
def test_stubs_fail_every_test(folder):
    assert gate.graded(folder, folder / "student.py").keys() == gate.tests(folder).keys()


@pytest.mark.parametrize("folder, mutant", [param(folder, mutant, folder / mutant.of) for folder, mutant in MUTANTS],
                         ids=lambda part: part.name)
def test_a_mutant_fails_the_test_that_is_named_for_it_and_its_message_names_the_cause(folder, mutant):
    message = gate.caught(folder, mutant)
    assert message is not None, "it passed"
    assert mutant.keyword.lower() in message.lower(), message


def test_there_are_50_mutants():
    assert len(MUTANTS) >= 50


@by_folder
def test_the_tests_give_every_kind_of_input(folder):
    given, *_ = gate.asked(folder)
    assert {function.__name__ for function in gate.kinds.OF[folder.name]} == given.keys()
    assert not gate.missing(folder)


def test_a_sample_of_the_mutants_made_by_operators_is_caught():
    passed = [name for folder, function, name, make in gate.sample(40) if gate.survives(folder, function, make)]
    assert not passed, "a test has a hole, or survivors.py lacks a reason"


@pytest.mark.slow
def test_mutants_made_by_operators_are_caught_but_for_those_that_are_no_mistakes():
    assert not gate.by_operators()


@pytest.mark.slow
def test_the_instructors_page_shows_the_totals_that_the_summary_prints(capsys):
    gate.summary(gate.FOLDERS)
    totals = [line for line in capsys.readouterr().out.splitlines() if " by hand, " in line]
    assert len(totals) == 1 and totals[0] in (ASSIGNMENTS / "instructor.md").read_text(encoding="utf-8").splitlines()


def test_what_is_sealed_is_what_the_list_of_bugs_makes():
    made = load(A4 / "variants.py").made()
    assert load(A4 / "draw.py").opened() == made
    assert all(len(set(layouts)) == 2 for layouts in made["variants"].values())


@by_folder
def test_a_handout_is_short_and_says_what_it_is_worth(folder):
    text, tests = (folder / "handout.md").read_text(encoding="utf-8"), gate.tests(folder).values()
    assert len(text.split()) <= 900
    assert f"{sum(test.points for test in tests)} points, {sum(test.minutes for test in tests)} minutes" in text


TENSORS = [f for f in gate.FOLDERS if f.name in ("a1_attention", "a2_row", "a3_ct_kv")]  # they return tensors
HOSTILE = {  # what may come back in the place of a tensor
    "None": lambda t: None,
    "a list": lambda t: t.tolist(),
    "an empty list": lambda t: [],
    "no numbers": lambda t: t[:0] if t.dim() else t.flatten()[:0],
    "NaN": lambda t: torch.full(t.shape, torch.nan, dtype=t.dtype if t.is_floating_point() else torch.float32),
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "one number for all": lambda t: t.flatten()[:1] if t.numel() else torch.zeros(1),
    "one dimension more": lambda t: t[None],
    "float16": lambda t: t.half(),
    "complex": lambda t: t.to(torch.complex128),
    "a number": lambda t: 1.0,
}


def spoilt(value, spoil):
    """What a function returned, with every tensor spoilt."""
    if isinstance(value, torch.Tensor):
        return spoil(value)
    if isinstance(value, tuple):
        return tuple(spoilt(part, spoil) for part in value)
    return types.SimpleNamespace(**{name: spoilt(part, spoil) for name, part in vars(value).items()})


FEW = ("an empty list",)  # a trap of graders that we know; the others are slow tests


@pytest.mark.parametrize("spoil", [pytest.param(spoil, id=name, marks=() if name in FEW else pytest.mark.slow)
                                   for name, spoil in HOSTILE.items()])
@pytest.mark.parametrize("folder", TENSORS, ids=name_of)
def test_nonsense_fails_every_test_with_a_message_and_no_grader_stumbles(folder, spoil):
    solution = load(folder / "solution.py")
    for name in functions_of(folder / "student.py"):  # one function at a time: the others are right
        right = getattr(solution, name)
        wrong = types.SimpleNamespace(**vars(solution) | {name: lambda *a, right=right: spoilt(right(*a), spoil)})
        for caller in gate.asked(folder)[1][name]:
            with pytest.raises(Wrong) as failed:
                gate.tests(folder)[caller](wrong, 0)
            assert len(str(failed.value).splitlines()) == 4
