"""The methods against slow versions, peft and hand-written optimiser steps; what all of them promise."""

import hashlib
import json
import math
import warnings
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import V, random_task, tiny_llama
from test_fewshot import UNEVEN, leaves, padded_loss, relative_error

from nanoct.adapters import LoRA, lora
from nanoct.fewshot import Demo, Query, Task, encode_context
from nanoct.methods import METHODS, ct_kv, icl, ttt, zero_shot
from nanoct.score import evaluate, score_pairs
from nanoct.weights import load_model

DRAWING = {"ct_kv", "ttt"}  # methods that draw random numbers
SHORT = dict(n_step=3)  # of any Config that has it


def config_of(method, **changes):
    names = {f.name for f in fields(method.Config)}
    return method.Config(**{name: value for name, value in changes.items() if name in names})


def tensors_of(adapted):
    """Everything that (phi, theta) adds to the model."""
    parts = [t for part in (adapted.adapter or {}).values() for t in vars(part).values() if isinstance(t, torch.Tensor)]
    return parts + list(chain.from_iterable(adapted.prefix.kv))


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip(tensors_of(a), tensors_of(b), strict=True))


@pytest.fixture
def steps(monkeypatch):
    """Record of every optimiser step: gradient before and after clipping, learning rate, values before and after."""
    record, clip = [], torch.nn.utils.clip_grad_norm_
    copy = lambda tensors: [t.detach().clone() for t in tensors]

    def spy(parameters, max_norm, *args, **options):
        record.append(dict(raw=copy(p.grad for p in parameters)))
        return clip(parameters, max_norm, *args, **options)

    class AdamW(torch.optim.AdamW):
        def step(self):
            (group,) = self.param_groups
            record[-1].update(lr=group["lr"], clipped=copy(p.grad for p in group["params"]), before=copy(group["params"]))
            super().step()
            record[-1].update(after=copy(group["params"]))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    monkeypatch.setattr(torch.optim, "AdamW", AdamW)
    return record


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
    n_step = getattr(config_of(method, **SHORT), "n_step", 0)
    assert [step for step, _ in calls] == list(range(n_step)) and all(math.isfinite(loss) for _, loss in calls)


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"zero_shot"}))
def test_no_demos_are_refused_in_one_line(model, name):
    with pytest.raises(ValueError) as error:
        METHODS[name].adapt(model, random_task(lengths=()))
    assert "'random'" in str(error.value) and "no demos" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name, length", [("icl", 80), ("ttt", 80), ("ct_kv", 60)])  # CT-KV reads a pair behind all
def test_demos_that_do_not_fit_are_refused_in_one_line(model, name, length):
    trained = lambda *_: pytest.fail("trained on demos that do not fit")
    with pytest.raises(ValueError) as error:
        METHODS[name].adapt(model, random_task(lengths=[(length, 1)] * 2, instruction=0), progress=trained)
    assert str(error.value).count(str(model.config.n_position)) == 1 and "\n" not in str(error.value)
    assert str(length * 3 + 2 if name == "ct_kv" else 2 * (length + 1)) in str(error.value)


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
    assert torch.equal(ours.prefix.owner, plain.prefix.owner) and ours.prefix.next_position == plain.prefix.next_position
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
        seen = torch.rand(k, len(owner), generator=g) >= dropout if dropout else torch.ones(k, len(owner), dtype=torch.bool)
        if leave_one_out:
            seen &= torch.arange(k)[:, None] != owner
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


@pytest.mark.parametrize("bound", [True, False])
def test_ct_kv_optimiser(steps, bound):
    model = tiny_llama(n_layer=3)
    model.model.norm.weight.mul_(3 if bound else 0.05)  # small gradients are left as they are
    ct_kv.adapt(model, random_task(), ct_kv.Config(n_step=5, lr=0.02))
    norms = check_optimiser(steps, lr=0.02, n_step=5)
    assert min(norms) > 1 if bound else max(norms) < 1


def test_ct_kv_with_one_demo_warns_and_goes_on(model):
    losses = []
    task = random_task(lengths=[(4, 2)])
    with pytest.warns(UserWarning, match="'random' has one demo") as caught:
        adapted = ct_kv.adapt(model, task, ct_kv.Config(n_step=4), progress=lambda step, loss: losses.append(loss))
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    assert all(t.isfinite().all() for t in tensors_of(adapted))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ct_kv.adapt(model, task, ct_kv.Config(n_step=1, leave_one_out=False))


# --- TTT ---


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """(folder, ours): a random checkpoint that transformers wrote, and our reading of it."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=160, tie_word_embeddings=False, rms_norm_eps=1e-5))
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(0.5, 1.5) if p.dim() == 1 else p.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("peft")
    model.save_pretrained(folder)
    return folder, load_model(folder, device="cpu")


def peft_model(folder, values, rank, alpha):
    """transformers' model with peft's LoRA on TTT's targets at the values given; its leaves [a, b, a, b, …]; their layers."""
    base = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(base, peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for p, value in zip(named.values(), values, strict=True):
        p.data.copy_(value)
    layers = [name.removeprefix("base_model.model.model.").split(".lora_A")[0] for name in named if "lora_A" in name]
    return model, list(named.values()), layers


def test_lora_equals_peft(theirs):
    folder, ours = theirs
    g = torch.Generator().manual_seed(1)
    adapter = lora(ours, ttt.TARGETS, rank=3, alpha=5.0, generator=g)
    for part in adapter.values():
        part.b.data.normal_(std=0.3, generator=g)
    parameters = [leaf for part in adapter.values() for leaf in (part.a, part.b)]
    slow, trained, layers = peft_model(folder, parameters, rank=3, alpha=5)
    assert list(adapter) == layers
    tokens = torch.randint(V, (3, 12), generator=g)
    logits, expected = ours.logits(ours(tokens, adapter=adapter)[0]), slow(tokens).logits
    assert relative_error(logits, ours.logits(ours(tokens)[0])) > 0.1
    assert relative_error(logits, expected) < 1e-4
    loss = lambda y: F.cross_entropy(y.flatten(0, 1), tokens.flatten())
    for a, b in zip(torch.autograd.grad(loss(logits), parameters), torch.autograd.grad(loss(expected), trained), strict=True):
        assert relative_error(a, b) < 1e-4


def test_lora_dropout_is_on_its_inputs_alone():
    eye = torch.eye(50)
    layer = LoRA(eye, rank=50, alpha=100.0, dropout=0.3, generator=torch.Generator().manual_seed(0))
    layer.a.data, layer.b.data = eye.clone(), eye.clone()  # W x + 2 drop(x)
    change = layer(torch.ones(200, 50), eye) - 1
    assert set(change.unique().tolist()) == {0.0, change.max().item()} and change.max().item() == pytest.approx(2 / 0.7)
    assert (change == 0).float().mean().item() == pytest.approx(0.3, abs=5 * (0.21 / 10_000) ** 0.5)


def test_ttt_trains_lora_on_all_linears_but_keys(model):
    adapted = ttt.adapt(model, random_task(), ttt.Config(n_step=1, rank=3))
    names = [f"layers.{i}.{part}" for i in range(2) for part in (
        "self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")]
    assert sorted(adapted.adapter) == sorted(names)
    C, attention, kv, ffn = 16, 4 * 6, 2 * 6, 24  # widths of the tiny model
    ends = [(C, attention), (C, kv), (attention, C), (C, ffn), (C, ffn), (ffn, C)]
    assert adapted.n_trained == 2 * 3 * sum(n_in + n_out for n_in, n_out in ends)


def test_ttt_starts_at_the_model(model):
    task = random_task()
    adapted = ttt.adapt(model, task, ttt.Config(n_step=0, dropout=0.5))
    assert adapted.adapter and same_bits(replace(adapted, adapter=None), icl.adapt(model, task))
    assert not same_bits(adapted, ttt.adapt(model, task, ttt.Config(n_step=0), seed=1))  # A is drawn
    pairs = [(q.x, q.y) for q in task.queries]
    assert all(map(torch.equal, score_pairs(adapted, pairs), score_pairs(icl.adapt(model, task), pairs)))


@pytest.fixture
def orders(monkeypatch):
    """The demos of every sequence that TTT trains on, step by step."""
    record, concatenate = [], ttt.concatenate

    def spy(model, instruction, sequences):
        record.append(sequences)
        return concatenate(model, instruction, sequences)

    monkeypatch.setattr(ttt, "concatenate", spy)
    return record


def test_ttt_orders_are_permutations_and_vary(model, orders):
    task = random_task(lengths=[(n, 1) for n in range(1, 7)])
    ttt.adapt(model, task, ttt.Config(n_step=20, batch=4))
    assert [len(step) for step in orders] == [4] * 20
    lengths = [tuple(len(demo.x) for demo in sequence) for step in orders for sequence in step]
    assert all(sorted(order) == [1, 2, 3, 4, 5, 6] for order in lengths) and len(set(lengths)) > 60
    for place in range(6):
        assert {order[place] for order in lengths} == {1, 2, 3, 4, 5, 6}


def answer_loss(logits_of, instruction, sequences):
    """Mean cross-entropy of the answer tokens of all demos of all sequences, one sequence at a time."""
    losses = []
    for demos in sequences:
        tokens, targets = list(instruction), []
        for demo in demos:
            tokens += demo.x
            targets += [(len(tokens) + j, token) for j, token in enumerate(demo.y)]
            tokens += demo.y
        logits = logits_of(torch.tensor([tokens]))[0]
        losses += [F.cross_entropy(logits[at - 1], torch.tensor(token)) for at, token in targets]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("instruction", [0, 3])
def test_ttt_steps_on_the_answers_of_all_demos_as_peft_does(theirs, steps, orders, instruction):
    """Loss and gradients of every step, at the values of that step, under peft."""
    folder, ours = theirs
    task, losses = random_task(UNEVEN[1:], instruction=instruction), []
    config = ttt.Config(n_step=3, batch=2, rank=3, alpha=5.0, lr=0.05, dropout=0.0)
    ttt.adapt(ours, task, config, progress=lambda step, loss: losses.append(loss))
    for step, loss, sequences in zip(steps, losses, orders, strict=True):
        slow, trained, _ = peft_model(folder, step["before"], rank=3, alpha=5)
        expected = answer_loss(lambda tokens: slow(tokens).logits, task.instruction, sequences)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        for a, b in zip(step["raw"], torch.autograd.grad(expected, trained), strict=True):
            assert (a - b).abs().max() <= 1e-4 * b.abs().max()  # also where both are 0, as at the start for every A
    assert losses[2] < losses[0]


def test_ttt_optimiser(model, steps):
    ttt.adapt(model, random_task(), ttt.Config(n_step=5, lr=0.02, rank=2))
    assert max(check_optimiser(steps, lr=0.02, n_step=5)) > 1


def test_ttt_reads_the_demos_in_their_order_under_the_new_weights(model):
    task = random_task()
    adapted = ttt.adapt(model, task, ttt.Config(n_step=4, lr=0.05, dropout=0.5))
    assert all(part.dropout == 0 for part in adapted.adapter.values())
    tokens = torch.tensor([[*task.instruction, *(t for demo in task.demos for t in (*demo.x, *demo.y))]])
    _, kv = model(tokens, adapter=adapted.adapter)
    for ours, theirs, plain in zip(adapted.prefix.kv, kv, model(tokens)[1], strict=True):
        assert all(map(torch.equal, ours, theirs)) and relative_error(ours[1], plain[1]) > 0.01
    assert torch.equal(adapted.prefix.owner, icl.adapt(model, task).prefix.owner)
    assert evaluate(adapted, task) == evaluate(adapted, task)


def test_ttt_dropout_is_on_in_training(model):
    run = lambda dropout: ttt.adapt(model, random_task(), ttt.Config(n_step=2, dropout=dropout))
    assert not same_bits(run(0.0), run(0.3))


# --- a real checkpoint and a real task ---

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "stories260K"


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"needs the public stories260K checkpoint in {FOLDER}")
@pytest.mark.parametrize("method, config", [(ct_kv, ct_kv.Config(n_step=5)), (ttt, ttt.Config(n_step=5, batch=2))],
                         ids=["ct_kv", "ttt"])
def test_training_on_a_real_task_lowers_its_loss(method, config):
    """poem_sentiment in the 260K model's ids: all 16 demos, 439 tokens, and a pair behind them fit its context of 512."""
    model = load_model(FOLDER, device="cpu")
    data = json.loads((FOLDER / "poem_sentiment_16_13.json").read_text())
    demos = [Demo(demo["input_ids"], demo["output_ids"]) for demo in data["demos"]]
    options, losses = data["option_ids"], []
    queries = [Query(q["input_ids"], options[q["answer"]], options) for q in data["queries"][:12]]
    task = Task("poem_sentiment", demos, queries, metric="macro_f1")
    adapted = method.adapt(model, task, config, progress=lambda step, loss: losses.append(loss))
    assert len(adapted.prefix.owner) == 439
    assert sum(losses[-2:]) < 0.97 * sum(losses[:2])
    result, accuracy = evaluate(adapted, task), evaluate(adapted, replace(task, metric="accuracy"))
    assert result.per_query == accuracy.per_query and accuracy.score == sum(result.per_query) / 12
    assert 0 <= result.score <= 1
