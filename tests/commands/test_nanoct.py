"""The command `nanoct`: it knows every command, hands over the rest of the line, and refuses what is none."""

import sys

import pytest

from nanoct import __main__ as nanoct


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["nanoct", *arguments])
    with pytest.raises(SystemExit) as stop:
        nanoct.main()
    return stop.value.code


def test_help_says_what_each_command_does(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    printed = capsys.readouterr().out
    for name, (_, line) in nanoct.commands().items():
        assert f"  {name} " in printed and line in printed and line
    theirs = """reproduce paper tune demo pretrain conformance gguf smollm2 leak minus neighbours export memory speed
        benchmarks.nano benchmarks.words benchmarks.bbh benchmarks.mmlu benchmarks.nlp_lr benchmarks.arc
        benchmarks.fetch coins.study coins.bridge coins.predictors"""
    assert set(theirs.split()) == nanoct.commands().keys()


def test_the_rest_of_the_line_is_the_commands(monkeypatch, capsys):
    assert run(monkeypatch, "benchmarks.nano", "--world", "grids", "--show", "0") == 2
    assert "--show is 0" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, named", [([], "COMMAND"), (["reproduec"], "'reproduec'"), (["cli"], "'cli'")])
def test_what_is_no_command_gets_one_sentence(monkeypatch, capsys, arguments, named):
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
