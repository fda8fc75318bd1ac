"""Costs of the methods beside their peers: lines and table, the same step in both, and mistakes."""

import json
import sys
import time

import pytest
import torch

from nanoct.costs import peers, speed
from nanoct.costs.task import random_task
from nanoct.methods import METHODS

pytest.importorskip("peft")


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setitem(speed.SIZES, "tiny", speed.SIZES["tiny"] | dict(vocab_size=97))

    def start(*arguments):
        small = "--model tiny --device cpu --k 4 --context 96 --repeat 1".split()
        monkeypatch.setattr(sys, "argv", ["speed", *small, "--out", str(tmp_path / "speed.jsonl"), *arguments])
        speed.main()
        return [json.loads(line) for line in (tmp_path / "costs.jsonl").read_text().splitlines()]

    return start


def test_every_method_and_its_peer(run, capsys):
    lines = run()
    who = {method: [line["who"] for line in lines if line["method"] == method] for method in METHODS}
    transformers, peft = ("icl", "prompt_tuning", "prefix_tuning", "ct_prompt", "ct_kv"), ("lora", "dora", "ttt")
    with_peer = {m: ["nanoct", "transformers"] for m in transformers} | {m: ["nanoct", "peft"] for m in peft}
    assert who == {"zero_shot": [], "ttt_ct_kv": ["nanoct"]} | with_peer
    for line in lines:
        assert line["seconds_task"] > 0 and line["peak_bytes"] > 0 and line["rate"] > 0
        assert line["torch"] and line["device"]
        assert (line["seconds_step"] > 0) == (line["share"] is not None) == (line["method"] != "icl")
    table = capsys.readouterr().out
    assert table.count(" nanoct |") == 9 and "peak matmul throughput" in table


@pytest.fixture
def first_losses():
    """Measure a method and its peer on a tiny model: refused if their first losses differ."""
    model, theirs = speed.load("tiny", 97, 96, torch.device("cpu"), torch.float32)
    return lambda method: speed.whole(model, theirs, method, random_task(4, 96, 97), 1, 1e9)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "lora", "dora"])
def test_a_peer_that_does_other_work_gets_no_time(first_losses, monkeypatch, method):
    rows = peers.rows

    def others(task, device):
        tokens, labels, real = rows(task, device)
        return tokens, torch.where(labels >= 0, (labels + 1) % 97, labels), real  # other answers

    monkeypatch.setattr(peers, "rows", others)
    with pytest.raises(ValueError, match=f"{method}: the first loss is .* so no time is reported"):
        first_losses(method)


def test_the_peer_of_prefix_tuning_hides_nothing(first_losses, monkeypatch):
    padded = peers.padded
    monkeypatch.setattr(peers, "padded", lambda *args, hide=True, **options: padded(*args, **options))  # as CT-KV does
    monkeypatch.setattr(peers, "DROPOUT", 0.9)
    with pytest.raises(ValueError, match="prefix_tuning: the first loss is .* so no time is reported"):
        first_losses("prefix_tuning")


def test_seconds_of_a_task_are_of_all_its_steps(monkeypatch):
    """A slow beginning, a first step that warms up, and the others; what comes after the last step counts too."""
    def adapt(model, task, config, seed=0, progress=lambda step, loss: None):
        torch.ones(9)  # so that there is a peak
        for step, seconds in enumerate([0.2, *[0.02] * (config.n_step - 1)]):
            time.sleep(seconds)
            progress(step, 1.0)
        time.sleep(0.05)

    monkeypatch.setattr(METHODS["ct_kv"], "adapt", adapt)
    model = speed.load("tiny", 97, 96, torch.device("cpu"), torch.float32, alone=True)[0]
    steps, rest, loss = speed.adapting(model, "ct_kv", METHODS["ct_kv"].Config(n_step=4), None)
    assert len(steps) == 3 and 0.02 <= min(steps) <= max(steps) < 0.04 and 0.25 <= rest < 0.3 and loss == 1
    (line,) = speed.whole(model, None, "ct_kv", random_task(4, 96, 97), 3, 1e9)
    assert line["seconds_task"] == pytest.approx(0.25 + 15 * 0.02, rel=0.2)  # the preset's 16 steps
    monkeypatch.setattr(speed, "adapting", lambda *args: ([0.02, 0.02, 0.03], 0.25, 1.0))
    (line,) = speed.whole(model, None, "ct_kv", random_task(4, 96, 97), 3, 1e9)
    assert line["seconds_step"] == 0.02 and line["seconds_task"] == 0.25 + 15 * 0.02


@pytest.mark.parametrize("method", ["lora", "dora", "ttt", "ct_prompt"])
def test_a_peer_leaves_the_model_as_it_was(method):
    model, theirs = speed.load("tiny", 97, 96, torch.device("cpu"), torch.float32)
    before = {name: p.clone() for name, p in theirs.named_parameters()}
    _, step = peers.peer(model, theirs, method, METHODS[method].Config(), random_task(4, 96, 97))
    losses = [step(), step()]
    step.undo()
    after = dict(theirs.named_parameters())
    assert losses[0] != losses[1] and not theirs.training and not any(p.requires_grad for p in after.values())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_the_steps_of_ttt_ct_kv_are_ct_kvs():
    model = speed.load("tiny", 97, 96, torch.device("cpu"), torch.float32, alone=True)[0]
    config = METHODS["ttt_ct_kv"].Config(n_step=3, ttt_n_step=4)
    assert len(speed.adapting(model, "ttt_ct_kv", config, random_task(4, 96, 97))[0]) == 2


def test_a_method_that_does_not_say_its_cost_is_measured_all_the_same(run, monkeypatch, capsys):
    monkeypatch.delattr(METHODS["ct_kv"], "footprint")
    with pytest.warns(UserWarning, match="no footprint"):
        (line,) = run("--alone", "--methods", "ct_kv")
    assert line["seconds_step"] > 0 and line["estimated_bytes"] is line["flops_step"] is line["share"] is None
    assert "ct_kv  | nanoct" in capsys.readouterr().out


def test_alone(run):
    assert [line["who"] for line in run("--alone", "--methods", "ct_kv", "--checkpoint")] == ["nanoct"]
