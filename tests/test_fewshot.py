"""Packing: k pairs in one row behind one prefix, and what each of them may see."""

import pytest
import torch
import torch.nn.functional as F
from conftest import V, random_ids, random_task, tiny_llama

from nanoct.adapters import LoRA, attach
from nanoct.fewshot import (
    Demo,
    Prefix,
    Query,
    Task,
    concatenate,
    encode_context,
    first_tokens,
    grow,
    noise_like,
    read_on,
)
from nanoct.packing import answer_logits, can_leave_one_out, pack, pack_demos, visible

UNEVEN = ((1, 1), (19, 2), (3, 11), (2, 1), (7, 5))  # lengths of x and y


def pairs_of(task):
    return [(demo.x, demo.y) for demo in task.demos]


def leaves(prefix):
    """Trainable copies of the keys and values, per layer, and the prefix made of them."""
    leaf = lambda part: part.clone(memory_format=torch.contiguous_format).requires_grad_()
    kv = [tuple(map(leaf, layer)) for layer in prefix.kv]
    return [part for layer in kv for part in layer], Prefix(kv, prefix.owner, prefix.next_position)


def padded_loss(model, prefix, pairs, seen, adapter=None):
    """The slow version, as the released code does it: k right-padded rows, k copies of the prefix, a mask per row.

    Loss: the mean over the answer tokens of all rows, the others have the label -100.
    """
    k, P = seen.shape
    T = max(len(x) + len(y) for x, y in pairs)
    tokens, labels, real = torch.zeros(k, T, dtype=torch.int64), torch.full((k, T), -100), torch.zeros(k, T, dtype=torch.bool)
    for i, (x, y) in enumerate(pairs):
        n = len(x) + len(y)
        tokens[i, :n], real[i, :n] = torch.tensor([*x, *y]), True
        labels[i, len(x) : n] = torch.tensor(y)
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    mask = torch.cat([seen[:, None].expand(k, T, P), causal & real[:, None]], dim=2)
    copies = Prefix([tuple(part.expand(k, -1, -1, -1) for part in layer) for layer in prefix.kv], None, P)
    positions = torch.arange(P, P + T).expand(k, T)
    logits = model.logits(model(tokens, positions=positions, mask=mask, prefix=copies, adapter=adapter)[0])
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def drawn(generator, k, owner, dropout, leave_one_out):
    """What each of k pairs sees of the entries, (k, P), with the draws that a method makes."""
    seen = torch.rand(k, len(owner), generator=generator) >= dropout if dropout else torch.ones(k, len(owner)).bool()
    return seen & (torch.arange(k)[:, None] != owner) if leave_one_out else seen


def relative_error(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def float64_llama(**changes):
    model = tiny_llama(torch.float64, **changes)
    model.logits = lambda hidden: F.linear(hidden, model.model.embed_tokens.weight)  # the model's own are float32
    return model


def packed_case(model, dropout, instruction, lengths=UNEVEN):
    """(leaves, prefix, pairs, seen, packed loss) of one CT-KV step."""
    task = random_task(lengths, instruction=instruction)
    theta, prefix = leaves(encode_context(model, task.instruction, task.demos))
    pairs = pairs_of(task)
    seen = visible(prefix.owner, len(pairs), True, dropout, torch.Generator().manual_seed(1))
    row = pack(pairs, model, start=prefix.next_position)
    loss = lambda: F.cross_entropy(answer_logits(model, row, prefix, mask=row.mask(seen)), row.target)
    return theta, prefix, pairs, seen, loss


# --- one packed row is k padded rows ---


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("instruction", [0, 4])
@pytest.mark.parametrize("build, tolerance", [(tiny_llama, 1e-5), (float64_llama, 1e-10)], ids=["float32", "float64"])
def test_packed_loss_and_gradients_equal_the_padded(build, tolerance, instruction, dropout):
    model = build()
    theta, prefix, pairs, seen, loss = packed_case(model, dropout, instruction)
    assert (~seen).any(1).all() and seen.any(1).all()
    packed, padded = loss(), padded_loss(model, prefix, pairs, seen)
    assert packed.item() == pytest.approx(padded.item(), rel=tolerance)
    for ours, slow in zip(torch.autograd.grad(packed, theta), torch.autograd.grad(padded, theta), strict=True):
        assert relative_error(ours, slow) < tolerance


def test_gradients_equal_finite_differences():
    model = float64_llama()
    theta, _, _, _, loss = packed_case(model, 0.2, 2)
    gradients = torch.autograd.grad(loss(), theta)
    g, step = torch.Generator().manual_seed(3), 1e-5
    for leaf, gradient in zip(theta, gradients):
        for _ in range(6):
            at = torch.randint(leaf.numel(), (), generator=g)
            with torch.no_grad():
                flat = leaf.view(-1)
                flat[at] += step
                up = loss()
                flat[at] -= 2 * step
                down = loss()
                flat[at] += step
            difference = ((up - down) / (2 * step)).item()
            assert gradient.flatten()[at].item() == pytest.approx(difference, rel=1e-6, abs=1e-9)


def test_a_hidden_demo_gets_no_gradient_from_its_own_pair(model):
    task = random_task(UNEVEN)
    theta, prefix = leaves(encode_context(model, task.instruction, task.demos))
    row = pack(pairs_of(task), model, start=prefix.next_position)
    seen = visible(prefix.owner, len(task.demos), leave_one_out=True)
    logits = answer_logits(model, row, prefix, mask=row.mask(seen))
    losses = F.cross_entropy(logits, row.target, reduction="none")
    for i in range(len(task.demos)):
        loss = losses[row.pair[row.where] == i].sum()
        for gradient in torch.autograd.grad(loss, theta, retain_graph=True):
            zero = (gradient == 0).all(-1).all(1)[0]  # (P,)
            assert torch.equal(zero, prefix.owner == i)


@torch.no_grad()
def test_pairs_of_one_row_do_not_see_each_other(model):
    task = random_task(UNEVEN)
    prefix = encode_context(model, task.instruction, task.demos)
    pairs = pairs_of(task)
    before = pack(pairs, model, start=prefix.next_position)
    logits = answer_logits(model, before, prefix)
    for j, (x, y) in enumerate(pairs):
        other = ([(t + 1) % V for t in x], [(t + 5) % V for t in y])
        after = pack(pairs[:j] + [other] + pairs[j + 1 :], model, start=prefix.next_position)
        changed = (answer_logits(model, after, prefix) != logits).any(1)
        assert torch.equal(changed, before.pair[before.where] == j)


def test_pack_by_hand(model):
    row = pack([([7, 8], [9]), ([3], [4, 5, 6])], model, start=10, head=[1])
    assert row.tokens.tolist() == [[1, 7, 8, 1, 3, 4, 5]]  # the last token of an answer predicts nothing
    assert row.positions.tolist() == [[10, 11, 12, 10, 11, 12, 13]]
    assert row.pair.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert row.where.tolist() == [2, 4, 5, 6]
    assert row.target.tolist() == [9, 4, 5, 6]
    seen = torch.tensor([[True, False], [False, True]])
    o, i = False, True
    assert row.mask(seen)[0].tolist() == [
        [i, o, i, o, o, o, o, o, o],
        [i, o, i, i, o, o, o, o, o],
        [i, o, i, i, i, o, o, o, o],
        [o, i, o, o, o, i, o, o, o],
        [o, i, o, o, o, i, i, o, o],
        [o, i, o, o, o, i, i, i, o],
        [o, i, o, o, o, i, i, i, i],
    ]


@torch.no_grad()
def test_new_tokens_stand_behind_the_context(model):
    """A packed pair is what a plain forward over context, x and y gives, at positions 0, 1, 2, …"""
    task = random_task(UNEVEN)
    prefix = encode_context(model, task.instruction, task.demos)
    P = len(prefix.owner)
    assert prefix.next_position == P == len(task.instruction) + sum(n + m for n, m in UNEVEN)
    context = [*task.instruction, *(t for demo in task.demos for t in (*demo.x, *demo.y))]
    pairs = [(q.x, q.y) for q in task.queries]
    row = pack(pairs, model, start=prefix.next_position)
    assert row.positions[0].tolist() == [P + t for x, y in pairs for t in range(len(x) + len(y) - 1)]
    logits = answer_logits(model, row, prefix)
    for i, (x, y) in enumerate(pairs):
        whole = model.logits(model(torch.tensor([context + x + y]))[0])[0]
        torch.testing.assert_close(logits[row.pair[row.where] == i], whole[-len(y) - 1 : -1], rtol=1e-4, atol=1e-4)


# --- contexts ---


@torch.no_grad()
def test_encode_context_is_the_cache_of_the_concatenation(model):
    task = random_task(instruction=3)
    prefix = encode_context(model, task.instruction, task.demos)
    context = [*task.instruction, *(t for demo in task.demos for t in (*demo.x, *demo.y))]
    _, kv = model(torch.tensor([context]))
    for ours, theirs in zip(prefix.kv, kv):
        assert all(map(torch.equal, ours, theirs))
    assert prefix.owner.tolist() == [-1] * 3 + [0] * 5 + [1] * 6 + [2] * 6 + [3] * 9
    assert encode_context(model) is None


@torch.no_grad()
@pytest.mark.parametrize("cut", [0, 1, 7])
def test_grow_continues_the_cache(model, cut):
    ids = torch.tensor([random_ids(12, torch.Generator().manual_seed(4))])
    whole = encode_context(model, ids[0].tolist())
    prefix = encode_context(model, ids[0, :cut].tolist())
    grown = grow(prefix, model(ids[:, cut:], prefix=prefix)[1])
    assert grown.next_position == len(grown.owner) == 12
    for ours, theirs in zip(grown.kv, whole.kv):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 7, 12])
def test_reading_on_is_reading_all_at_once(model, cut, adapted):
    g = torch.Generator().manual_seed(4)
    adapter = attach(LoRA, model, 2, 3.0, generator=g) if adapted else None
    for part in (adapter or {}).values():
        part.b.data.normal_(std=0.5, generator=g)
    ids, demo = random_ids(12, g), Demo([1, 2], [3])
    for demos in ([], [demo]):
        first = [*ids[:cut], *(demo.x + demo.y if demos else [])]
        prefix = encode_context(model, ids[:cut], demos, adapter)
        ours, whole = read_on(model, prefix, ids[cut:], adapter), encode_context(model, first + ids[cut:], (), adapter)
        assert ours.owner.tolist() == [-1] * cut + [0] * (len(first) - cut) + [-1] * (12 - cut)
        assert ours.next_position == whole.next_position == len(ours.owner)
        for a, b in zip(ours.stack(), whole.stack(), strict=True):
            assert not a.requires_grad and relative_error(a, b) < 1e-5
    assert read_on(model, prefix, []) is prefix and read_on(model, None, []) is None


def test_concatenate_by_hand(model):
    tokens, owner = concatenate(model, [9, 8], [Demo([1], [2, 3]), Demo([4, 5], [6])])
    assert tokens.tolist() == [[9, 8, 1, 2, 3, 4, 5, 6]] and owner.tolist() == [-1, -1, 0, 0, 0, 1, 1, 1]
    tokens, owner = concatenate(model)
    assert tokens.shape == (1, 0) and owner.shape == (0,) and tokens.dtype == owner.dtype == torch.int64


def test_the_separator_is_before_every_demo_but_the_first_and_that_demos_own(model):
    tokens, owner = concatenate(model, [9], [Demo([1, 2], [3]), Demo([4], [5]), Demo([6], [7])], separator=[8, 0])
    assert tokens.tolist() == [[9, 1, 2, 3, 8, 0, 4, 5, 8, 0, 6, 7]]
    assert owner.tolist() == [-1, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_every_training_pair_begins_with_head_and_separator(model):
    row = pack_demos(Task("t", [Demo([1, 2], [3]), Demo([4], [5])], [], separator=[8]), model, start=5, head=[9])
    assert row.tokens.tolist() == [[9, 8, 1, 2, 9, 8, 4]] and row.positions.tolist() == [[5, 6, 7, 8, 5, 6, 7]]
    assert row.target.tolist() == [3, 5] and row.where.tolist() == [3, 6] and row.pair.tolist() == [0] * 4 + [1] * 3


@pytest.mark.parametrize("room, kept", [(8, [0, 1, 2]), (7, [0, 2]), (6, [0, 2]), (5, [2]), (4, [2])])
def test_training_pairs_that_do_not_fit_are_left_out_and_the_others_keep_their_number(recwarn, room, kept):
    model = tiny_llama()
    demos = [Demo([1, 2, 3], [4]), Demo([5, 6, 7, 8], [9, 1]), Demo([2], [3])]  # rows of 6, 8 and 4
    start, task = model.config.n_position - room, Task("t", demos, [], separator=[8])
    row = pack_demos(task, model, start, head=[7, 7])
    alone = [pack([(demos[i].x, demos[i].y)], model, start, [7, 7, 8]) for i in kept]
    assert torch.equal(row.tokens, torch.cat([r.tokens for r in alone], dim=1))
    assert torch.equal(row.target, torch.cat([r.target for r in alone]))
    assert row.pair.unique().tolist() == kept
    said = [str(w.message) for w in recwarn]
    assert len(said) == (len(kept) < 3) and all(f"{3 - len(kept)} of 3 training pairs" in s for s in said)


def test_training_pairs_none_of_which_fits_are_refused(model):
    with pytest.raises(ValueError, match="fewer or shorter demos"):
        pack_demos(Task("t", [Demo([1] * 9, [2]), Demo([1] * 8, [2])], []), model, start=model.config.n_position - 7)


def test_stack_and_of_are_inverse(model):
    prefix = encode_context(model, [1, 2], [Demo([3], [4, 5])])
    keys, values = prefix.stack()
    assert keys.shape == values.shape == (2, 1, 2, 5, 6)  # (L, 1, K, P, D)
    again = prefix.of(keys, values)
    for ours, theirs, key, value in zip(again.kv, prefix.kv, keys, values, strict=True):
        assert all(map(torch.equal, ours, theirs)) and all(map(torch.equal, ours, (key, value)))
    assert again.owner is prefix.owner and again.next_position == 5


def test_noise_is_spread_as_the_prefix_is_layer_by_layer(model):
    prefix = encode_context(model, random_ids(60, torch.Generator().manual_seed(1)), [Demo([1] * 60, [2])])
    prefix.kv[1] = tuple(3 * part for part in prefix.kv[1])
    draw = lambda seed: noise_like(prefix, torch.Generator().manual_seed(seed))
    noise = draw(0)
    assert noise.owner.tolist() == [-1] * 121 and noise.next_position == 121 and noise.owner.dtype == torch.int64
    for ours, theirs, same, other in zip(noise.kv, prefix.kv, draw(0).kv, draw(1).kv, strict=True):
        assert all(map(torch.equal, ours, same)) and not any(map(torch.equal, ours, other))
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            assert a.std().item() == pytest.approx(b.std().item(), rel=0.08) and abs(a.mean()) < 0.1 * b.std()
    half = Prefix([tuple(part.bfloat16() for part in layer) for layer in prefix.kv], prefix.owner, 121)
    assert noise_like(half, torch.Generator().manual_seed(0)).kv[0][0].dtype == torch.bfloat16


def test_first_tokens_wrap_and_must_fit(model):
    assert first_tokens(model, 3) == [0, 1, 2] and first_tokens(model, V + 2) == [*range(V), 0, 1]
    assert len(first_tokens(model, model.config.n_position)) == model.config.n_position
    for m, said in ((0, "n_prefix = 0"), (model.config.n_position + 1, f"context is {model.config.n_position}")):
        with pytest.raises(ValueError) as error:
            first_tokens(model, m)
        assert said in message(error)


# --- what a pair may see ---


def owners(*counts):
    """The owners of so many entries of the instruction, of demo 0, of demo 1, …"""
    return torch.repeat_interleave(torch.arange(-1, len(counts) - 1), torch.tensor(counts))


def test_leave_one_out_hides_a_pairs_own_demo_and_nothing_else():
    seen = visible(owners(2, 1, 3), k=2, leave_one_out=True)
    assert seen.int().tolist() == [[1, 1, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]]
    assert visible(owners(2, 1, 3), k=2).all()


@pytest.mark.parametrize("p", [1.0, 1.5, -0.1])
def test_a_dropout_that_is_no_probability_below_1_is_refused(p):
    with pytest.raises(ValueError) as error:
        visible(owners(2, 3), 1, token_dropout=p)
    assert f"token_dropout = {p}" in message(error)


def test_one_demo_cannot_be_left_out(recwarn):
    assert can_leave_one_out(random_task()) and not recwarn
    assert not can_leave_one_out(random_task(lengths=[(1, 1)]))
    assert "'random'" in str(recwarn.pop(UserWarning).message) and not recwarn


@pytest.mark.parametrize("p", [0.05, 0.3])
def test_token_dropout_is_independent_per_pair_and_entry(p):
    k, counts = 5, (4, 9, 7, 8)
    g = torch.Generator().manual_seed(0)
    n = 2000
    hidden = torch.stack([~visible(owners(*counts), k, token_dropout=p, generator=g) for _ in range(n)]).double()
    sigma = (p * (1 - p) / n) ** 0.5
    assert (hidden.mean(0) - p).abs().max() < 5 * sigma  # every pair and entry, the instruction's too
    centred = hidden.flatten(1) - p
    correlation = centred.T @ centred / n / (p * (1 - p))
    assert (correlation - torch.eye(len(correlation))).fill_diagonal_(0).abs().max() < 6 * n**-0.5


def test_token_dropout_comes_on_top_of_leave_one_out():
    draw = lambda leave: visible(owners(5, 40, 40), 2, leave, 0.5, torch.Generator().manual_seed(7))
    alone = visible(owners(5, 40, 40), 2, leave_one_out=True)
    assert torch.equal(draw(True), draw(False) & alone)
    assert not torch.equal(draw(True), alone)


# --- bad input: one line that holds the value ---


def message(error):
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", [Demo, Query])
@pytest.mark.parametrize("x, y, named", [([], [7, 5], "empty input"), ([7, 5], [], "empty answer")])
def test_an_empty_part_is_refused(kind, x, y, named):
    with pytest.raises(ValueError) as error:
        kind(x, y)
    assert named in message(error) and "[7, 5]" in message(error)


def test_options_must_hold_the_answer_and_no_empty_one():
    with pytest.raises(ValueError) as error:
        Query([1], [17, 3], [[4], [5], [17]])
    assert "[17, 3]" in message(error) and "3 options" in message(error)
    with pytest.raises(ValueError) as error:
        Query([1], [17], [[17], []])
    assert "empty option" in message(error) and "[17]" in message(error)
    Query((1,), (17, 3), [[17, 3], (4,)])  # any sequences will do


def test_a_context_longer_than_the_models_is_refused(model):
    n = model.config.n_position
    encode_context(model, [1] * n)
    with pytest.raises(ValueError) as error:
        encode_context(model, [1], [Demo([2] * (n - 1), [3])])
    assert f"{n + 1} tokens" in message(error) and f"context is {n}" in message(error) and "1 demos" in message(error)
    pack([([1], [2, 3])], model, start=n - 2)  # the last token is not read
    with pytest.raises(ValueError) as error:
        pack([([1], [2]), ([1], [2, 3])], model, start=n - 1)
    assert "pair 1" in message(error) and f"behind {n - 1} tokens" in message(error)


def test_need_demos():
    with pytest.raises(ValueError) as error:
        Task("letters", [], [Query([1], [2])]).need_demos("ICL")
    assert "'letters'" in message(error) and "ICL" in message(error)
