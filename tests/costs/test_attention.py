"""The ways to call masked attention with fewer KV heads are one function, and a line says what each cost."""

import json
import sys

import pytest
import torch

from nanoct.costs import attention

CPU, TINY = torch.device("cpu"), (6, 2, 8, 5, 7)


@pytest.mark.parametrize("way", attention.WAYS)
def test_a_way_gives_the_outputs_and_gradients_of_the_softmax(way):
    (q, k, v), mask = attention.inputs(TINY, CPU, torch.float64)
    out = torch.randn(q.shape, dtype=q.dtype, generator=torch.Generator().manual_seed(1))
    keys, values = (part[:, [0, 0, 0, 1, 1, 1]] for part in (k, v))  # a query head reads the KV head of its group
    y = (q @ keys.mT / 8**0.5 + mask).softmax(-1) @ values
    expected = [y, *torch.autograd.grad(y, (q, k, v), out)]
    for ours, theirs in zip(attention.both(attention.WAYS[way], (q, k, v), mask, out), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_lines_and_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(attention, "SHAPES", {"tiny": TINY})
    out = tmp_path / "a.jsonl"
    monkeypatch.setattr(sys, "argv", ["attention", "--device", "cpu", "--repeat", "1", "--out", str(out)])
    attention.main()
    lines = [json.loads(line) for line in open(out)]
    assert [line["way"] for line in lines] == list(attention.WAYS)
    for line in lines:
        assert line["seconds"] > 0 and line["peak_bytes"] > 0 and line["error"] < 1e-5 and line["kernels"]
        assert line["flops_per_second"] == 14 * 6 * 8 * 5 * 12 / line["seconds"]
    shown = capsys.readouterr().out
    assert all(line["way"] in shown for line in lines)
