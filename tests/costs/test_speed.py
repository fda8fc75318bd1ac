"""The benchmark measures what it says: contestants that do the same step, the released one as released."""

import json
import math
import sys
import time

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nanoct import cli
from nanoct.costs import peers, speed
from nanoct.costs.task import random_task
from nanoct.fewshot import encode_context
from nanoct.gpt2 import GPT2, GPT2Config
from nanoct.io.weights import save_model
from nanoct.methods import ct_kv
from nanoct.model import Llama
from nanoct.optimise import Step
from nanoct.packing import pack_demos

K, CONTEXT, V = 5, 60, 97


@pytest.fixture(scope="module")
def pair():
    """nanoct's tiny random Llama, transformers' on the same tensors, a task, and its context."""
    model, theirs = speed.load("tiny", V, CONTEXT, torch.device("cpu"), torch.float32)
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():  # large enough for attention to matter
        p.copy_(p + 0.2 * torch.randn(p.shape, generator=generator))
    task = random_task(K, CONTEXT, V)
    return model, theirs, task, encode_context(model, (), task.demos)


def gradients(run):
    """What AdamW is given in every step of run(): the gradients of the leaves, clipped."""
    seen = []
    look = lambda optimizer, *_: seen.append([p.grad.clone() for p in optimizer.param_groups[0]["params"]])
    hook = register_optimizer_step_pre_hook(look)
    run()
    hook.remove()
    return seen


@pytest.mark.parametrize("labels_only", [False, True])
def test_a_padded_step_is_the_methods_in_loss_and_gradient_at_every_step(pair, labels_only):
    model, theirs, task, context = pair
    losses, n, lr = [], 3, 1e-3  # AdamW turns small gradients' rounding into steps
    config = ct_kv.Config(n_step=n, lr=lr)
    ours = gradients(lambda: ct_kv.adapt(model, task, config, progress=lambda step, loss: losses.append(loss)))
    padded = peers.padded(theirs, task, context, labels_only=labels_only)
    for i in range(n):  # the masks of each step are drawn anew
        padded.optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * i / n)) / 2
        (other,) = gradients(lambda: losses.append(padded()))
        for a, b in zip(ours[i], other, strict=True):
            assert (a - b).norm() < 1e-4 * b.norm()
    assert losses[n:] == pytest.approx(losses[:n], rel=1e-5) and min(losses) > 1


def test_contestants_begin_with_the_methods_loss(pair):
    model, theirs, task, _ = pair
    contest, losses = speed.contestants(model, theirs, task), []
    ct_kv.adapt(model, task, ct_kv.Config(n_step=1), progress=lambda step, loss: losses.append(loss))
    assert speed.agree(contest, 1e-4) == pytest.approx(losses[0], rel=1e-6)
    assert list(contest) == ["nanoct", "transformers", "transformers, labels only", "nanoct TTT, one order"]


@pytest.mark.parametrize("break_it", ["mask", "label", "gradient"])
def test_a_step_that_differs_is_refused(pair, break_it):
    model, theirs, task, context = pair
    contest, other = speed.contestants(model, theirs, task), random_task(K, CONTEXT, V)
    if break_it == "label":
        other.demos[-1].y[-1] = (other.demos[-1].y[-1] + 1) % V
    step = peers.padded(theirs, other, context, seed=int(break_it == "mask"), labels_only=True)
    if break_it == "gradient":
        step.leaves[1].register_hook(lambda gradient: 1.01 * gradient)
    contest["transformers, labels only"].turn = lambda: (step(), 0.0)
    with pytest.raises(ValueError, match="labels only differs from nanoct by .* no time is reported"):
        speed.agree(contest, 1e-4)


def test_a_loss_that_is_not_finite_is_refused_in_a_sentence(pair):
    model = Llama(pair[0].config).requires_grad_(False)
    model.load_state_dict(pair[0].state_dict())
    model.model.norm.weight.fill_(math.inf)
    with pytest.warns(UserWarning, match="stopped"), pytest.raises(ValueError, match="ct_kv was stopped"):
        speed.one_step(model, None, pair[2], 1)


def test_a_methods_turn_is_its_second_step(monkeypatch, pair):
    def adapt(model, task, config, seed, progress):
        time.sleep(0.1)  # reads the demos
        for step, (wait, loss) in enumerate([(0.1, 3.0), (0.02, 2.0)][: config.n_step]):
            time.sleep(wait)
            progress(step, loss)
        time.sleep(0.1)

    monkeypatch.setattr(ct_kv, "adapt", adapt)
    loss, seconds = speed.contestants(pair[0], None, pair[2])["nanoct"].turn()
    assert loss == 3 and 0.02 <= seconds < 0.08


def test_the_step_as_a_graph_has_a_row_and_is_recorded_before_it_is_timed(monkeypatch, pair):
    """Without a GPU the step is called again on the same tensors."""
    model, _, task, _ = pair
    taken, take, record = [], Step.take, Step.record
    monkeypatch.setattr(Step, "record", lambda step: taken.append("recorded") or record(step))
    monkeypatch.setattr(Step, "take", lambda step, seen, lr: taken.append("taken") or take(step, seen, lr))
    lines = speed.one_step(model, None, task, repeat=2, graph=True)
    assert [line["name"] for line in lines] == ["nanoct", "nanoct, CUDA graph", "nanoct TTT, one order"]
    assert taken.index("recorded") == 4 and taken.count("recorded") == 1 and taken.count("taken") == 2 * (2 + 1 + 2)
    assert lines[1]["seconds"] > 0 and lines[1]["flops"] == lines[0]["flops"] and model.graphs is None


def test_a_graph_with_another_loss_is_refused(pair):
    model, _, task, _ = pair
    usual = speed.contestants(model, None, task)["nanoct"]
    with pytest.raises(ValueError, match="in a CUDA graph and 3.0000 without: .* no time is reported"):
        speed.as_graph(model, usual, 3.0, 1e-4, task)


@pytest.mark.parametrize("labels_only", [False, True])
def test_the_released_way_pads_expands_and_computes_all_logits(pair, labels_only):
    _, theirs, task, context = pair
    seen, P, T = {}, len(context.owner), max(len(demo.x) + len(demo.y) for demo in task.demos)

    def before(module, args, kwargs):
        cache = kwargs.get("cache", kwargs.get("past_key_values"))  # the newer name, and the older
        seen.update(tokens=kwargs["input_ids"].shape, mask=kwargs["attention_mask"], prefix=cache.layers[0].keys.shape)

    hooks = [theirs.model.register_forward_pre_hook(before, with_kwargs=True),
             theirs.lm_head.register_forward_hook(lambda module, args, out: seen.update(logits=out.shape))]
    step = peers.padded(theirs, task, context, labels_only=labels_only)
    step.loss()
    for hook in hooks:
        hook.remove()
    n_answer = sum(len(demo.y) for demo in task.demos)
    assert seen["tokens"] == (K, T) and seen["prefix"] == (K, 2, P, 8) and seen["mask"].shape == (K, P + T)
    assert seen["logits"] == ((n_answer, V) if labels_only else (K, T, V))
    assert step.size == (K * T, P + T, n_answer if labels_only else K * T)
    for i, demo in enumerate(task.demos):
        assert not seen["mask"][i, :P][context.owner == i].any()  # leave-one-out
        assert seen["mask"][i, P:].sum() == len(demo.x) + len(demo.y)  # the rest is padding


def test_flops_of_a_step(pair):
    model, _, task, context = pair
    N, P, row = sum(p.numel() for p in model.model.layers.parameters()), len(context.owner), pack_demos(task, model)
    T, n, contest = row.tokens.shape[1], len(row.where), speed.contestants(model, None, task)
    formula = lambda T, S: 4 * N * T + 12 * 2 * 4 * 8 * T * S + 4 * V * 32 * n
    assert contest["nanoct"].flops(model.config, N) == formula(T, P + T)
    assert contest["nanoct TTT, one order"].flops(model.config, N) == formula(P - 1, P - 1)


def test_random_pairs():
    lengths = lambda **options: [len(d.x) + len(d.y) for d in random_task(16, 700, V, **options).demos]
    assert abs(sum(lengths()) - 700) < 8 and 1.7 < 16 * max(lengths()) / sum(lengths()) < 2.1
    assert random_task(16, 700, V) == random_task(16, 700, V) != random_task(16, 700, V, seed=1)
    assert len(set(lengths(spread=0))) == 1
    assert {len(d.y) for d in random_task(16, 700, V).demos} == {1, 2, 3, 4}


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["speed", *map(str, arguments)])
    cli.run(speed.main)


SMALL = ("--k", K, "--context", CONTEXT, "--repeat", 2, "--device", "cpu", "--methods")  # none: test_peers.py has those


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
    demos = random_task(K, CONTEXT, V).demos
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
    assert "is not a Llama" in capsys.readouterr().err


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
    (("--model", "tiny", "--graph"), "--graph needs a GPU"),
    (("--model", "tiny", "--device", "abacus"), "'abacus'"),
    (("--model", "tiny", "--out", "/dev/null/x.jsonl"), "cannot write /dev/null/x.jsonl"),
])
def test_a_mistake_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *SMALL, "--out", tmp_path / "speed.jsonl", *arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.count("\n") == 1
