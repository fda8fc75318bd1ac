"""reproduce and paper where the disk is full, are killed, or are started twice: nothing lost, nothing doubled."""

import importlib
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from filelock import FileLock
from helpers import saved_llama, small_bbh

from nanoct import cli, paper, reproduce
from nanoct.runs.results import key, read

MAINS = {"paper": paper.main, "reproduce": reproduce.main}


@pytest.fixture(params=["paper", pytest.param("reproduce", marks=pytest.mark.slow)])
def job(request, tmp_path_factory, model_folder):
    """(name, its arguments but --out): 12 runs on tiny models."""
    if request.param == "paper":
        model, data = saved_llama(tmp_path_factory.mktemp("model")), small_bbh(tmp_path_factory.mktemp("bbh"))
        where = ("--benchmark", "bbh", "--model", model, "--data", data, "--tokenizer", "bytes", "--k", 2, "--device",
                 "cpu", "--tasks", "sums", "words", "--seeds", 1, 2, "--limit-queries", 2)
    else:
        where = ("--model", model_folder, "--world", "facts", "--k", 3, "--tasks", 2, "--seeds", 1, 2, "--workers", 0)
    more = ("--methods", "zero_shot", "icl", "ct_kv", "--set", "ct_kv.n_step=1")
    return request.param, [*map(str, (*where, *more))]


def go(name, arguments, monkeypatch, capsys):
    """(exit code, stderr) of the command in this process."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    code = 0
    try:
        cli.run(MAINS[name])
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().err


def complete(folder, n=12):
    lines = read(folder / "results.jsonl")
    assert len({key(line) for line in lines}) == len(lines) == n and (folder / "table.md").stat().st_size > 100
    return lines


@contextmanager
def small_disk(folder, size):
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up(job, tmp_path, monkeypatch, capsys):
    """Also where it has room for a part of a line."""
    name, arguments = job
    with small_disk(tmp_path / "disk", "512k") as disk:
        (disk / "out").mkdir()
        with pytest.raises(OSError, match="No space"):
            (disk / "filler").write_bytes(bytes(2**20))
        os.truncate(disk / "filler", (disk / "filler").stat().st_size - 4096)  # a page, or eight lines
        code, said = go(name, [*arguments, "--out", disk / "out"], monkeypatch, capsys)
        last = said.splitlines()[-1]
        assert code == 2 and last.startswith(f"error: cannot write to {disk}/out/results.jsonl (") and "room" in last
        before = read(disk / "out" / "results.jsonl")
        assert 0 < len(before) < 12 and (disk / "out" / "results.jsonl").read_bytes().endswith(b"\n")
        (disk / "filler").unlink()
        assert go(name, [*arguments, "--out", disk / "out"], monkeypatch, capsys)[0] == 0
        assert complete(disk / "out")[: len(before)] == before


def test_killed_and_started_twice(job, tmp_path, monkeypatch, capsys):
    """The second is told while the first is at work, and goes on from its lines when it is dead, workers or not."""
    name, arguments = job
    arguments += ["--out", str(tmp_path)]
    slow = ["ct_kv.n_step=150" if word == "ct_kv.n_step=1" else word for word in arguments]
    if name == "reproduce":
        slow[slow.index("--workers") + 1] = "2"
    file, count = tmp_path / "results.jsonl", lambda: len(file.read_bytes().splitlines()) if file.exists() else 0
    first = subprocess.Popen([sys.executable, "-m", f"nanoct.{name}", *slow], stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 100
    while count() < 2 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    with FileLock(tmp_path / ".results.jsonl.lock"):  # not while it appends a line: the second would wait for ever
        os.kill(first.pid, signal.SIGSTOP)  # or it may be at its end before the second begins
    code, said = go(name, slow, monkeypatch, capsys)
    assert code == 2 and f"error: another process is at work in {tmp_path}" in said.splitlines()[-1]
    first.kill()
    first.communicate(timeout=60)
    before = read(file)
    assert 2 <= len(before) < 12
    code, said = go(name, slow, monkeypatch, capsys)
    assert code == 0, said
    assert complete(tmp_path)[: len(before)] == before


# --- outputs that cannot be written ---


@pytest.mark.parametrize("command, option, spoils, expensive", [
    ("nanoct.runs.leak", "out", "out/leak.md", "retrieved"),
    ("nanoct.runs.leak", "out", "out/leak.jsonl", "retrieved"),
    ("nanoct.conformance", "out/below", "out", "vectors"),
    ("nanoct.coins.predictors", "out", "out/transformer-128x1.safetensors", "meta_train"),
    ("nanoct.coins.predictors", "out", "out/log.jsonl", "meta_train"),
    ("nanoct.coins.bridge", "out", "out/bridge.md", "execute"),
    ("nanoct.coins.bridge --pretrain", "out", "out/llama/model.safetensors", "pretrain"),
    ("nanoct.costs.speed", "out", "out", "load"),
])
def test_what_cannot_be_written_is_said_before_the_work(command, option, spoils, expensive, tmp_path, monkeypatch,
                                                        capsys):
    """A link stands where the file would go, or a file where a folder would."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / spoils).parent.mkdir(parents=True, exist_ok=True)
    if option.startswith(f"{spoils}/"):
        (tmp_path / spoils).touch()
    else:
        (tmp_path / spoils).symlink_to("elsewhere")
    command, *more = command.split()
    module = importlib.import_module(command)
    monkeypatch.setattr(module, expensive, lambda *_, **__: pytest.fail("it is at work already"))
    monkeypatch.setattr(sys, "argv", [command, *more, "--out", option])
    with pytest.raises(SystemExit) as stop:
        cli.run(module.main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: cannot write ") and spoils in said and said.count("\n") == 1


@pytest.mark.slow
def test_two_tunes_of_one_context_do_not_both_write_it(tmp_path, model_folder):
    (tmp_path / "mine.jsonl").write_text('{"input": "ab", "output": "ba"}\n{"input": "cd", "output": "dc"}\n')
    more = ["--data", "mine.jsonl", "--out", "ctx", "--model", str(model_folder), "--device", "cpu"]
    start = lambda seed: subprocess.Popen([sys.executable, "-m", "nanoct.tune", *more, "--seed", seed], cwd=tmp_path,
                                          stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    two = [start(seed) for seed in "01"]
    said = [process.communicate(timeout=200)[1].splitlines()[-1] for process in two]
    codes = [process.returncode for process in two]
    assert sorted(codes) == [0, 2], said
    assert "another process is at work in ctx" in said[codes.index(2)] or "--out ctx exists" in said[codes.index(2)]
