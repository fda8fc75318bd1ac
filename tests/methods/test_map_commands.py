"""The map in the commands: every one takes its names, and asks the modules for what it must know of them."""

import json
import sys
from dataclasses import asdict

import pytest
import torch
from helpers import config_of, random_task, saved_nano, small_bbh, tiny_llama
from safetensors.torch import load_file, save_file

from nanoct import paper, reproduce, tune
from nanoct.benchmarks import nano
from nanoct.costs import memory
from nanoct.fewshot import Mixture
from nanoct.methods import MAP, METHODS
from nanoct.model import Llama, LlamaConfig
from nanoct.runs import plots, public, worlds
from nanoct.runs.contexts import ENTRY, load_adapted, read_about, save_adapted
from nanoct.runs.report import PAIRS
from nanoct.score import score_pairs


def parsed(monkeypatch, command, *arguments):
    monkeypatch.setattr(sys, "argv", [command.__name__, *map(str, arguments)])
    return command.parse()


def adapted_by(name, model, task, **changes):
    method = MAP[name]
    config = config_of(method, **dict(n_step=1 if name == "prune" else 3, size=2) | changes)
    return method.adapt(model, task, config), config


# --- names ---


def test_map_means_the_nine_and_nothing_asked_for_means_the_ten(monkeypatch, tmp_path):
    of_worlds = ["--world", "strings", "--out", tmp_path]
    job = parsed(monkeypatch, reproduce, *of_worlds, "--methods", "icl", "map", "--set", "qttt.lr=0.5")
    assert job.methods == ["icl", *MAP]
    config = {method: config for method, config, *_ in worlds.variants(job)["strings"]}
    chosen = nano.read_settings()["strings"]["prune"]
    assert config["qttt"]["lr"] == 0.5 and config["prune"] == asdict(MAP["prune"].Config(**chosen))
    assert [name for name in parsed(monkeypatch, reproduce, *of_worlds).methods if name in MAP] == []
    swept = parsed(monkeypatch, reproduce, *of_worlds, "--sweep", "--methods", "map", "bayes_all")
    assert swept.methods == list(MAP)
    job = parsed(monkeypatch, paper, "--model", "m", "--benchmark", "words", "--methods", "map", "--sweep")
    assert job.methods == list(MAP) and len(job.variants["words"]) == 4 * len(MAP)
    assert parsed(monkeypatch, paper, "--model", "m", "--benchmark", "words").methods == list(METHODS)


def test_they_are_compared_with_ct_kv_and_drawn_in_their_colours():
    assert {(name, "ct_kv") for name in MAP} <= set(PAIRS)
    assert [plots.style(name) for name in MAP] == [(module.LABEL, module.COLOUR) for module in MAP.values()]


def test_a_public_job_runs_them_all(monkeypatch, tmp_path, capsys):
    small_bbh(tmp_path)
    model = saved_nano(tmp_path / "model")
    arguments = ["--model", model, "--benchmark", "bbh", "--data", tmp_path, "--tokenizer", "bytes", "--k", 4,
                 "--device", "cpu", "--seeds", 1, "--tasks", "sums", "--methods", "icl", "map", "--out", tmp_path]
    arguments += ["--set", *(f"{name}.n_step=1" for name in MAP if name != "windows")]
    parsed(monkeypatch, paper, *arguments)
    paper.main()
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["method"] for line in lines] == ["icl", *MAP]
    said = capsys.readouterr().out
    assert all(f"| {name} " in said for name in MAP)
    parsed(monkeypatch, paper, *arguments, "--dry-run")
    paper.main()
    said = capsys.readouterr().out
    assert all(f"| {name} " in said for name in MAP)


def test_a_preset_is_the_modules_own_default_where_there_is_none():
    (config,) = public.listed("bbh", "cpt", {}, to_choose=False)
    assert config == asdict(MAP["cpt"].Config())


# --- files ---


@pytest.mark.parametrize("name", MAP)
def test_a_context_is_saved_and_answers_the_same(model, tmp_path, name):
    task = random_task(((3, 2), (2, 1), (1, 2), (2, 1)), instruction=1)
    adapted, config = adapted_by(name, model, task, structured=True)
    save_adapted(adapted, tmp_path / "ctx", name, config, k=4)
    again, about = load_adapted(tmp_path / "ctx", model)
    pairs = [(q.x, q.y) for q in task.queries]
    assert torch.equal(score_pairs(again, pairs)[0], score_pairs(adapted, pairs)[0])
    assert again.n_trained == adapted.n_trained and about["method"] == name and about["config"] == asdict(config)
    save_adapted(again, tmp_path / "two", name, config, k=4)
    assert (tmp_path / "two").read_bytes() == (tmp_path / "ctx").read_bytes()


@pytest.mark.parametrize("change, says", [
    (lambda about: about.pop("weights"), "weights"),
    (lambda about: about["weights"].pop(), "next_position and weights"),
    (lambda about: about.update(weights=["a", "b"]), "next_position and weights"),
    (lambda about: about.update(next_position=[0, 0]), "next_position = 0"),
    (lambda about: about.update(next_position=[99], weights=[1.0]), "does not fit"),
], ids=range(5))
def test_a_broken_file_of_a_mixture_is_refused(model, tmp_path, change, says):
    adapted, config = adapted_by("lara", model, random_task())
    path = save_adapted(adapted, tmp_path / "ctx", "lara", config, k=4)
    tensors, about = load_file(path), read_about(path)
    change(about)
    save_file(tensors, path, {ENTRY: json.dumps(about)})
    with pytest.raises(ValueError, match=says) as error:
        load_adapted(path, model)
    assert "\n" not in str(error.value)


def test_windows_alone_may_have_more_entries_than_positions(model, tmp_path):
    adapted, config = adapted_by("windows", model, random_task(), size=1)
    assert len(adapted.prefix.owner) > adapted.prefix.next_position
    save_adapted(adapted, tmp_path / "ctx", "windows", config, k=4)
    with pytest.raises(ValueError, match="a position behind all"):
        save_adapted(adapted, tmp_path / "other", "icl", {}, k=4)


@pytest.mark.parametrize("name", ["windows", "lara", "deep_thinking", "prune"])
def test_tune_keeps_it_and_answers_with_it(monkeypatch, tmp_path, capsys, name):
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(dict(input=x, output=x[::-1])) + "\n" for x in ("abc", "bcd", "cde", "d")))
    model = saved_nano(tmp_path / "model")
    common = ["--data", data, "--model", model, "--device", "cpu"]
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps(dict(input="ac", output="ca")) + "\n")
    steps = [] if name == "windows" else ["--set", "n_step=1"]
    parsed(monkeypatch, tune, *common, "--method", name, "--out", tmp_path / "ctx", *steps, "--held-out", asked)
    tune.main()
    said = capsys.readouterr().out
    assert f"{name} on" in said and "4 demos" in said and f"  {name} " in said
    parsed(monkeypatch, tune, *common, "--predict", "--context", tmp_path / "ctx", "--out", tmp_path / "answers")
    tune.main()
    assert len((tmp_path / "answers").read_text().splitlines()) == 4
    adapted, _ = load_adapted(tmp_path / "ctx", tune.load(str(model), "cpu")[0])
    assert isinstance(adapted.prefix, Mixture) == (name == "lara")


# --- costs ---


@pytest.mark.parametrize("name", MAP)
def test_the_estimate_is_near_what_is_allocated(name):
    config = LlamaConfig(vocab_size=500, n_layer=4, n_head=8, n_kv_head=4, n_embd=128, head_dim=16, n_ffn=352,
                         n_position=700)
    model = Llama(config).init_weights(torch.Generator().manual_seed(0)).requires_grad_(False)
    changes = dict(size=2) if name == "lara" else dict(search="genetic", n_population=2) if name == "prune" else {}
    guess, measured = memory.measure(name, model, k=8, context=300, **changes)
    assert 0.5 < guess / measured < 2.5  # windows and groups are read one after the other


def test_flops_without_a_backward_pass_are_half_of_what_they_are_with_one():
    model, lengths = tiny_llama(), memory.Lengths(0, [(8, 2)] * 4, 1)
    of = lambda name, **settings: memory.estimate(model.config, name, settings, lengths)
    assert of("deep_thinking", n_step=3).flops - of("icl").flops == pytest.approx(3 * of("deep_thinking").flops_step)
    N, P, attention = sum(layer.weight.numel() for layer in model.linears.values()), 40, 2 * 4 * 6
    assert of("deep_thinking").flops_step == 2 * N * P + 4 * attention * P * 2 * P
