"""Grades the graders: python tutorials/assignments/gate.py prints which test caught which mutant, and what it said."""

import sys
from functools import cache
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]  # the imports.py of each assignment reads the package

from grading import functions_of, load, mutate, need, outcome, tests_of  # noqa: E402

FOLDERS = sorted(folder for folder in HERE.glob("a[0-9]_*") if folder.is_dir())


@cache
def tests(folder):
    """{name: test} of an assignment."""
    (file,) = folder.glob("test_a*.py")
    return {test.__name__: test for test in tests_of(load(file))}


@cache
def mutants(folder):
    return load(folder / "mutants.py").MUTANTS


def correct(folder):
    """The files of an assignment that must get all points: the solution, the package, and what looks different."""
    return [folder / "solution.py", folder / "imports.py", *sorted((folder / "alternatives").glob("*.py"))]


def messages(folder, impl, seed=0):
    """{test: what it says} of the tests that an implementation fails."""
    said = {name: outcome(test, impl, seed) for name, test in tests(folder).items()}
    return {name: message for name, message in said.items() if message is not None}


def graded(folder, file, seed=0):
    return messages(folder, need(load(file), functions_of(folder / "student.py"), file), seed)


def caught(folder, mutant, seed=0):
    """What the test that is named for a mutant says of it; None if it passes."""
    return outcome(tests(folder)[mutant.test], mutate(folder / mutant.of, mutant), seed)


def table():
    torch.set_num_threads(1)
    n_slipped = 0
    for folder in FOLDERS:
        print(f"\n{folder.name}: {len(tests(folder))} tests, {sum(t.points for t in tests(folder).values())} points, "
              f"{len(mutants(folder))} mutants")
        for mutant in mutants(folder):
            message = caught(folder, mutant)
            fine = message is not None and mutant.keyword.lower() in message.lower()
            n_slipped += not fine
            line = message.splitlines()[0] if message is not None else "NOT CAUGHT"
            print(f"  {'' if fine else '!! '}{mutant.name:34} {mutant.test:42} {line}")
    print(f"\n{sum(len(mutants(folder)) for folder in FOLDERS)} mutants, {n_slipped} of them not caught by name")
    return n_slipped


if __name__ == "__main__":
    sys.exit(bool(table()))
