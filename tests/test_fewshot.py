"""Tasks and contexts: what a prefix holds, how it grows, and what is refused."""

import pytest
import torch
from helpers import V, message, random_ids, random_task, relative_error

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
from nanoct.packing import pack

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


# --- bad input: one line that holds the value ---


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
