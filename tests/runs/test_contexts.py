"""Saved contexts: the same bits back for every method, and a sentence for every file that does not belong."""

import json
import math
import os
from dataclasses import fields

import pytest
import torch
from helpers import random_task, tiny_llama
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nanoct.adapters import DoRA
from nanoct.fewshot import Adapted, Prefix
from nanoct.io import files
from nanoct.io.files import replace_file
from nanoct.io.weights import fingerprint
from nanoct.methods import METHODS, zero_shot
from nanoct.runs import ablations
from nanoct.runs.contexts import ENTRY, load_adapted, read_about, save_adapted
from nanoct.score import score_pairs


def adapt(name, model, task=None, **changes):
    """An Adapted of a few large steps, and its Config."""
    changes, Config = dict(n_step=2, ttt_n_step=2, lr=0.05, rank=3, n_prefix=5) | changes, METHODS[name].Config
    config = Config(**{f.name: changes[f.name] for f in fields(Config) if f.name in changes})
    return METHODS[name].adapt(model, task or random_task(), config), config


def tensors_of(adapted):
    theta = [*adapted.prefix.stack(), adapted.prefix.owner] if adapted.prefix is not None else []
    return theta + [leaf for part in (adapted.adapter or {}).values() for leaf in part.leaves]


def losses(adapted):
    return score_pairs(adapted, [(q.x, q.y) for q in random_task(n_query=7, seed=3).queries])[0]


# --- out and in again ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_round_trip_is_exact(tmp_path, name, dtype):
    model = tiny_llama(dtype)
    adapted, config = adapt(name, model)
    state = torch.random.get_rng_state()
    path = tmp_path / "new" / "a"
    assert save_adapted(adapted, path, name, config, 4, template="x", note=[1, None]) == path
    again, about = load_adapted(path, model)
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing drawn
    before, after = tensors_of(adapted), tensors_of(again)
    assert [t.dtype for t in before] == [t.dtype for t in after] and all(map(torch.equal, before, after))
    assert torch.equal(losses(adapted), losses(again))
    assert again.n_trained == adapted.n_trained and again.prefix.next_position == adapted.prefix.next_position
    kinds = [{name: type(part) for name, part in (a.adapter or {}).items()} for a in (adapted, again)]
    assert kinds[0] == kinds[1] and about == read_about(path)
    assert (about["method"], about["k"], about["template"], about["note"]) == (name, 4, "x", [1, None])
    assert METHODS[name].Config(**about["config"]) == config and about["model"] == fingerprint(model)
    save_adapted(again, tmp_path / "b", name, about["config"], 4, template="x", note=[1, None])
    assert (tmp_path / "b").read_bytes() == path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["a"]


def test_bf16_leaves_stay_bf16_and_scales_exact(model, tmp_path):
    config = ablations.Config(n_step=3, bf16=True)
    save_adapted(ablations.adapt(model, random_task(), config), tmp_path / "a", "ct_kv_variant", config, 4)
    assert load_adapted(tmp_path / "a", model)[0].prefix.kv[0][0].dtype == torch.bfloat16
    adapted, config = adapt("dora", model, alpha=0.1)
    save_adapted(adapted, tmp_path / "a", "dora", config, 4)
    parts = load_adapted(tmp_path / "a", model)[0].adapter.values()
    assert {part.scale for part in parts} == {0.1 / 3} and {part.dropout for part in parts} == {0.0}


def test_without_a_prefix_and_without_anything(model, tmp_path):
    nothing = zero_shot.adapt(model, random_task(instruction=0))
    assert nothing.prefix is None
    save_adapted(nothing, tmp_path / "a", "zero_shot", zero_shot.Config(), 0)
    again, about = load_adapted(tmp_path / "a", model)
    assert again.prefix is None and again.adapter is None and about["next_position"] is None
    assert torch.equal(losses(nothing), losses(again))
    adapted, config = adapt("dora", model, random_task(instruction=0))
    save_adapted(adapted, tmp_path / "a", "dora", config, 4)
    again, _ = load_adapted(tmp_path / "a", model)
    assert again.prefix is None and {type(part) for part in again.adapter.values()} == {DoRA}
    assert torch.equal(losses(adapted), losses(again)) and not torch.equal(losses(adapted), losses(nothing))


def test_a_context_of_a_bf16_model_is_read_by_its_float32_twin(tmp_path):
    half = tiny_llama(torch.bfloat16)
    save_adapted(adapted := zero_shot.adapt(half, random_task()), tmp_path / "a", "zero_shot", {}, 0)
    again, _ = load_adapted(tmp_path / "a", tiny_llama(torch.bfloat16).float())
    assert torch.equal(again.prefix.kv[1][0], adapted.prefix.kv[1][0])


def test_the_file_may_change_after_loading(model, tmp_path):
    save_adapted(adapt("ct_kv", model)[0], tmp_path / "a", "ct_kv", {}, 4)
    again, _ = load_adapted(tmp_path / "a", model)
    before = losses(again)
    with open(tmp_path / "a", "r+b") as f:
        f.seek(-3000, os.SEEK_END)
        f.write(bytes(3000))
    assert torch.equal(losses(again), before)


def test_an_interrupted_save_leaves_the_older_file(model, tmp_path, monkeypatch):
    path = replace_file(tmp_path / "a", b"old")

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        save_adapted(zero_shot.adapt(model, random_task()), path, "zero_shot", {}, 0)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a"]


# --- what does not fit ---


def sentence(error, call, *arguments):
    with pytest.raises(error) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


@pytest.fixture
def file(model, tmp_path):
    """A context with a prefix and an adapter."""
    adapted, config = adapt("ttt_ct_kv", model)
    return save_adapted(adapted, tmp_path / "ctx", "ttt_ct_kv", config, 4)


def rewrite(file, edit):
    with safe_open(file, "pt") as f:
        about = json.loads(f.metadata()[ENTRY])
    tensors = {name: t.clone() for name, t in load_file(file).items()}
    edit(tensors, about)
    save_file(tensors, file, {ENTRY: json.dumps(about)})


Q = "adapter.layers.1.self_attn.q_proj"


@pytest.mark.parametrize("edit, said", [
    (lambda t, m: m.update(version=2), ["version 2", "reads 1"]),
    (lambda t, m: m.pop("version"), ["no 'version'"]),
    (lambda t, m: m.pop("next_position"), ["no 'next_position'"]),
    (lambda t, m: m.update(k="4"), ["k is '4'"]),
    (lambda t, m: m.update(model="0" * 12), ["000000000000", fingerprint(tiny_llama())]),
    (lambda t, m: t.pop("prefix.values"), ["prefix.values is missing", "expected floats (2, 1, 2,"]),
    (lambda t, m: t.update({"prefix.keys": t["prefix.keys"][:1]}), ["prefix.keys is floats (1, 1,", "floats (2, 1,"]),
    (lambda t, m: t.update({"prefix.values": t["prefix.values"].repeat(1, 2, 1, 1, 1)}),
     ["prefix.values is floats (2, 2,"]),
    (lambda t, m: t.update({"prefix.owner": t["prefix.owner"].int()}), ["prefix.owner is I32", "expected I64"]),
    (lambda t, m: t.update({"prefix.owner": torch.tensor(1)}), ["prefix.owner is I64 ()"]),
    (lambda t, m: t.update({"prefix.keys": t["prefix.keys"].long()}), ["prefix.keys is I64"]),
    (lambda t, m: m.update(next_position=None), ["expected missing", "and 2 more"]),
    (lambda t, m: t.update({Q + ".a": torch.ones(3, 5)}), [Q + ".a is floats (3, 5), expected floats (3, 16)"]),
    (lambda t, m: t.update({Q + ".b": torch.ones(24, 2)}), [Q + ".b is floats (24, 2), expected floats (24, 3)"]),
    (lambda t, m: t.update({"more": torch.ones(1)}), ["more is floats (1,), expected missing"]),
    (lambda t, m: m["scale"].pop("layers.1.self_attn.q_proj"), [Q + ".a", "and 1 more"]),
    (lambda t, m: m["scale"].update({"layers.9.mlp": 1.0}), ["layers.9.mlp"]),
    (lambda t, m: m["scale"].update({"layers.1.self_attn.q_proj": None}), ["scale None"]),
    (lambda t, m: m.update(adapter="IA3"), ["'IA3'", "LoRA, DoRA"]),
    (lambda t, m: m.update(adapter="DoRA"), ["magnitude is missing"]),
    (lambda t, m: t["prefix.keys"].view(-1)[3:4].fill_(math.nan), ["prefix.keys", "not finite"]),
    (lambda t, m: t[Q + ".b"].view(-1)[:1].fill_(math.inf), [Q + ".b", "not finite"]),
    (lambda t, m: m["scale"].update({"layers.1.self_attn.q_proj": math.inf}), ["scale inf"]),
    (lambda t, m: m.update(next_position=-3), ["next_position = -3"]),
    (lambda t, m: m.update(next_position=2), ["next_position = 2"]),
    (lambda t, m: m.update(next_position=[27.5], weights=[1.0]), ["next_position and weights are [27.5, 1.0]"]),
    (lambda t, m: m.update(next_position=[], weights=[]), ["next_position and weights are []"]),
    (lambda t, m: t.update({Q + ".a": torch.ones(0, 16), Q + ".b": torch.ones(24, 0)}), ["expected floats (1, 16)"]),
    (lambda t, m: t.update({name: t[name][..., :0, :].clone() if t[name].dim() == 5 else t[name][:0].clone()
                            for name in list(t) if name.startswith("prefix.")}), ["0 entries"]),
])
def test_a_context_that_does_not_belong(model, file, edit, said):
    rewrite(file, edit)
    message = sentence(ValueError, load_adapted, file, model)
    assert str(file) in message and all(part in message for part in said), message


def test_a_context_of_another_model(file):
    message = sentence(ValueError, load_adapted, file, other := tiny_llama(seed=1))
    assert fingerprint(other) in message and fingerprint(tiny_llama()) in message and str(file) in message


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b[:50], lambda b: b"", lambda b: b + b"x",
                                    lambda b: b"\x80\x02" + b[2:], lambda b: b"hello world, this is no context"])
def test_a_damaged_file(model, file, damage):
    file.write_bytes(damage(file.read_bytes()))
    message = sentence(ValueError, load_adapted, file, model)
    assert str(file) in message and "is not a context that nanoct.tune wrote" in message


@pytest.mark.parametrize("metadata", [None, {}, {"a": "b"}, *({ENTRY: text} for text in (
    "", "{", "[]", "7", "{}", '{"version": 1, "version": 2}'))])
def test_a_safetensors_file_that_is_no_context(model, tmp_path, metadata):
    save_file({"a": torch.ones(1)}, tmp_path / "a", metadata)
    assert "not a context" in sentence(ValueError, load_adapted, tmp_path / "a", model)


def test_no_file(model, tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        assert str(path) in sentence(FileNotFoundError, load_adapted, path, model)


def test_what_cannot_be_saved(model, tmp_path):
    refused = lambda error, path, **parts: sentence(error, save_adapted, Adapted(model, **parts), path, "x", {}, 1)
    adapters = [adapt(name, model)[0].adapter for name in ("dora", "lora")]
    name = next(iter(adapters[0]))
    assert "DoRA, LoRA" in refused(ValueError, tmp_path / "a", adapter=adapters[0] | {name: adapters[1][name]})
    assert "function" in refused(ValueError, tmp_path / "a", adapter={name: lambda x, weight: x})
    one = adapt("ct_kv", model)[0].prefix
    two = Prefix([tuple(part.repeat(2, 1, 1, 1) for part in layer) for layer in one.kv], one.owner, one.next_position)
    assert "prefix.keys is floats (2, 2," in refused(ValueError, tmp_path / "a", prefix=two)
    assert not list(tmp_path.iterdir())
    for place in ("/dev/null/a", tmp_path):
        assert str(place) in refused(OSError, place)
