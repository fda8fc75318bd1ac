"""LoRA, DoRA and TTT, and prompt and prefix tuning with them, against peft."""

from dataclasses import replace

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import UNEVEN, V, config_of, random_task, relative_error, same_bits
from helpers.llama import TINY, write

from nanoct.adapters import TARGETS, DoRA, LoRA, attach, leaves, trained
from nanoct.fewshot import Demo
from nanoct.io.weights import load_model
from nanoct.methods import METHODS, icl, ttt
from nanoct.score import evaluate, score_pairs

# --- against peft ---


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """(folder, ours): a random checkpoint that transformers wrote, and our reading of it."""
    folder = tmp_path_factory.mktemp("peft")
    write(folder, **TINY)
    return folder, load_model(folder, device="cpu")


RANK, ALPHA, M = 3, 5, 6
LOW_RANK = dict(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(TARGETS))
PEFT = {
    "lora": lambda: peft.LoraConfig(**LOW_RANK),
    "dora": lambda: peft.LoraConfig(**LOW_RANK, use_dora=True),
    "prompt_tuning": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=M),
    "prefix_tuning": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=M),
}


def peft_model(folder, name, values):
    """transformers' model with peft's method at the values given, in our shapes; its leaves by name."""
    base = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.get_peft_model(base, PEFT[name]())
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for p, value in zip(named.values(), in_peft(name, values), strict=True):
        p.data.copy_(value)
    return model, named


def in_peft(name, tensors):
    """Our leaves, or their gradients, in the shapes of peft's; its keys are after RoPE, like ours."""
    if name == "prompt_tuning":
        return [tensors[0][0]]
    if name == "prefix_tuning":  # keys and values (L, 1, K, m, D) -> (m, L·2·K·D)
        return [torch.stack(tensors, 1)[:, :, 0].permute(3, 0, 1, 2, 4).flatten(1)]
    return tensors


def answer_loss(logits_of, instruction, sequences):
    """Mean cross-entropy of the answer tokens of all demos of all sequences, one sequence at a time."""
    losses = []
    for demos in sequences:
        tokens, targets = list(instruction), []
        for demo in demos:
            tokens += demo.x
            targets += [(len(tokens) + j, token) for j, token in enumerate(demo.y)]
            tokens += demo.y
        logits = logits_of(torch.tensor([tokens]))[0, -len(tokens) :]  # peft's are of a prompt's entries too
        losses += [F.cross_entropy(logits[at - 1], torch.tensor(token)) for at, token in targets]
    return torch.stack(losses).mean()


def assert_close(ours, slow):
    for a, b in zip(ours, slow, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()  # also where both are 0, as at the start for every A


@pytest.mark.parametrize("kind, name", [(LoRA, "lora"), (DoRA, "dora")])
def test_an_adapter_equals_peft(theirs, kind, name):
    folder, ours = theirs
    g = torch.Generator().manual_seed(1)
    adapter = attach(kind, ours, RANK, float(ALPHA), generator=g)
    for layer, part in adapter.items():
        part.b.data.normal_(std=0.3, generator=g)
        if kind is DoRA:
            assert torch.equal(part.magnitude, ours.linears[layer].weight.norm(dim=1))
            part.magnitude.data.mul_(0.5 + torch.rand(part.magnitude.shape, generator=g))
    slow, named = peft_model(folder, name, leaves(adapter))
    layers = [key.removeprefix("base_model.model.model.").split(".lora_A")[0] for key in named if "lora_A" in key]
    assert list(adapter) == layers and len(named) == (3 if kind is DoRA else 2) * len(layers)
    tokens = torch.randint(V, (3, 12), generator=g)
    logits, expected = ours.logits(ours(tokens, adapter=adapter)[0]), slow(tokens).logits
    assert relative_error(logits, ours.logits(ours(tokens)[0])) > 0.1
    assert relative_error(logits, expected) < 1e-4
    loss = lambda y: F.cross_entropy(y.flatten(0, 1), tokens.flatten())
    gradients = torch.autograd.grad(loss(logits), leaves(adapter))
    for a, b in zip(gradients, torch.autograd.grad(loss(expected), list(named.values())), strict=True):
        assert relative_error(a, b) < 1e-4


@pytest.mark.parametrize("instruction", [0, 3])
@pytest.mark.parametrize("name", PEFT)
def test_a_method_trains_and_predicts_as_peft_does(theirs, steps, name, instruction):
    """Loss and gradients of every step, at the values of that step: each pair alone, behind the instruction, behind
    m entries, and so the queries under the last values."""
    folder, ours = theirs
    method, task, losses = METHODS[name], random_task(UNEVEN, instruction=instruction), []
    config = config_of(method, n_step=3, lr=0.05, rank=RANK, alpha=float(ALPHA), dropout=0.0, n_prefix=M)
    adapted = method.adapt(ours, task, config, progress=lambda step, loss: losses.append(loss))
    for step, loss in zip(steps, losses, strict=True):
        slow, named = peft_model(folder, name, step["before"])
        expected = answer_loss(lambda tokens: slow(tokens).logits, task.instruction, [[demo] for demo in task.demos])
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert_close(in_peft(name, step["raw"]), torch.autograd.grad(expected, list(named.values())))
    assert losses[2] < losses[0]
    slow, _ = peft_model(folder, name, steps[-1]["after"])
    logits = lambda tokens: slow(tokens).logits
    loss_of = lambda query: answer_loss(logits, task.instruction, [[Demo(query.x, query.y)]])
    predicted, _ = score_pairs(adapted, [(q.x, q.y) for q in task.queries])
    assert predicted.tolist() == pytest.approx([loss_of(q).item() for q in task.queries], rel=1e-4)


# --- LoRA and DoRA ---


@pytest.mark.parametrize("kind, change", [(LoRA, 2), (DoRA, 5)])
def test_dropout_is_on_the_inputs_of_the_change_alone(kind, change):
    eye = torch.eye(50)
    layer = kind(eye, rank=50, alpha=100.0, dropout=0.3, generator=torch.Generator().manual_seed(0))
    layer.a.data, layer.b.data = eye.clone(), eye.clone()  # LoRA: W x + 2 drop(x), of norm 3
    if kind is DoRA:
        layer.magnitude.data *= 6  # W x + (6/3 - 1) W drop(x) + 6/3 · 2 drop(x)
    changed = layer(torch.ones(200, 50), eye) - 1
    assert set(changed.unique().tolist()) == {0.0, changed.max().item()}
    assert changed.max().item() == pytest.approx(change / 0.7)
    assert (changed == 0).float().mean().item() == pytest.approx(0.3, abs=5 * (0.21 / 10_000) ** 0.5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("kind", [LoRA, DoRA])
def test_an_adapter_starts_at_the_model(model, kind, dropout):
    adapter = attach(kind, model, 3, 5.0, dropout, torch.Generator().manual_seed(0))
    tokens = torch.arange(12)[None]
    assert torch.equal(model(tokens, adapter=adapter)[0], model(tokens)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dora_on_rows_without_a_norm(dtype, dropout):
    """Rows of norm 0, or of one that underflows, give 0, as m = 0 says; they can be trained all the same."""
    g = torch.Generator().manual_seed(0)
    weight, x = torch.randn(6, 16, generator=g).to(dtype), torch.randn(5, 16, generator=g).to(dtype)
    weight[1], weight[2] = 0, 1e-30
    layer = DoRA(weight, 2, 2.0, dropout, g)
    y, plain = layer(x, weight), F.linear(x, weight)
    assert torch.equal(y[:, [0, 3, 4, 5]], plain[:, [0, 3, 4, 5]]) and y[:, 1:3].abs().max() < 1e-28
    layer.b.data.normal_(generator=g)
    layer(x, weight).square().sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in layer.leaves)


@pytest.mark.parametrize("kind", [LoRA, DoRA])
def test_leaves_are_all_that_an_adapter_trains_and_trained_ends_dropout(model, kind):
    adapter = attach(kind, model, 3, 5.0, 0.5, torch.Generator().manual_seed(0))
    tensors = [t for part in adapter.values() for t in vars(part).values() if isinstance(t, torch.Tensor)]
    assert len(tensors) == len(leaves(adapter)) and all(any(t is leaf for leaf in leaves(adapter)) for t in tensors)
    assert all(leaf.requires_grad and leaf.is_leaf and leaf.dtype == torch.float32 for leaf in leaves(adapter))
    run = lambda: model(torch.arange(12)[None], adapter=adapter)[0]
    for part in adapter.values():
        part.b.data.normal_(generator=torch.Generator().manual_seed(1))
    assert not torch.equal(run(), run())
    assert trained(adapter) is adapter and torch.equal(run(), run())


def test_dora_keeps_the_norms_of_the_rows():
    """Whatever A and B: the rows of the weight that it acts as are m long."""
    g = torch.Generator().manual_seed(2)
    weight = torch.randn(7, 5, generator=g)
    layer = DoRA(weight, rank=2, alpha=3.0, generator=g)
    layer.b.data.normal_(generator=g)
    acts = layer(torch.eye(5), weight).T
    direction = weight + 1.5 * layer.b @ layer.a
    torch.testing.assert_close(acts.norm(dim=1), weight.norm(dim=1))
    torch.testing.assert_close(acts / acts.norm(dim=1, keepdim=True), direction / direction.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("name", ["lora", "dora", "ttt", "ttt_ct_kv"])
def test_adapters_are_on_all_linears_but_keys(model, name):
    method = METHODS[name]
    adapted = method.adapt(model, random_task(), config_of(method, n_step=1, ttt_n_step=1, rank=3))
    names = [f"layers.{i}.{part}" for i in range(2) for part in (
        "self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")]
    assert sorted(adapted.adapter) == sorted(names)
    assert {type(part) for part in adapted.adapter.values()} == {DoRA if name == "dora" else LoRA}


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_without_demos_in_context_theta_is_the_instruction_under_the_new_weights(model, name):
    method, task = METHODS[name], random_task(instruction=3)
    config = config_of(method, n_step=4, lr=0.05, dropout=0.5)
    adapted = method.adapt(model, task, config)
    assert all(part.dropout == 0 for part in adapted.adapter.values())
    _, kv = model(torch.tensor([task.instruction]), adapter=adapted.adapter)
    for ours, theirs in zip(adapted.prefix.kv, kv, strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert adapted.prefix.owner.tolist() == [-1] * 3 and adapted.prefix.next_position == 3
    assert method.adapt(model, replace(task, instruction=[]), config).prefix is None
    assert evaluate(adapted, task) == evaluate(adapted, task)


@pytest.mark.parametrize("name", ["lora", "dora", "ttt"])
def test_dropout_is_on_in_training(model, name):
    method = METHODS[name]
    run = lambda dropout: method.adapt(model, random_task(), config_of(method, n_step=2, dropout=dropout))
    assert not same_bits(run(0.0), run(0.3))


# --- TTT ---


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
    record, sequences = [], ttt.sequences

    def spy(model, instruction, orders, separator):
        record.append(orders)
        return sequences(model, instruction, orders, separator)

    monkeypatch.setattr(ttt, "sequences", spy)
    return record


def test_ttt_orders_are_permutations_and_vary(model, orders):
    task = random_task(lengths=[(n, 1) for n in range(1, 7)])
    ttt.adapt(model, task, ttt.Config(n_step=20, batch=4))
    assert [len(step) for step in orders] == [4] * 20
    lengths = [tuple(len(demo.x) for demo in sequence) for step in orders for sequence in step]
    assert all(sorted(order) == [1, 2, 3, 4, 5, 6] for order in lengths) and len(set(lengths)) > 60
    for place in range(6):
        assert {order[place] for order in lengths} == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("instruction", [0, 3])
def test_ttt_steps_on_the_answers_of_all_demos_as_peft_does(theirs, steps, orders, instruction):
    """Loss and gradients of every step, at the values of that step, under peft."""
    folder, ours = theirs
    task, losses = random_task(UNEVEN[1:], instruction=instruction), []
    config = ttt.Config(n_step=3, batch=2, rank=RANK, alpha=float(ALPHA), lr=0.05, dropout=0.0)
    ttt.adapt(ours, task, config, progress=lambda step, loss: losses.append(loss))
    for step, loss, sequences in zip(steps, losses, orders, strict=True):
        slow, named = peft_model(folder, "lora", step["before"])
        expected = answer_loss(lambda tokens: slow(tokens).logits, task.instruction, sequences)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert_close(step["raw"], torch.autograd.grad(expected, list(named.values())))
    assert losses[2] < losses[0]


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
