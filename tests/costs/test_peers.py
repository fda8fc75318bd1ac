"""Costs of the methods beside their peers: lines and table, the same step in both, and mistakes."""

import json
import sys
import time

import pytest
import torch

from nanoct.costs import peers as costs
from nanoct.costs import speed
from nanoct.methods import METHODS

pytest.importorskip("peft")


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setitem(speed.SIZES, "tiny", speed.SIZES["tiny"] | dict(vocab_size=97))

    def start(*arguments):
        monkeypatch.setattr(sys, "argv", ["speed", "--model", "tiny", "--device", "cpu", "--k", "4", "--context", "96", "--repeat", "1", "--out",
                                          str(tmp_path / "speed.jsonl"), *arguments])
        speed.main()
        return [json.loads(line) for line in (tmp_path / "costs.jsonl").read_text().splitlines()]

    return start


def test_every_method_and_its_peer(run, capsys):
    lines = run()
    who = {method: [line["who"] for line in lines if line["method"] == method] for method in METHODS}
    assert who == {"zero_shot": [], "ttt_ct_kv": ["nanoct"]} | {m: ["nanoct", "transformers"] for m in ("icl", "prompt_tuning", "prefix_tuning",
                   "ct_prompt", "ct_kv")} | {m: ["nanoct", "peft"] for m in ("lora", "dora", "ttt")}
    for line in lines:
        assert line["seconds_task"] > 0 and line["peak_bytes"] > 0 and line["rate"] > 0 and line["torch"] and line["device"]
        assert (line["seconds_step"] > 0) == (line["share"] is not None) == (line["method"] != "icl")
    table = capsys.readouterr().out
    assert table.count(" nanoct |") == 9 and "matrix rate" in table


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "lora", "dora"])
def test_a_peer_that_does_other_work_gets_no_time(run, monkeypatch, method):
    rows = costs.rows

    def others(task, device):
        tokens, labels, real = rows(task, device)
        return tokens, torch.where(labels >= 0, (labels + 1) % 97, labels), real  # other answers

    monkeypatch.setattr(costs, "rows", others)
    if method == "prefix_tuning":  # its peer is speed.py's
        padded = speed.padded
        monkeypatch.setattr(speed, "padded", lambda *args, hide=True, **options: padded(*args, **options))  # hides, as CT-KV does
        monkeypatch.setattr(speed, "DROPOUT", 0.9)
    with pytest.raises(ValueError, match=f"{method}: the first loss is .* so no time is reported"):
        run("--methods", method)


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
    step, rest, loss = costs.ours(model, "ct_kv", METHODS["ct_kv"].Config(), None, 3)
    assert 0.02 <= step < 0.04 and 0.25 <= rest < 0.3 and loss == 1
    (line,) = costs.measure(model, None, "ct_kv", speed.random_task(4, 96, 97), 3, 1e9)
    assert line["seconds_task"] == pytest.approx(0.25 + 15 * 0.02, rel=0.2)  # the preset's 16 steps


def test_alone(run):
    assert [line["who"] for line in run("--alone", "--methods", "ct_kv", "--checkpoint")] == ["nanoct"]
