"""nanoct minus: paired differences between all settings of two methods."""

import json
import sys

import pytest

from nanoct.runs import minus


def write(path, scores):
    """scores: {(method, task): score}."""
    path.write_text("".join(json.dumps(dict(
        model="m", world="words", pool="test", k=10, method=method, config={}, task=task, seed=42, score=score,
        seconds=1.0)) + "\n" for (method, task), score in scores.items()))
    return str(path)


def said(capsys, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["minus", *args])
    minus.main()
    return capsys.readouterr().out


def test_the_difference_is_paired_and_of_the_tasks_that_both_have(tmp_path, capsys, monkeypatch):
    """On a and b: +10 and +30, so 20, and a half width of 12.706 standard errors of 10. c is icl's alone."""
    file = write(tmp_path / "lines.jsonl", {("icl", "a"): 0.1, ("icl", "b"): 0.5, ("icl", "c"): 0.9,
                                            ("zero_shot", "a"): 0.2, ("zero_shot", "b"): 0.8})
    assert "|     2 | +20.0 ± 127.1 |" in said(capsys, monkeypatch, file, "zero_shot", "icl")
    assert "|     1 |  +10.0 ± – |" in said(capsys, monkeypatch, file, "zero_shot", "icl", "--tasks", "a")


def test_methods_without_a_task_in_common_are_refused(tmp_path, capsys, monkeypatch):
    file = write(tmp_path / "lines.jsonl", {("icl", "a"): 0.1, ("zero_shot", "b"): 0.2})
    with pytest.raises(ValueError, match="no task has a line of icl and one of zero_shot: the file has icl, zero_shot"):
        said(capsys, monkeypatch, file, "icl", "zero_shot")
