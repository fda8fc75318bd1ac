"""The first minute: what it prints is what the methods answer."""

import re
import sys

import pytest

from nanoct import cli, demo
from nanoct.benchmarks import nano
from nanoct.costs import memory
from nanoct.io import smollm2
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model
from nanoct.methods import ct_kv, icl
from nanoct.score import evaluate


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """As in a clone without weights/smollm2."""
    monkeypatch.setattr(smollm2, "FOLDER", tmp_path / "smollm2")
    monkeypatch.setattr(smollm2, "EMBEDDED", tmp_path)


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["demo", *arguments])
    cli.run(demo.main)


def test_the_built_in_demo(monkeypatch, capsys):
    folder, name = nano.FOLDER / "strings", nano.WORLDS["strings"].pools()["held_out"][1]
    call(monkeypatch, "--tasks", name)
    said = capsys.readouterr().out
    model, tokenizer = load_model(folder, "cpu"), load_tokenizer(folder)
    task = nano.make_task("strings", name, tokenizer, seed=0, n_query=demo.N_QUERY)
    tuned = ct_kv.adapt(model, task, ct_kv.Config(**nano.read_settings()["strings"]["ct_kv"]))
    right, ours = (evaluate(adapted, task).per_query for adapted in (icl.adapt(model, task), tuned))
    assert f"{name}: 10 demonstrations" in said and f"ICL {sum(right)} of {demo.N_QUERY} right" in said
    assert f"CT-KV {sum(ours)} of {demo.N_QUERY} right" in said
    differ = [i for i, (a, b) in enumerate(zip(right, ours)) if a != b]
    shown = (differ + [i for i in range(demo.N_QUERY) if i not in differ])[: demo.N_SHOWN]
    text = lambda ids: tokenizer.decode(ids).removesuffix("=").removesuffix(";")
    for demonstration in task.demos:
        assert f"{text(demonstration.x)} = {text(demonstration.y)}" in said
    rows = [line for line in said.splitlines() if re.match(" {4}[a-p]+ = {2,}[a-p]+ {2,}", line)]
    for row, i in zip(rows, shown, strict=True):
        assert row.split()[0] == text(task.queries[i].x) and row.split()[2] == text(task.queries[i].y)
        assert row[40:56].rstrip().endswith("✗") != right[i] and row[56:].endswith("✗") != ours[i]


def test_another_method_beside_icl(monkeypatch, capsys):
    name = nano.WORLDS["strings"].pools()["held_out"][0]
    call(monkeypatch, "--tasks", name, "--method", "windows")
    said = capsys.readouterr().out
    assert "ICL             parallel windows\n" in said and "; parallel windows " in said and "steps" not in said
    with pytest.raises(SystemExit):
        call(monkeypatch, "--method", "icl")
    assert "invalid choice: 'icl'" in capsys.readouterr().err


def test_smollm2_is_the_default_where_it_is_and_the_built_in_model_can_be_named(tmp_path, monkeypatch, capsys):
    loaded = []

    def load(name, device):
        loaded.append(name)
        raise ValueError("stop")

    monkeypatch.setattr(demo, "load", load)
    there = tmp_path / "smollm2"
    for arguments in ([], ["--model", str(nano.FOLDER / "strings")]):
        with pytest.raises(SystemExit):
            call(monkeypatch, *arguments)
        there.mkdir(exist_ok=True)
        (there / "model.safetensors").write_text("")
        with pytest.raises(SystemExit):
            call(monkeypatch, *arguments)
    strings = str(nano.FOLDER / "strings")
    assert [str(name) for name in loaded] == [strings, str(there), strings, strings]


def test_the_built_in_model_that_is_named_shows_strings_and_says_how_to_get_words(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, "--model", str(nano.FOLDER / "strings"), "--tasks", "capital")
    said = capsys.readouterr().err
    assert "there is no 'capital'" in said and "`make smollm2` gets a model for tasks of real words" in said
    with pytest.raises(SystemExit):
        call(monkeypatch, "--help")
    assert "default: weights/smollm2 where `make smollm2` has put it" in " ".join(capsys.readouterr().out.split())


def test_what_needs_more_memory_than_is_free_is_refused_before_the_work(monkeypatch, capsys):
    monkeypatch.setattr(memory, "free", lambda device: 1000)
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch)
    assert stopped.value.code == 2 and "GB are free: take a smaller model" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, says", [
    (["--tasks", "nonsense"], "'nonsense'"),
    (["--model", "/nowhere"], "'/nowhere'"),
    (["--device", "tpu"], "'tpu'"),
])
def test_mistakes_get_a_sentence(monkeypatch, capsys, arguments, says):
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, *arguments)
    said = capsys.readouterr()
    assert stopped.value.code == 2 and says in said.err and said.err.count("\n") == 1 and not said.out
