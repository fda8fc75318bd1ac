"""What all methods promise; CT-KV against slow versions, alone and behind TTT."""

import hashlib
import json
import math
import warnings
from dataclasses import replace

import pytest
import torch
from helpers import (
    DATA,
    TUNED,
    UNEVEN,
    config_of,
    drawn,
    leaves,
    message,
    padded_loss,
    pairs_of,
    random_task,
    relative_error,
    same_bits,
    tensors_of,
    tiny_llama,
)

from nanoct.adapters import LoRA, attach
from nanoct.fewshot import Demo, Query, Task, Text, encode_context
from nanoct.io.weights import load_model
from nanoct.methods import METHODS, ct_kv, ct_prompt, icl, ttt, ttt_ct_kv, zero_shot
from nanoct.score import evaluate, score_pairs, text_answers

DRAWING = {"lora", "dora", "ttt", "ct_prompt", "ct_kv", "ttt_ct_kv"}  # methods that draw random numbers
SHORT = dict(n_step=3, ttt_n_step=2)  # of any Config that has them


def config_error(name, **changes):
    """The one line that refuses a Config, before anything is trained."""
    trained = lambda *_: pytest.fail("trained with a setting that cannot be")
    with pytest.raises(ValueError) as error:
        config = config_of(METHODS[name], **dict(ttt_n_step=0) | changes)
        METHODS[name].adapt(tiny_llama(), random_task(), config, progress=trained)
    return message(error)


# --- what every method promises ---


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_no_method_touches_the_model(name, trainable):
    model = tiny_llama().requires_grad_(trainable)
    digest = lambda: [hashlib.sha256(p.detach().numpy().tobytes()).hexdigest() for p in model.parameters()]
    before, modules, random_state = digest(), list(model.modules()), torch.get_rng_state()
    adapted = METHODS[name].adapt(model, random_task(), config_of(METHODS[name], **SHORT))
    evaluate(adapted, random_task())
    assert digest() == before and list(model.modules()) == modules and adapted.model is model
    assert all(p.requires_grad == trainable and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(t.requires_grad for t in tensors_of(adapted))


@pytest.mark.parametrize("name", METHODS)
def test_a_seed_gives_its_bits(model, name):
    method = METHODS[name]
    run = lambda seed: method.adapt(model, random_task(), config_of(method, **SHORT), seed)
    assert same_bits(run(3), run(3))
    assert same_bits(run(3), run(4)) == (name not in DRAWING)


@pytest.mark.parametrize("name", METHODS)
def test_progress_is_called_every_step(model, name):
    method, calls = METHODS[name], []
    method.adapt(model, random_task(), config_of(method, **SHORT), progress=lambda *call: calls.append(call))
    n_step = sum(getattr(config_of(method, **SHORT), field, 0) for field in SHORT)
    assert [step for step, _ in calls] == list(range(n_step)) and all(math.isfinite(loss) for _, loss in calls)
    assert n_step == {"zero_shot": 0, "icl": 0, "ttt_ct_kv": 5}.get(name, 3)


@pytest.mark.parametrize("name", METHODS)
def test_n_trained_is_the_formula_of_the_docstring(name):
    L, C, H, K, D, ffn, m, rank = 3, 16, 4, 2, 6, 20, 7, 5
    model, task = tiny_llama(n_layer=L, n_ffn=ffn), random_task(instruction=3)
    P = 3 + sum(len(demo.x) + len(demo.y) for demo in task.demos)
    ends = [(C, H * D), (C, K * D), (H * D, C), (C, ffn), (C, ffn), (ffn, C)]  # in and out of q, v, o, gate, up, down
    low_rank, cache = L * sum(rank * (n_in + n_out) for n_in, n_out in ends), 2 * L * K * D * P
    formulas = dict(zero_shot=0, icl=0, prompt_tuning=m * C, prefix_tuning=2 * L * K * D * m, lora=low_rank,
                    dora=low_rank + L * sum(n_out for _, n_out in ends), ttt=low_rank, ct_prompt=P * C, ct_kv=cache,
                    ttt_ct_kv=low_rank + cache)
    config = config_of(METHODS[name], n_step=0, ttt_n_step=0, n_prefix=m, rank=rank)
    assert METHODS[name].adapt(model, task, config).n_trained == formulas[name]


@pytest.mark.parametrize("name", TUNED)
def test_trained_numbers_are_float32_also_in_a_bfloat16_model(steps, name):
    adapted = METHODS[name].adapt(tiny_llama(torch.bfloat16), random_task(), config_of(METHODS[name], **SHORT))
    assert {value.dtype for step in steps for value in step["after"]} == {torch.float32}
    assert all(t.isfinite().all() for t in tensors_of(adapted))
    evaluate(adapted, random_task())


@pytest.mark.parametrize("changes, names", [
    (dict(n_step=-1), TUNED), (dict(lr=0.0), TUNED), (dict(lr=-0.5), TUNED), (dict(lr=math.nan), TUNED),
    (dict(ttt_n_step=-1), ["ttt_ct_kv"]), (dict(ttt_lr=0.0), ["ttt_ct_kv"]),
    *[(change, ["lora", "dora", "ttt", "ttt_ct_kv"]) for change in (dict(rank=0), dict(dropout=1.0), dict(dropout=-1))],
    *[(dict(token_dropout=p), ["ct_prompt", "ct_kv", "ttt_ct_kv"]) for p in (1.0, -0.1)],
    (dict(batch=0), ["ttt", "ttt_ct_kv"]),
], ids=str)
def test_settings_that_cannot_be_are_refused_in_one_line(changes, names):
    ((field, value),) = changes.items()
    for name in names:
        assert f"{field.removeprefix('ttt_')} = {value}" in config_error(name, **changes)


@pytest.mark.parametrize("name", TUNED)
def test_a_loss_that_is_not_finite_ends_training_with_what_there_was(model, steps, monkeypatch, name):
    calls, losses, cross_entropy = [], [], torch.nn.functional.cross_entropy

    def fails_at_step_2(*args):
        losses.append(cross_entropy(*args))
        return losses[-1] * math.nan if len(losses) == 3 else losses[-1]

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", fails_at_step_2)
    config = config_of(METHODS[name], n_step=5, ttt_n_step=0, lr=0.025)
    with pytest.warns(UserWarning) as caught:
        adapted = METHODS[name].adapt(model, random_task(), config, progress=lambda *call: calls.append(call))
    (text,) = [str(warning.message) for warning in caught]
    assert "step 2" in text and "0.025" in text and "nan" in text and "\n" not in text
    assert [step for step, _ in calls] == [0, 1] and len(steps) == len(losses) == 3
    assert all(t.isfinite().all() and not t.requires_grad for t in tensors_of(adapted))


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"zero_shot"}))
def test_no_demos_are_refused_in_one_line(model, name):
    with pytest.raises(ValueError) as error:
        METHODS[name].adapt(model, random_task(lengths=()))
    assert "'random'" in str(error.value) and "no demos" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name, length, needed", [
    ("icl", 80, 2 * 81), ("prompt_tuning", 129, 32 + 129), ("prefix_tuning", 129, 32 + 129), ("lora", 161, 161),
    ("dora", 161, 161), ("ttt", 80, 2 * 81), ("ct_prompt", 60, 2 * 61 + 60), ("ct_kv", 60, 2 * 61 + 60),
    ("ttt_ct_kv", 80, 2 * 81), ("ttt_ct_kv", 60, 2 * 61 + 60),
])  # what reads a pair behind all demos, or behind m = 32 entries, does not read its last token
def test_demos_that_do_not_fit_are_refused_in_one_line(model, name, length, needed):
    trained = lambda *_: pytest.fail("trained on demos that do not fit")
    task, config = random_task(lengths=[(length, 1)] * 2, instruction=0), config_of(METHODS[name], ttt_n_step=0)
    with pytest.raises(ValueError) as error:
        METHODS[name].adapt(model, task, config, progress=trained)
    assert message(error).count(str(model.config.n_position)) == 1 and f"needs {needed} tokens" in message(error)


@pytest.mark.parametrize("name", METHODS)
def test_an_instruction_that_does_not_fit_is_refused_in_one_line(model, name):
    with pytest.raises(ValueError) as error:
        METHODS[name].adapt(model, random_task(instruction=161), progress=lambda *_: pytest.fail("trained"))
    assert f"context is {model.config.n_position}" in message(error)


@pytest.mark.parametrize("name", METHODS)
def test_a_separator_is_as_if_it_were_in_the_inputs(model, name):
    """With demos in context the first has none: there the instruction ends with it."""
    folded, s = random_task(options=2, metric="accuracy"), [5, 1]
    config = config_of(METHODS[name], leave_one_out=False, **SHORT)
    in_context = name in ("icl", "ttt", "ct_prompt", "ct_kv", "ttt_ct_kv")
    task = replace(folded, separator=s, instruction=[*folded.instruction, *(s if in_context else ())])
    put = lambda pair: replace(pair, x=[*s, *pair.x])
    folded = replace(folded, demos=list(map(put, folded.demos)), queries=list(map(put, folded.queries)))
    ours, theirs = METHODS[name].adapt(model, task, config), METHODS[name].adapt(model, folded, config)
    assert same_bits(ours, theirs)
    assert evaluate(ours, task) == evaluate(theirs, folded)
    as_text = lambda task: replace(task, queries=[Query(q.x, [3, 7]) for q in task.queries], text=Text(str, "?"))
    assert text_answers(ours, as_text(task)) == text_answers(theirs, as_text(folded))


def test_zero_shot_is_the_instruction_alone(model):
    task = random_task()
    prefix = zero_shot.adapt(model, task).prefix
    with torch.no_grad():
        for ours, theirs in zip(prefix.kv, model(torch.tensor([task.instruction]))[1], strict=True):
            assert all(map(torch.equal, ours, theirs))
    assert zero_shot.adapt(model, replace(task, instruction=[], demos=[])).prefix is None


# --- CT-KV ---


def test_ct_kv_of_no_steps_is_icl(model):
    task = random_task(metric="accuracy", options=3, n_query=8)
    ours, plain = ct_kv.adapt(model, task, ct_kv.Config(n_step=0)), icl.adapt(model, task)
    assert same_bits(ours, plain)
    assert torch.equal(ours.prefix.owner, plain.prefix.owner)
    assert ours.prefix.next_position == plain.prefix.next_position
    pairs = [(q.x, option) for q in task.queries for option in q.options]
    assert all(map(torch.equal, score_pairs(ours, pairs), score_pairs(plain, pairs)))
    assert evaluate(ours, task) == evaluate(plain, task)


@pytest.mark.parametrize("leave_one_out", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("instruction", [0, 4])
def test_ct_kv_steps_on_the_padded_loss(model, steps, instruction, dropout, leave_one_out):
    """Loss and gradients of every step, at the values of that step, under masks drawn here."""
    task = random_task(UNEVEN, instruction=instruction)
    k, losses = len(task.demos), []
    config = ct_kv.Config(n_step=3, lr=0.05, token_dropout=dropout, leave_one_out=leave_one_out)
    adapted = ct_kv.adapt(model, task, config, seed=5, progress=lambda step, loss: losses.append(loss))
    prefix = encode_context(model, task.instruction, task.demos)
    owner = torch.tensor([-1] * instruction + [i for i, (n, m) in enumerate(UNEVEN) for _ in range(n + m)])
    g = torch.Generator().manual_seed(5)
    for step, loss in zip(steps, losses, strict=True):
        seen = drawn(g, k, owner, dropout, leave_one_out)
        theta, prefix = leaves(replace(prefix, kv=list(zip(*(part.unbind() for part in step["before"])))))
        slow = padded_loss(model, prefix, [(demo.x, demo.y) for demo in task.demos], seen)
        assert loss == pytest.approx(slow.item(), rel=1e-5)
        gradients = torch.autograd.grad(slow, theta)
        for ours, theirs in zip(step["raw"], (gradients[::2], gradients[1::2]), strict=True):  # keys, values
            assert relative_error(ours, torch.stack(theirs)) < 1e-5
    assert torch.equal(torch.stack([k for k, _ in adapted.prefix.kv]), steps[-1]["after"][0])
    assert torch.equal(torch.stack([v for _, v in adapted.prefix.kv]), steps[-1]["after"][1])


def test_ct_kv_starts_at_the_cache_and_trains_all_of_it(model, steps):
    task = random_task()
    adapted = ct_kv.adapt(model, task, ct_kv.Config(n_step=1, token_dropout=0.0))
    for part, start in zip(steps[0]["before"], zip(*encode_context(model, task.instruction, task.demos).kv)):
        assert torch.equal(part, torch.stack(start)) and part.dtype == torch.float32
    c, P = model.config, len(task.instruction) + sum(len(d.x) + len(d.y) for d in task.demos)
    assert adapted.n_trained == 2 * c.n_layer * c.n_kv_head * c.head_dim * P
    assert adapted.n_trained == sum(p.numel() for p in steps[0]["before"])
    for before, after in zip(steps[0]["before"], steps[0]["after"]):
        assert (before != after).any(-1).all()  # every entry of every layer and head


def test_an_entry_is_dropped_in_all_layers_at_once_and_anew_in_every_step(model, steps):
    task = random_task(lengths=[(30, 4)])
    ct_kv.adapt(model, task, ct_kv.Config(n_step=6, token_dropout=0.5, leave_one_out=False))
    dropped = []
    for step in steps:
        zero = torch.stack([(g == 0).all(-1) for g in step["raw"]])  # (2, L, 1, K, P): keys, values
        assert torch.equal(zero, zero[:1, :1, :, :1].expand_as(zero))
        dropped.append(zero[0, 0, 0, 0])
    assert len({tuple(d.tolist()) for d in dropped}) == 6
    assert torch.stack(dropped)[:, :2].any()  # the instruction too


@pytest.mark.parametrize("method", [ct_kv, ct_prompt, ttt_ct_kv], ids=["ct_kv", "ct_prompt", "ttt_ct_kv"])
def test_one_demo_is_not_left_out_which_is_said(model, method):
    losses = []
    task, config = random_task(lengths=[(4, 2)]), config_of(method, n_step=4, ttt_n_step=0)
    with pytest.warns(UserWarning, match="'random' has one demo") as caught:
        adapted = method.adapt(model, task, config, progress=lambda step, loss: losses.append(loss))
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    assert all(t.isfinite().all() for t in tensors_of(adapted))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.adapt(model, task, replace(config, n_step=1, leave_one_out=False))


# --- CT-KV under an adapter ---


def random_adapter(model):
    g = torch.Generator().manual_seed(3)
    adapter = attach(LoRA, model, 3, 5.0, generator=g)
    for part in adapter.values():
        part.b.data.normal_(std=0.3, generator=g)
    return adapter


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_under_an_adapter_ct_kv_starts_and_steps_under_it(model, steps, dropout):
    task, adapter, losses = random_task(UNEVEN), random_adapter(model), []
    before = [part.clone() for layer in adapter.values() for part in layer.leaves]
    config = ct_kv.Config(n_step=3, lr=0.05, token_dropout=dropout)
    adapted = ct_kv.adapt(model, task, config, 5, lambda step, loss: losses.append(loss), adapter)
    assert adapted.adapter is adapter
    assert adapted.n_trained == ct_kv.adapt(model, task, replace(config, n_step=0)).n_trained
    assert all(map(torch.equal, before, (part for layer in adapter.values() for part in layer.leaves)))
    assert all(part.grad is None for layer in adapter.values() for part in layer.leaves)
    start = encode_context(model, task.instruction, task.demos, adapter)
    assert all(map(torch.equal, steps[0]["before"], start.stack()))
    assert relative_error(start.stack()[1], encode_context(model, task.instruction, task.demos).stack()[1]) > 0.1
    g, k = torch.Generator().manual_seed(5), len(task.demos)
    for step, loss in zip(steps, losses, strict=True):
        theta, prefix = leaves(start.of(*step["before"]))
        slow = padded_loss(model, prefix, pairs_of(task), drawn(g, k, start.owner, dropout, True), adapter)
        assert loss == pytest.approx(slow.item(), rel=1e-5)
        gradients = torch.autograd.grad(slow, theta)
        for ours, theirs in zip(step["raw"], (gradients[::2], gradients[1::2]), strict=True):
            assert relative_error(ours, torch.stack(theirs)) < 1e-5


# --- TTT and CT-KV together ---


@pytest.mark.parametrize("changes, length", [
    (dict(n_step=-1), 3), (dict(lr=0.0), 3), (dict(token_dropout=1.0), 3), (dict(), 60),
], ids=["n_step", "lr", "token_dropout", "length"])
def test_what_ct_kv_refuses_is_refused_before_ttt_trains(model, changes, length):
    with pytest.raises(ValueError):
        ttt_ct_kv.adapt(model, random_task(lengths=[(length, 1)] * 2, instruction=0), ttt_ct_kv.Config(**changes),
                        progress=lambda *_: pytest.fail("TTT trained"))


def test_ttt_ct_kv_is_one_and_then_the_other(model):
    task = random_task()
    of_ttt, of_ct_kv = dict(batch=2, rank=3, alpha=5.0, dropout=0.1), dict(n_step=3, lr=0.02, token_dropout=0.2)
    both = ttt_ct_kv.Config(ttt_n_step=4, ttt_lr=0.03, **of_ttt, **of_ct_kv)
    first = ttt.adapt(model, task, ttt.Config(n_step=4, lr=0.03, **of_ttt), seed=6)
    second = ct_kv.adapt(model, task, ct_kv.Config(**of_ct_kv), seed=6, adapter=first.adapter)
    ours = ttt_ct_kv.adapt(model, task, both, seed=6)
    assert same_bits(ours, second) and ours.n_trained == first.n_trained + second.n_trained
    assert same_bits(ttt_ct_kv.adapt(model, task, replace(both, n_step=0), seed=6), first)


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_ttt_ct_kv_without_ttt_steps_is_ct_kv(model, leave_one_out):
    task = random_task(metric="accuracy", options=3)
    settings = dict(n_step=4, lr=0.02, token_dropout=0.2, leave_one_out=leave_one_out)
    ours = ttt_ct_kv.adapt(model, task, ttt_ct_kv.Config(**settings, ttt_n_step=0), seed=2)
    alone = ct_kv.adapt(model, task, ct_kv.Config(**settings), seed=2)
    for a, b in zip(ours.prefix.stack(), alone.prefix.stack(), strict=True):
        assert relative_error(a, b) < 1e-6
    assert evaluate(ours, task) == evaluate(alone, task)


# --- a real checkpoint and a real task ---

FOLDER = DATA / "stories260K"


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"needs the public stories260K checkpoint in {FOLDER}")
@pytest.mark.parametrize("name", TUNED)
def test_training_on_a_real_task_lowers_its_loss(name):
    """poem_sentiment in the 260K model's ids: all 16 demos, 439 tokens, and a pair behind fit its context of 512."""
    model = load_model(FOLDER, device="cpu")
    data = json.loads((FOLDER / "poem_sentiment_16_13.json").read_text())
    demos = [Demo(demo["input_ids"], demo["output_ids"]) for demo in data["demos"]]
    options, losses = data["option_ids"], []
    queries = [Query(q["input_ids"], options[q["answer"]], options) for q in data["queries"][:12]]
    task = Task("poem_sentiment", demos, queries, metric="macro_f1")
    config = config_of(METHODS[name], n_step=5, ttt_n_step=3, batch=2, one_pass=True)  # k passes take their time
    adapted = METHODS[name].adapt(model, task, config, progress=lambda step, loss: losses.append(loss))
    n_entry = {"prompt_tuning": 32, "prefix_tuning": 32, "lora": 0, "dora": 0}.get(name, 439)
    assert (len(adapted.prefix.owner) if adapted.prefix else 0) == n_entry
    assert sum(losses[-2:]) < 0.97 * sum(losses[:2])
    result, accuracy = evaluate(adapted, task), evaluate(adapted, replace(task, metric="accuracy"))
    assert result.per_query == accuracy.per_query and accuracy.score == sum(result.per_query) / 12
    assert 0 <= result.score <= 1
