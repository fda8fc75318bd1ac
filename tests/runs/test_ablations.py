"""CT-KV's variants: other starts, values alone, and bfloat16."""

import warnings
from dataclasses import asdict, replace

import pytest
import torch
from helpers import UNEVEN, leaves, message, padded_loss, pairs_of, random_task, relative_error, same_bits, tensors_of
from helpers import line as line_of

from nanoct.fewshot import encode_context
from nanoct.methods import ct_kv, icl
from nanoct.runs import ablations
from nanoct.runs.results import key
from nanoct.score import evaluate

OTHERS = random_task(((4, 1), (2, 2), (3, 3)), seed=8).demos


def with_others(task):
    task.others = OTHERS
    return task


@pytest.mark.parametrize("changes", [{}, dict(leave_one_out=False), dict(token_dropout=0.3)])
def test_without_a_change_it_is_ct_kv_bit_by_bit(model, changes):
    config, task = ct_kv.Config(n_step=4, **changes), random_task()
    unchanged = ablations.Config(**asdict(config))
    assert same_bits(ct_kv.adapt(model, task, config, 3), ablations.adapt(model, task, unchanged, 3))


@pytest.mark.parametrize("start", ["noise", "others"])
def test_a_start_that_is_not_the_demos_hides_none_of_them(model, steps, start):
    task, losses = with_others(random_task(UNEVEN)), []
    config = ablations.Config(n_step=2, token_dropout=0.0, start=start)
    adapted = ablations.adapt(model, task, config, progress=lambda step, loss: losses.append(loss))
    read = encode_context(model, task.instruction, OTHERS if start == "others" else task.demos)
    for part, expected in zip(steps[0]["before"], read.stack(), strict=True):
        assert part.shape == expected.shape and torch.equal(part, expected) == (start == "others")
    if start == "noise":
        assert adapted.prefix.owner.tolist() == [-1] * len(read.owner)
        assert same_bits(*[ablations.adapt(model, task, replace(config, n_step=0), seed) for seed in (2, 2)])
        assert not same_bits(*[ablations.adapt(model, task, replace(config, n_step=0), seed) for seed in (2, 3)])
    assert adapted.prefix.next_position == len(adapted.prefix.owner) == len(read.owner)
    for step, loss in zip(steps, losses, strict=True):
        theta, prefix = leaves(read.of(*step["before"]))
        slow = padded_loss(model, prefix, pairs_of(task), torch.ones(len(task.demos), len(read.owner)).bool())
        assert loss == pytest.approx(slow.item(), rel=1e-5)
        gradients = torch.autograd.grad(slow, theta)
        for ours, theirs in zip(step["raw"], (gradients[::2], gradients[1::2]), strict=True):
            assert relative_error(ours, torch.stack(theirs)) < 1e-5


def test_another_start_drops_tokens_and_has_no_need_of_two_demos(model, steps):
    task = with_others(random_task(lengths=[(4, 2)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for start in ("noise", "others"):
            ablations.adapt(model, task, ablations.Config(n_step=1, token_dropout=0.5, start=start))
    for step in steps:
        zero = (step["raw"][1] == 0).all(-1)[0, 0, 0]  # (P,)
        assert zero.any() and not zero.all()


@pytest.mark.parametrize("task, start", [(random_task(), "others"), (with_others(random_task()), "tokens")])
def test_a_start_that_there_is_not_is_refused(model, task, start):
    with pytest.raises(ValueError) as error:
        ablations.adapt(model, task, ablations.Config(start=start), progress=lambda *_: pytest.fail("trained"))
    assert repr(start) in message(error) and "noise" in message(error)


def test_values_only_leaves_the_keys_as_they_are(model, steps):
    task = random_task()
    ours, both = (ablations.adapt(model, task, ablations.Config(n_step=4, values_only=only)) for only in (True, False))
    (keys, values), (start_keys, start_values) = ours.prefix.stack(), icl.adapt(model, task).prefix.stack()
    assert torch.equal(keys, start_keys) and (values != start_values).any(-1).all()
    assert 2 * ours.n_trained == both.n_trained and not torch.equal(both.prefix.stack()[0], start_keys)
    assert [len(step["raw"]) for step in steps] == [1] * 4 + [2] * 4
    assert torch.equal(steps[0]["raw"][0], steps[4]["raw"][1])  # the same loss under the same masks
    assert torch.equal(steps[3]["after"][0], values)


def test_bf16_trains_bfloat16_and_loses_small_steps(model, steps):
    task = random_task()
    adapted = ablations.adapt(model, task, ablations.Config(n_step=3, bf16=True))
    assert {value.dtype for step in steps for value in step["after"]} == {torch.bfloat16}
    assert {part.dtype for part in tensors_of(adapted)} == {torch.bfloat16}
    assert adapted.n_trained == ct_kv.adapt(model, task, ct_kv.Config(n_step=0)).n_trained
    evaluate(adapted, task)
    share = {}
    for bf16 in (False, True):
        n = len(steps)
        ablations.adapt(model, task, ablations.Config(n_step=1, lr=1e-4, token_dropout=0.0, bf16=bf16))
        moved = torch.cat([(a != b).flatten() for a, b in zip(steps[n]["before"], steps[n]["after"], strict=True)])
        share[bf16] = moved.float().mean()
    assert share[False] > 0.99 and share[True] < 0.5


def test_bf16_starts_at_the_rounded_cache_and_hides_what_ct_kv_hides(model, steps):
    task, losses = random_task(), {True: [], False: []}
    for bf16, said in losses.items():
        config = ablations.Config(n_step=1, token_dropout=0.3, bf16=bf16)
        ablations.adapt(model, task, config, 3, lambda step, loss, said=said: said.append(loss))
    for part, start in zip(steps[0]["before"], icl.adapt(model, task).prefix.stack(), strict=True):
        assert torch.equal(part, start.bfloat16())
    hidden = [(step["raw"][1] == 0).all(-1) for step in steps]
    assert torch.equal(*hidden) and losses[True] == pytest.approx(losses[False], rel=0.05)


def test_a_frozen_first_entry_stays_bit_by_bit_and_all_others_move(model, steps):
    task = random_task()
    ours, both = (ablations.adapt(model, task, ablations.Config(n_step=4, freeze_first=x), 3) for x in (True, False))
    start = icl.adapt(model, task).prefix.stack()
    for part, before in zip(ours.prefix.stack(), start, strict=True):
        assert torch.equal(part[..., :1, :], before[..., :1, :])
        assert (part[..., 1:, :] != before[..., 1:, :]).any(-1).all()
    P = len(ours.prefix.owner)
    assert ours.n_trained * P == both.n_trained * (P - 1) and both.prefix.owner.tolist() == ours.prefix.owner.tolist()
    for frozen, free in zip(steps[0]["raw"], steps[4]["raw"], strict=True):  # the same loss at the first step
        assert torch.equal(frozen, free[..., 1:, :])


def test_lines_from_before_there_was_a_frozen_entry_are_those_without():
    config = asdict(ablations.Config())
    old = line_of(ablations.NAME, config={name: value for name, value in config.items() if name != "freeze_first"})
    assert key(old) == key(old | dict(config=config)) != key(old | dict(config=config | dict(freeze_first=True)))
