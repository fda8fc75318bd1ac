"""The optimiser loop: AdamW written out, in every method; and where it stops."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from helpers import TUNED, config_of, message, random_task, tiny_llama
from torch.utils._python_dispatch import TorchDispatchMode

from nanoct.methods import METHODS, ct_kv
from nanoct.optimise import EVERY, optimise, take_step
from nanoct.score import demo_loss


def check_optimiser(steps, lr, n_step):
    """Clip at 1, the cosine without warm-up, and AdamW (betas .9 .999, eps 1e-8, no weight decay) written out."""
    assert len(steps) == n_step
    m = [torch.zeros_like(p) for p in steps[0]["before"]]
    v = [torch.zeros_like(p) for p in steps[0]["before"]]
    for t, step in enumerate(steps):
        assert step["lr"] == pytest.approx(lr * (1 + math.cos(math.pi * t / n_step)) / 2, rel=1e-9)
        norm = math.sqrt(sum(g.double().pow(2).sum().item() for g in step["raw"]))
        for i, (raw, clipped) in enumerate(zip(step["raw"], step["clipped"])):
            torch.testing.assert_close(clipped, raw * min(1, 1 / norm), rtol=1e-4, atol=0)
            m[i] = 0.9 * m[i] + 0.1 * clipped
            v[i] = 0.999 * v[i] + 0.001 * clipped**2
            change = -step["lr"] * (m[i] / (1 - 0.9 ** (t + 1))) / ((v[i] / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
            torch.testing.assert_close(step["after"][i], step["before"][i] + change, rtol=1e-5, atol=1e-6)
    return [math.sqrt(sum(g.pow(2).sum().item() for g in step["raw"])) for step in steps]


@pytest.mark.parametrize("name", TUNED)
def test_every_method_takes_these_steps(model, steps, name):
    config = config_of(METHODS[name], n_step=5, lr=0.02, ttt_n_step=4, ttt_lr=0.03, rank=2, n_prefix=5)
    METHODS[name].adapt(model, random_task(), config)
    n_first = 4 if name == "ttt_ct_kv" else 0
    if n_first:
        check_optimiser(steps[:n_first], lr=0.03, n_step=n_first)
    check_optimiser(steps[n_first:], lr=0.02, n_step=5)


@pytest.mark.parametrize("separator", [(), (4, 9)])
@pytest.mark.parametrize("leave_one_out", [True, False])
@pytest.mark.parametrize("name", sorted({*TUNED} - {"ttt", "ttt_ct_kv"}))
def test_the_loss_of_the_demos_is_what_was_minimised_without_dropout(model, name, leave_one_out, separator):
    """Before the first step and behind one: the losses that two steps without dropout report."""
    method, task, losses = METHODS[name], random_task(separator=separator), []
    settings = dict(lr=0.02, rank=2, n_prefix=5, leave_one_out=leave_one_out, one_pass=True)
    plain = config_of(method, n_step=2, token_dropout=0, dropout=0, **settings)
    method.adapt(model, task, plain, progress=lambda step, loss: losses.append(loss))
    for n_step, expected in enumerate(losses):
        adapted = method.adapt(model, task, config_of(method, n_step=n_step, token_dropout=0, dropout=0, **settings))
        assert demo_loss(adapted, task, leave_one_out) == pytest.approx(expected, rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_the_loss_of_the_demos_draws_nothing_and_hides_no_only_demo(model):
    method, task, state = METHODS["ttt"], random_task(), torch.get_rng_state()
    adapted = method.adapt(model, task, method.Config(n_step=1, rank=2, dropout=0.9))
    assert demo_loss(adapted, task) == demo_loss(adapted, task) and torch.equal(state, torch.get_rng_state())
    alone = random_task(((3, 2),))
    read = METHODS["icl"].adapt(model, alone)
    assert demo_loss(read, alone) == demo_loss(read, alone, leave_one_out=False)
    assert math.isfinite(demo_loss(METHODS["zero_shot"].adapt(model, alone), alone))


@pytest.mark.parametrize("bound", [True, False])
def test_gradients_are_clipped_at_1_and_small_ones_left(steps, bound):
    model = tiny_llama(n_layer=3)
    model.model.norm.weight.mul_(3 if bound else 0.05)
    ct_kv.adapt(model, random_task(), ct_kv.Config(n_step=5, lr=0.02))
    norms = check_optimiser(steps, lr=0.02, n_step=5)
    assert min(norms) > 1 if bound else max(norms) < 1


class Waiting(TorchDispatchMode):
    """Collects operations that wait for a GPU, as the processor needs what they return or its size.

    A number that is drawn by the CPU's generator counts too: the copy to the GPU waits.
    """

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.overloadpacket in WAITING or (op.overloadpacket == torch.ops.aten.rand and self.draws_wait):
            self.found.append(str(op))
        return op(*args, **kwargs or {})


WAITING = [torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select,
           torch.ops.aten.equal, torch.ops.aten.is_nonzero]


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("name", [name for name in TUNED if "ttt" not in name])  # TTT makes its rows in every step
def test_no_operation_of_a_step_waits_for_a_gpu(monkeypatch, name, checkpoint):
    waiting, model, steps, AdamW = Waiting(), tiny_llama(), [], torch.optim.AdamW
    waiting.draws_wait = name not in ("lora", "dora")  # their dropout is drawn on the GPU

    def watched(*args):
        steps.append(args)
        with waiting:
            return take_step(*args)

    monkeypatch.setattr("nanoct.optimise.take_step", watched)
    monkeypatch.setattr(torch.optim, "AdamW", lambda leaves, **options: AdamW(leaves, **options | dict(fused=True)))
    model.checkpoint = checkpoint
    METHODS[name].adapt(model, random_task(), config_of(METHODS[name], n_step=3, n_prefix=5))
    assert len(steps) == 3 and not waiting.found


def run(fail_at, with_what, n_step=6, lr=0.3):
    """Optimise x and y, which fails at step fail_at: their values at every loss, the leaves, what was reported."""
    x, y = torch.arange(4.0).add(1).requires_grad_(), torch.tensor(-2.0, requires_grad=True)
    values, reported = [], []

    def loss():
        values.append([x.detach().clone(), y.detach().clone()])
        usual = x.pow(2).sum() + (y - 1).pow(2)
        return usual if len(values) <= fail_at else with_what(usual, x)

    optimise(loss, [x, y], SimpleNamespace(n_step=n_step, lr=lr), lambda *call: reported.append(call))
    return values, [x, y], reported


FAILURES = {
    "nan": lambda usual, x: usual * math.nan,
    "inf": lambda usual, x: usual + math.inf,
    "nan gradient": lambda usual, x: usual.detach() + (x * 0).sqrt().sum(),  # 0 · inf
    "inf gradient": lambda usual, x: usual.detach() + (x - x.detach()).sqrt().sum(),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("at", [0, 1, 4])
@pytest.mark.parametrize("every", [1, 3, 16])  # as on a GPU, which takes more steps before one looks at the first
def test_what_is_not_finite_ends_it_at_the_last_finite_step(monkeypatch, failure, at, every):
    monkeypatch.setitem(EVERY, "cpu", every)
    with pytest.warns(UserWarning) as caught:
        values, leaves, reported = run(at, FAILURES[failure])
    (text,) = [str(warning.message) for warning in caught]
    assert f"step {at}" in text and "0.3" in text and failure.split()[0] in text and "\n" not in text
    assert (f"step {at - 1}" if at else "the start") in text
    assert len(values) == min(6, at // every * every + every) and [step for step, _ in reported] == list(range(at))
    for leaf, value in zip(leaves, values[max(at - 1, 0)], strict=True):
        assert torch.equal(leaf, value) and not leaf.requires_grad and leaf.grad is None


def test_finite_steps_behind_one_that_was_not_are_not_kept(monkeypatch):
    monkeypatch.setitem(EVERY, "cpu", 16)
    x, values = torch.arange(4.0).requires_grad_(), []

    def loss():
        values.append(x.detach().clone())
        return x.pow(2).sum() + (math.inf if len(values) == 3 else 0)

    with pytest.warns(UserWarning, match="step 2: stopped, with the values of step 1"):
        optimise(loss, [x], SimpleNamespace(n_step=6, lr=0.1))
    assert len(values) == 6 and values[-1].isfinite().all() and torch.equal(x, values[1])


@pytest.mark.parametrize("every", [1, 4])
def test_what_is_finite_runs_through_in_silence(monkeypatch, every):
    monkeypatch.setitem(EVERY, "cpu", every)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values, leaves, reported = run(6, None)
    assert len(values) == 6 and [step for step, _ in reported] == list(range(6))
    losses = [loss for _, loss in reported]
    assert losses == [(x.pow(2).sum() + (y - 1).pow(2)).item() for x, y in values] and losses == sorted(losses)[::-1]
    assert not any(torch.equal(leaf, value) for leaf, value in zip(leaves, values[-1], strict=True))  # last step too
    assert not any(leaf.requires_grad or leaf.grad is not None for leaf in leaves)


def test_no_steps_change_nothing():
    values, leaves, reported = run(0, None, n_step=0)
    assert values == reported == [] and leaves[0].tolist() == [1, 2, 3, 4] and leaves[1] == -2


def test_nothing_but_the_leaves_gets_a_gradient():
    x, other = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimise(lambda: (x * other).sum(), [x], SimpleNamespace(n_step=2, lr=0.1))
    assert other.grad is None and other.requires_grad and (x < 1).all()


@pytest.mark.parametrize("n_step, lr", [(-1, 0.1), (3, 0.0), (3, -0.1), (3, math.nan)])
def test_steps_and_rates_that_cannot_be_are_refused(n_step, lr):
    with pytest.raises(ValueError) as error:
        run(6, None, n_step, lr)
    assert f"n_step = {n_step}" in message(error) and f"lr = {lr}" in message(error)
