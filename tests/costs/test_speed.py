"""The benchmark measures what it says: contestants that do the same step, released as released. Nothing here is timed."""

import json
import sys

import pytest
import torch

from nanoct import cli
from nanoct.costs import speed
from nanoct.fewshot import encode_context
from nanoct.gpt2 import GPT2, GPT2Config
from nanoct.methods import ct_kv
from nanoct.weights import save_model

K, CONTEXT, V = 5, 60, 97


@pytest.fixture(scope="module")
def pair():
    """nanoct's tiny random Llama, transformers' of the same weights, a task, and its context."""
    model, theirs = speed.load("tiny", V, CONTEXT, torch.device("cpu"), torch.float32)
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():  # large enough for attention to matter
        p.copy_(p + 0.2 * torch.randn(p.shape, generator=generator))
    theirs.load_state_dict(model.state_dict(), strict=False)  # the head is tied
    task = speed.random_task(K, CONTEXT, V)
    return model, theirs, task, encode_context(model, (), task.demos)


def steps_of(pair):
    model, theirs, task, context = pair
    return dict(packed=speed.packed(model, task, context), padded=speed.padded(theirs, task, context),
                labels=speed.padded(theirs, task, context, labels_only=True))


def test_contestants_agree_in_loss_and_gradient_at_every_step(pair):
    steps = steps_of(pair)
    for _ in range(3):  # the masks of each step are drawn anew
        assert speed.agree(steps, 1e-4) > 1
        for step in steps.values():
            step.optimizer.param_groups[0]["lr"] = 1e-3  # AdamW turns small gradients' rounding into steps
            step()


def test_the_packed_contestant_is_the_method(pair):
    model, _, task, context = pair
    losses = []
    ct_kv.adapt(model, task, ct_kv.Config(n_step=2), progress=lambda step, loss: losses.append(loss))
    step = speed.packed(model, task, context)
    assert losses == [step(), step()]


@pytest.mark.parametrize("break_it", ["mask", "label"])
def test_a_step_that_differs_is_refused(pair, break_it):
    model, theirs, task, context = pair
    steps = steps_of(pair)
    if break_it == "mask":
        steps["padded"] = speed.padded(theirs, task, context, seed=1)
    else:
        other = speed.random_task(K, CONTEXT, V)
        other.demos[-1].y[-1] = (other.demos[-1].y[-1] + 1) % V
        steps["labels"] = speed.padded(theirs, other, context, labels_only=True)
    with pytest.raises(ValueError, match="differs from packed by .* no time is reported"):
        speed.agree(steps, 1e-4)


@pytest.mark.parametrize("labels_only", [False, True])
def test_the_released_way_pads_expands_and_computes_all_logits(pair, labels_only):
    _, theirs, task, context = pair
    seen, P, T = {}, len(context.owner), max(len(demo.x) + len(demo.y) for demo in task.demos)

    def before(module, args, kwargs):
        cache = kwargs.get("cache", kwargs.get("past_key_values"))  # the newer name, and the older
        seen.update(tokens=kwargs["input_ids"].shape, mask=kwargs["attention_mask"], prefix=cache.layers[0].keys.shape)

    hooks = [theirs.model.register_forward_pre_hook(before, with_kwargs=True),
             theirs.lm_head.register_forward_hook(lambda module, args, out: seen.update(logits=out.shape))]
    step = speed.padded(theirs, task, context, labels_only=labels_only)
    step.loss()
    for hook in hooks:
        hook.remove()
    n_answer = sum(len(demo.y) for demo in task.demos)
    assert seen["tokens"] == (K, T) and seen["prefix"] == (K, 2, P, 8) and seen["mask"].shape == (K, P + T)
    assert seen["logits"] == ((n_answer, V) if labels_only else (K, T, V))
    assert (step.n_token, step.n_key, step.n_logit) == (K * T, P + T, n_answer if labels_only else K * T)
    for i, demo in enumerate(task.demos):
        assert not seen["mask"][i, :P][context.owner == i].any()  # leave-one-out
        assert seen["mask"][i, P:].sum() == len(demo.x) + len(demo.y)  # the rest is padding


def test_flops_of_a_step(pair):
    model, _, task, context = pair
    N, T = sum(p.numel() for p in model.model.layers.parameters()), sum(len(d.x) + len(d.y) - 1 for d in task.demos)
    P, n = len(context.owner), sum(len(d.y) for d in task.demos)
    assert speed.packed(model, task, context).flops(model.config, N) == 4 * N * T + 12 * 2 * 4 * 8 * T * (P + T) + 4 * V * 32 * n


def test_random_pairs():
    lengths = lambda **options: [len(d.x) + len(d.y) for d in speed.random_task(16, 700, V, **options).demos]
    assert abs(sum(lengths()) - 700) < 8 and 1.7 < 16 * max(lengths()) / sum(lengths()) < 2.1
    assert speed.random_task(16, 700, V) == speed.random_task(16, 700, V) != speed.random_task(16, 700, V, seed=1)
    assert len(set(lengths(spread=0))) == 1
    assert {len(d.y) for d in speed.random_task(16, 700, V).demos} == {1, 2, 3, 4}


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["speed", *map(str, arguments)])
    cli.run(speed.main)


SMALL = ("--k", K, "--context", CONTEXT, "--repeat", 2, "--device", "cpu", "--methods")  # none of costs.py, which test_costs.py has


def test_lines_and_table(tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "speed.jsonl"
    run(monkeypatch, "--model", "tiny", "--vocab", 50, V, "--out", out, *SMALL)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    names = ["nanoct", "transformers", "transformers, labels only", "nanoct TTT, one order"]
    assert [(line["vocab_size"], line["name"]) for line in lines] == [(v, name) for v in (50, V) for name in names]
    for line in lines:
        assert line["seconds"] > 0 and line["ratio_min"] <= line["ratio"] <= line["ratio_max"]
        assert line["flops_per_second"] == line["flops"] / line["seconds"] and line["peak_bytes"] > 1e6
        assert (line["k"], line["n_body"], line["dtype"], line["repeat"]) == (K, 15488, "float32", 2)
        assert line["device"] and line["threads"] and line["torch"] and line["transformers"] and line["date"]
    demos = speed.random_task(K, CONTEXT, V).demos
    assert lines[0]["context"] == sum(len(demo.x) + len(demo.y) for demo in demos)
    assert lines[0]["ratio"] == 1 and lines[0]["n_logit"] < lines[1]["n_logit"]
    printed = capsys.readouterr().out
    assert not out.with_name("costs.jsonl").exists()
    assert all(name in printed for name in names) and f"in {K} orders" in printed


def test_gpt2_is_refused_before_a_peer_is_built(tmp_path, monkeypatch, capsys):
    """transformers would make a Llama of 7B from its config."""
    save_model(GPT2(GPT2Config(V, 1, 2, 16, 16, 64)), tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SystemExit):
        run(monkeypatch, "--model", tmp_path, "--out", tmp_path / "speed.jsonl", *SMALL)
    assert "is no Llama" in capsys.readouterr().err


def test_without_transformers_nanoct_runs_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)  # import raises
    out = tmp_path / "speed.jsonl"
    run(monkeypatch, "--model", "tiny", "--vocab", V, "--out", out, *SMALL)
    assert "pip install -e '.[test]'" in capsys.readouterr().out
    assert [json.loads(line)["name"] for line in out.read_text().splitlines()] == ["nanoct", "nanoct TTT, one order"]


@pytest.mark.parametrize("arguments, said", [
    (("--model", "no-such-folder"), "no-such-folder"),
    (("--model", "tiny", "--vocab", 1), "--vocab 1 with --model tiny"),
    (("--model", "some/folder", "--vocab", 50), "--vocab 50 with --model some/folder"),
    (("--model", "tiny", "--vocab", "many"), "invalid int value: 'many'"),
    (("--model", "tiny", "--k", 1), "k = 1"),
    (("--model", "tiny", "--context", 20), "context = 20"),
    (("--model", "tiny", "--repeat", 0), "--repeat 0"),
    (("--model", "tiny", "--dtype", "int8"), "'int8'"),
    (("--model", "tiny", "--device", "abacus"), "'abacus'"),
])
def test_a_mistake_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *SMALL, "--out", tmp_path / "speed.jsonl", *arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.count("\n") == 1
