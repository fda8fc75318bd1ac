"""Costs of the methods beside their peers: lines and table, the same step in both, and mistakes."""

import json
import sys

import pytest
import torch

from nanoct import costs, speed
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


def test_alone(run):
    assert [line["who"] for line in run("--alone", "--methods", "ct_kv", "--checkpoint")] == ["nanoct"]
