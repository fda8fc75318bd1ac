"""Grades A4: the fixes against the slow reference, and the tests on the bugs and on three correct steps."""

import contextlib
import io
import random
import types
from functools import cache

import draw
import given
import mistakes
import reference
import torch
from grading import fail, first_line, points, rng, same, several

LAYOUTS = {"packed": "one packed row", "padded": "padded rows", "loops": "a loop over pairs and tokens"}


def module_of(source, name):
    module = types.ModuleType("step")
    exec(compile(source, name, "exec"), vars(module))
    return module


def shown(module):
    """What a test gets to see of a step: its two functions."""
    def step_loss(model, keys, values, owner, demos, dropped):
        return module.step_loss(model, keys, values, owner, demos, dropped)

    def tune(model, keys, values, owner, demos, dropped, lr):
        return module.tune(model, keys, values, owner, demos, dropped, lr)

    return types.SimpleNamespace(step_loss=step_loss, tune=tune)


@cache
def correct():
    return {name: module_of(source, "step.py") for name, source in draw.opened()["correct"].items()}


def bug_of(impl, i):
    """The text of the student's bug i."""
    name = getattr(impl, "NAME", "")
    if not isinstance(name, str) or not name.strip():
        fail("NAME is empty, so no bugs are drawn.", "the top of the file", repr(name), "your name in quotes",
             "Whose five bugs are these?", "1")
    return draw.source(name, i)


# the fixes ---------------------------------------------------------------------------------------------------------

def fixed(impl, seed, i):
    """The fixed step computes what the handout says. No message names the bug."""
    source, case = bug_of(impl, i), f"bug_{i}.py after fix_{i}"
    got = getattr(impl, f"fix_{i}")()
    ask = "Which piece of the file do you replace?"
    if not (isinstance(got, (tuple, list)) and len(got) == 2 and all(isinstance(part, str) for part in got)):
        want = "(a piece of the file, what stands there instead)"
        fail(f"fix_{i} returns two texts.", case, repr(got), want, ask, "2")
    old, new = got
    if not old or source.count(old) != 1:
        fail(f"The piece that fix_{i} replaces does not occur once in bug_{i}.py.", case,
             f"{source.count(old) if old else 'no text'}", "1", ask, "2")
    try:
        module = module_of(source.replace(old, new), f"bug_{i}.py, fixed")
        assert callable(module.step_loss) and callable(module.tune)
    except Exception as error:
        fail(f"The fixed bug_{i}.py cannot be imported.", case, f"{type(error).__name__}: {first_line(error)}",
             "a file with step_loss and tune", "Does it run when you replace the piece by hand?", "2")
    compare(module, seed, case)


def example(seed, k=3, instruction=2, stretch=1.0):
    """A model and the arguments of a step."""
    generator = rng(seed, f"A4 {k}")
    model = given.Model(seed + 5, stretch=stretch)
    ids = lambda n: torch.randint(model.vocab, (n,), generator=generator).tolist()
    demos = [(ids(x), ids(y)) for x, y in [(3, 2), (2, 5), (1, 1)][:k]]
    owner = torch.tensor([-1] * instruction + [i for i, (x, y) in enumerate(demos) for _ in [*x, *y]])
    draw_part = lambda: torch.randn(model.L, 1, model.K, len(owner), model.D, generator=generator).double()
    keys, values = draw_part(), draw_part()
    dropped = torch.rand(4, k, len(owner), generator=generator) < 0.3
    return model, keys, values, owner, demos, dropped


@cache
def wanted(seed):
    """What the reference makes of a step with k = 3 and 1, the loss and its gradients, and of a loop with k = 2."""
    steps = {}
    for k in (3, 1):
        model, keys, values, owner, demos, dropped = example(seed, k)
        leaves = [part.clone().requires_grad_() for part in (keys, values)]
        loss = reference.step_loss(model, *leaves, owner.tolist(), demos, dropped[0].tolist())
        steps[k] = loss.detach(), *torch.autograd.grad(loss, leaves)
    model, keys, values, owner, demos, dropped = example(seed, 2)
    loss = lambda leaves, t: mistakes.loss(model, *leaves, owner, demos, dropped[t])
    return steps, reference.descend(loss, [keys, values], reference.cosine(0.08, len(dropped)))


def compare(module, seed, case):
    """Wrong unless a step is the reference's, in its loss, its gradient, and four steps of its loop."""
    steps, loop = wanted(seed)
    for k, (loss, *slopes) in steps.items():
        model, keys, values, owner, demos, dropped = example(seed, k)
        leaves = [part.clone().requires_grad_() for part in (keys, values)]
        what, ask = f"{case}; k = {k} pairs, 2 entries of an instruction", "What does the handout say a step computes?"
        got = module.step_loss(model, *leaves, owner, demos, dropped[0])
        wide = lambda part: part.double() if isinstance(part, torch.Tensor) else part
        same(wide(got), loss, "The loss of the fixed step is not that of the slow reference.", what, ask, "1", 1e-5)
        gradients = torch.autograd.grad(got, leaves, allow_unused=True) if got.requires_grad else (None, None)
        for part, right, name in zip(gradients, slopes, ("keys", "values")):
            same(torch.zeros_like(right) if part is None else part, right,
                 f"The gradient in the {name} of the fixed step is not that of the slow reference.", what, ask, "1",
                 1e-5)
    for stretch in (1.0, 4096.0):
        model, keys, values, owner, demos, dropped = example(seed, 2, stretch=stretch)
        got = several(module.tune(model, keys.clone(), values.clone(), owner, demos, dropped, 0.08), ("keys", "values"),
                      "tune", "1")
        for part, right, name in zip(got, loop, ("keys", "values")):
            same(wide(part), right, f"The {name} after four steps of the fixed loop are not those of the reference.",
                 f"{case}; k = 2 pairs", "What does the handout say the loop does?", "1", 1e-3)


# the tests ---------------------------------------------------------------------------------------------------------

def verdict(catch, module):
    """(None or the error that a test ended in, what it printed, what it returned)."""
    said, returned, error = io.StringIO(), None, None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            returned = catch(shown(module))
        except KeyboardInterrupt:
            raise
        except BaseException as found:  # pytest.fail and sys.exit are no Exceptions
            error = found
    return error, said.getvalue(), returned


def is_failure(error):
    """An assert that fails, be it by the statement, by torch or by pytest.fail."""
    return isinstance(error, AssertionError) or type(error).__name__ == "Failed"


def caught(impl, seed, i):
    """The student's test i fails on bug i, and passes on three correct steps, each time it is asked."""
    source, catch = bug_of(impl, i), getattr(impl, f"catch_{i}")
    modules = {"bug": module_of(source, "step.py"), **correct()}
    asked = [*modules, *modules]
    random.Random(seed).shuffle(asked)
    found = {name: [] for name in modules}
    for name in asked:
        error, said, returned = verdict(catch, modules[name])
        what = "bug " + str(i) if name == "bug" else f"a correct step, {LAYOUTS[name]}"
        if isinstance(error, NotImplementedError):
            raise error
        if error is not None and not is_failure(error):
            fail(f"catch_{i} stops with an error that is no failed assert.", what,
                 f"{type(error).__name__}: {first_line(error)}", "an AssertionError, or nothing",
                 "Does your test ask what a step computes, or how it is written?", "3")
        if said.strip():
            fail(f"catch_{i} prints.", what, said.strip(), "silence: the verdict is whether an assert fails",
                 "Who reads what a test prints, when a thousand of them run?", "3")
        if returned is not None:
            fail(f"catch_{i} returns something instead of asserting it.", what, repr(returned), "None",
                 "What does a runner do with the value that a test returns?", "3")
        found[name].append(error)
    failed = {name: [error is not None for error in errors] for name, errors in found.items()}
    for name, twice in failed.items():
        if twice[0] != twice[1]:
            fail(f"catch_{i} gives two verdicts on the same step.", name if name == "bug" else LAYOUTS[name],
                 "once it fails and once it passes", "the same verdict each time",
                 "What does your test draw or keep, besides its arguments?", "3")
    wrong = [name for name in LAYOUTS if failed[name][0]]
    words = first_line(found[wrong[0]][0]) if wrong else ""
    if len(wrong) == len(LAYOUTS):
        fail(f"catch_{i} always fails: no correct step passes it." if failed["bug"][0] else
             f"catch_{i} is the wrong way round: it fails on correct steps and passes on the bug.",
             "three correct steps", f"AssertionError {words}".strip(), "no error on any of them",
             "What is true of every correct step, and not of this bug?", "3")
    if wrong:
        fail(f"catch_{i} depends on how a step is laid out: it fails on a correct one.",
             ", ".join(LAYOUTS[name] for name in wrong), f"AssertionError {words}".strip(), "no error",
             "Does your test ask what a step computes, or how? To how many digits do two sums agree?", "3")
    if not failed["bug"][0]:
        fail(f"catch_{i} always passes: it does not see bug {i}.", f"bug_{i}.py", "no AssertionError", "one",
             "Which number would be another one without this bug? Do your inputs show it?", "3")


@points(1, minutes=4, section="2")
def test_fix_1(impl, seed):
    fixed(impl, seed, 1)


@points(1, minutes=4, section="2")
def test_fix_2(impl, seed):
    fixed(impl, seed, 2)


@points(1, minutes=4, section="2")
def test_fix_3(impl, seed):
    fixed(impl, seed, 3)


@points(1, minutes=4, section="2")
def test_fix_4(impl, seed):
    fixed(impl, seed, 4)


@points(1, minutes=4, section="2")
def test_fix_5(impl, seed):
    fixed(impl, seed, 5)


@points(2, minutes=11, section="3")
def test_catch_1(impl, seed):
    caught(impl, seed, 1)


@points(2, minutes=11, section="3")
def test_catch_2(impl, seed):
    caught(impl, seed, 2)


@points(2, minutes=11, section="3")
def test_catch_3(impl, seed):
    caught(impl, seed, 3)


@points(2, minutes=11, section="3")
def test_catch_4(impl, seed):
    caught(impl, seed, 4)


@points(2, minutes=11, section="3")
def test_catch_5(impl, seed):
    caught(impl, seed, 5)
