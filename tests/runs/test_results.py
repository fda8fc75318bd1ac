"""Files of results: what is no result is named, a full disk and a kill lose nothing, one job works in a folder."""

import errno
import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

from nanoct.fewshot import Demo, Query, Task, Text
from nanoct.io.files import lock
from nanoct.runs import ablations, results
from nanoct.runs.parallel import execute
from nanoct.runs.results import Results, read

WEIGHTS = Path(__file__).parents[2] / "weights"


def line(task="a", **changes):
    return dict(model="m", world="w", pool="p", k=2, method="icl", config={}, task=task, seed=0, score=0.5,
                seconds=1.0) | changes


def sentence(error, call, *arguments):
    with pytest.raises(error) as caught:
        call(*arguments)
    said = str(caught.value)
    assert "\n" not in said and said.endswith(".") and len(said) < 400, said
    return said


# --- lines that are none ---


@pytest.mark.parametrize("changes, said", [
    (dict(score=None), "'score' is None"), (dict(score="0.5"), "'score' is '0.5'"),
    (dict(score=True), "'score' is True"),
    (dict(score=float("nan")), "'score' is nan"), (dict(score=float("inf")), "'score' is inf"),
    (dict(score=10**400), "'score' is 1000"), (dict(score=[1]), "'score' is [1]"),
    (dict(seconds="3 s"), "'seconds' is '3 s'"), (dict(seconds=float("-inf")), "'seconds' is -inf"),
    (dict(config=[1, 2]), "'config' is [1, 2]"), (dict(config=None), "'config' is None"),
    (dict(config={"lr": [1]}), "'lr' in its config is [1]"),
    (dict(config={"n_step": "8"}), "'n_step' in its config is '8'"),
    (dict(config={"lr": float("nan")}), "'lr' in its config is nan"), (dict(method=7), "'method' is 7"),
    (dict(task=None), "'task' is None"), (dict(task=["a"]), "'task' is ['a']"), (dict(seed="0"), "'seed' is '0'"),
    (dict(seed=0.5), "'seed' is 0.5"), (dict(k={}), "'k' is {}"), (dict(world=None), "'world' is None"),
    (dict(kl="low"), "'kl' is 'low'"), (dict(n_trained=None), "'n_trained' is None"),
    (dict(n_query=1.5), "'n_query' is 1.5"),
    (dict(score=1.5), "'score' is 1.5, which is not from 0 to 1"), (dict(score=-0.1), "'score' is -0.1"),
    (dict(valid=1.01), "'valid' is 1.01"), (dict(valid=-0.01), "'valid' is -0.01"),
    (dict(seconds=-1.0), "'seconds' is -1.0"),
    (dict(seconds_score=-1), "'seconds_score' is -1"), (dict(n_query=-1), "'n_query' is -1"),
    (dict(kl=-1e-3), "'kl' is -0.001"), (dict(data=3), "'data' is 3"),
    (dict(n_trained=-1), "'n_trained' is -1"), (dict(peak_bytes=-1), "'peak_bytes' is -1"),
    (dict(dtype={"a": 1}), "'dtype' is {'a': 1}"), (dict(form=[0]), "'form' is [0]"),
    (dict(tied="x"), "'tied' is 'x'"), (dict(tied=-1), "'tied' is -1"),
    (dict(peak_bytes="9"), "'peak_bytes' is '9'"), (dict(seconds_score=None), "'seconds_score' is None"),
    *((dict({name: ...}), f"it has no {name!r}") for name in (*results.KEY, *results.NEEDS)),
])
def test_a_line_of_other_types_is_named_and_is_not_written(tmp_path, changes, said):
    wrong, file = {name: value for name, value in line(**changes).items() if value is not ...}, tmp_path / "lines.jsonl"
    file.write_text(json.dumps(line()) + "\n" + json.dumps(wrong) + "\n" + json.dumps(line("b")) + "\n")
    for call in read, Results:
        assert sentence(ValueError, call, file).startswith(f"{file}, line 2 is not a result: {said}")
    file.unlink()
    found = Results(file)
    if not said.startswith("it has no"):
        assert said in sentence(ValueError, found.append, wrong)
        assert found.lines == read(file) == []


@pytest.mark.parametrize("broken, said", [
    (b"[" * 100_000, "nested"), (b'{"a": ' * 5000 + b"1" + b"}" * 5000, "nested"), (b"[1]", "JSON object"),
    (b"not json", "not JSON"), (b'{"score": "\xff"}', "not UTF-8"), (b"", "is empty")])
def test_a_broken_line_is_named(tmp_path, broken, said):
    whole = json.dumps(line()).encode()
    (tmp_path / "x.jsonl").write_bytes(whole + b"\n" + broken + b"\n" + whole)
    found = sentence(ValueError, read, tmp_path / "x.jsonl")
    assert f"{tmp_path / 'x.jsonl'}, line 2" in found and said in found


def test_a_line_separator_within_a_string_ends_no_line(tmp_path):
    odd = [line("a\u2028b\u0085c\x1dd"), line("b")]
    text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in odd)
    (tmp_path / "x.jsonl").write_text(text, encoding="utf-8", newline="\n")
    assert read(tmp_path / "x.jsonl") == odd and Results(tmp_path / "x.jsonl").keys == set(map(results.key, odd))


def test_the_shipped_lines_are_results():
    files = [WEIGHTS / "nano" / "results" / f"{name}.jsonl" for name in ("sweep", "ablations", "scaling", "train")]
    assert all(len(read(file)) > 200 for file in files)


def test_the_ends_of_what_is_possible_are_possible():
    for score in 0, 1, 0.0, 1.0:
        assert results.fault(line(score=score, valid=score, seconds=0, n_query=0, n_trained=0, kl=-1e-7)) is None
    assert results.fault(line(kl=None)) is None


# --- ids that last ---


@dataclass
class Config:
    lr: float = 0.1
    n_step: int = 4


def test_a_setting_at_its_default_is_no_other_run(tmp_path, monkeypatch):
    """So a Config can get a field, and lose one, and the lines from before are found and read alike."""
    monkeypatch.setitem(results.KNOWN, "mine", SimpleNamespace(Config=Config))
    of = lambda **config: line(method="mine", config=config)
    whole = of(lr=0.1, n_step=4)
    for config in {}, dict(lr=0.1), dict(n_step=4), dict(n_step=4, lr=0.1):
        assert results.key(of(**config)) == results.key(whole)
    others = [of(lr=0.2), of(n_step=5), of(lr=0.1, old=1), of(lr=0.1, old=2)]
    assert len({results.key(each) for each in (whole, *others)}) == 5
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in (of(n_step=4), of(n_step=5, lr=0.1))))
    assert [list(each["config"].items()) for each in read(file)] == [[("lr", 0.1), ("n_step", n)] for n in (4, 5)]
    assert execute([whole], Results(file), None) == [whole]  # done already
    monkeypatch.setitem(results.RETIRED, "old", 1)
    assert results.key(of(lr=0.1, old=1)) == results.key(whole) != results.key(of(lr=0.1, old=2))
    monkeypatch.setitem(results.RETIRED, "n_step", 5)  # a field that this Config has is not retired here
    assert results.key(of(n_step=5)) != results.key(whole)


def test_lines_of_the_time_when_ct_kv_had_bf16_are_found():
    of = lambda method, **config: results.key(line(method=method, config=config))
    assert of("ct_kv", bf16=False) == of("ct_kv") != of("ct_kv", bf16=True)
    assert of(ablations.NAME, bf16=False) == of(ablations.NAME) != of(ablations.NAME, bf16=True)


def test_a_method_that_is_not_known_is_left_as_it_is():
    unknown = line(method="gone", config=dict(b=1, a=2))
    assert results.completed(unknown) is unknown
    assert results.key(unknown) != results.key(line(method="gone", config=dict(b=1)))


def test_the_variants_of_a_study_have_defaults_too():
    of = lambda **config: results.key(line(method=ablations.NAME, config=config))
    assert of() == of(start="demos", lr=ablations.Config.lr) != of(start="noise")


def test_the_id_of_the_data_changes_with_what_can_change_a_score():
    task = Task("a", [Demo([1], [2]), Demo([3], [4])], [Query([5], [6], [[6], [7]])], instruction=[8])
    same = replace(task, name="b", demos=[Demo((1,), (2,)), Demo((3,), (4,))])
    assert results.data_id(task) == results.data_id(same) and len(results.data_id(task)) == 12
    pairs = [Demo([1], [2]), Demo([3], [9])], [Demo([1, 2], [2]), Demo([3], [4])], task.demos[::-1], task.demos[:1]
    queries = [Query([5], [6])], [Query([5], [7], [[6], [7]])], [Query([5], [6], [[6], [9]])], [Query([9], [6])]
    others = [replace(task, **change) for change in (
        *(dict(demos=of) for of in pairs), *(dict(queries=of) for of in queries), dict(instruction=[9]),
        dict(separator=[1]), dict(metric="text"), dict(length=9), dict(text=Text(str, "x")),
        dict(text=Text(str, "x", ends={1})), dict(text=Text(str, "x", answers={"a"})))]
    assert len({results.data_id(each) for each in (task, *others)}) == len(others) + 1
    moved = replace(task, demos=task.demos[:1], queries=[Query([3], [4]), *task.queries])  # from one part to the other
    assert results.data_id(moved) != results.data_id(task)


# --- a full disk, a kill ---


def fails(monkeypatch, n, error=None):
    """The write after n good ones takes half of its bytes, or none and this error; those behind it are good again."""
    real, count = os.write, iter(range(1000))

    def write(fd, text):
        if not text.startswith(b'{"model"') or next(count) != n:
            return real(fd, text)
        written = real(fd, text[: len(text) // 2])
        if error:
            raise OSError(error, os.strerror(error))
        return written

    monkeypatch.setattr(results.os, "write", write)


@pytest.mark.parametrize("n_worker, error", [(0, None), (0, errno.ENOSPC), (0, errno.EDQUOT), (1, None)])
def test_a_full_disk_costs_the_run_that_met_it_and_no_other(tmp_path, monkeypatch, error, n_worker):
    file, runs = tmp_path / "lines.jsonl", [line(task) for task in "abcd"]
    fails(monkeypatch, 2, error)
    said = sentence(OSError, execute, runs, Results(file), done, n_worker)
    assert f"cannot write to {file}" in said and "make room" in said
    assert len(read(file)) in (2, 2 + n_worker) and file.read_bytes().endswith(b"\n")  # a worker may be ahead
    lines = execute(runs, Results(file), done, n_worker)  # there is room again
    assert [each["task"] for each in lines] == sorted(each["task"] for each in read(file)) == list("abcd")


def done(run, progress=None):
    return run


def test_an_error_of_the_disk_at_the_end_of_a_write_is_one_too(tmp_path, monkeypatch):
    found = Results(tmp_path / "lines.jsonl")
    found.append(line())
    with monkeypatch.context() as patch:
        patch.setattr(results.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        assert "Input/output error" in sentence(OSError, found.append, line("b"))
    assert read(found.path) == [line()] == found.lines


@pytest.mark.parametrize("cut", [1, 5, 40, 100])
def test_what_a_kill_leaves_of_a_line_is_cut_off_and_nothing_else(tmp_path, cut):
    file, text = tmp_path / "lines.jsonl", json.dumps(line("ä")).encode()
    file.write_bytes(json.dumps(line()).encode() + b"\n" + text[:cut])
    with pytest.warns(UserWarning, match="half-written"):
        found = Results(file)
    assert found.lines == [line()]
    found.append(line("b"))
    assert read(file) == [line(), line("b")]


def test_a_whole_line_without_its_end_is_kept(tmp_path):
    file = tmp_path / "lines.jsonl"
    file.write_text(json.dumps(line()) + "\n" + json.dumps(line("b")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Results(file)
    found.append(line("c"))
    assert [each["task"] for each in read(file)] == list("abc")


def test_a_foreign_file_is_left_as_it_is(tmp_path):
    (tmp_path / "lines.jsonl").write_text("my notes, without a line feed")
    assert "line 1" in sentence(ValueError, Results, tmp_path / "lines.jsonl")
    assert (tmp_path / "lines.jsonl").read_text() == "my notes, without a line feed"


# --- two at once ---


def test_a_second_job_in_a_folder_is_told_and_does_nothing(tmp_path):
    found = Results(tmp_path / "lines.jsonl")
    with lock(tmp_path):
        said = sentence(ValueError, execute, [line()], found, done)
        assert f"another process is at work in {tmp_path}" in said
    assert read(found.path) == [] and execute([line()], found, done) == [line()]
    seen = []

    def work(run, progress):  # and is the first that is told, not the one at work
        with pytest.raises(ValueError, match="another process is at work"):
            execute([line("b")], Results(found.path), done)
        seen.append(run["task"])
        return run

    execute([line(), line("c")], found, work)
    assert seen == ["c"] and [each["task"] for each in read(found.path)] == ["a", "c"]


def test_what_another_job_has_done_in_the_meantime_is_not_done_again(tmp_path):
    first, second = Results(tmp_path / "lines.jsonl"), Results(tmp_path / "lines.jsonl")
    execute([line()], first, done)
    assert execute([line()], second, None) == [line()] and len(read(first.path)) == 1


def test_a_line_waits_for_another_process_that_writes(tmp_path):
    """Which may yet cut back what did not fit."""
    found = Results(tmp_path / "lines.jsonl")
    thread = Thread(target=found.append, args=[line()])
    with Results(found.path)._alone():
        thread.start()
        thread.join(0.3)
        assert thread.is_alive() and not found.path.read_bytes()
    thread.join()
    assert read(found.path) == [line()]


APPENDS = """
import sys
from nanoct.runs.results import Results
found = Results(sys.argv[1])
for n in range(40):
    found.append(dict(model="m", world="w", pool="p", k=2, method="icl", config={}, task=sys.argv[2] * 3000, seed=n,
                      score=0.5, seconds=1.0))
    print(n, flush=True)
"""


def test_lines_of_several_processes_stay_whole_also_when_one_is_killed(tmp_path):
    file = tmp_path / "lines.jsonl"
    start = lambda name: subprocess.Popen([sys.executable, "-c", APPENDS, str(file), name], stdout=subprocess.PIPE)
    two = [start(name) for name in "ab"]
    two[0].stdout.readline()
    time.sleep(0.02)
    two[0].kill()
    for process in two:
        process.communicate(timeout=100)
    lines = Results(file).lines
    assert len({results.key(each) for each in lines}) == len(lines)
    assert sum(each["task"][0] == "b" for each in lines) == 40
