"""The first minute: what it prints is what the methods answer."""

import re
import sys

import pytest

from nanoct import cli, demo
from nanoct.benchmarks import nano
from nanoct.methods import icl
from nanoct.score import evaluate
from nanoct.tokenizer import load_tokenizer
from nanoct.weights import load_model


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["demo", *arguments])
    cli.run(demo.main)


def test_the_embedded_demo(monkeypatch, capsys):
    folder, name = nano.FOLDER / "strings", nano.WORLDS["strings"].pools()["held_out"][1]
    call(monkeypatch, "--tasks", name)
    said = capsys.readouterr().out
    model, tokenizer = load_model(folder, "cpu"), load_tokenizer(folder)
    task = nano.make_task("strings", name, tokenizer, seed=0, n_query=demo.N_QUERY)
    right = evaluate(icl.adapt(model, task), task).per_query
    assert f"{name}: 10 demonstrations" in said and f"ICL {sum(right)} of {demo.N_QUERY} right" in said
    for pair in task.demos + task.queries[: demo.N_SHOWN]:
        assert tokenizer.decode(pair.x) in said and tokenizer.decode(pair.y[:-1]) in said
    icl_column = [line[40:56] for line in said.splitlines() if re.match(" {4}[a-p]+= {2,}[a-p]+ {2,}", line)]
    assert [not cell.rstrip().endswith("✗") for cell in icl_column[-demo.N_SHOWN :]] == right[: demo.N_SHOWN]


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
