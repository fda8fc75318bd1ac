"""Grades the graders: python tutorials/assignments/gate.py a6 prints which test caught which mutant, and what it said;
without a6, for all assignments. With --summary it only prints how much there is, in seconds.

Three questions. Which kinds of input do the tests give to each function (kinds.py)? Which mutants that were written by
hand do they catch, and does the message name the cause (mutants.py)? Which that were made by operators (operators.py)?
What survives of these is listed in survivors.py with the reason why it is no mistake.
"""

import random
import sys
import time
import types
from collections import Counter
from functools import cache
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]  # the imports.py of each assignment reads the package

import kinds  # noqa: E402
import operators  # noqa: E402
from grading import Wrong, functions_of, load, mutate, need, outcome, said, tests_of  # noqa: E402
from survivors import SURVIVORS  # noqa: E402

FOLDERS = sorted(folder for folder in HERE.glob("a[0-9]_*") if folder.is_dir())


@cache
def test_module(folder):
    (file,) = folder.glob("test_a*.py")
    return load(file)


@cache
def tests(folder):
    """{name: test} of an assignment."""
    return {test.__name__: test for test in tests_of(test_module(folder))}


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


# kinds of input ----------------------------------------------------------------------------------------------------

@cache
def asked(folder, seed=0):
    """({function: {kind of input: whether a test gives it}}, {function: [tests that call it, the quickest first]},
    {function: some of the calls, as (arguments, result)}).
    """
    found, callers, now, seconds, calls = {}, {}, [None], {}, {}

    def watched(function, right):
        def call(*arguments):
            for kind, is_so in function(*arguments).items():
                of = found.setdefault(function.__name__, {})
                of[kind] = of.get(kind, False) or bool(is_so)
            callers.setdefault(function.__name__, set()).add(now[0])
            kept = calls.setdefault(function.__name__, [])
            if len(kept) == 20:
                return right(*arguments)
            before = [value if isinstance(value, torch.Generator) else operators.copied(value) for value in arguments]
            kept.append((before, right(*arguments)))
            return kept[-1][1]
        return call

    def watch(module):
        functions = {f.__name__: watched(f, getattr(module, f.__name__)) for f in kinds.OF[folder.name]}
        return types.SimpleNamespace(**vars(module) | functions)

    solution, module = load(folder / "solution.py"), test_module(folder)
    if folder.name == "a4_bug":  # its tests call the steps, and not what is handed in
        module.compare(watch(step("packed")), seed, "packed")
    for name, test in tests(folder).items() if folder.name != "a4_bug" else ():
        now[0], began = name, time.process_time()
        test(watch(solution), seed)
        seconds[name] = time.process_time() - began
    if folder.name != "a4_bug":
        callers = {function: sorted(names, key=seconds.get) for function, names in callers.items()}
    return found, callers, calls


def missing(folder):
    """[(function, kind)] of the kinds of input that no test gives."""
    waived = kinds.NOT_IN_A4 if folder.name == "a4_bug" else set()
    return [(function, kind) for function, of in asked(folder)[0].items() for kind, given in of.items()
            if not given and kind not in waived]


# mutants made by operators -----------------------------------------------------------------------------------------

@cache
def step(name):
    return load(HERE / "a4_bug" / "steps" / f"{name}.py")


@cache
def made(folder):
    """[(function, name, call that makes the mutant)]."""
    if folder.name == "a4_bug":
        return [(f"{file.stem}.{function}", f"{file.stem}.{name}", make)
                for file in sorted((folder / "steps").glob("*.py"))
                for function in ("step_loss", "tune") for name, make in operators.of_text(file, function)]
    solution, found = load(folder / "solution.py"), []
    for function in functions_of(folder / "student.py"):
        calls = asked(folder)[2][function]
        found += [(function, *mutant) for mutant in (*operators.of_text(folder / "solution.py", function),
                                                     *operators.of_calls(solution, function, calls))]
    return found


def survives(folder, function, make, seed=0):
    """Whether a mutant made by an operator passes all tests that call its function."""
    impl = make()
    if folder.name == "a4_bug":
        try:
            test_module(folder).compare(impl, seed, "a step")
        except Wrong:
            return False
        except Exception as error:
            return said(error) is None
        return True
    names = asked(folder)[1][function]
    return all(outcome(tests(folder)[name], impl, seed) is None for name in names)


def sample(n, seed=0):
    """[(folder, function, name, make)]: n of all mutants made by operators that are not known to survive."""
    every = [(folder, *mutant) for folder in FOLDERS for mutant in made(folder)
             if mutant[1] not in SURVIVORS.get(folder.name, {})]
    return random.Random(seed).sample(every, n)


def operator_of(name):
    """The operator that made a mutant, by the mutant's name."""
    kind = name.split(": ")[1]
    return "an argument spoilt" if kind.startswith("argument") else kind.replace("the result", "the result spoilt")


def by_operators(folders=FOLDERS):
    """Prints what is not as it should be, and returns it: kinds that no test gives, survivors that are not listed, and
    listed ones that do not survive.
    """
    wrong = []
    for folder in folders:
        known = SURVIVORS.get(folder.name, {})
        seen = {name for function, name, make in made(folder) if survives(folder, function, make)}
        wrong += [f"{folder.name}: {name} passes, and survivors.py gives no reason" for name in seen - {*known}]
        wrong += [f"{folder.name}: {name} is listed in survivors.py, and does not survive" for name in {*known} - seen]
        wrong += [f"{folder.name}: no test gives {function} {kind}" for function, kind in missing(folder)]
    print("\n".join(wrong))
    return wrong


def summary(folders):
    """Prints what the gate holds, of each function and in all. It runs no mutant, as the slow test does."""
    in_all, by_operator, reasons = Counter(), Counter(), Counter()
    print(f"{'function':37}kinds of input   mutants by operators   survivors")
    for folder in folders:
        given, known, of = asked(folder)[0], SURVIVORS.get(folder.name, {}), {}
        for function, name, _ in made(folder):
            of.setdefault(function, []).append(name)
        for function, names in of.items():
            n_kinds = len(given[function.rpartition(".")[2]])
            n_survive = sum(name in known for name in names)
            print(f"  {folder.name:14}{function:21}{n_kinds:14}{len(names):23}{n_survive:12}")
            in_all.update(functions=1, kinds=n_kinds, mutants=len(names), survive=n_survive)
            by_operator.update(map(operator_of, names))
        reasons.update(known.values())
        in_all.update(hand=len(mutants(folder)))
    print(f"{in_all['functions']} functions, {in_all['kinds']} kinds of input, {in_all['hand']} mutants by hand, "
          f"{in_all['mutants']} by operators, {in_all['survive']} of these survive\n\nmutants by operator")
    for counted, what in ((by_operator, None), (reasons, "\nsurvivors, and why they are no mistakes")):
        if what:
            print(what)
        for name, n in counted.most_common():
            print(f"{n:6}  {name}")


def table(folders):
    torch.set_num_threads(1)
    n_slipped = 0
    for folder in folders:
        print(f"\n{folder.name}: {len(tests(folder))} tests, {sum(t.points for t in tests(folder).values())} points, "
              f"{len(mutants(folder))} mutants")
        for mutant in mutants(folder):
            message = caught(folder, mutant)
            fine = message is not None and mutant.keyword.lower() in message.lower()
            n_slipped += not fine
            line = message.splitlines()[0] if message is not None else "NOT CAUGHT"
            print(f"  {'' if fine else '!! '}{mutant.name:34} {mutant.test:42} {line}")
    print(f"\n{sum(len(mutants(folder)) for folder in folders)} mutants, {n_slipped} of them not caught by name\n")
    n_wrong = n_slipped + len(by_operators(folders))
    summary(folders)
    print(f"\n{time.process_time():.0f} seconds of a processor")
    return n_wrong


if __name__ == "__main__":
    names = [word for word in sys.argv[1:] if word != "--summary"]
    chosen = [folder for folder in FOLDERS if folder.name.startswith(tuple(names) or "a")]
    sys.exit(summary(chosen) if "--summary" in sys.argv else bool(table(chosen)))
