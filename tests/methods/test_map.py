"""The nine neighbours of CT-KV: each is ICL or zero-shot at its null setting, and equals a reference away from it."""

import hashlib
import inspect
import math
import warnings
from types import SimpleNamespace

import peft
import pytest
import torch
import torch.nn.functional as F
from helpers import V, config_of, message, pairs_of, random_task, relative_error, same_bits, tensors_of, tiny_llama
from helpers.llama import TINY, read, write
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from nanoct import model as model_file
from nanoct.adapters import leaves
from nanoct.fewshot import Adapted, Demo, Mixture, Prefix, Text, encode_context, groups_of, is_answer
from nanoct.gpt2 import GPT2, GPT2Config
from nanoct.io.weights import load_model
from nanoct.methods import (
    KNOWN,
    MAP,
    METHODS,
    cpt,
    expand,
    ia3,
    icl,
    lara,
    prune,
    qttt,
    windows,
    zero_shot,
)
from nanoct.packing import answer_logits, pack, visible
from nanoct.score import demo_loss, evaluate, generate, score_pairs

SMALL = ((3, 2), (2, 1), (1, 2), (2, 1))  # lengths of x and y, where they need not be longer
TRAINED = "anchors", "ia3", "qttt", "cpt", "i2cl"  # by gradient
DRAWING = {"lara", "i2cl"}  # at these settings
READING = {"windows", "deep_thinking"}  # without a loss
LEAVE_ONE_OUT = ["anchors", "ia3", "qttt", "prune"]


def tiny_gpt2():
    model = GPT2(GPT2Config(vocab_size=V, n_layer=2, n_head=4, n_embd=16, n_ffn=24, n_position=64))
    generator = torch.Generator().manual_seed(0)
    for p in model.requires_grad_(False).parameters():
        p.normal_(std=0.3, generator=generator)
    return model


MODELS = dict(llama=tiny_llama, gpt2=tiny_gpt2)


def logits_of(adapted, task):
    """The logits at the answers of all queries, one row and one context at a time, added with their weights."""
    rows = []
    for q in task.queries:
        tokens, total = torch.tensor([[*task.separator, *q.x, *q.y[:-1]]]), 0
        theta = adapted.prefix
        for weight, prefix in theta.parts if isinstance(theta, Mixture) else [(1, theta)]:
            hidden, _ = adapted.model(tokens, prefix=prefix, adapter=adapted.adapter)
            total = total + weight * adapted.model.logits(hidden[0, -len(q.y) :])
        rows.append(total)
    return torch.cat(rows)


def short(name, **changes):
    """Few steps: one pass of prune, which is a forward for every token; and what else is asked for."""
    return dict(n_step=1 if name == "prune" else 3, n_span=9) | changes


def adapt(name, model, task, **changes):
    return MAP[name].adapt(model, task, config_of(MAP[name], **short(name, **changes)))


def test_each_is_a_file_of_at_most_100_lines_and_the_ten_stay_ten():
    assert list(MAP) == "windows anchors ia3 qttt cpt deep_thinking prune lara i2cl".split() and len(METHODS) == 10
    assert list(KNOWN) == [*METHODS, *MAP] and expand(["icl", "map", "qttt"]) == ["icl", *MAP]
    for module in MAP.values():
        assert len(inspect.getsource(module).splitlines()) <= 100
        tried = math.prod(len(values) for values in module.SWEEP.values())
        assert tried == 4 and module.SWEEP.keys() <= module.Config.__dataclass_fields__.keys()
    assert len({module.COLOUR for module in KNOWN.values()}) == len({module.LABEL for module in KNOWN.values()}) == 19


# --- null settings ---


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name, changes, same", [
    ("windows", dict(size=0), icl), ("windows", dict(size=4), icl), ("windows", dict(size=0, structured=True), icl),
    ("anchors", dict(n_step=0), icl), ("ia3", dict(n_step=0), icl),
    ("ia3", dict(n_step=0, in_context=False), zero_shot), ("qttt", dict(n_step=0), icl), ("cpt", dict(n_step=0), icl),
    ("deep_thinking", dict(n_step=0), icl),
    ("prune", dict(n_step=0), icl), ("lara", dict(size=4), icl), ("i2cl", dict(n_step=0, vector=0.0), zero_shot),
], ids=str)
def test_the_null_setting_is_icl_or_zero_shot(family, name, changes, same):
    model, task = MODELS[family](), random_task(instruction=3, separator=[7])
    adapted, expected = adapt(name, model, task, **changes), logits_of(same.adapt(model, task), task)
    torch.testing.assert_close(logits_of(adapted, task), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MAP)
def test_away_from_it_it_is_neither(model, name):
    task = random_task(SMALL)
    found = logits_of(adapt(name, model, task, size=2), task)
    for same in (icl, zero_shot):
        assert (found - logits_of(same.adapt(model, task), task)).abs().max() > 1e-3


# --- what every method promises ---


@pytest.mark.parametrize("name", MAP)
def test_no_method_touches_the_model_and_a_seed_gives_its_bits(name):
    model, task = tiny_llama().requires_grad_(True), random_task(SMALL)
    digest = lambda: [hashlib.sha256(p.detach().numpy().tobytes()).hexdigest() for p in model.parameters()]
    before, random_state, method = digest(), torch.get_rng_state(), MAP[name]
    config = config_of(method, **short(name, sigma=0.5, noise=0.1, size=1))
    first, again, other = (method.adapt(model, task, config, seed) for seed in (3, 3, 4))
    assert digest() == before and torch.equal(torch.get_rng_state(), random_state) and first.model is model
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    numbers = lambda adapted: logits_of(adapted, task)
    assert torch.equal(numbers(first), numbers(again))
    assert torch.equal(numbers(first), numbers(other)) == (name not in DRAWING)
    if not isinstance(first.prefix, Mixture):
        assert not any(t.requires_grad for t in tensors_of(first))


@pytest.mark.parametrize("name, changes", [
    ("qttt", dict(objective="span")), ("prune", dict(search="genetic", mutation=0.2)),
])
def test_what_draws_in_another_setting(model, name, changes):
    method, task = MAP[name], random_task()
    run = lambda seed: method.adapt(model, task, config_of(method, **short("", **changes)), seed)
    assert same_bits(run(3), run(3))
    assert not torch.equal(logits_of(run(3), task), logits_of(run(4), task))


@pytest.mark.parametrize("name", MAP)
def test_progress_is_called_every_step_with_a_loss_that_is_there(model, name):
    calls = []
    config = config_of(MAP[name], **short(""))
    MAP[name].adapt(model, random_task(SMALL), config, progress=lambda *call: calls.append(call))
    assert [step for step, _ in calls] == ([] if name in READING else [0, 1, 2])
    assert all(math.isfinite(loss) for _, loss in calls)
    if name in ("prune", "lara"):
        assert [loss for _, loss in calls] == sorted((loss for _, loss in calls), reverse=True)


@pytest.mark.parametrize("name", MAP)
def test_n_trained_is_the_formula_of_the_docstring(name):
    L, C, H, K, D, ffn = 3, 16, 4, 2, 6, 20
    model, task = tiny_llama(n_layer=L, n_ffn=ffn), random_task(instruction=3)
    n, k = sum(len(demo.y) for demo in task.demos), len(task.demos)
    P = 3 + n + sum(len(demo.x) for demo in task.demos)
    formulas = dict(windows=0, anchors=L * K * k, ia3=L * (2 * K * D + ffn), qttt=L * C * H * D, cpt=(P - n) * C,
                    deep_thinking=2 * L * K * D * P, prune=P, lara=2, i2cl=4 * L)
    assert adapt(name, model, task, n_step=0).n_trained == formulas[name]


@pytest.mark.parametrize("name", TRAINED)
def test_trained_numbers_are_float32_also_in_a_bfloat16_model(steps, name):
    adapt(name, tiny_llama(torch.bfloat16), random_task())
    assert {value.dtype for step in steps for value in step["after"]} == {torch.float32}


@pytest.mark.parametrize("metric", ["ids", "accuracy", "text"])
@pytest.mark.parametrize("name", MAP)
def test_it_answers_by_every_metric_in_bfloat16_and_in_gpt2(name, metric):
    text = Text(lambda ids: "".join(f"{i} " if i else ";" for i in ids), ";") if metric == "text" else None
    task = random_task(SMALL, metric=metric, options=2 * (metric == "accuracy"), text=text)
    for model in (tiny_llama(torch.bfloat16), tiny_gpt2()):
        if metric == "text":
            model.config.__dict__["n_position"] = 60
        adapted = adapt(name, model, task)
        assert 0 <= evaluate(adapted, task).score <= 1


@pytest.mark.parametrize("name", MAP)
def test_what_is_decoded_is_what_is_scored_as_most_likely(model, name):
    """Greedy decoding by the cache, prompts of different lengths side by side, against one whole row at a time."""
    task = random_task(SMALL)
    adapted = adapt(name, model, task, size=1, structured=True, sigma=2.0)  # LARA's weights differ
    prompts = [[3, 1], [4, 1, 5, 9], [2]]
    for prompt, found in zip(prompts, generate(adapted, prompts, 5)):
        assert score_pairs(adapted, [(prompt, found)])[1].item()
        assert not score_pairs(adapted, [(prompt, [*found[:-1], (found[-1] + 1) % V])])[1].item()


@pytest.mark.parametrize("name", TRAINED)
def test_checkpointing_changes_no_bit(name):
    model, results = tiny_llama(), []
    for model.checkpoint in (False, True):
        results.append(adapt(name, model, random_task(), noise=0.2))
    assert same_bits(*results)


@pytest.mark.parametrize("name", LEAVE_ONE_OUT)
def test_one_demo_is_learned_without_leave_one_out(model, name):
    with pytest.warns(UserWarning, match="one demo"):
        adapt(name, model, random_task(lengths=((3, 2),)))


@pytest.mark.parametrize("name", LEAVE_ONE_OUT)
def test_leave_one_out_can_be_left_off(model, name):
    task = random_task(SMALL)
    on, off = (logits_of(adapt(name, model, task, leave_one_out=value), task) for value in (True, False))
    assert not torch.equal(on, off)


# --- what is refused ---


@pytest.mark.parametrize("name", MAP)
def test_no_demos_is_one_sentence(model, name):
    with pytest.raises(ValueError, match="no demos"):
        MAP[name].adapt(model, random_task(lengths=()))


@pytest.mark.parametrize("name, changes, says", [
    ("windows", dict(size=3), "size = 3 does not divide the 4 demos"), ("windows", dict(size=-1), "size = -1"),
    ("lara", dict(size=3), "size = 3 does not divide"), ("lara", dict(n_step=-1), "n_step = -1"),
    ("lara", dict(sigma=-1.0), "sigma = -1.0"), ("lara", dict(sigma=math.inf), "sigma = inf"),
    ("qttt", dict(objective="spam"), "objective = 'spam'"), ("qttt", dict(n_span=0), "n_span = 0"),
    ("cpt", dict(decay=1.5), "decay = 1.5"), ("cpt", dict(epsilon=-0.1), "epsilon = -0.1"),
    ("cpt", dict(format_epsilon=math.nan), "format_epsilon = nan"),
    ("deep_thinking", dict(n_step=-1), "n_step = -1"), ("deep_thinking", dict(lr=0.0), "lr = 0.0"),
    ("deep_thinking", dict(momentum=1.0), "momentum = 1.0"),
    ("prune", dict(search="best"), "search='best'"), ("prune", dict(n_step=-1), "n_step=-1"),
    ("prune", dict(n_population=0), "n_population=0"), ("prune", dict(mutation=1.1), "mutation=1.1"),
    ("i2cl", dict(noise=-0.1), "noise = -0.1"), ("i2cl", dict(n_step=-1), "n_step = -1"),
    *[(name, dict(lr=0.0), "lr = 0.0") for name in TRAINED],
], ids=str)
def test_settings_that_cannot_be_are_refused_in_one_line(model, name, changes, says):
    trained = lambda *_: pytest.fail("trained with a setting that cannot be")
    with pytest.raises(ValueError) as error:
        MAP[name].adapt(model, random_task(), config_of(MAP[name], **changes), progress=trained)
    assert says in message(error)


def test_lara_with_one_demo_is_refused(model):
    with pytest.raises(ValueError) as error:
        lara.adapt(model, random_task(lengths=((3, 2),)))
    assert "LARA needs two" in message(error)


@pytest.mark.parametrize("name", sorted(set(MAP) - {"windows", "lara", "i2cl"}))
def test_a_context_that_does_not_fit_is_refused(model, name):
    with pytest.raises(ValueError, match="model's context is 160"):
        MAP[name].adapt(model, random_task(lengths=((100, 1), (70, 1))))


@pytest.mark.parametrize("name", ["windows", "lara", "i2cl"])
def test_groups_that_fit_are_read_where_the_whole_does_not(model, name):
    long = random_task(lengths=((80, 1), (40, 1), (50, 1), (20, 1)))
    assert evaluate(adapt(name, model, long, size=1), random_task()).score >= 0


# --- what the files share ---


def test_answers_are_found_behind_separators_and_instruction(model):
    task = random_task(lengths=((2, 1), (1, 3)), instruction=1, separator=[5, 6])
    owner = encode_context(model, task.instruction, task.demos, separator=task.separator).owner
    assert is_answer(owner, task.demos).int().tolist() == [0, 0, 0, 1, 0, 0, 0, 1, 1, 1]
    assert groups_of([1, 2, 3, 4], 2) == [[1, 2], [3, 4]]


@pytest.mark.parametrize("T", [1, 4])
def test_an_entry_of_log_weight_log_2_is_two_entries(model, T):
    task, tokens = random_task(), torch.arange(T)[None]
    context = encode_context(model, task.instruction, task.demos)
    twice = torch.tensor([2, 5, 6])
    kv = [tuple(torch.cat([part, part[:, :, twice]], dim=2) for part in layer) for layer in context.kv]
    double = Prefix(kv, torch.cat([context.owner, context.owner[twice]]), context.next_position)
    context.log_weight = torch.zeros(len(context.owner)).index_fill(0, twice, math.log(2))
    torch.testing.assert_close(model(tokens, prefix=context)[0], model(tokens, prefix=double)[0])
    hidden = torch.ones(1, T, len(context.owner) + T).tril(len(context.owner)).bool()
    hidden[..., 5] = False  # what is hidden stays hidden, whatever it weighs
    kept = [i for i in range(len(double.owner)) if double.owner[i] is not None and i not in (5, len(context.owner) + 1)]
    less = Prefix([tuple(part[:, :, kept] for part in layer) for layer in double.kv], None, context.next_position)
    torch.testing.assert_close(model(tokens, prefix=context, mask=hidden)[0], model(tokens, prefix=less)[0])


# --- each against a reference ---


def test_windows_are_separate_forwards(model):
    task = random_task(instruction=2, separator=[7])
    theta = windows.adapt(model, task, windows.Config(size=2)).prefix
    groups = task.demos[:2], task.demos[2:]
    apart = [encode_context(model, task.instruction, group, separator=[7]) for group in groups]
    assert theta.next_position == max(one.next_position for one in apart) and theta.log_weight is None
    assert theta.owner.tolist() == [*apart[0].owner, *(apart[1].owner[2:] + 2)]
    for layer, first, second in zip(theta.kv, apart[0].kv, apart[1].kv):
        for part, a, b in zip(layer, first, second):
            torch.testing.assert_close(part, torch.cat([a, b[:, :, 2:]], dim=2), atol=1e-5, rtol=0)


def test_structured_windows_end_together_and_the_question_counts_as_often(model, monkeypatch):
    """Against attention that multiplies the exponentials of a question's own tokens by M."""
    task = random_task(lengths=((3, 2), (5, 1), (2, 4)), instruction=0)
    theta = windows.adapt(model, task, windows.Config(size=1, structured=True)).prefix
    end = theta.next_position
    for i, demo in enumerate(task.demos):
        tokens = torch.tensor([[*demo.x, *demo.y]])
        _, kv = model(tokens, positions=torch.arange(end - tokens.shape[1], end)[None])
        for layer, alone in zip(theta.kv, kv):
            torch.testing.assert_close(layer[0][:, :, theta.owner == i], alone[0], atol=1e-5, rtol=0)

    def attend(q, k, v, mask, past):
        T, P = q.shape[2], past[0].shape[2]
        k, v = (torch.cat(parts, dim=2).repeat_interleave(2, dim=1) for parts in zip(past, (k, v)))
        count = torch.cat([torch.ones(P), torch.full((T,), 3.0)]) * torch.ones(T, P + T).tril(P)
        weight = count * (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).exp()
        return (weight / weight.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2)

    tokens, plain = torch.tensor([[3, 1, 4]]), Prefix(theta.kv, theta.owner, end)
    found = model(tokens, prefix=theta)[0]
    monkeypatch.setattr(model_file, "attend", attend)
    torch.testing.assert_close(found, model(tokens, prefix=plain)[0], atol=1e-5, rtol=0)


def test_the_instruction_keeps_its_weight_in_structured_windows(model):
    theta = windows.adapt(model, random_task(instruction=2), windows.Config(size=1, structured=True)).prefix
    assert theta.log_weight[:2].tolist() == [0, 0] and theta.log_weight[2:].unique().tolist() == pytest.approx(
        [-math.log(4)])


def test_anchors_multiply_attention_behind_the_softmax(model, steps, monkeypatch):
    """The trained factors, applied to the attention weights of the answers, one layer and head at a time."""
    task = random_task(instruction=2)
    adapted, context = adapt("anchors", model, task, lr=0.3), icl.adapt(model, task).prefix
    beta, answer = steps[-1]["after"][0], is_answer(context.owner, task.demos)  # (L, 1, K, k)
    assert beta.abs().min() > 0.1
    layer = iter(beta)

    def attend(q, k, v, mask, past):
        T, P, of_demo = q.shape[2], past[0].shape[2], next(layer)[0]  # (K, k)
        k, v = (torch.cat(parts, dim=2) for parts in zip(past, (k, v)))
        heads = []
        for head in range(q.shape[1]):
            group = head // 2
            scores = q[0, head] @ k[0, group].T / math.sqrt(q.shape[-1])
            weight = scores.masked_fill(torch.ones(T, P + T).tril(P) == 0, -math.inf).softmax(-1)
            for i in range(len(task.demos)):
                weight[:, :P][:, answer & (context.owner == i)] *= of_demo[group, i].exp()
            heads.append(weight @ v[0, group])
        return torch.cat(heads, dim=-1)[None]

    tokens = torch.tensor([[3, 1, 4]])
    found = model(tokens, prefix=adapted.prefix)[0]
    monkeypatch.setattr(model_file, "attend", attend)
    torch.testing.assert_close(found, model(tokens, prefix=context)[0], atol=1e-5, rtol=0)


def test_compressed_anchors_are_the_answers_what_stands_before_them_and_the_first_token(model):
    task = random_task(lengths=((3, 2), (1, 1)), instruction=0)
    theta = adapt("anchors", model, task, compress=True, n_step=0).prefix
    whole, kept = icl.adapt(model, task).prefix, [0, 2, 3, 4, 5, 6]  # x x x y y x y
    assert theta.next_position == whole.next_position == 7 and theta.owner.tolist() == whole.owner[kept].tolist()
    for layer, of_whole in zip(theta.kv, whole.kv):
        assert all(torch.equal(part, all_[:, :, kept]) for part, all_ in zip(layer, of_whole))
    with_head = adapt("anchors", model, random_task(lengths=((3, 2),), instruction=3), compress=True, n_step=0).prefix
    assert with_head.owner.tolist() == [-1, -1, -1, 0, 0, 0]


def test_the_loss_is_leave_one_outs(model, steps):
    """The first gradient of anchors, (IA)³ and qTTT is that of CT-KV's loss without dropout."""
    task = random_task()
    context = encode_context(model, task.instruction, task.demos)
    row, k = pack(pairs_of(task), model, context.next_position), len(task.demos)
    mask = row.mask(visible(context.owner, k, leave_one_out=True))
    for name, adapter in (("ia3", ia3.attach(model)), ("qttt", qttt.adapt(model, task, qttt.Config(n_step=0)).adapter)):
        steps.clear()
        adapt(name, model, task, n_step=1)
        of_adapter = [leaf.requires_grad_() for leaf in leaves(adapter)]
        loss = F.cross_entropy(answer_logits(model, row, context, adapter, mask), row.target)
        for got, want in zip(steps[0]["raw"], torch.autograd.grad(loss, of_adapter), strict=True):
            torch.testing.assert_close(got, want)
    steps.clear()
    adapt("anchors", model, task, n_step=1)
    keys, values = context.stack()
    values.requires_grad_()
    loss = F.cross_entropy(answer_logits(model, row, context.of(keys, values), mask=mask), row.target)
    of_entry = (torch.autograd.grad(loss, values)[0] * values).sum(-1)  # of a factor on an entry: (L, 1, K, P)
    answer = is_answer(context.owner, task.demos)
    want = torch.stack([of_entry[..., answer & (context.owner == i)].sum(-1) for i in range(k)], dim=-1)
    torch.testing.assert_close(steps[0]["raw"][0], want)


def test_qttt_leaves_all_but_w_q_bit_identical(model):
    task = random_task()
    adapted, plain = adapt("qttt", model, task), icl.adapt(model, task)
    assert {name.split(".")[-1] for name in adapted.adapter} == {"q_proj"} and len(adapted.adapter) == 2
    assert same_bits(Adapted(model, None, adapted.prefix), plain)
    for name, part in adapted.adapter.items():
        assert not torch.equal(part.weight, model.linears[name].weight)
    gpt2 = tiny_gpt2()
    (part, *_), weight = adapt("qttt", gpt2, task).adapter.values(), gpt2.linears["h.0.attn.c_attn"].weight
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    changed = (part(x, weight) - F.linear(x, weight)).abs().max(0).values
    assert changed[:16].min() > 0 and changed[16:].max() == 0


def test_a_span_sees_the_frozen_cache_up_to_itself_and_nothing_that_it_computes(model, steps):
    """One token of the span at a time, behind the entries up to its own and without itself."""
    task = random_task(instruction=2)
    theta, ids = icl.adapt(model, task).prefix, torch.tensor([*task.instruction, *(
        token for demo in task.demos for token in (*demo.x, *demo.y))])
    adapter = qttt.adapt(model, task, qttt.Config(n_step=0)).adapter
    of_adapter = [leaf.requires_grad_() for leaf in leaves(adapter)]
    adapt("qttt", model, task, n_step=1, objective="span", n_span=5)
    first = int(torch.randint(len(ids) - 5, (), generator=torch.Generator().manual_seed(0)))
    losses = []
    for t in range(first, first + 5):
        seen = Prefix([tuple(part[:, :, : t + 1] for part in layer) for layer in theta.kv], None, t)
        mask = (torch.arange(t + 2) <= t)[None, None]
        hidden, _ = model(ids[None, t : t + 1], mask=mask, prefix=seen, adapter=adapter)
        losses.append(F.cross_entropy(model.logits(hidden[0]), ids[t + 1 : t + 2]))
    for got, want in zip(steps[0]["raw"], torch.autograd.grad(torch.stack(losses).mean(), of_adapter), strict=True):
        torch.testing.assert_close(got, want)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A random Llama as transformers wrote it: a function that reads it again, and our reading of it, both float64."""
    folder = tmp_path_factory.mktemp("map")
    write(folder, **TINY)
    ours = load_model(folder, device="cpu").double()
    ours.logits = lambda hidden: F.linear(hidden, ours.lm_head.weight)  # the model's own are float32
    norm = lambda self, x: self.weight * x / (x.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt()
    with pytest.MonkeyPatch.context() as patch:  # theirs is in float32, whatever the model is
        patch.setattr(LlamaRMSNorm, "forward", norm)
        yield (lambda: read(folder).double()), ours


def test_ia3_equals_peft_in_loss_and_gradient(theirs):
    read, ours = theirs
    targets = ["k_proj", "v_proj", "down_proj"]
    peft_model = peft.get_peft_model(read(), peft.IA3Config(
        target_modules=targets, feedforward_modules=["down_proj"], task_type="CAUSAL_LM"))
    adapter, generator, of_peft = ia3.attach(ours), torch.Generator().manual_seed(0), {}
    for name, p in peft_model.named_parameters():
        if "ia3_l" in name:
            of_peft["layers." + name.split("model.layers.")[1].removesuffix(".ia3_l.default")] = p
    for name, part in adapter.items():
        (leaf,) = part.leaves
        leaf.data.uniform_(0.5, 1.5, generator=generator)
        of_peft[name].data.copy_(leaf.data.view_as(of_peft[name]))
    tokens = torch.randint(V, (2, 15), generator=generator)
    expected = peft_model(tokens, labels=tokens).loss
    loss = F.cross_entropy(ours.logits(ours(tokens, adapter=adapter)[0])[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    theirs_ = torch.autograd.grad(expected, [of_peft[name] for name in adapter])
    for got, want in zip(torch.autograd.grad(loss, leaves(adapter)), theirs_, strict=True):
        assert relative_error(got, want.view_as(got)) < 1e-6


def test_ia3_on_single_pairs_has_the_instruction_at_the_head_of_every_row(model, steps):
    task = random_task(instruction=3)
    adapted = adapt("ia3", model, task, in_context=False, n_step=1, lr=0.1)
    row, adapter = pack(pairs_of(task), model, head=task.instruction), ia3.attach(model)
    loss = F.cross_entropy(answer_logits(model, row, adapter=adapter), row.target)
    for got, want in zip(steps[0]["raw"], torch.autograd.grad(loss, leaves(adapter)), strict=True):
        torch.testing.assert_close(got, want)
    assert same_bits(Adapted(model, None, adapted.prefix), Adapted(model, None, encode_context(
        model, task.instruction, adapter=adapted.adapter)))


@pytest.mark.parametrize("decay", [1.0, 0.7])
def test_cpt_equals_peft_in_loss_and_gradient(theirs, steps, monkeypatch, decay):
    """Offsets that start beyond their balls, so that the projection shows too."""
    read, ours = theirs
    task, epsilon, format_epsilon = random_task(instruction=3), 2.0, 0.7
    ids, kinds, answer = [*task.instruction], [1] * 3, [False] * 3
    for i, demo in enumerate(task.demos):
        ids += [*demo.x, *demo.y]
        kinds += [4 * i + 2] * len(demo.x) + [4 * i + 4] * len(demo.y)
        answer += [False] * len(demo.x) + [True] * len(demo.y)
    peft_model = peft.get_peft_model(read(), peft.CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=ids, cpt_mask=[1] * len(ids), cpt_tokens_type_mask=kinds,
        opt_weighted_loss_type="decay", opt_loss_decay_factor=decay, opt_projection_epsilon=epsilon,
        opt_projection_format_epsilon=format_epsilon))
    others = ~torch.tensor(answer)
    start = torch.randn(len(ids), 16, generator=torch.Generator().manual_seed(0)) * others[:, None] * 0.05
    start[::2] *= 10
    delta = peft_model.prompt_encoder["default"].delta_embedding.weight
    delta.data.copy_(start)
    longest = max(len(demo.x) + len(demo.y) for demo in task.demos)
    tokens, kind = torch.zeros(len(task.demos), longest, dtype=torch.int64), torch.zeros(
        len(task.demos), longest, dtype=torch.int64)
    for i, demo in enumerate(task.demos):
        n = len(demo.x) + len(demo.y)
        tokens[i, :n] = torch.tensor([*demo.x, *demo.y])
        kind[i, :n] = torch.tensor([2] * len(demo.x) + [4] * len(demo.y))
    expected = peft_model(tokens, labels=tokens.clone(), input_type_mask=kind).loss
    expected.backward()
    zeros = torch.zeros
    monkeypatch.setattr(cpt.torch, "zeros", lambda *shape, **options: zeros(*shape, **options) if options.get(
        "requires_grad") is None else start[others][None].clone().requires_grad_())
    losses = []
    cpt.adapt(ours, task, cpt.Config(1, decay=decay, epsilon=epsilon, format_epsilon=format_epsilon),
              progress=lambda step, loss: losses.append(loss))
    assert losses[0] == pytest.approx(expected.item(), rel=1e-6)
    assert relative_error(steps[0]["raw"][0][0], delta.grad[others]) < 1e-6
    torch.testing.assert_close(steps[0]["before"][0][0], delta.data[others])  # on the ball


def test_cpt_never_moves_an_answer_and_keeps_every_offset_in_its_ball(model):
    """From the cache: the embeddings that would give the keys and values of the first layer."""
    task, radius = random_task(instruction=2), 0.05 * math.sqrt(16 / 2048)
    theta = adapt("cpt", model, task, lr=0.5, epsilon=0.05, format_epsilon=0.0).prefix
    ids = [*task.instruction, *(token for demo in task.demos for token in (*demo.x, *demo.y))]
    embeds = model.embed(torch.tensor([ids]))
    answer = is_answer(theta.owner, task.demos)
    fixed = answer | (theta.owner == -1)
    plain = icl.adapt(model, task).prefix
    moved = (theta.kv[0][1] - plain.kv[0][1]).abs().amax((0, 1, 3))  # values of the first layer: of each token alone
    assert (moved[fixed] < 1e-6).all() and (moved[~fixed] > 1e-5).all()
    norm, w_v = model.blocks[0].input_layernorm, model.blocks[0].self_attn.v_proj.weight
    values = lambda e: F.linear(norm(e), w_v)
    near = torch.autograd.functional.jacobian(values, embeds[0, 2])  # how far values can move inside the ball
    assert moved[2] <= radius * torch.linalg.matrix_norm(near, 2) * 1.1


def test_deep_thinking_is_a_loop_of_forwards_behind_its_own_cache(model):
    task, lr, momentum = random_task(instruction=2), 0.1, 0.6
    found = adapt("deep_thinking", model, task, n_step=3, lr=lr, momentum=momentum).prefix
    ids = torch.tensor([[*task.instruction, *(token for demo in task.demos for token in (*demo.x, *demo.y))]])
    P, (_, kv) = ids.shape[1], model(ids)
    cache, moves = [[part.clone() for part in layer] for layer in kv], [[0, 0], [0, 0]]
    mask = torch.cat([torch.ones(P, P), torch.ones(P, P).tril()], dim=1).bool()[None]
    for _ in range(3):
        behind = SimpleNamespace(kv=cache, next_position=P)
        _, again = model(ids, positions=torch.arange(P)[None], mask=mask, prefix=behind)
        for layer in range(2):
            for i in range(2):
                moves[layer][i] = again[layer][i] - cache[layer][i] + momentum * moves[layer][i]
        cache = [[cache[layer][i] + lr * moves[layer][i] for i in range(2)] for layer in range(2)]
    for layer, want in zip(found.kv, cache):
        for a, b in zip(layer, want):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert found.next_position == P


def slow_loss(model, task, bits):
    """Leave-one-out's loss behind the tokens that are kept, one pair at a time."""
    tokens, owner = zip(*[(t, -1) for t in task.instruction], *[
        (t, i) for i, demo in enumerate(task.demos) for t in (*demo.x, *demo.y)])
    kept = [i for i, bit in enumerate(bits) if bit]
    _, kv = model(torch.tensor([[tokens[i] for i in kept]]))
    losses = []
    for i, demo in enumerate(task.demos):
        others = [at for at, j in enumerate(kept) if owner[j] != i]
        theta = Prefix([tuple(part[:, :, others] for part in layer) for layer in kv], None, len(kept))
        hidden, _ = model(torch.tensor([[*demo.x, *demo.y[:-1]]]), prefix=theta)
        logits = model.logits(hidden[0, len(demo.x) - 1 :])
        losses.append(F.cross_entropy(logits, torch.tensor(demo.y), reduction="sum"))
    return torch.stack(losses).sum().item() / sum(len(demo.y) for demo in task.demos)


def test_pruning_climbs_from_left_to_right(model):
    task, losses = random_task(lengths=((3, 2), (2, 1), (1, 2))), []
    found = prune.adapt(model, task, prune.Config(n_step=2), progress=lambda step, loss: losses.append(loss))
    bits = [True] * len(icl.adapt(model, task).prefix.owner)
    lowest, expected = slow_loss(model, task, bits), []
    for _ in range(2):
        for i in range(len(bits)):
            if bits[i]:
                bits[i] = False
                now = slow_loss(model, task, bits)
                bits[i], lowest = now > lowest, min(now, lowest)
        expected.append(lowest)
    assert losses == pytest.approx(expected, rel=1e-5) and 0 < sum(bits) < len(bits)
    assert found.prefix.next_position == sum(bits) == len(found.prefix.owner)
    owner = icl.adapt(model, task).prefix.owner
    assert found.prefix.owner.tolist() == [i for i, bit in zip(owner.tolist(), bits) if bit]


def test_the_last_token_stays(model, monkeypatch):
    """Where no context is best of all, one token is left: the loss of none is infinite."""
    nothing = []
    monkeypatch.setattr(prune, "climb", lambda loss, bits, *rest: nothing.append(loss(~bits)) or bits)
    adapt("prune", model, random_task(SMALL))
    monkeypatch.undo()
    assert nothing == [math.inf]
    best = lambda bits: bits.sum().item() if bits.any() else torch.inf
    assert prune.climb(best, torch.ones(5).bool(), prune.Config(n_step=3), None, lambda *_: None).sum() == 1
    generator = torch.Generator().manual_seed(0)
    config = prune.Config(n_step=60, mutation=0.3)
    assert prune.genetic(best, torch.ones(5).bool(), config, generator, lambda *_: None).sum() == 1


def test_lara_answers_with_the_weighted_sum_of_its_groups(model):
    task = random_task(separator=[7])
    adapted = adapt("lara", model, task, size=1, n_step=12, sigma=1.0)
    weights = [weight for weight, _ in adapted.prefix.parts]
    assert sum(weights) == pytest.approx(1) and len(set(weights)) == 4 and max(map(abs, weights)) <= lara.BOUND
    assert weights[0] + weights[1] == pytest.approx(0.5)  # a half keeps its sum
    total = 0
    for weight, demo in zip(weights, task.demos):
        total = total + weight * logits_of(icl.adapt(model, random_task(separator=[7]).__class__(
            "one", [demo], task.queries, task.instruction, separator=[7])), task)
    torch.testing.assert_close(logits_of(adapted, task), total, atol=1e-5, rtol=1e-5)
    target = torch.tensor([token for q in task.queries for token in q.y])
    mean = F.cross_entropy(total, target, reduction="none").split([len(q.y) for q in task.queries])
    losses, _ = score_pairs(adapted, [([7, *q.x], q.y) for q in task.queries])
    torch.testing.assert_close(losses.float(), torch.stack([part.mean() for part in mean]), atol=1e-5, rtol=1e-5)


def test_laras_loss_is_of_each_half_behind_the_other(model):
    task = random_task(separator=[7])
    contexts = [encode_context(model, task.instruction, [demo]) for demo in task.demos]
    found, losses = lara.halves(model, task, contexts, 1), []
    (history, weights) = lara.search(found, 4, lara.Config(n_step=25, sigma=1.0), seed=0)
    for i, demo in enumerate(task.demos):
        groups = (2, 3) if i < 2 else (0, 1)
        total = 0
        for g in groups:
            hidden, _ = model(torch.tensor([[7, *demo.x, *demo.y[:-1]]]), prefix=contexts[g])
            total = total + 2 * weights[g] * model.logits(hidden[0, len(demo.x) :])
        losses.append(F.cross_entropy(total, torch.tensor(demo.y), reduction="sum"))
    assert history[-1] == pytest.approx(sum(losses).item() / 10, rel=1e-5) and history[-1] < history[0]
    assert history == sorted(history, reverse=True) and len(history) == 26


def test_the_loss_of_the_demos_behind_weighted_contexts_hides_each_from_its_own_group(model):
    task = random_task()
    adapted, losses = adapt("lara", model, task, size=2), []
    for i, demo in enumerate(task.demos):
        tokens, total = torch.tensor([[*demo.x, *demo.y[:-1]]]), 0
        for weight, context in adapted.prefix.parts:
            others = context.owner != i
            theta = Prefix([tuple(part[:, :, others] for part in layer) for layer in context.kv], None,
                           context.next_position)
            total = total + weight * model.logits(model(tokens, prefix=theta)[0][0, len(demo.x) - 1 :])
        losses.append(F.cross_entropy(total, torch.tensor(demo.y), reduction="sum"))
    assert demo_loss(adapted, task) == pytest.approx(sum(losses).item() / 10, rel=1e-5)


def test_lara_takes_the_size_with_the_lowest_loss(model, monkeypatch):
    lengths = ((2, 1),) * 8
    asked, search = {}, lara.search

    def spy(found, n_group, *rest):
        asked[8 // n_group] = search(found, n_group, *rest)
        return asked[8 // n_group]

    monkeypatch.setattr(lara, "search", spy)
    adapted = adapt("lara", model, random_task(lengths=lengths))
    assert asked.keys() == {2, 4} and adapted.n_trained == 8 // min(asked, key=lambda size: asked[size][0][-1])
    assert adapt("lara", model, random_task(lengths=lengths[:3])).n_trained == 3  # no size divides: groups of one


def test_i2cl_adds_the_mean_output_of_the_last_tokens(model, steps):
    """By hooks on the modules, which see the outputs themselves."""
    task = random_task(instruction=2)
    adapted, outputs = adapt("i2cl", model, task, lr=0.2), {}
    maps = {name: layer for name, layer in model.linears.items() if name.endswith(("o_proj", "down_proj"))}
    hooks = [layer.register_forward_hook(lambda _, __, out, name=name: outputs.setdefault(name, []).append(out[0, -1]))
             for name, layer in maps.items()]
    for demo in task.demos:
        model(torch.tensor([[*task.instruction, *demo.x, *demo.y]]))
    for hook in hooks:
        hook.remove()
    assert adapted.adapter.keys() == maps.keys() and adapted.n_trained == 8
    for name, part in adapted.adapter.items():
        torch.testing.assert_close(part.vector, torch.stack(outputs[name]).mean(0))
        assert (part.mix - torch.tensor([0.1, 1.0])).abs().min() > 0.01  # both are trained
    hooks = [layer.register_forward_hook(lambda _, __, out, part=adapted.adapter[name]: part.mix[1] * out + part.mix[
        0] * part.vector) for name, layer in maps.items()]
    expected = logits_of(Adapted(model, None, encode_context(model, task.instruction)), task)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(logits_of(adapted, task), expected, atol=1e-5, rtol=1e-5)
    assert steps[0]["before"][0].tolist() == pytest.approx([0.1, 1.0]) and len(steps[0]["raw"]) == 4


def test_i2cls_noise_is_there_while_training_alone(model, steps):
    task = random_task()
    adapted = adapt("i2cl", model, task, n_step=1, noise=0.5)
    first = [g.clone() for g in steps[0]["raw"]]
    steps.clear()
    adapt("i2cl", model, task, n_step=1, noise=0.0)
    assert not all(torch.equal(a, b) for a, b in zip(first, steps[0]["raw"]))
    assert torch.equal(logits_of(adapted, task), logits_of(adapted, task))


def test_demos_that_do_not_fit_behind_the_context_are_left_out_of_cpts_count(model):
    """With one pair of two left, there is one sequence: the weights of prompt and pair follow."""
    task, losses = random_task(lengths=((3, 2), (60, 1)), instruction=0), []
    task.length = 90
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cpt.adapt(model, task, cpt.Config(1, decay=1.0), progress=lambda step, loss: losses.append(loss))
    one, two = task.demos
    tokens = torch.tensor([[*one.x, *one.y, *two.x, *two.y, *one.x, *one.y]])
    logits = model.logits(model(tokens)[0])[0]
    at = [3, 4, 65, 69, 70]
    assert losses[0] == pytest.approx(F.cross_entropy(logits[[i - 1 for i in at]], tokens[0, at]).item(), rel=1e-5)
    assert Demo(one.x, one.y) == one
