"""The paper's protocol on a tiny model and a tiny BBH: lines, resuming, two processes, the dry run, and mistakes."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from helpers import DATA, interval, random_task, saved_llama, small_bbh, tiny_llama

from nanoct import cli, paper
from nanoct.benchmarks import bbh, words
from nanoct.benchmarks.common import Counts
from nanoct.benchmarks.presets import PUBLISHED, SETTINGS, SWEEPS
from nanoct.costs import forecast, memory
from nanoct.fewshot import Adapted, Query
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model, save_model
from nanoct.methods import METHODS, icl
from nanoct.model import Llama, LlamaConfig
from nanoct.runs import ablations, caches, cuts, public, report, sweep
from nanoct.runs import job as driver
from nanoct.runs.results import key, read
from nanoct.score import evaluate

SHORT = [word for name, method in METHODS.items() for field in ("n_step", "ttt_n_step", "batch", "rank")
         if hasattr(method.Config, field) for word in ("--set", f"{name}.{field}=1")]
SMALL = dict(n_layer=1, n_head=2, n_kv_head=1, n_embd=16, head_dim=8, n_ffn=16, n_position=256)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_bbh(tmp_path_factory.mktemp("bbh"))


def job(model, data, out, *more):
    return [*map(str, ("--benchmark", "bbh", "--model", model, "--data", data, "--out", out, "--tokenizer", "bytes",
                       "--k", 2, "--device", "cpu", "--tasks", "sums", "words", *more))]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["paper", *arguments])
    paper.main()


def same(lines):
    """What two jobs must agree on: all but times, memory, and the number of threads."""
    return {key(line): (line["score"], line["loss"], line["n_query"], line["n_trained"]) for line in lines}


def test_all_methods_in_a_table_beside_the_papers(model, data, tmp_path, monkeypatch, capsys):
    run(monkeypatch, *job(model, data, tmp_path, "--seeds", "42", *SHORT))
    lines = read(tmp_path / "results.jsonl")
    done = Counter((line["method"], line["task"]) for line in lines)
    assert done == {(m, t): 1 for m in METHODS for t in ("sums", "words")}
    for line in lines:
        assert line["demos"] == 2 and line["queries"] == line["n_query"] == 4 and line["peak_bytes"] > 0
        assert line["seconds"] >= 0 and line["seconds_score"] > 0 and line["dtype"] == "float32"
        assert line["device"] and line["torch"] and 0 <= line["valid"] <= 1
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    for method in METHODS:
        (row,) = [row for row in table.splitlines() if row.startswith(f"| {method} ") and row.count("|") == 11]
        valid = [line["valid"] for line in lines if line["method"] == method]
        assert row.split("|")[-6].strip() == f"{100 * sum(valid) / 2:.0f}"
        assert f"| {PUBLISHED['bbh'][method]} |" in row.replace("  ", " ").replace("  ", " ")


def test_ties_are_said_and_valid_is_shown_where_lines_have_it(tmp_path, capsys):
    """Lines of an older version have neither: a blank cell, or no column at all."""
    line = dict(world="bbh", pool="test", k=2, task="a", config={}, score=0.5, seconds=1.0, dtype="float32",
                n_query=20, n_trained=0)
    of = lambda method, **more: [dict(line, method=method, seed=seed, **more) for seed in (1, 2)]
    alike = {("a", seed): (0.5, 0.25) for seed in (1, 2)}
    lines = [*of("icl"), *of("ct_kv", valid=0.345, tied=3), *of("lora", valid=0.0)]
    report.report_public(lines, "m", 2, tmp_path, alike)
    said = capsys.readouterr().out
    valid = {row.split("|")[1].strip(): row.split("|")[-6].strip() for row in said.splitlines() if row.count("|") == 11}
    assert "Options tie for the lowest loss in 6 queries of 2 of the 6 runs." in said
    assert valid["method"] == "valid %" and valid["ct_kv"] == "34" and valid["icl"] == "" and valid["lora"] == "0"
    assert valid[report.CONSTANT[0]] == valid[report.CONSTANT[1]] == ""
    report.report_public([*of("icl"), *of("ct_kv")], "m", 2, tmp_path, alike)
    assert "valid" not in (said := capsys.readouterr().out) and "tie" not in said


def test_tokens_that_are_counted_are_those_that_are_scored():
    """Those of a question once, and those of all its options."""
    task, model, sizes = random_task(options=3, metric="accuracy", separator=[1, 2]), tiny_llama(), []
    model.register_forward_pre_hook(lambda module, args: sizes.append(args[0].numel()))
    for metric in "accuracy", "ids":
        task.queries = [Query(q.x, q.y, q.options if metric == "accuracy" else None) for q in task.queries]
        sizes.clear()
        evaluate(Adapted(model), replace(task, metric=metric))
        assert forecast.lengths_of(replace(task, metric=metric)).scored == sum(sizes)


def test_a_second_start_goes_on(model, data, tmp_path, monkeypatch, capsys):
    more = ("--tasks", "sums", "--limit-queries", 1, "--methods", "icl")
    run(monkeypatch, *job(model, data, tmp_path, *more))
    lines = (tmp_path / "results.jsonl").read_text()
    assert len(lines.splitlines()) == 5  # the paper's five seeds
    (tmp_path / "results.jsonl").write_text(lines[:-30])  # killed while writing
    with pytest.warns(UserWarning, match="half-written"):
        run(monkeypatch, *job(model, data, tmp_path, *more, "zero_shot"))
    assert "4 of 10 runs are in" in capsys.readouterr().out
    assert len(same(read(tmp_path / "results.jsonl"))) == len(read(tmp_path / "results.jsonl")) == 10


def test_other_queries_lengths_and_dtypes_are_other_runs(model, data, tmp_path, monkeypatch):
    for more in (), ("--limit-queries", 1), ("--length", 200), ("--dtype", "float64"), ("--k", 1):
        run(monkeypatch, *job(model, data, tmp_path, "--methods", "zero_shot", "--seeds", 1, "--tasks", "sums", *more))
    lines = read(tmp_path / "results.jsonl")
    assert len(lines) == 5 and [line["n_query"] for line in lines] == [4, 1, 4, 4, 5]


def test_a_task_without_a_query_that_fits_is_given_up_and_said(model, data, tmp_path, monkeypatch, capsys):
    more = ("--methods", "icl", "--seeds", "1", "2", "--tasks", "sums", "long")
    run(monkeypatch, *job(model, data, tmp_path, *more))
    said = capsys.readouterr().out
    assert "long, seed 1: given up" in said and "2 of 4 runs" in said
    assert ("2 tasks, 2 seeds: 8 demos, 8 queries, 8 too long, 0 inputs cut; 2 without a query that fits 256" in said)
    with pytest.raises(ValueError, match="no task of .* has a query that fits 256 tokens"):
        run(monkeypatch, *job(model, data, tmp_path, *more, "--tasks", "long"))


def test_out_of_memory_leaves_the_run_out_and_goes_on(model, data, tmp_path, monkeypatch, capsys):
    said = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    for error in RuntimeError(said), MemoryError():
        with monkeypatch.context() as patch:
            patch.setattr(icl, "adapt", Mock(side_effect=error))
            run(patch, *job(model, data, tmp_path, "--methods", "icl", "zero_shot", "--seeds", "42"))
        out = capsys.readouterr().out
        assert "left out: out of memory in icl on sums, seed 42: use --checkpoint, --dtype bfloat16, or" in out
        assert "2 of 4 runs were left out for want of memory." in out and "2 of 4 runs; lines in" in out
        assert [line["method"] for line in read(tmp_path / "results.jsonl")] == ["zero_shot", "zero_shot"]
    for error in ZeroDivisionError("division by zero"), RuntimeError("CUDA error: an illegal memory access"):
        monkeypatch.setattr(icl, "adapt", Mock(side_effect=error))
        with pytest.raises(type(error), match=str(error)):  # what is no want of memory is not called so
            run(monkeypatch, *job(model, data, tmp_path, "--methods", "icl", "--seeds", "42"))


def test_a_run_that_does_not_fit_is_left_out_before_it_begins(model, data, tmp_path, monkeypatch, capsys):
    """And is tried again where there is more room. The weights are there already, so they are not counted."""
    adapted = Mock(side_effect=METHODS["ttt"].adapt)
    monkeypatch.setattr(METHODS["ttt"], "adapt", adapted)
    more = ("--methods", "ttt", "icl", "ct_kv", "--seeds", "42", "--tasks", "sums")
    needs, estimate = {}, memory.estimate

    def seen(config, method, *rest):
        found = estimate(config, method, *rest)
        needs[method] = found.total - found.weights
        return found

    monkeypatch.setattr(memory, "estimate", seen)
    monkeypatch.setattr(memory, "free", lambda device: 0)
    monkeypatch.setattr(sys, "argv", ["paper", *job(model, data, tmp_path, *more)])
    with pytest.raises(SystemExit) as stop:
        cli.run(paper.main)
    said = capsys.readouterr()
    assert stop.value.code == 2 and "3 of 3 runs were left out for want of memory." in said.out
    assert said.err.splitlines()[-1].startswith("error: no method could do any task, for the reasons above")
    assert not read(tmp_path / "results.jsonl") and needs["ttt"] > max(needs["icl"], needs["ct_kv"]) > 0

    monkeypatch.setattr(memory, "free", lambda device: needs["ttt"] - 1)  # all but TTT fit
    run(monkeypatch, *job(model, data, tmp_path, *more))
    said = capsys.readouterr().out
    assert "left out: ttt on sums, seed 42, needs 0.00 GB beside the weights and 0.00 GB are free: use --che" in said
    assert "1 of 3 runs were left out for want of memory." in said and "2 of 3 runs; lines in" in said
    assert [line["method"] for line in read(tmp_path / "results.jsonl")] == ["icl", "ct_kv"] and not adapted.called
    assert "| ttt " not in (tmp_path / "table.md").read_text(encoding="utf-8")

    monkeypatch.setattr(memory, "free", lambda device: needs["ttt"])
    run(monkeypatch, *job(model, data, tmp_path, *more))
    said = capsys.readouterr().out
    assert "3 of 3 runs; lines in" in said and "want of memory" not in said and adapted.called


def test_the_variants_of_ct_kv_have_its_footprint(model, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "free", lambda device: 0)
    with pytest.raises(ValueError, match="no method could do any task"):
        run(monkeypatch, *job(model, data, tmp_path, "--ablations"))
    assert "ct_kv_variant on sums, seed 42, needs " in capsys.readouterr().out


@pytest.mark.parametrize("error, is_one", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True), (MemoryError(), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:120] DefaultCPUAllocator: not enough memory: you tried to allocate 9 "
                  "bytes."), True),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
], ids=str)
def test_out_of_memory_anywhere_is_one_sentence(capsys, error, is_one):
    with pytest.raises(SystemExit if is_one else RuntimeError) as stop:
        cli.run(Mock(side_effect=error))
    said = capsys.readouterr().err
    if is_one:
        assert said.startswith("error: out of memory: take a smaller") and said.count("\n") == 1
        assert stop.value.code == 2
    else:
        assert not said


def test_a_broken_file_stops_the_job_before_a_model_is_loaded(model, data, tmp_path, monkeypatch):
    (shutil.copytree(data, tmp_path / "data") / "bbh" / "words.json").write_text('{"examples": [{"inp')
    monkeypatch.setattr(driver, "load_model", None)
    with pytest.raises(ValueError, match="words.json is not JSON"):
        run(monkeypatch, *job(model, tmp_path / "data", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_method_that_cannot_do_a_task_is_said_and_the_others_go_on(model, data, tmp_path, monkeypatch, capsys):
    def adapt(model, task, *_):
        raise ValueError(f"no room for {task.name}.")

    monkeypatch.setattr(icl, "adapt", adapt)
    run(monkeypatch, *job(model, data, tmp_path, "--methods", "icl", "zero_shot", "--seeds", "42"))
    said = capsys.readouterr().out
    assert "icl on sums, seed 42, is left out: no room for sums." in said and "2 of 4 runs" in said
    assert {line["method"] for line in read(tmp_path / "results.jsonl")} == {"zero_shot"}


def cells_of(table):
    """{first cell: the others} of the rows of tables in Markdown."""
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines() if row.startswith("| ")]
    return {first: others for first, *others in rows}


def test_the_table_is_over_what_all_methods_did(model, data, tmp_path, monkeypatch):
    """CT-KV cannot do one (task, seed) and none can do another: out of all rows, and said; so are few queries."""
    scores = {("sums", 1): .2, ("sums", 2): .4, ("words", 1): .8, ("words", 2): .6, ("sums", 3): 1.0}

    def measured(model, task, method, config, seed, progress, module):
        if (method, task.name, seed) == ("ct_kv", "sums", 3) or (task.name, seed) == ("words", 3):
            raise ValueError("no room.")
        score = scores[task.name, seed] + .1 * (method == "ct_kv") * (task.name == "sums")
        return dict(score=score, seconds=1, seconds_score=1, peak_bytes=10**9, n_trained=3, loss=None, device="x",
                    n_query=3 if seed == 2 else 30), None

    monkeypatch.setattr(driver, "measure", measured)
    run(monkeypatch, *job(model, data, tmp_path, "--methods", "icl", "ct_kv", "ttt", "--seeds", 1, 2, 3))
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "bbh, " in table and ": 2 tasks of the test pool" in table
    assert "No method could do 1 of the 6 (task, seed)." in table
    assert "1 of 5 (task, seed) are left out of all rows, as not every method could do them (ct_kv 1)." in table
    assert "2 of the 4 (task, seed) have fewer than 10 queries, sums, seed 2, only 3:" in table
    cells = cells_of(table)
    assert cells["icl"][:4] == ["2", "50.0 ± 20.0", "50.4", ""]
    assert cells["ct_kv"][:4] == ["2", "55.0 ± 15.0", "57.9", f"+5.0 ± {interval([10, 0])[1]:.1f}"]
    assert cells["ct_kv - ttt"] == [cells["ct_kv"][3]] and cells["ttt"][3] == "+0.0 ± 0.0 (all equal)"


def test_lines_of_an_older_version_are_shown_without_what_they_lack(model, data, tmp_path, monkeypatch):
    more = ("--methods", "icl", "zero_shot", "--seeds", "42")
    run(monkeypatch, *job(model, data, tmp_path, *more))
    lines = read(tmp_path / "results.jsonl")
    for line in lines:
        for name in "peak_bytes", "seconds_score", "n_trained", "n_query", "device", "loss":
            del line[name]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(monkeypatch, *job(model, data, tmp_path, *more))
    assert cells_of((tmp_path / "table.md").read_text(encoding="utf-8"))["icl"][-3:] == ["", "", ""]


@pytest.mark.parametrize("broken, code", [("model", 2), ("method", None)])
def test_what_is_not_finite_is_no_line(data, tmp_path, monkeypatch, capsys, broken, code):
    made = Llama(LlamaConfig(256, **SMALL)).init_weights(torch.Generator().manual_seed(0))
    if broken == "model":
        made.model.norm.weight.data[2] = float("nan")
    save_model(made, tmp_path / "model")
    arguments = job(tmp_path / "model", data, tmp_path, "--methods", "icl", "ct_kv", "--seeds", "42")
    arguments += [] if broken == "model" else ["--set", "ct_kv.lr=1e30", "--set", "ct_kv.n_step=3"]
    monkeypatch.setattr(sys, "argv", ["paper", *arguments])
    with pytest.raises(SystemExit) if code else nullcontext() as stop:
        cli.run(paper.main)
    said, lines = capsys.readouterr(), read(tmp_path / "results.jsonl")
    assert "ct_kv on sums, seed 42, is left out: ct_kv on sums: the " in said.out
    if code:
        assert stop.value.code == 2 and said.err.splitlines()[-1].startswith("error: no method could do any task")
    assert [line["method"] for line in lines] == ([] if code else ["icl", "icl"])


def test_a_number_of_processes_without_their_master_is_no_torchrun(model, data, tmp_path, monkeypatch, capsys):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    run(monkeypatch, *job(model, data, tmp_path, "--methods", "icl", "--seeds", "42"))
    assert len(read(tmp_path / "results.jsonl")) == 2 and "WORLD_SIZE is '4' but RANK" in capsys.readouterr().err


def test_equal_values_of_a_setting_are_one(model, data, tmp_path, monkeypatch):
    more = ("--methods", "ct_kv", "--set", "ct_kv.lr=1e-3,0.001,1e-2,.0010")
    monkeypatch.setattr(sys, "argv", ["paper", *job(model, data, tmp_path, *more)])
    assert [config["lr"] for _, config, *_ in paper.parse().variants["bbh"]] == [1e-3, 1e-2]


def test_a_method_that_the_paper_and_the_estimate_do_not_know(model, data, tmp_path, monkeypatch, capsys):
    """It has defaults, a row without a published score, and no price; the others have theirs."""
    monkeypatch.setitem(METHODS, "my_own", SimpleNamespace(Config=icl.Config, adapt=icl.adapt))
    run(monkeypatch, *job(model, data, tmp_path, "--methods", "icl", "my_own", "--seeds", "42"))
    rows = [row.split("|") for row in (tmp_path / "table.md").read_text().splitlines() if row.startswith("| ")][1:]
    rows = [[cell.strip() for cell in row] for row in rows]
    (ours,), (known,) = ([row for row in rows if row[1] == method] for method in ("my_own", "icl"))
    assert ours[4] == "–" and known[4] == "50.4" and ours[2:4] == known[2:4]
    capsys.readouterr()

    estimate = memory.estimate

    def refuses(config, method, *more):
        if method == "my_own":
            raise ValueError("my_own has no footprint: it cannot be priced.")
        return estimate(config, method, *more)

    monkeypatch.setattr(memory, "estimate", refuses)
    run(monkeypatch, *job(model, data, tmp_path, "--methods", "my_own", "icl", "--dry-run"))
    said = capsys.readouterr().out
    assert said.count("my_own") == 1 and "| icl " in said and "All 10 runs" in said
    with pytest.raises(ValueError, match="no estimate"):
        run(monkeypatch, *job(model, data, tmp_path, "--methods", "my_own", "--dry-run"))


def test_dry_run_loads_no_weights(model, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(driver, "load_model", None)
    run(monkeypatch, *job(model, data, tmp_path, "--dry-run"))
    said = capsys.readouterr().out
    assert all(f"| {method} " in said for method in METHODS) and "2 tasks" in said
    assert not (tmp_path / "results.jsonl").exists()
    assert "All 100 runs, 5 seeds: " in said and "hours at 400 TFLOP/s" in said


@pytest.mark.parametrize("more, said", [
    (("--tasks", "nothing"), "--tasks: 'nothing' is not in"),
    (("--k", "9"), "6 examples, too few for k = 9"),
    (("--k", "0"), "--k 0 must be at least 1"),
    (("--device", "cuda:77"), "There is no device 'cuda:77'"),
    (("--data", "nowhere"), "--data takes the folder of BBH"),
    (("--set", "icl.lr=1"), "icl has no setting 'lr'"),
    (("--set", "icl.lr=1", "--methods", "ct_kv"), "the method one of ct_kv"),
    (("--limit-queries", "0"), "--limit-queries 0 must be at least 1"),
    (("--length", "1000000000"), "--length 1000000000"),
    (("--seeds", str(10**30)), f"--seeds {10**30}"),
    (("--set", "ct_kv.lr=nan"), "--set ct_kv.lr=nan"),
    (("--out", ""), "--out is empty"),
    (("--out", "/dev/null/x", "--methods", "icl"), "/dev/null/x"),
    (("--dtype", "int8"), "dtype is 'int8'"),
    (("--model", "nowhere/at/all"), "nowhere/at/all"),
])
def test_mistakes_are_said_in_a_sentence(model, data, tmp_path, monkeypatch, more, said):
    with pytest.raises((ValueError, OSError)) as error:
        run(monkeypatch, *job(model, data, tmp_path, *more))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("more, said", [
    (("--tasks", "capital", "agent"), "'agent' is of the validation pool and not of the test pool"),
    (("--pool", "validation", "--tasks", "capital"), "'capital' is of the test pool and not of the validation pool"),
    (("--tasks", "nothing"), "'nothing' is not in words"),
    (("--sweep", "--tasks", "capital"), "capital is of the pool that is reported"),
    (("--sweep", "--pool", "test"), "--pool test is of the pool that is reported"),
    (("--no-form",), "--no-form: words has no sentence"),
    (("--benchmark", "bbh"), "--data is missing: give the folder of bbh's files"),
    (("--benchmark", "bbh", "--data", "BBH", "--pool", "validation"), "--pool validation: bbh in"),
    (("--benchmark", "bbh", "--data", "BBH", "--sweep"), "has no validation pool: name the --tasks"),
    (("--data", "OWN", "--sweep"), "has no validation pool: name the --tasks"),
    (("--data", "OWN", "--pool", "validation"), "--pool validation: words in"),
])
def test_pools_and_the_folder_are_said_in_a_sentence(model, data, own_words, monkeypatch, more, said):
    folders = {"BBH": str(data), "OWN": str(own_words)}
    more = [folders.get(word, word) for word in more]
    with pytest.raises(ValueError) as error:
        run(monkeypatch, "--benchmark", "words", "--model", str(model), *more)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_scores_stand_beside_those_of_answering_alike(model, data, tmp_path, monkeypatch):
    run(monkeypatch, *job(model, data, tmp_path, "--seeds", "42", "--methods", "icl", "zero_shot"))
    rows = cells_of((tmp_path / "table.md").read_text())
    task = {name: driver.PUBLIC["bbh"].make_task(data, name, load_tokenizer("bytes"), 42, 2) for name in
            ("sums", "words")}
    best = [max(Counter(map(str, (q.y for q in t.queries))).values()) / 4 for t, _ in task.values()]
    assert rows["always the most frequent answer"][1].startswith(f"{50 * sum(best):.1f} ±")
    assert rows["sums"][0] == f"{100 * best[0]:.0f}" and rows["sums"][1] == "50"


def test_seconds_and_memory_of_a_quiet_run_stand_in_the_table(model, data, tmp_path, monkeypatch):
    arguments = job(model, data, tmp_path / "out", "--seeds", "42", "--methods", "icl", "prefix_tuning")
    run(monkeypatch, *arguments)
    lines = [line | dict(task=task, seed=7, seconds=12.0 + i, seconds_score=3.0, peak_bytes=int((7 + i) * 1e9))
             for line in read(tmp_path / "out" / "results.jsonl") if line["task"] == "sums" and line["method"] != "icl"
             for i, task in enumerate("abc")]
    quiet = tmp_path / "quiet.jsonl"
    quiet.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(monkeypatch, *arguments, "--seconds", str(quiet))
    table = (tmp_path / "out" / "table.md").read_text()
    rows = cells_of(table)
    assert rows["prefix_tuning"][5:8] == ["13.0", "3.0", "9.00"] and rows["icl"][5] == "0.0"
    assert "The timed lines lack icl: seconds and memory are those of the lines themselves." in table
    for other in dict(model="another"), dict(k=7), dict(world="arc"), dict(dtype="bfloat16"):
        quiet.write_text(json.dumps(lines[0] | other) + "\n")
        with pytest.raises(ValueError, match="--seconds: its lines are of another model, benchmark, k or dtype"):
            run(monkeypatch, *arguments, "--seconds", str(quiet))


def test_ablations_stand_beside_ct_kv(model, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SETTINGS["bbh"], "ct_kv", dict(n_step=2, lr=1e-1))
    run(monkeypatch, *job(model, data, tmp_path, "--ablations", "--limit-queries", "2"))
    lines = read(tmp_path / "ablations.jsonl")
    assert len(lines) == 2 * (1 + len(ablations.ABLATIONS)) and {line["seed"] for line in lines} == {42}
    rows = cells_of((tmp_path / "ablations.md").read_text())
    assert list(rows)[1:] == ["ICL", *ablations.ABLATIONS]
    of = {name: [line["loss"] for line in lines if line["config"].get("start") == name] for name in ("demos", "others")}
    assert of["others"][0] not in of["demos"]
    monkeypatch.setattr(ablations, "ABLATIONS", {})
    for more in ("--sweep",), ("--set", "ct_kv.lr=1"), ("--methods", "icl"), ("--dry-run",):
        with pytest.raises(ValueError, match="--ablations has methods and settings of its own"):
            run(monkeypatch, *job(model, data, tmp_path, "--ablations", *more))


def test_graph_gives_the_usual_scores_and_says_who_runs_without(model, data, tmp_path, monkeypatch, capsys):
    arguments = job(model, data, tmp_path, "--seeds", "42", "--methods", "icl", "lora", "ct_kv", "ct_prompt",
                    "--set", "lora.n_step=1", "ct_kv.n_step=2", "ct_prompt.n_step=1", "--limit-queries", "2")
    with pytest.raises(ValueError, match="--graph needs a GPU, and the device is cpu"):
        run(monkeypatch, *arguments, "--graph")
    run(monkeypatch, *arguments)
    assert driver.load("bbh")[0].graphs is None and "CUDA graph" not in capsys.readouterr().out
    usual = read(tmp_path / "results.jsonl")
    (tmp_path / "results.jsonl").unlink()
    monkeypatch.setattr(cli, "need_gpu", lambda option, device: None)
    run(monkeypatch, *arguments, "--graph")
    assert capsys.readouterr().out.count("--graph: lora, ct_prompt have no step that is kept as a CUDA graph") == 1
    kept, lines = driver.load("bbh")[0].graphs, read(tmp_path / "results.jsonl")
    assert len(kept) == 1 and {line["graph"] for line in lines} == {True}
    assert [line["score"] for line in lines] == [line["score"] for line in usual]
    assert list(map(key, lines)) == list(map(key, usual))


def test_cuts_stand_beside_ct_kv_and_are_of_both_tasks(model, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SETTINGS["bbh"], "ct_kv", dict(n_step=2, lr=1e-1))
    monkeypatch.setattr(cuts, "KEEP", (0.5,))
    arguments = job(model, data, tmp_path, "--cuts", "--limit-queries", "2")
    run(monkeypatch, *arguments)
    lines = read(tmp_path / "cuts.jsonl")
    rows = cells_of((tmp_path / "cuts.md").read_text())
    assert len(lines) == 2 * len(cuts.rows({})) == 2 * 14 and {line["seed"] for line in lines} == {42}
    assert list(rows)[1:15] == list(cuts.rows({})) and "as_other" not in lines[2]  # decoded answers are not compared
    assert {line["method"] for line in lines} == {caches.NAME, ablations.NAME}
    assert all(("+" in line["data"]) == bool(line["config"].get("beside")) for line in lines)
    of = {task: next(line["loss"] for line in lines if line["task"] == task) for task in ("sums", "words")}
    others = {line["task"]: line["loss"] for line in lines if line["config"].get("beside") == "alone"}
    assert others == dict(sums=of["words"], words=of["sums"])
    run(monkeypatch, *arguments)
    assert read(tmp_path / "cuts.jsonl") == lines  # nothing is done again
    with pytest.raises(ValueError, match="--cuts has methods and settings of its own"):
        run(monkeypatch, *arguments, "--set", "ct_kv.lr=1")
    with pytest.raises(ValueError, match="--ablations and --cuts are two jobs"):
        run(monkeypatch, *arguments, "--ablations")


def test_settings_that_are_compared_do_not_overwrite_the_table(model, data, tmp_path, monkeypatch):
    arguments = job(model, data, tmp_path, "--seeds", "42", "--methods", "icl", "ct_kv", "--set")
    run(monkeypatch, *arguments, "ct_kv.n_step=1")
    before = (tmp_path / "table.md").read_text()
    assert (tmp_path / "tasks.png").stat().st_size > 5_000 and not (tmp_path / "accuracy_vs_seconds.png").exists()
    run(monkeypatch, *arguments, "ct_kv.n_step=1,2")
    assert (tmp_path / "table.md").read_text() == before and "n_step=2" in (tmp_path / "settings.md").read_text()
    assert (tmp_path / "accuracy_vs_seconds.png").stat().st_size > 5_000


@pytest.fixture
def own_words(tmp_path):
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "mine.tsv").write_text("".join(f"in{i}\tout{i % 2}\n" for i in range(12)))
    return folder


def words_job(model, out, *more):
    return [*map(str, ("--benchmark", "words", "--model", model, "--out", out, "--tokenizer", "bytes", "--k", 2,
                       "--device", "cpu", "--limit-queries", 2, *more))]


def test_words_has_lists_and_pools_of_its_own(model, own_words, tmp_path, monkeypatch):
    """Without --tasks the pool's, test by default; with them the line says of which pool they are."""
    seen = lambda: [(line["world"], line["pool"], line["task"]) for line in read(tmp_path / "results.jsonl")]
    job = lambda *more: run(monkeypatch, *words_job(model, tmp_path, "--methods", "icl", "--seeds", 42, *more))
    job("--tasks", "agent", "language")
    assert seen() == [("words", "validation", "agent"), ("words", "validation", "language")]
    assert "–" in (tmp_path / "table.md").read_text(encoding="utf-8")
    (tmp_path / "results.jsonl").unlink()
    job("--data", own_words)
    assert seen() == [("words", "test", "mine")]
    for more, pool in ((), "test"), (("--pool", "validation"), "validation"), (("--data", "words"), "test"):
        monkeypatch.setattr(sys, "argv", ["paper", *words_job(model, tmp_path, *more)])
        args = paper.parse()
        assert (args.pool, args.tasks, args.seeds) == (pool, dict(words=words.POOLS[pool]), dict(words=[42, 43, 44]))


def test_a_sweep_runs_every_setting_on_validation_tasks_and_compares_them(model, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "my_own", SimpleNamespace(Config=METHODS["lora"].Config, adapt=METHODS["lora"].adapt))
    short = ("--set", "ct_kv.n_step=1", "my_own.n_step=1", "--methods", "icl", "ct_kv", "my_own")
    run(monkeypatch, *words_job(model, tmp_path, "--sweep", "--tasks", "agent", "language", *short))
    lines = read(tmp_path / "sweep.jsonl")
    assert Counter(line["method"] for line in lines) == {"icl": 2, "ct_kv": 8, "my_own": 2}
    assert {line["pool"] for line in lines} == {"validation"} and {line["seed"] for line in lines} == {42}
    assert {line["config"].get("lr") for line in lines if line["method"] == "ct_kv"} == {1e-3, 3e-3, 1e-2, 3e-2}
    table, said = (tmp_path / "sweep.md").read_text(encoding="utf-8"), capsys.readouterr().out
    assert table in said and said.count("my_own is not in SWEEPS") == 1
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[4:]]
    ours = [row for row in rows if row[0] == "ct_kv"]
    assert [row[1] for row in ours] == ["lr=0.001", "lr=0.003", "lr=0.01", "lr=0.03"]
    points = r"[+-]\d+\.\d ± \d+\.\d( \(all equal\))?"
    assert sorted(bool(re.fullmatch(points, row[4])) for row in ours) == [False, True, True, True]
    assert [row[4] for row in ours].count("best") == 1 and [row[4] for row in rows if row[0] == "icl"] == [""]
    monkeypatch.setattr(driver, "execute", lambda runs, *_: [dict(run, score=0, seconds=0) for run in runs])
    monkeypatch.setattr(sweep, "report_public", lambda lines, *_: seen.extend(lines))
    seen = []  # a benchmark without a list of its own takes that of words
    run(monkeypatch, *job(model, data, tmp_path / "bbh", "--sweep", "--methods", "ttt"))
    assert {(line["config"]["lr"], line["seed"]) for line in seen} == {(lr, 42) for lr in (1e-4, 3e-4, 1e-3, 3e-3)}


def test_bbhs_sentence_on_the_answer_can_be_left_out_and_is_in_the_line(model, data, tmp_path, monkeypatch):
    more = ("--methods", "icl", "--seeds", 42, "--tasks", "sums")
    for form in ((), ("--no-form",), ()):
        run(monkeypatch, *job(model, data, tmp_path, *more, *form))
    lines = read(tmp_path / "results.jsonl")
    assert [line["form"] for line in lines] == [True, False]
    make = lambda **form: bbh.make_task(data, "sums", load_tokenizer("bytes"), 42, 2, **form)[0].instruction
    spied = Mock(wraps=bbh.make_task)
    monkeypatch.setattr(bbh, "make_task", spied)
    run(monkeypatch, *job(model, data, tmp_path / "new", *more, "--no-form"))
    assert all(call.kwargs == {"form": False} for call in spied.call_args_list) and make() != make(form=False)
    run(monkeypatch, *words_job(model, tmp_path / "words", "--tasks", "capital", *more[:4]))
    assert "form" not in read(tmp_path / "words" / "results.jsonl")[0]


@pytest.mark.parametrize("tokens, size", [(256, 99), (50, 99)])
def test_a_tokenizer_that_is_not_the_models(data, tmp_path, monkeypatch, tokens, size):
    """One with tokens that the model lacks, and one with far fewer."""
    save_model(Llama(LlamaConfig(size, **SMALL)).init_weights(torch.Generator().manual_seed(0)), tmp_path / "model")
    (tmp_path / "vocab.json").write_text(json.dumps([chr(i) for i in range(32, 32 + tokens)]))
    with pytest.raises(ValueError, match=f"{tokens} tokens and the model 99: they do not belong together"):
        run(monkeypatch, *job(tmp_path / "model", data, tmp_path, "--tokenizer", tmp_path))


@pytest.mark.parametrize("benchmark", list(SETTINGS))
def test_presets_are_settings_of_the_methods(benchmark):
    for method in METHODS:
        chosen = SETTINGS[benchmark].get(method, {})
        assert bool(chosen) == (method not in ("zero_shot", "icl"))
        (config,) = cli.configs(method, METHODS[method].Config, {name: [value] for name, value in chosen.items()}, {})
        assert all(type(config[name]) is METHODS[method].Config.__dataclass_fields__[name].type for name in config)
    assert list(PUBLISHED.get(benchmark, METHODS)) == list(METHODS)
    swept = SWEEPS.get(benchmark, SWEEPS["words"])
    assert swept.keys() == METHODS.keys() - {"zero_shot", "icl"}
    made = {m: public.listed(benchmark, m, {}) for m in METHODS}
    assert {len(made[m]) for m in swept} == {8} and len(made["icl"]) == 1  # as many for every method


PAPER = """
    ct_kv          1e-3/200       1e-3/20       1e-3/16      3e-3/200
    ct_prompt      1e-3/250       3e-4/20       3e-4/12      1e-3/150
    prefix_tuning  3e-3/250       1e-3/24       ?/16         3e-3/200
    prompt_tuning  3e-3/250       1e-3/20       3e-4/16      3e-3/150
    ttt            1e-4/250x4     1e-4/20x8     1e-4/8x5     1e-4/200x4
    lora           1e-4/?         1e-4/?        1e-4/?       1e-4/?
    dora           1e-4/?         1e-4/?        1e-4/?       1e-4/?
    ttt_ct_kv      1e-3/25        1e-3/5        1e-3/8       3e-3/25
"""  # rate/steps, TTT's x sequences; ?: not published


@pytest.mark.parametrize("row", PAPER.split("\n")[1:-1], ids=lambda row: row.split()[0])
def test_presets_are_the_papers(row):
    method, *cells = row.split()
    for benchmark, cell in zip(("nlp_lr", "mmlu", "bbh", "arc"), cells, strict=True):
        chosen = SETTINGS[benchmark][method]
        rate, steps = cell.split("/")
        steps, _, batch = steps.partition("x")
        assert rate == "?" or chosen["lr"] == float(rate)
        assert steps == "?" or chosen["n_step"] == int(steps)
        of_ttt = SETTINGS[benchmark]["ttt"] if method == "ttt_ct_kv" else {}
        assert chosen.get("batch") == (int(batch) if batch else of_ttt.get("batch"))
        arc = benchmark == "arc"
        if "ct_" in method:
            assert chosen["token_dropout"] == (0.05 if benchmark == "nlp_lr" else 0.1)
            assert chosen.get("leave_one_out", True) != arc
        if "rank" in chosen:
            assert (chosen["rank"], chosen["alpha"]) == ((128, 16) if arc else (64, 64))
        if method == "ttt_ct_kv":
            assert (chosen["ttt_n_step"], chosen["ttt_lr"]) == (of_ttt["n_step"], of_ttt["lr"])
        if "n_prefix" in chosen:
            assert chosen["n_prefix"] == 32


def test_an_answer_of_ids_that_only_pad_the_vocabulary_is_wrong_and_not_left_out(tmp_path, monkeypatch, capsys):
    folder, data = saved_llama(tmp_path / "model", vocab_size=300), small_bbh(tmp_path)
    model = load_model(folder, "cpu")
    model.embedding.weight[290] = 100 * model.embedding.weight.abs().sum(0)  # the head too: most rows say it
    model.embedding.weight[291] = -model.embedding.weight[290]  # and this one all others
    save_model(model, folder)
    run(monkeypatch, *job(folder, data, tmp_path / "out"), "--methods", "zero_shot", "--tasks", "sums")
    assert "left out" not in capsys.readouterr().err
    assert {line["valid"] for line in read(tmp_path / "out" / "results.jsonl")} == {0}


def test_questions_that_are_skipped_are_neither_asked_nor_counted(tmp_path):
    """So settings are chosen on other questions than those that are reported."""
    folder, tokenizer = small_bbh(tmp_path), load_tokenizer("bytes")
    name = bbh.tasks(folder)[0]
    run = dict(world="bbh", task=name, seed=1, k=2)
    read_task = lambda **options: driver.read_task(driver.Job(data=folder, length=2048, **options), run, tokenizer)
    whole, _ = read_task()
    first, _ = read_task(limit_queries=2)
    rest, counts = read_task(skip_queries=2)
    assert rest.demos == whole.demos and first.queries + rest.queries == whole.queries
    assert counts.queries == len(rest.queries) == len(whole.queries) - 2
    doubles = [dict(input="same", target="1")] * 8 + [dict(input=f"other {i}", target="1") for i in range(8)]
    (folder / "bbh" / f"{name}.json").write_text(json.dumps(dict(examples=doubles)))
    for options in {}, dict(skip_queries=5), dict(skip_queries=2, limit_queries=3):
        task, counts = read_task(**options)
        assert counts.repeats == sum(query.x in [demo.x for demo in task.demos] for query in task.queries)
    assert read_task()[1].repeats > counts.repeats > 0


@pytest.mark.skipif(not (DATA / "bbh").is_dir(), reason=f"needs the public files in {DATA}")
@pytest.mark.parametrize("benchmark, n_task, counts", [
    ("nlp_lr", 13, Counts(208, 2238, 356, 3, 3)), ("mmlu", 20, Counts(320, 3888, repeats=1)),
    ("bbh", 18, Counts(180, 4008, 177)), ("arc", 200, Counts(703, 212, 2))])
def test_counts_on_the_public_files_with_llamas_tokenizer(benchmark, n_task, counts):
    """The table of nanoct/benchmarks/README.md: the paper's k, lengths, and first seed."""
    reader, tokenizer = driver.PUBLIC[benchmark], load_tokenizer(DATA / "llama3_tokenizer")
    tasks = reader.tasks(DATA / benchmark)
    if len(tasks) != n_task:
        pytest.skip(f"{DATA / benchmark} has {len(tasks)} tasks, and the table is about {n_task}")
    made = [reader.make_task(DATA / benchmark, task, tokenizer, reader.SEEDS[0])[1] for task in tasks]
    assert sum(made, Counts()) == counts


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("gigabytes, name", [(80, "8b"), (16, "1b")])
def test_the_papers_models_fit_where_the_readme_says(method, gigabytes, name):
    """BBH at k = 10 with contexts of 2,000 tokens: 8B on 80 GB, 1B on 16 GB, by the estimate in bfloat16."""
    sizes = {"8b": dict(n_layer=32, n_head=32, n_kv_head=8, n_embd=4096, head_dim=128, n_ffn=14336, tied=False),
             "1b": dict(n_layer=16, n_head=32, n_kv_head=8, n_embd=2048, head_dim=64, n_ffn=8192)}[name]
    config = LlamaConfig(vocab_size=128256, n_position=8192, **sizes)
    lengths = memory.Lengths(30, [(190, 7)] * 10, 200)
    presets = {name: [value] for name, value in SETTINGS["bbh"].get(method, {}).items()}
    (settings,) = cli.configs(method, METHODS[method].Config, presets, {})
    estimate = memory.estimate(config, method, settings, lengths, torch.bfloat16, checkpoint=True)
    assert estimate.total < 0.9e9 * gigabytes, f"{estimate.total / 1e9:.1f} GB"


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "nanoct.paper", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_are_as_one_also_after_a_kill(model, data, tmp_path, monkeypatch):
    """The lines are those of one process; killed in the middle and started again they are complete, none is twice."""
    more = ("--methods", "icl", "lora", "ct_kv", "--seeds", *map(str, range(4)), "--set", "lora.rank=1",
            "--set", "lora.n_step=40", "--set", "ct_kv.n_step=40")
    file = tmp_path / "two" / "results.jsonl"
    first = torchrun(*job(model, data, tmp_path / "two", *more))
    deadline, n_line = time.monotonic() + 120, lambda: len(file.read_text().splitlines()) if file.exists() else 0
    while n_line() < 4 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True).stdout.split()
    subprocess.run(["kill", "-9", *workers], check=True)
    first.communicate(timeout=60)
    before = n_line()
    assert first.returncode and 4 <= before < 24

    second = torchrun(*job(model, data, tmp_path / "two", *more))
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert "24 of 24 runs" in out and out.count("\n| ct_kv ") == 1  # one of the processes reports
    run(monkeypatch, *job(model, data, tmp_path / "one", *more))
    one, two = read(tmp_path / "one" / "results.jsonl"), read(file)
    assert len(two) == 24 and same(one) == same(two)


# --- lines know their data ---


def scores_of(out):
    return cells_of((out / "table.md").read_text(encoding="utf-8"))["icl"][1]


@pytest.fixture
def counted(monkeypatch):
    """Scores by hand: the share of the queries' answers that have the token of "a"."""
    def measured(model, task, *_):
        score = sum(ord("a") in query.y for query in task.queries) / len(task.queries)
        return dict(score=score, seconds=1, n_query=len(task.queries), n_trained=0), None

    monkeypatch.setattr(driver, "measure", measured)


def test_other_data_with_the_same_out_are_other_runs(model, data, tmp_path, monkeypatch, capsys, counted):
    mine, file = shutil.copytree(data, tmp_path / "data"), tmp_path / "data" / "bbh" / "sums.json"
    job_of = lambda folder, *more: run(monkeypatch, *job(model, folder, tmp_path / "out", "--methods", "icl", "--seeds",
                                                         "42", "--tasks", "sums", *more))
    job_of(mine)
    assert scores_of(tmp_path / "out") == "50.0 ± –"
    file.write_text(file.read_text().replace('"b"', '"a"'))  # edited between two calls
    job_of(mine)
    assert scores_of(tmp_path / "out") == "100.0 ± –" and len(read(tmp_path / "out" / "results.jsonl")) == 2
    job_of(data)  # another --data, which has been read before
    assert scores_of(tmp_path / "out") == "50.0 ± –" and "1 of 1 runs are in" in capsys.readouterr().out
    folder = tmp_path / "tokenizer"  # edited too: "a" and "b" change places
    folder.mkdir()
    for two in "ab", "ba":
        letters = "".join(map(chr, range(256))).replace("ab", two)
        (folder / "vocab.json").write_text(json.dumps(list(letters)))
        job_of(data, "--tokenizer", folder)
    lines = read(tmp_path / "out" / "results.jsonl")
    assert len(lines) == len({line["data"] for line in lines}) + 1 == 4  # the first tokenizer is as bytes
    assert all(re.fullmatch("[0-9a-f]{12}", line["data"]) for line in lines)


def test_lines_that_do_not_know_their_data_are_of_the_packages_lists(model, data, own_words, tmp_path, monkeypatch,
                                                                     capsys):
    """So the committed lines are found, and for any other data the run is done again, which is said once."""
    forget = lambda file: file.write_text("".join(json.dumps({name: value for name, value in line.items()
                                                              if name != "data"}) + "\n" for line in read(file)))
    packaged, other = tmp_path / "a", tmp_path / "b"
    jobs = [(packaged, words_job(model, packaged, "--methods", "icl", "--tasks", "agent", "language", "--seeds", "42")),
            (other, words_job(model, other, "--methods", "icl", "--data", own_words, "--seeds", "42", "43"))]
    for out, words_of in jobs:
        run(monkeypatch, *words_of)
        assert "do not say" not in capsys.readouterr().out and all("data" in line for line in
                                                                   read(out / "results.jsonl"))
        forget(out / "results.jsonl")
        run(monkeypatch, *words_of)
        said, lines = capsys.readouterr().out, read(out / "results.jsonl")
        if out is packaged:
            assert "2 of 2 runs are in" in said and len(lines) == 2 and "do not say" not in said
        else:
            assert f"2 lines of {out / 'results.jsonl'} do not say which data they are of; their runs are done" in said
            assert "are in" not in said and ["data" in line for line in lines] == [False, False, True, True]
            run(monkeypatch, *words_of)
            said = capsys.readouterr().out
            assert "do not say" not in said and "2 of 2 runs are in" in said


def test_an_ablation_that_starts_from_another_tasks_demos_is_of_both_tasks(model, data, tmp_path, monkeypatch):
    monkeypatch.setitem(SETTINGS["bbh"], "ct_kv", dict(n_step=1))
    rows = "CT-KV", "start: another task's demos"
    monkeypatch.setattr(ablations, "ABLATIONS", {row: ablations.ABLATIONS[row] for row in rows})
    mine = shutil.copytree(data, tmp_path / "data")
    arguments = job(model, mine, tmp_path, "--ablations", "--limit-queries", "1")
    run(monkeypatch, *arguments)
    n = len(read(tmp_path / "ablations.jsonl"))
    file = mine / "bbh" / "words.json"
    file.write_text(file.read_text().replace("words", "nouns"))
    run(monkeypatch, *arguments)
    again = read(tmp_path / "ablations.jsonl")[n:]
    assert Counter(line["task"] for line in again) == {"words": n // 2, "sums": 1}
    assert [line["config"]["start"] for line in again if line["task"] == "sums"] == ["others"]
