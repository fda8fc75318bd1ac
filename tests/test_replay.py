"""A step on tensors that keep their places: padded, and replayed for the next task, it is the ordinary one."""

import inspect
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import V, float64_llama, leaves, pairs_of, random_task, relative_error, tensors_of, tiny_llama

from nanoct.fewshot import Prefix, encode_context
from nanoct.gpt2 import GPT2, GPT2Config
from nanoct.methods import KNOWN, METHODS, ct_kv, prefix_tuning, ttt_ct_kv
from nanoct.optimise import BLOCK, KEPT, N_WARM, Step, Stopped, optimise_masked, padded_sizes, take_step
from nanoct.packing import answer_logits, pack, pack_demos, visible

LENGTHS = ((3, 2), (5, 1), (2, 4), (6, 3)), ((2, 1), (3, 1), (4, 2), (1, 1)), ((7, 3), (5, 4), (2, 4), (6, 3))


def tiny_gpt2():
    model = GPT2(GPT2Config(V, n_layer=2, n_head=4, n_embd=16, n_ffn=24, n_position=160)).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.normal_(std=0.4, generator=generator)
    return model


def float64_gpt2():
    model = tiny_gpt2().double()
    model.logits = lambda hidden: F.linear(hidden, model.embedding.weight)
    return model


# --- padding ---


@pytest.mark.parametrize("build", [float64_llama, float64_gpt2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_padded_loss_and_gradients_are_the_same_in_float64(build, dropout):
    model, task = build(), random_task()
    theta, prefix = leaves(encode_context(model, task.instruction, task.demos))
    row, P = pack(pairs_of(task), model, prefix.next_position), len(prefix.owner)
    seen = visible(prefix.owner, 4, True, dropout, torch.Generator().manual_seed(1))
    grown = [F.pad(part, (0, 0, 0, 7)) for part in theta]
    longer = Prefix(list(zip(grown[::2], grown[1::2])), None, None)
    padded, hidden = row.padded(T=len(row.pair) + 9, N=len(row.where) + 5), F.pad(seen, (0, 7))
    assert padded.tokens.shape == padded.positions.shape == (1, len(row.pair) + 9)
    plain = F.cross_entropy(answer_logits(model, row, prefix, mask=row.mask(seen)), row.target)
    logits = answer_logits(model, padded, longer, mask=padded.mask(hidden))
    assert len(logits) == len(row.where) + 5
    loss = F.cross_entropy(logits, padded.target)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-12)
    wanted, found = torch.autograd.grad(plain, theta), torch.autograd.grad(loss, [*theta, *grown])
    for ours, slow in zip(found, wanted):
        assert slow.abs().max() > 0 and relative_error(ours, slow) < 1e-11
    assert all((part[..., P:, :] == 0).all() for part in found[len(theta) :])  # AdamW never moves what is hidden


def test_a_padded_row_sees_no_more_than_the_row(model):
    row = pack(pairs_of(random_task()), model)
    T, padded = len(row.pair), row.padded(len(row.pair) + 6, len(row.where))
    before, after = row.mask(torch.ones(4, 3).bool()), padded.mask(torch.ones(4, 3).bool())
    assert torch.equal(after[:, :T, : 3 + T], before) and not after[:, :T, 3 + T :].any()
    assert after[0, T:, 3 + T :].diagonal().all()  # or a softmax over nothing is not a number


# --- replays ---


def both(model, method, tasks, dtype=None, **settings):
    """[(losses, Adapted) without graphs, the same with] of every task, and the Steps that were kept."""
    graphs, found = {}, []
    for seed, task in enumerate(tasks):
        config, pair = method.Config(**settings), []
        for model.graphs in (None, graphs):
            losses = []
            adapted = method.adapt(model, task, config, seed, lambda step, loss, losses=losses: losses.append(loss))
            pair.append((losses, adapted))
        found.append(pair)
    model.graphs = None
    return found, graphs


def agree(found, tolerance=1e-5):
    for (losses, adapted), (replayed, other) in found:
        assert len(losses) == len(replayed) > 1 and replayed == pytest.approx(losses, rel=tolerance)
        assert adapted.n_trained == other.n_trained and len(adapted.prefix.owner) == len(other.prefix.owner)
        for ours, theirs in zip(tensors_of(other), tensors_of(adapted), strict=True):
            assert ours.shape == theirs.shape and not ours.requires_grad and relative_error(ours, theirs) < tolerance


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("method", [ct_kv, prefix_tuning])
def test_one_step_on_the_same_tensors_serves_all_tasks_with_the_usual_losses(monkeypatch, method, build, checkpoint):
    """Longer and shorter ones; a recording is made once, at the fourth step, and every loss is that without graphs."""
    model, recorded, record = build(), [], Step.record
    monkeypatch.setattr(Step, "record", lambda step: recorded.append(step.n_taken) or record(step))
    model.checkpoint = checkpoint
    tasks = [random_task(lengths, seed=i) for i, lengths in enumerate([*LENGTHS, LENGTHS[0]])]
    found, graphs = both(model, method, tasks, n_step=5, lr=0.02)
    agree(found)
    (step,) = graphs.values()
    assert step.n_taken == 5 * 4 and recorded == [N_WARM]
    assert {len(part) for part in (step.row.pair, step.row.where)} == {BLOCK} == {step.leaves[0].shape[-2]}


def test_a_bfloat16_step_gives_the_usual_losses():
    found, _ = both(tiny_llama(torch.bfloat16), ct_kv, [random_task(), random_task(LENGTHS[1])], n_step=5, lr=0.02)
    agree(found, 2e-2)


def test_masks_are_the_seeds_and_anew_in_every_step():
    model, task = tiny_llama(), random_task()
    masks, take = [], Step.take
    config = ct_kv.Config(n_step=4, token_dropout=0.4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "take", lambda step, seen, lr: masks.append(seen) or take(step, seen, lr))
        model.graphs = {}
        ct_kv.adapt(model, task, config, seed=7)
    owner, generator = encode_context(model, task.instruction, task.demos).owner, torch.Generator().manual_seed(7)
    for seen in masks:
        assert torch.equal(seen[:, : len(owner)], visible(owner, 4, True, 0.4, generator))
        assert not seen[:, len(owner) :].any()
    assert len(masks) == 4


@pytest.mark.parametrize("lengths", [LENGTHS[0], ((40, 10), (2, 10))])  # of the second nothing need be padded
def test_the_context_is_as_long_as_without_graphs_and_is_not_the_next_tasks(lengths):
    model = tiny_llama()
    model.graphs = {}
    first = ct_kv.adapt(model, random_task(lengths, seed=0), ct_kv.Config(n_step=2))
    before = [part.clone() for part in tensors_of(first)]
    ct_kv.adapt(model, random_task(lengths, seed=1), ct_kv.Config(n_step=2))
    assert len(model.graphs) == 1 and all(map(torch.equal, tensors_of(first), before))
    assert {part.shape[2] for part in before} == {len(first.prefix.owner)}


def failing(at, row, context):
    """A loss (row, keys, values, seen) that is nan where a mask hides everything, and masks that do so at step `at`."""
    k, masks = len(row.pair.unique()), iter(range(100))
    draw = lambda: torch.full((k, len(context.owner)), next(masks) != at)

    def loss(row, keys, values, seen):
        return (keys.square().sum() + values.square().sum()) * torch.where(seen.any(), 1.0, torch.nan)

    return loss, draw


@pytest.mark.parametrize("at", [0, 1, 4])
def test_what_is_not_finite_ends_a_replay_at_the_last_finite_step_and_the_next_task_starts_anew(at):
    model, task = tiny_llama(), random_task()
    context, graphs, results = encode_context(model, task.instruction, task.demos), {}, []
    row = pack_demos(task, model, context.next_position)
    for model.graphs in (None, graphs):
        for fails_at in (-1, at, -1):
            theta = [part.float().requires_grad_() for part in context.stack()]
            losses, (loss, draw) = [], failing(fails_at, row, context)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                optimise_masked(model, loss, row, theta, draw, SimpleNamespace(n_step=6, lr=0.3),
                                lambda step, loss, losses=losses: losses.append(loss))
            said = [str(warning.message) for warning in caught if warning.category is Stopped]
            assert len(said) == (fails_at >= 0) and len(losses) == (at if said else 6)
            results.append((theta, losses, [text.split("gradient")[0] + text.split("at step")[1] for text in said]))
    assert len(graphs) == 1
    for (theta, losses, said), (replayed, others, also) in zip(results[:3], results[3:], strict=True):
        assert said == also and others == pytest.approx(losses, rel=1e-5)
        for ours, theirs in zip(replayed, theta):
            assert not ours.requires_grad and ours.isfinite().all() and relative_error(ours, theirs) < 1e-5


def test_a_model_keeps_the_steps_that_were_used_last(model):
    model = tiny_llama(n_position=1000)
    model.graphs, sizes = {}, [(n, 1) for n in (3, 70, 140, 210)]
    tune = lambda size: ct_kv.adapt(model, random_task((size, (2, 1))), ct_kv.Config(n_step=1))
    for size in sizes:
        tune(size)
    first, second, *_ = model.graphs
    assert len(model.graphs) == KEPT == 4
    tune(sizes[0])
    tune((280, 1))
    assert len(model.graphs) == KEPT and first in model.graphs and second not in model.graphs


def test_a_kept_step_serves_a_somewhat_smaller_task_with_the_usual_losses_and_no_much_smaller_one():
    """Rows and contexts of 5 blocks, then of 4, which 5 serve, as they are at most 1.25 times as many; then of 3."""
    model = tiny_llama(n_position=1000)
    tasks = [random_task(((n, 1), (2, 1)), seed=n) for n in (300, 240, 180)]
    found, graphs = both(model, ct_kv, tasks, n_step=5, lr=0.02)
    agree(found)
    assert [(step.leaves[0].shape[-2], len(step.row.pair), step.n_taken) for step in graphs.values()] == [
        (5 * BLOCK, 5 * BLOCK, 10), (3 * BLOCK, 3 * BLOCK, 5)]


@pytest.mark.parametrize("kept, sizes, taken", [
    ([], (65, 1, 64), (128, 64, 64)), ([(320, 320, 64)], (250, 250, 1), (320, 320, 64)),
    ([(320, 320, 128)], (250, 250, 1), (256, 256, 64)),  # twice the targets
    ([(256, 320, 64)], (300, 250, 1), (320, 256, 64)),  # too short
    ([(320, 320, 64), (320, 256, 64), (256, 320, 128)], (250, 250, 9), (320, 256, 64)),  # the smallest that will do
    ([(1024, 1152, 64), (960, 1024, 64)], (950, 950, 9), (960, 1024, 64)),
])
def test_sizes_are_those_of_a_kept_step_if_they_are_long_enough_and_not_too_long(kept, sizes, taken):
    graphs = {("a", size): None for size in kept} | {("another", (256, 256, 64)): None}
    assert padded_sizes(graphs, "a", sizes) == taken


def test_a_step_is_one_methods_with_one_setting_and_one_way_to_keep_activations():
    model, task = tiny_llama(), random_task()
    model.graphs = {}
    for config in (ct_kv.Config(n_step=1), ct_kv.Config(n_step=1, token_dropout=0.2)):
        ct_kv.adapt(model, task, config)
    prefix_tuning.adapt(model, task, prefix_tuning.Config(n_step=1, n_prefix=32))
    model.checkpoint = True
    ct_kv.adapt(model, task, config)
    assert len(model.graphs) == 4
    context, zero = encode_context(model, task.instruction, task.demos), lambda row, keys, values, seen: keys.sum() * 0
    theta = [part.float().requires_grad_() for part in context.stack()]
    draw = lambda: visible(context.owner, len(task.demos))
    optimise_masked(model, zero, pack_demos(task, model, context.next_position), theta, draw, config)
    assert len(model.graphs) == KEPT and next(reversed(model.graphs))[0][0] is zero.__code__


@pytest.mark.parametrize("name", KNOWN)
def test_a_method_says_whether_its_step_is_kept(name):
    module, fields = KNOWN[name], vars(KNOWN[name].Config())
    if name == "ttt_ct_kv":
        return  # below
    model, short = tiny_llama(), {field: 1 for field in ("n_step", "n_round", "rank", "batch") if field in fields}
    model.graphs = {}
    module.adapt(model, random_task(), module.Config(**short))
    assert bool(model.graphs) == getattr(module, "GRAPH", False)


def test_under_an_adapter_it_goes_on_without_graphs_and_says_so():
    model, task = tiny_llama(), random_task()
    settings = dict(n_step=2, ttt_n_step=2, rank=2)
    usual = ttt_ct_kv.adapt(model, task, ttt_ct_kv.Config(**settings))
    model.graphs = {}
    with pytest.warns(UserWarning, match="adapter .* runs as without graphs"):
        adapted = ttt_ct_kv.adapt(model, task, ttt_ct_kv.Config(**settings))
    assert not model.graphs and all(map(torch.equal, tensors_of(adapted), tensors_of(usual)))


@pytest.mark.parametrize("n_step, lr, said", [(0, 0.1, None), (-1, 0.1, "n_step = -1"), (2, -0.1, "lr = -0.1")])
def test_no_steps_and_impossible_ones_are_as_without_graphs(n_step, lr, said):
    model = tiny_llama()
    model.graphs = {}
    adapt = lambda: ct_kv.adapt(model, random_task(), ct_kv.Config(n_step=n_step, lr=lr))
    if said is None:
        assert not any(part.requires_grad for part in tensors_of(adapt())) and not model.graphs
    else:
        with pytest.raises(ValueError, match=said):
            adapt()


# --- on a GPU ---

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; it has never run")


@needs_gpu
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_a_cuda_graph_gives_the_losses_that_the_usual_loop_gives(monkeypatch, dtype, tolerance, checkpoint):
    if "check_input_liveness" in inspect.signature(torch.cuda.graph).parameters:  # torch 2.13 and newer
        monkeypatch.setattr(Step, "options", dict(check_input_liveness=True))
    model, recorded, record = tiny_llama(dtype, head_dim=16).cuda(), [], Step.record
    monkeypatch.setattr(Step, "record", lambda step: recorded.append(step.n_taken) or record(step))
    model.checkpoint = checkpoint
    tasks = [random_task(lengths, seed=i) for i, lengths in enumerate([*LENGTHS, LENGTHS[0]])]
    found, _ = both(model, ct_kv, tasks, n_step=5, lr=0.02)
    agree(found, tolerance)
    assert recorded == [N_WARM]


@needs_gpu
@pytest.mark.parametrize("name", ["ct_kv", "prefix_tuning", "ct_prompt", "prompt_tuning", "lora", "dora"])
def test_no_step_waits_for_the_gpu(monkeypatch, name):
    """torch raises at what waits; on a CPU test_optimise.py looks for the operations that would."""
    model = tiny_llama().cuda()
    model(torch.zeros(1, 2, dtype=torch.int64, device="cuda"))  # RoPE's frequencies are copied once

    def strictly(*args):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return take_step(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr("nanoct.optimise.take_step", strictly)
    METHODS[name].adapt(model, random_task(), METHODS[name].Config(n_step=4))
