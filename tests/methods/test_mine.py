"""A method of one's own, in one file of under 60 lines, goes through every job that takes methods."""

import inspect
import json
import sys

import mine
import pytest
import torch
from helpers import saved_llama, small_bbh

from nanoct import paper, reproduce, tune
from nanoct.benchmarks.nano import FOLDER, make_task
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model
from nanoct.methods import METHODS, icl
from nanoct.runs.contexts import load_adapted


@pytest.fixture
def known(monkeypatch, tmp_path):
    """One line in methods/__init__.py."""
    monkeypatch.setitem(METHODS, "mine", mine)
    monkeypatch.chdir(tmp_path)


def call(monkeypatch, command, *arguments):
    monkeypatch.setattr(sys, "argv", [command.__name__, *map(str, arguments)])
    command.main()


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_it_is_short_and_learns():
    assert len(inspect.getsource(mine).splitlines()) < 60
    assert not hasattr(mine, "LABEL")  # may be left out


def test_the_built_in_job(known, monkeypatch, tmp_path, capsys):
    common = ["--workers", 0, "--world", "strings", "--tasks", 1, "--out", tmp_path]
    call(monkeypatch, reproduce, *common, "--methods", "icl", "mine", "--set", "mine.n_step=2")
    assert {line["method"]: line["n_trained"] for line in lines(tmp_path / "results.jsonl")} == {
        "icl": 0, "mine": 6 * 128 * 128}  # W_Q of six layers
    assert "| mine" in capsys.readouterr().out and (tmp_path / "accuracy_vs_seconds.png").exists()
    call(monkeypatch, reproduce, *common, "--methods", "mine", "--sweep")
    assert len({str(line["config"]) for line in lines(tmp_path / "sweep.jsonl")}) > 4  # 2 x 2 of SWEEP, and an edge
    assert json.loads((tmp_path / "settings.json").read_text())["strings"]["mine"].keys() == {"n_step", "lr"}


@pytest.fixture
def public(tmp_path):
    """A random model and a task of BBH."""
    return ["--model", saved_llama(tmp_path / "model"), "--benchmark", "bbh", "--data", small_bbh(tmp_path), "--tasks",
            "sums", "--tokenizer", "bytes", "--k", 2, "--device", "cpu", "--seeds", 1, "--methods", "icl", "mine",
            "--out", tmp_path]


def test_the_public_job(known, public, monkeypatch, tmp_path, capsys):
    call(monkeypatch, paper, *public)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| mine"))
    assert "–" in row and len(lines(tmp_path / "results.jsonl")) == 2  # nothing is published of it


@pytest.mark.parametrize("says", [True, False])
def test_its_cost_before_the_run(known, public, monkeypatch, capsys, says):
    if not says:
        monkeypatch.delattr(mine, "footprint")
    call(monkeypatch, paper, *public, "--dry-run")
    said = capsys.readouterr().out
    assert ("| mine" in said) == says and "| icl" in said
    assert says or "mine has no footprint" in said


@pytest.mark.parametrize("savable", [True, False])
def test_what_it_tuned_is_a_file(known, monkeypatch, tmp_path, savable):
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(dict(input=x, output=x[::-1])) + "\n" for x in ("abc", "bcd", "cde")))
    arguments = ["--data", data, "--method", "mine", "--out", tmp_path / "ctx", "--set", "n_step=2", "--device", "cpu"]
    if not savable:
        monkeypatch.delattr(mine.Weight, "restore")
        monkeypatch.setattr(mine, "optimise", lambda loss, leaves, config, *_: pytest.fail("trained")
                            if config.n_step else None)
        with pytest.raises(ValueError, match="cannot be saved"):
            call(monkeypatch, tune, *arguments)
        return
    call(monkeypatch, tune, *arguments)
    model = load_model(FOLDER / "strings", "cpu")
    adapted, about = load_adapted(tmp_path / "ctx", model)
    assert about["method"] == "mine" and about["adapter"] == "Weight"
    x = torch.arange(8)[None]
    changed, plain = model(x, adapter=adapted.adapter)[0], model(x)[0]
    assert not torch.equal(changed, plain) and adapted.prefix.next_position > 0
    call(monkeypatch, tune, "--predict", "--context", tmp_path / "ctx", "--data", data, "--device", "cpu")


def test_it_beats_reading_on_its_own_demos(known):
    """Trained to predict every demo from the others: their loss falls."""
    model, losses = load_model(FOLDER / "strings", "cpu"), []
    task = make_task("strings", "reverse", load_tokenizer(FOLDER / "strings"), seed=0, n_query=1)
    adapted = mine.adapt(model, task, mine.Config(n_step=4, lr=1e-3), progress=lambda step, loss: losses.append(loss))
    assert losses[-1] < losses[0] and torch.equal(adapted.prefix.kv[0][0], icl.adapt(model, task).prefix.kv[0][0])
