"""Grades A4: the fixes against the slow reference, and the tests on the bugs and on three correct steps."""

import contextlib
import io
import random
import time
import types
import warnings
from functools import cache

import draw
import given
import mistakes
import reference
import torch
from grading import fail, first_line, points, rng, same, several, untouched

ROUNDS, SECONDS = 23, 2.0  # how often a test is asked of each step, and after which time no more than LEAST times
LEAST = 4
LAYOUTS = {"packed": "one packed row", "padded": "padded rows", "loops": "a loop over pairs and tokens"}


def module_of(source, name):
    module = types.ModuleType("step")
    exec(compile(source, name, "exec"), vars(module))
    module.source = source  # a test does not see it; grade.py sends a step to another process as its text
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


def bugs_of(impl, i):
    """The text of the student's bug i, and that of another file with the same bug."""
    name = getattr(impl, "NAME", "")
    if not isinstance(name, str) or not name.strip():
        fail("NAME is empty, so no bugs are drawn.", "the top of the file", repr(name), "your name in quotes",
             "Whose five bugs are these?", "1")
    return draw.sources(name, i)


# the fixes ---------------------------------------------------------------------------------------------------------

def fixed(impl, seed, i):
    """The fixed step computes what the handout says. No message names the bug."""
    (source, _), case = bugs_of(impl, i), f"bug_{i}.py after fix_{i}"
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


def example(seed, k=3, instruction=2, stretch=1.0, loud=1.0, alike=False):
    """A model and the arguments of a step. loud: how much longer gradients are; alike: the tokens are 0 and 1 alone."""
    generator = rng(seed, f"A4 {k}")
    model = given.Model(seed + 5, stretch=stretch)
    with torch.no_grad():
        model.head *= loud
    ids = lambda n: torch.randint(2 if alike else model.vocab, (n,), generator=generator).tolist()
    demos = [(ids(x), ids(y)) for x, y in [(3, 2), (2, 5), (1, 1)][:k]]
    owner = torch.tensor([-1] * instruction + [i for i, (x, y) in enumerate(demos) for _ in [*x, *y]])
    draw_part = lambda: torch.randn(model.L, 1, model.K, len(owner), model.D, generator=generator).double()
    keys, values = draw_part(), draw_part()
    dropped = torch.rand(6, k, len(owner), generator=generator) < 0.3
    if loud > 1:
        dropped[1::2, :, 1:] = True  # every other gradient is short: it is of one entry
    return model, keys, values, owner, demos, dropped


STEPS = ({}, dict(k=1), dict(k=2, instruction=0, alike=True), dict(k=1, instruction=0))
LOOPS = (  # (what is given, lr, the least difference that counts)
    (dict(k=2), 0.08, 1e-3), (dict(k=2, loud=9.0), 0.3, 4e-3), (dict(k=2, loud=1.5), 0.6, 4e-3),
)


@cache
def wanted(seed):
    """What the reference makes of a step, the loss and its gradients, and of the loops."""
    steps = []
    for kind in STEPS:
        model, keys, values, owner, demos, dropped = example(seed, **kind)
        for mask in (dropped[0], torch.ones_like(dropped[0])):
            leaves = [part.clone().requires_grad_() for part in (keys, values)]
            loss = reference.step_loss(model, *leaves, owner.tolist(), demos, mask.tolist())
            slopes = torch.autograd.grad(loss, leaves, materialize_grads=True) if loss.requires_grad else (
                torch.zeros_like(keys), torch.zeros_like(values))
            steps.append((kind, mask, loss.detach(), slopes))
    return steps, [loop(seed, kind, lr) for kind, lr, _ in LOOPS]


def loop(seed, kind, lr, **more):
    """The tuned keys and values of a loop, by the reference."""
    model, keys, values, owner, demos, dropped = example(seed, **kind)
    loss = lambda leaves, t: mistakes.loss(model, *leaves, owner, demos, dropped[t])
    return reference.descend(loss, [keys, values], reference.cosine(lr, len(dropped)), **more)


def compare(module, seed, case):
    """Wrong unless a step is the reference's, in its loss, its gradient, and six steps of its loop."""
    steps, loops = wanted(seed)
    wide = lambda part: part.double() if isinstance(part, torch.Tensor) else part
    for kind, mask, loss, slopes in steps:
        model, keys, values, owner, demos, _ = example(seed, **kind)
        leaves = [part.clone().requires_grad_() for part in (keys, values)]
        what, ask = f"{case}; k = {len(demos)} pairs, P = {len(owner)}", "What does the handout say a step computes?"
        mask = mask.clone()
        with untouched("step_loss", "1", keys=leaves[0], values=leaves[1], owner=owner, demos=demos, dropped=mask):
            got = module.step_loss(model, *leaves, owner, demos, mask)
        same(wide(got), loss, "The loss of the fixed step is not that of the slow reference.", what, ask, "1", 1e-5)
        gradients = torch.autograd.grad(got, leaves, allow_unused=True) if got.requires_grad else (None, None)
        for part, right, name in zip(gradients, slopes, ("keys", "values")):
            same(torch.zeros_like(right) if part is None else part, right,
                 f"The gradient in the {name} of the fixed step is not that of the slow reference.", what, ask, "1",
                 1e-5)
    for stretch in (1.0, 4096.0):
        for (kind, lr, atol), want in zip(LOOPS, loops):
            model, keys, values, owner, demos, dropped = example(seed, stretch=stretch, **kind)
            weights = [weight.detach().clone() for weight in model.parameters()]
            with untouched("tune", "1", keys=keys, values=values, owner=owner, demos=demos, dropped=dropped):
                got = several(module.tune(model, keys, values, owner, demos, dropped, lr), ("keys", "values"), "tune",
                              "1")
            if not all(map(torch.equal, weights, model.parameters())):
                fail("The fixed loop changes the weights of the model.", case, "other weights", "the same bits",
                     "What does the handout say is tuned?", "1")
            for part, right, name in zip(got, want, ("keys", "values")):
                same(wide(part), right,
                     f"The {name} after six steps of the fixed loop are not those of the reference.",
                     f"{case}; k = 2 pairs, lr = {lr}" + ", every other gradient is longer than 1" * (kind != {"k": 2}),
                     "What does the handout say the loop does?", "1", atol)


# the tests ---------------------------------------------------------------------------------------------------------

def verdict(catch, module):
    """(None or the error that a test ended in, what it printed, what it returned)."""
    said, returned, error = io.StringIO(), None, None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning of torch is no print
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
    """The student's test i fails on bug i, however that is laid out, and passes on three correct steps, each time."""
    catch = getattr(impl, f"catch_{i}")
    sources = dict(zip(("bug", "again"), bugs_of(impl, i)))
    modules = {name: module_of(source, "step.py") for name, source in sources.items()} | correct()
    names = {"bug": f"bug_{i}.py", "again": f"bug {i} in a file that is laid out differently"}
    names |= {name: f"a correct step, {layout}" for name, layout in LAYOUTS.items()}
    found, dice, began = {name: [] for name in modules}, random.Random(seed), time.process_time()
    for n in range(ROUNDS):
        if n >= LEAST and time.process_time() - began > SECONDS:
            break
        for name in dice.sample(list(modules), len(modules)):
            torch.manual_seed(dice.randrange(2**32))  # a test that draws without a seed draws another case each time
            random.seed(dice.randrange(2**32))
            found[name].append(asked(catch, i, modules[name], names[name]))
        if n:
            judge(found, names, i)


def asked(catch, i, module, what):
    """What a test ends in on a step: None, or its AssertionError."""
    error, said, returned = verdict(catch, module)
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
    return error


def judge(found, names, i):
    """Wrong unless a test failed on both files with the bug, each time, and on no correct step."""
    for name, errors in found.items():
        n_failed = sum(error is not None for error in errors)
        if 0 < n_failed < len(errors):
            fail(f"catch_{i} gives two verdicts on the same step.", names[name],
                 f"it fails {n_failed} times and passes {len(errors) - n_failed} times", "the same verdict each time",
                 "What does your test draw or keep, besides its arguments?", "3")
    failed = {name: errors[0] is not None for name, errors in found.items()}
    wrong = [name for name in LAYOUTS if failed[name]]
    words = first_line(found[wrong[0]][0]) if wrong else ""
    if len(wrong) == len(LAYOUTS):
        fail(f"catch_{i} always fails: no correct step passes it." if failed["bug"] else
             f"catch_{i} is the wrong way round: it fails on correct steps and passes on the bug.",
             "three correct steps", f"AssertionError {words}".strip(), "no error on any of them",
             "What is true of every correct step, and not of this bug?", "3")
    if wrong:
        fail(f"catch_{i} depends on how a step is laid out: it fails on a correct one.",
             ", ".join(LAYOUTS[name] for name in wrong), f"AssertionError {words}".strip(), "no error",
             "Does your test ask what a step computes, or how? To how many digits do two sums agree?", "3")
    if not failed["bug"]:
        fail(f"catch_{i} always passes: it does not see bug {i}.", names["bug"], "no AssertionError", "one",
             "Which number would be another one without this bug? Do your inputs show it?", "3")
    if not failed["again"]:
        fail(f"catch_{i} depends on how a step is laid out: it sees the bug in your file alone.", names["again"],
             "no AssertionError", "one", "Does your test ask what a step computes, or how?", "3")


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
