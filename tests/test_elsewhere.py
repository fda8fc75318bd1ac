"""Elsewhere than on one Linux machine: without fcntl and resource, as on Windows; with its line ends; from a wheel."""

import json
import os
import subprocess
import sys

import pytest
from helpers import small_bbh

from nanoct import tune
from nanoct.benchmarks import bbh, mmlu, nlp_lr, words
from nanoct.benchmarks.nano import FOLDER
from nanoct.io.tokenizer import load_tokenizer
from nanoct.runs.results import read

EVERY = """
import importlib, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
from nanoct.__main__ import commands
for module, _ in commands().values():
    importlib.import_module(f"nanoct.{module}")
from nanoct.io.files import lock
from nanoct.runs.measure import resident_peak
from nanoct.runs.results import Results
with lock(sys.argv[1]):
    Results(sys.argv[1] + "/lines.jsonl").append(dict(
        model="m", world="w", pool="p", k=2, method="icl", config={}, task="a", seed=0, score=0.5, seconds=1.0))
assert resident_peak() is None
"""


def test_every_command_is_imported_where_there_is_no_fcntl_and_no_resource(tmp_path):
    folder = tmp_path / "with a blank"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", EVERY, str(folder)], check=True)
    assert len(read(folder / "lines.jsonl")) == 1


@pytest.mark.slow
def test_tune_and_workers_run_there_too(tmp_path):
    """Also the workers, which spawn starts."""
    (tmp_path / "mine data").mkdir()
    for name in ("fcntl", "resource"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name}')")
    pairs = [dict(input=x, output=x[::-1]) for x in ("abc", "fade", "nb", "hijk")]
    (tmp_path / "mine data" / "pairs.jsonl").write_bytes(b"\r\n".join(json.dumps(pair).encode() for pair in pairs))
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    go = lambda *command: subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, check=True,
                                         env=os.environ | dict(PYTHONPATH=paths))
    go("nanoct.tune", "--data", "mine data/pairs.jsonl", "--out", "my contexts/a b", "--set", "n_step=2", "--model",
       str(FOLDER / "strings"), "--device", "cpu")
    go("nanoct.reproduce", "--world", "facts", "--tasks", "1", "--methods", "icl", "ct_kv", "--set", "ct_kv.n_step=2",
       "--workers", "2", "--out", "my results")
    assert (tmp_path / "my contexts" / "a b").stat().st_size > 1000
    assert len(read(tmp_path / "my results" / "results.jsonl")) == 2


# --- line ends ---


def mmlu_file(folder):
    (folder / "test").mkdir(parents=True)
    rows = [f'"What,\n is {i}?",a{i},b,c,d,A' for i in range(5)]
    (folder / "test" / "x_test.csv").write_text("\n".join(rows) + "\n")
    return folder


def nlp_lr_file(folder):
    (folder / "sick").mkdir(parents=True)
    rows = [dict(task="sick", input=f"{i}?", output="yes", options=["yes", "no"]) for i in range(5)]
    for part in ("train", "test"):
        (folder / "sick" / f"sick_16_13_{part}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def words_file(folder):
    folder.mkdir()
    (folder / "mine.tsv").write_text("".join(f"in {i}\tout {i}\n" for i in range(5)))
    return folder


def bbh_file(folder):
    folder.mkdir()
    return small_bbh(folder)


def to_windows(folder):
    for file in folder.rglob("*.*"):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))


@pytest.mark.parametrize("module, make, name, seed", [
    (mmlu, mmlu_file, "x", 42), (nlp_lr, nlp_lr_file, "sick", 13), (words, words_file, "mine", 42),
    (bbh, bbh_file, "sums", 42)])
def test_files_with_line_ends_of_windows_are_the_same_tasks(module, make, name, seed, tmp_path):
    folder, tokenizer = make(tmp_path / "my data"), load_tokenizer("bytes")
    task = lambda: module.make_task(folder, name, tokenizer, seed, 2)[0]
    before = task()
    to_windows(folder)
    assert any(b"\r\n" in file.read_bytes() for file in folder.rglob("*.*"))
    after = task()
    assert (after.demos, after.queries, after.instruction) == (before.demos, before.queries, before.instruction)


def test_lines_of_examples_and_of_results_may_end_as_on_windows(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"input": "a", "output": "b"}\r\n{"input": "c", "output": "d"}\r\n')
    assert [(line.input, line.output) for line in tune.read_lines(tmp_path / "a.jsonl")] == [("a", "b"), ("c", "d")]
    file = next((FOLDER / "results").glob("train.jsonl"))
    lines = read(file)
    (tmp_path / "lines.jsonl").write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert read(tmp_path / "lines.jsonl") == lines


# --- a package without a clone around it ---


def test_an_installed_package_writes_its_predictors_to_where_one_is(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "nanoct").symlink_to(os.path.dirname(tune.__file__))
    code = "from nanoct.coins import predictors, bridge; print(predictors.FOLDER, bridge.SETTINGS)"
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | dict(
        PYTHONPATH=str(tmp_path / "site")), check=True, capture_output=True, text=True).stdout.split()
    assert said == [os.path.join("weights", "coins"), os.path.join("weights", "coins", "bridge.json")]
