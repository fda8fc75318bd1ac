"""The runs that a file lacks: in this process, in workers, dealt out; nothing lost, nothing twice."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from nanoct.runs import parallel
from nanoct.runs.measure import NotFinite
from nanoct.runs.parallel import execute, share
from nanoct.runs.results import Results, read


def runs(*tasks, methods=("icl",), seeds=(0,)):
    return [dict(model="m", world="w", pool="p", k=2, method=method, config={}, task=task, seed=seed)
            for task in tasks for seed in seeds for method in methods]


def line(run, progress=None):
    return dict(run, score=0.5, seconds=1.0, process=os.getpid(), told=os.environ.get("TOLD"))


def told(text):
    os.environ["TOLD"] = text


def dies(run):
    if run["task"] == "c":
        time.sleep(1)  # a and b have come by then
        os._exit(1)
    return line(run)


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Workers come from a server that has imported torch once; in one test they are spawned, as those of a job are."""
    if request.node.name != "test_a_job_does_what_is_lacking_and_no_run_twice[2]":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["nanoct.runs.parallel"])
        monkeypatch.setattr(parallel, "get_context", lambda how: context)


@pytest.mark.parametrize("n_worker", [0, 2])
def test_a_job_does_what_is_lacking_and_no_run_twice(n_worker, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TOLD", "nothing")
    results = Results(tmp_path / "a" / "lines.jsonl")
    results.append(dict(line(runs("b")[0]), score=0.25))
    asked = runs("a", "b", "c", "a")
    lines = execute(asked, Results(results.path), line, n_worker, told, "this")
    assert [(l["task"], l["score"], l["told"]) for l in lines] == [
        ("a", .5, "this"), ("b", .25, "nothing"), ("c", .5, "this")]
    assert len(read(results.path)) == 3 and f"1 of 3 runs are in {results.path} already" in capsys.readouterr().out
    assert {l["process"] == os.getpid() for l in lines if l["task"] != "b"} == {n_worker == 0}
    again = execute(asked, Results(results.path), None, n_worker)
    assert again == lines and len(read(results.path)) == 3


def test_a_run_that_is_left_out_has_no_line(tmp_path):
    work = lambda run, progress: None if run["task"] == "b" else line(run)
    lines = execute(runs("a", "b", "c"), Results(tmp_path / "lines.jsonl"), work)
    assert [l["task"] for l in lines] == ["a", "c"] and read(tmp_path / "lines.jsonl") == lines


def short(run, progress=None):
    if run["task"] in "bc":
        raise parallel.NoRoom(f"{run['task']} needs 9 GB.")
    return line(run)


@pytest.mark.parametrize("n_worker", [0, 1])
def test_runs_without_room_are_said_counted_and_tried_again(n_worker, tmp_path, capsys):
    lines = execute(runs("a", "b", "c", "d"), Results(tmp_path / "lines.jsonl"), short, n_worker)
    said = capsys.readouterr()
    assert [l["task"] for l in lines] == ["a", "d"] and "2 of 4 runs were left out for want of memory.\n" in said.out
    assert "left out: b needs 9 GB." in said.out + said.err
    lines = execute(runs("a", "b", "c", "d"), Results(tmp_path / "lines.jsonl"), line, n_worker)
    assert [l["task"] for l in lines] == list("abcd") and "want of memory" not in capsys.readouterr().out


def test_the_bar_shows_step_and_loss_within_a_run(tmp_path, capsys):
    def work(run, progress):
        for step in range(3):
            time.sleep(0.15)  # longer than tqdm's interval
            progress(step, 1.5 / (step + 1))
        time.sleep(0.15)  # scoring
        return line(run)

    execute(runs("a", "b"), Results(tmp_path / "lines.jsonl"), work)
    said = capsys.readouterr().err
    for task in "ab":
        assert f"icl on {task}, step 1, loss 1.500" in said and f"icl on {task}, step 3, loss 0.500" in said


def test_an_error_keeps_the_lines_before_it(tmp_path):
    def work(run, progress):
        if run["task"] == "c":
            raise ValueError("no c.")
        return line(run)

    with pytest.raises(ValueError, match="no c"):
        execute(runs("a", "b", "c", "d"), Results(tmp_path / "lines.jsonl"), work)
    assert [l["task"] for l in read(tmp_path / "lines.jsonl")] == ["a", "b"]


def not_finite(run, progress=None):
    if run["task"] == "b":
        raise NotFinite(f"icl on {run['task']} comes to nan.")
    return line(run)


@pytest.mark.parametrize("n_worker", [0, 1])
def test_a_run_that_is_not_finite_is_said_and_left_out_and_the_others_go_on(n_worker, tmp_path, capsys):
    lines = execute(runs("a", "b", "c"), Results(tmp_path / "lines.jsonl"), not_finite, n_worker)
    assert [l["task"] for l in lines] == ["a", "c"] == sorted(l["task"] for l in read(tmp_path / "lines.jsonl"))
    assert "left out: icl on b comes to nan." in capsys.readouterr().out


def test_a_worker_that_dies_is_said_and_what_is_done_is_kept(tmp_path):
    with pytest.raises(ValueError, match="a worker process died"):
        execute(runs("a", "b", "c", "d", "e"), Results(tmp_path / "lines.jsonl"), dies, 1)
    assert [l["task"] for l in read(tmp_path / "lines.jsonl")] == ["a", "b"]


def test_what_cannot_be_written_stops_the_job(tmp_path, monkeypatch):
    results = Results(tmp_path / "lines.jsonl")
    monkeypatch.setattr(results, "append", lambda line: (_ for _ in ()).throw(OSError("the disk is full.")))
    with pytest.raises(OSError, match="full"):
        execute(runs(*"abcdefgh"), results, line, 1)
    assert read(tmp_path / "lines.jsonl") == []


def test_tasks_are_dealt_out_whole_and_none_is_left(monkeypatch):
    asked = runs("a", "b", "c", methods=("icl", "ttt"), seeds=(0, 1, 2))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    shares = []
    for rank in range(4):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        shares.append(share(asked))
    at = [{(run["task"], run["seed"]) for run in mine} for mine in shares]
    assert [len(of) for of in at] == [3, 2, 2, 2] and len(set.union(*at)) == 9
    assert [len(mine) for mine in shares] == [6, 4, 4, 4]


# --- an error, Ctrl-C and a start that fails, with workers ---


def quarrels(run):
    """b is refused at once; a has ended a little later, c would take a minute."""
    if run["task"] == "b":
        raise ValueError("no b.")
    time.sleep(dict(a=1, c=60)[run["task"]])
    return line(run)


def test_an_error_in_a_worker_keeps_what_the_others_finish_and_does_not_wait_for_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "GRACE", 3)
    start = time.monotonic()
    with pytest.raises(ValueError, match="no b"):
        execute(runs("c", "a", "b"), Results(tmp_path / "lines.jsonl"), quarrels, 3)
    assert [l["task"] for l in read(tmp_path / "lines.jsonl")] == ["a"] and time.monotonic() - start < 50


SCRIPT = """
import sys, time
import nanoct.runs.parallel as parallel
from nanoct import cli
from nanoct.runs.results import Results
from test_parallel import runs, slow
{guard}
    cli.run(lambda: parallel.execute(runs(*"abcdef"), Results(sys.argv[1]), slow, 2))
"""
GUARD = 'if __name__ == "__main__":'


def slow(run):
    if run["task"] == "a":
        return line(run)
    time.sleep(60)


def script(tmp_path, guard, *how, **more):
    (tmp_path / "mine.py").write_text(SCRIPT.format(guard=guard))
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen([sys.executable, *how, str(tmp_path / "lines.jsonl")], stderr=subprocess.PIPE, text=True,
                            env=os.environ | dict(PYTHONPATH=paths), cwd=tmp_path, start_new_session=True, **more)


@pytest.mark.slow
def test_a_script_without_a_guard_and_one_from_standard_input_hear_why_no_worker_starts(tmp_path):
    for guard, how, more in (("if True:", ["mine.py"], {}), (GUARD, ["-"], dict(stdin=(tmp_path / "mine.py")))):
        more = {name: file.open() for name, file in more.items()}
        with script(tmp_path, guard, *how, **more) as job:
            said = job.communicate(timeout=100)[1]
        assert job.returncode == 2 and "Traceback" not in said and said.count("error") == 1
        assert said.splitlines()[-1] == f"error: {parallel.NO_START}"


@pytest.mark.slow
def test_ctrl_c_ends_at_once_and_says_so_once_though_workers_run_or_import(tmp_path):
    for n_line in (0, 1):  # before a worker has begun, and behind the first line
        with script(tmp_path, GUARD, "mine.py") as job:
            file, deadline = tmp_path / "lines.jsonl", time.monotonic() + 100
            while not file.exists() or len(file.read_bytes().splitlines()) < n_line and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.5)
            os.killpg(job.pid, signal.SIGINT)
            said = job.communicate(timeout=30)[1]
        assert job.returncode == 130 and "Traceback" not in said and said.count("stopped; the same command") == 1
        assert len(read(file)) == n_line
