"""The main job: planning, resuming, error bars, a method of one's own, and every mistake answered with a sentence."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from math import isclose, isnan, sqrt
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from helpers import interval, line, text_of

from nanoct import cli
from nanoct.benchmarks import nano
from nanoct.io.weights import fingerprint, load_model, save_model
from nanoct.methods import METHODS, icl
from nanoct.reproduce import main, parse
from nanoct.runs import job as driver
from nanoct.runs import plots, report, results, stats
from nanoct.runs.worlds import brief, configs, variants

SHORT = [word for method, module in METHODS.items() if method != "ct_kv" for field in ("n_step", "ttt_n_step", "batch")
         if field in module.Config.__dataclass_fields__ for word in ("--set", f"{method}.{field}=1")]


def reproduce(*arguments):
    command = [sys.executable, "-m", "nanoct.reproduce", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_main_job_resumes_after_a_half_written_line_and_redraws(model_folder, tmp_path):
    job = ("--model", model_folder, "--world", "lexicon", "facts", "--k", 3, "--tasks", 1, "--workers", 2,
           "--out", tmp_path, "--set", "ct_kv.n_step=1,2", *SHORT)
    done = reproduce(*job)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "results.jsonl"
    before = results.read(file)
    assert len(before) == 2 * 13  # ten methods, ct_kv twice, two ceilings; a task of each world
    assert {l["world"] for l in before} == {"lexicon", "facts"}
    assert all((l["kl"] is None) == l["method"].startswith("bayes") for l in before)
    assert {key for l in before for key in l} >= {"config", "seed", "torch", "device", "seconds", "score", "date"}
    assert all(l["peak_bytes"] > 0 and l["n_thread"] == 1 for l in before if l["kl"] is not None)
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("accuracy_vs_seconds.png", "kl_vs_steps.png"))
    text = file.read_text()
    file.write_text(text[: text.rindex("{") + 40])  # killed in the middle of the last line

    again = reproduce(*job)
    assert again.returncode == 0 and "half-written" in again.stderr and "25 of 26 runs" in again.stdout, again.stderr
    after = results.read(file)
    assert len(after) == 26 and {results.key(l) for l in after} == {results.key(l) for l in before}
    stable = lambda l: (results.key(l), l["score"], l.get("loss"), l["n_trained"], l["kl"])
    assert sorted(map(stable, after)) == sorted(map(stable, before))  # the same bits when done again

    redrawn = reproduce("--report", file)
    assert redrawn.returncode == 0
    rows = lambda out: [l for l in out.stdout.splitlines() if l.startswith("| ")]
    assert rows(redrawn) == rows(again) and len(rows(again)) > 4


@pytest.mark.parametrize("arguments, says", [
    (["--methods", "magic"], "magic"),
    (["--tasks", "turn into gold"], "turn into gold"),
    (["--tasks", "100000"], "100000"),
    (["--world", "atlantis"], "atlantis"),
    (["--world", "facts", "--tasks", "reverse"], "nanoct.benchmarks.nano --world facts"),
    (["--set", "ct_kv.speed=3"], "speed"),
    (["--set", "ct_kv.lr=fast"], "fast"),
    (["--set", "ct_kv"], "ct_kv"),
    (["--frobnicate"], "--frobnicate"),
    (["--k", "0"], "--k 0"),
    (["--workers", "-1"], "--workers -1"),
    (["--device", "abacus"], "abacus"),
    (["--model", "no/where/at/all"], "no/where/at/all"),
    (["--out", "/dev/null/results"], "/dev/null"),
    (["--sweep", "--ablations"], "choose one"),
    (["--cuts", "--scaling"], "choose one"),
    (["--cuts", "--set", "ct_kv.lr=1"], "--cuts has methods and settings of its own"),
    (["--report", "nothing.jsonl"], "nothing.jsonl"),
    (["--report", ""], "--report is empty"),
    (["--tasks", "1", "zzz"], "'1' is not in the held_out pool"),
    (["--tasks", "zzz", "1"], "'zzz' is not in the held_out pool"),
    (["--tasks", "-1"], "'-1' is not in the held_out pool"),
    (["--tasks", "0"], "--tasks 0"),
    (["--tasks", "²"], "'²' is not in"),
    (["--set", "icl.x=1"], "icl has no setting 'x'"),
    (["--set", "icl.x=1", "--methods", "ct_kv"], "the method one of ct_kv"),
    (["--k", "1000000"], "--k 1000000: so many demos do not fit the 512 tokens of strings"),
    (["--seeds", "1000000000000000000000000000000"], "--seeds 1000000000000000000000000000000"),
    (["--set", "ct_kv.lr=1e300"], "--set ct_kv.lr=1e300"),
])
def test_mistakes_get_one_sentence(arguments, says, model_folder, monkeypatch, capsys):
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(model_folder)]
    monkeypatch.setattr(sys, "argv", ["reproduce", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and says in said and len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_context_that_is_too_long_is_said_and_what_is_done_is_kept(workers, model_folder, tmp_path, monkeypatch,
                                                                     capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce", *map(str, (
        "--model", model_folder, "--world", "strings", "--tasks", 1, "--k", 60, "--methods", "zero_shot", "icl",
        "--workers", workers, "--out", tmp_path))])
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "context is 512" in said and "Traceback" not in said
    assert [l["method"] for l in results.read(tmp_path / "results.jsonl")] == ["zero_shot"]


def test_error_bars_are_over_tasks_and_differences_paired():
    lines = [line(task=t, seed=s, score=x) for t, s, x in [("a", 0, .2), ("a", 1, .4), ("b", 0, .9), ("b", 1, .9)]]
    lines += [line("ttt", t, score=x) for t, x in [("b", 1.0), ("a", .5), ("c", 0.0)]]
    icl, ttt = (among[0] for among in report.settings(lines)["strings"].values())
    assert isclose(icl.score, 60) and isclose(icl.error, 60 / sqrt(2) / sqrt(2))  # 30 and 90
    assert ttt.minus(icl) == pytest.approx(interval([30, 10]))  # seed 0 of a and b; task c has no pair


def test_a_score_is_the_mean_over_tasks_within_a_seed_then_over_seeds():
    """As in the release; a lone query of one seed does not weigh as a whole task. Differences are of those scores."""
    scores = {("a", 0): .2, ("b", 0): .4, ("c", 0): .9, ("a", 1): .6, ("b", 1): .8}
    s = report.Setting("m", {}, [line(task=t, seed=seed, score=x) for (t, seed), x in scores.items()])
    assert isclose(s.score, (50 + 70) / 2)
    parts = [(20 - 60) / 6 + (60 - 60) / 4, (40 - 60) / 6 + (80 - 60) / 4, (90 - 60) / 6]  # of tasks, weighted
    assert isclose(s.error, sqrt(1.5 * sum(part**2 for part in parts)))
    assert all(map(isnan, stats.average({})))  # and not 0
    other = report.Setting("n", {}, [dict(l, score=l["score"] / 2) for l in s.lines])
    assert isclose(s.minus(other)[0], s.score - other.score) and isclose(other.error, s.error / 2)


def test_rows_are_about_what_all_methods_did_and_the_rest_is_said():
    """Where TTT leaves out an easy task, the others are not averaged over it."""
    of = lambda method, scores: [line(method, t, seed, score=x) for (t, seed), x in scores.items()]
    every = {("a", 0): .2, ("a", 1): .4, ("b", 0): 1.0, ("b", 1): .9, ("c", 0): .6}
    ttt = {at: .5 for at in every if at[0] != "b"}
    text = text_of(of("icl", every) + of("ttt", ttt) + of("lora", every), {})
    assert ("strings: 2 of 5 (task, seed) are left out of all rows, as not every method could do them (ttt 2)." in text
            and "strings: 2 tasks" in text)
    cells = {row.split("|")[1].strip(): row.split("|")[2].split()[0] for row in text.splitlines()[::-1] if "± " in row
             and row.count("|") == 3}
    assert cells["icl"] == cells["lora"] == "40.0" and cells["ttt"] == "50.0"  # (.2 + .6) / 2, .4
    assert "left out" not in text_of(of("icl", every) + of("lora", every), {})
    with pytest.raises(ValueError, match=r"no task that all methods did.*2 of 2 .*icl 1, ttt 1"):
        text_of(of("icl", {("a", 0): 1}) + of("ttt", {("b", 0): 1}), {})


def test_lines_of_two_jobs_are_not_averaged():
    with pytest.raises(ValueError, match="icl on strings has more than one line of b, seed 2"):
        report.settings([line(), line(task="b", seed=2), line(task="b", seed=2, k=5)])


@pytest.mark.parametrize("n, t", [(10, 2.262), (24, 2.069), (61, 2.000)])  # two-sided 95%, n - 1 degrees of freedom
def test_interval_is_students(n, t):
    values = [float(i % 7) for i in range(n)]
    centre, half = interval(values)
    assert isclose(centre, sum(values) / n) and isclose(half / stats.standard_error(values), t, rel_tol=2e-3)


def test_settings_are_a_product_and_typed():
    asked = {"lr": ["1e-3", "1e-2"], "n_step": ["4", "8", "16"], "leave_one_out": ["False"]}
    made = configs("ct_kv", {"lr": 0.5}, [{"n_step": 2, "lr": 0.1}], {"ct_kv": asked})
    assert len(made) == 6
    assert {(c["lr"], c["n_step"]) for c in made} == {(lr, n) for lr in (1e-3, 1e-2) for n in (4, 8, 16)}
    assert all(c["leave_one_out"] is False and type(c["n_step"]) is int for c in made)
    assert configs("icl", {}, (), {}) == configs("bayes_all", {}, (), {}) == [{}]


def test_the_setting_that_was_chosen_lies_on_the_curve_whose_steps_have_rates_of_their_own():
    curve = [dict(n_step=2, lr=0.1), dict(n_step=32, lr=0.03)]
    steps = lambda chosen: [(config["n_step"], config["lr"]) for config in configs("ct_kv", chosen, curve, {})]
    assert steps(dict(n_step=32, lr=0.03)) == [(2, 0.1), (32, 0.03)]
    assert steps(dict(n_step=16, lr=0.5)) == [(2, 0.1), (16, 0.5), (32, 0.03)]
    assert [c["n_step"] for c in configs("lora", dict(n_step=7), (), {})] == [7]


def test_plan_interleaves_the_worlds(model_folder):
    job = driver.Job(benchmarks=["strings", "facts"], tasks={"strings": ["a", "b", "c"], "facts": ["d"]},
                     seeds=dict.fromkeys(["strings", "facts"], [0, 1]), pool="p", methods=["icl", "bayes_all"], set={})
    runs = driver.plan(job, {"strings": "S", "facts": "F"}, variants(job))
    assert [(run["task"], run["seed"], run["method"]) for run in runs[:5]] == [
        ("a", 0, "icl"), ("a", 0, "bayes_all"), ("a", 1, "icl"), ("a", 1, "bayes_all"), ("d", 0, "icl")]
    of = {(run["world"], run["model"], run["k"]) for run in runs}
    assert len(runs) == 4 * 2 * 2 and of == {("strings", "S", 10), ("facts", "F", 16)}


def test_the_main_job_leaves_out_what_took_long_and_says_so(capsys):
    lines = [line(m, "a", seed, seconds=s, config=dict(n_step=n), world=w)  # of model "m"
             for m, n, s, w in [("ttt", 8, 9.9, "grids"), ("ttt", 32, 10.1, "grids"), ("ttt", 32, 10, "facts"),
                                ("dora", 32, 99, "strings")] for seed in (0, 1, 2)]
    lines += [line("ct_kv", "a", seed, seconds=s, world="grids") for seed, s in enumerate((1, 2, 99))]  # by the median
    lines = [results.completed(l) for l in lines]
    whole = lambda method, **config: (method, asdict(METHODS[method].Config(**config)), 10, 0.0)
    every = [whole("ttt", n_step=8), whole("ttt", n_step=32), whole("ct_kv")]
    left = brief(dict(grids=every, facts=every), dict(grids="m", facts="m"), lines)
    assert left == dict(grids=[every[0], every[2]], facts=every)
    assert capsys.readouterr().out == "Runs of over 10 seconds are left to --full: ttt in grids.\n"
    assert brief(dict(grids=every), dict(grids="another"), lines) == dict(grids=every) and not capsys.readouterr().out


@pytest.mark.parametrize("arguments, is_brief", [
    ([], True), (["--quick"], True), (["--world", "facts"], True), (["--full"], False), (["--tasks", "2"], False),
    (["--seeds", "0"], False), (["--k", "4"], False), (["--methods", "ct_prompt"], False), (["--sweep"], False),
    (["--set", "ttt.n_step=4"], False), (["--ablations"], False), (["--scaling"], False),
    (["--cuts"], False),
    (["--pool", "train"], False)])
def test_whoever_asks_for_runs_gets_all_of_them(arguments, is_brief, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduce", *arguments])
    assert parse().brief is is_brief


@pytest.mark.parametrize("arguments, left_out", [([], {"dora"}), (["--tasks", "1"], set())])
def test_the_job_itself_leaves_them_out(arguments, left_out, model_folder, tmp_path, monkeypatch):
    slow = configs("dora", nano.read_settings()["facts"]["dora"], (), {})[0]
    lines = [line("dora", "a", config=slow, world="facts", seconds=11) | dict(model=fingerprint(
        load_model(model_folder, "cpu", "float32")))]
    (tmp_path / "full.jsonl").write_text(json.dumps(lines[0]) + "\n")
    monkeypatch.setattr("nanoct.runs.worlds.COMMITTED", tmp_path / "full.jsonl")
    asked = []
    monkeypatch.setattr("nanoct.runs.job.execute", lambda runs, *_: asked.extend(runs) or lines)
    monkeypatch.setattr("nanoct.runs.worlds.against_committed", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["reproduce", "--model", str(model_folder), "--world", "facts", "--out",
                                      str(tmp_path), *arguments])
    main()
    assert {run["method"] for run in asked} == {*METHODS, *report.CEILINGS} - left_out


def test_race_compares_seconds_to_reach_the_others_best():
    at = lambda score, seconds: report.Setting("m", {}, [line(score=score, seconds=seconds)])
    ttt, ct_kv = [at(.80, 4.0), at(.82, 8.0)], [at(.81, 1.0), at(.83, 2.0)]
    said = report.race(ct_kv[0], ct_kv, ttt)
    assert "82.0% in 8.00 s" in said and "-1.0 ± – points from it, in 0.12 times" in said
    assert "in 2.00 s, 0.25 times" in said
    assert "no setting" in report.race(ct_kv[0], ct_kv[:1], ttt)


def test_the_table_shows_the_preset_and_not_the_best():
    lines = [line("ct_kv", score=x, config=dict(n_step=n)) for n, x in [(4, .9), (8, .5), (16, .7)]]
    row = text_of(lines, {"strings": {"ct_kv": dict(n_step=8)}}).splitlines()[4]
    assert row.split("|")[2].split()[0] == "50.0"


def test_differences_between_methods_are_paired_by_task():
    lines = [line(m, t, score=x) for m, scores in (("ct_kv", (.9, .5, .4)), ("ttt", (.6, .4, .2)))
             for t, x in zip("abc", scores)]
    row = next(row for row in text_of(lines, {}).splitlines() if row.startswith("| ct_kv - ttt"))
    assert "{:+.1f} ± {:.1f}".format(*interval([30, 10, 20])) in row and "prefix" not in row


def test_the_table_has_a_column_per_world():
    lines = [line(m, t, score=x + 0.1 * (t == "b"), world=w) for w, m, x in
             [("strings", "icl", .5), ("strings", "bayes_all", .7), ("facts", "icl", .3), ("facts", "zero_shot", .2)]
             for t in "ab"]
    said = text_of(lines, {}).splitlines()
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in said[2:7] if row.startswith("|")]
    cells = {method: of_worlds for method, *of_worlds in rows}
    assert cells["method"] == ["strings", "facts"] and cells["icl"] == ["55.0 ± 5.0", "35.0 ± 5.0"]
    assert cells["bayes_all"] == ["75.0 ± 5.0", ""] and cells["zero_shot"] == ["", "25.0 ± 5.0"]
    minus = next(row for row in said if row.startswith("| bayes_all") and "+" in row)
    assert "+20.0 ± 0.0" in minus


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_what_is_not_finite_is_no_line_and_a_model_without_any_is_an_error(model_folder, tmp_path, monkeypatch, capsys,
                                                                           workers):
    for world in "facts", "lexicon":
        shutil.copytree(model_folder, tmp_path / world)
    broken = load_model(model_folder, "cpu")
    broken.model.norm.weight.data[3] = float("nan")
    save_model(broken, tmp_path / "facts")
    monkeypatch.setattr(sys, "argv", ["reproduce", *map(str, (
        "--model", tmp_path, "--world", "facts", "lexicon", "--tasks", 1, "--workers", workers,
        "--methods", "icl", "ct_kv",
        "bayes_training", "--set", "ct_kv.n_step=2", "ct_kv.lr=1e30,1e-3", "--out", tmp_path / "out"))])
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    said, lines = capsys.readouterr(), results.read(tmp_path / "out" / "results.jsonl")
    assert sorted((l["world"], l["method"], l["config"].get("lr")) for l in lines) == [
        ("facts", "bayes_training", None), ("lexicon", "bayes_training", None), ("lexicon", "ct_kv", 1e-3),
        ("lexicon", "icl", None)]
    assert said.out.count("left out: ") == 4 and "left out: icl on " in said.out and "5 of 8 runs" not in said.out
    assert stop.value.code == 2 and said.err.splitlines()[-1].startswith(
        f"error: no run of {tmp_path} on facts came to a result")
    assert "| icl " in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")


def test_equal_values_of_a_setting_are_one():
    asked = {"ct_kv": {"lr": ["1e-3", "0.001", "2"], "n_step": ["4", "4"]}}
    assert [config["lr"] for config in configs("ct_kv", {}, (), asked)] == [1e-3, 2]


def test_reports_are_utf8_in_any_locale(tmp_path):
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line(m, t)) + "\n" for m in ("icl", "ttt") for t in "ab"))
    plain = dict(os.environ, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii")
    done = subprocess.run([sys.executable, "-m", "nanoct.reproduce", "--report", tmp_path / "lines.jsonl"], env=plain,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "± s.e." in table and table in done.stdout.decode()


def test_a_report_of_an_older_version_is_shown_without_what_it_lacks(tmp_path, monkeypatch, capsys):
    older = [dict(line(m, t), config=dict(n_step=1)) for m in ("icl", "ttt") for t in "ab"]
    older[0]["config"] = older[1]["config"] = {}
    older.append(dict(older[3], task="a", config=dict(n_step=1, lr=.5)))
    older.append(dict(older[3], task="b", config=dict(n_step=1, lr=.5)))
    for each in older:
        del each["n_trained"], each["kl"], each["wrong"]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(each) + "\n" for each in older))
    monkeypatch.setattr(sys, "argv", ["reproduce", "--report", str(tmp_path / "lines.jsonl")])
    main()
    rows = [[cell.strip() for cell in row.split("|")] for row in capsys.readouterr().out.splitlines()]
    assert ["", "strings", "icl", "", "50.0 ± 0.0", "1.00", "", "", ""] in rows
    assert ["", "strings", "ttt", "lr=0.5", "50.0 ± 0.0", "1.00", "", "", ""] in rows


def test_a_figure_that_does_not_fit_the_disk_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(plots.plt.Figure, "savefig", Mock(side_effect=OSError(28, "No space left on device")))
    groups = report.settings([line(m, t) for m in ("icl", "ttt") for t in "ab"])
    with pytest.raises(OSError, match="cannot write .*a.png .No space left on device.: make room") as error:
        plots.accuracy_vs_seconds(groups, tmp_path / "a.png")
    assert error.value.errno is None and not list(tmp_path.iterdir())


@dataclass
class Config:
    n_step: int = 2
    lr: float = 0.5


def bare_method():
    """ICL in a module that has what a method must have, and nothing else."""

    def adapt(model, task, config=Config(), seed=0, progress=None):
        for step in range(config.n_step):
            if progress:
                progress(step, 1 / (1 + step))
        return icl.adapt(model, task)

    return SimpleNamespace(Config=Config, adapt=adapt)


def test_a_method_of_ones_own_goes_through_the_job_its_report_and_figures(model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "my_own", bare_method())

    def job(*arguments):
        monkeypatch.setattr(sys, "argv", ["reproduce", *map(str, arguments)])
        main()
        return capsys.readouterr()

    common = ("--model", model_folder, "--world", "facts", "--tasks", 1, "--workers", 0, "--out", tmp_path)
    out, err = job(*common, "--methods", "icl", "my_own", "--set", "my_own.n_step=2,3")
    lines = results.read(tmp_path / "results.jsonl")
    assert [(l["method"], l["loss"]) for l in lines] == [("icl", None), ("my_own", [1, .5]), ("my_own", [1, .3333])]
    assert lines[1]["score"] == lines[0]["score"] and lines[1]["kl"] == lines[0]["kl"] and lines[1]["peak_bytes"] > 0
    assert f"my_own on {lines[0]['task']}" in err  # the bar
    table = (tmp_path / "table.md").read_text()
    assert "| my_own " in table and table in out and "my_own on" not in table
    assert all((tmp_path / name).stat().st_size > 5_000 for name in ("accuracy_vs_seconds.png", "kl_vs_steps.png"))
    assert table in job("--report", tmp_path / "results.jsonl").out

    out = job(*common, "--methods", "icl", "my_own", "--sweep").out
    assert out.count("has no SWEEP") == 1 and "my_own has no SWEEP, the values worth trying: it runs at its" in out
    assert json.loads((tmp_path / "settings.json").read_text()) == {"facts": {"my_own": dict(n_step=2, lr=0.5)}}


def test_methods_have_a_label_and_a_colour_of_their_own(monkeypatch):
    for name in "my_own", "another":
        monkeypatch.setitem(METHODS, name, bare_method())
    styles = [plots.style(method) for method in [*METHODS, *plots.CEILINGS]]
    assert styles[list(METHODS).index("my_own")] == ("my own", plots.MORE[0])
    assert len(set(styles)) == len({colour for _, colour in styles}) == len(METHODS) + 2
    assert plots.style("ct_kv") == ("CT-KV", "#d1495b") and plots.style("of_an_old_file") == ("of an old file", "black")


@pytest.mark.parametrize("world", list(nano.WORLDS))
def test_the_divergence_is_asked_of_the_tokens_that_the_methods_read(world, monkeypatch):
    seen = []
    monkeypatch.setattr(nano.bayes, "divergence", lambda adapted, predicted, asked: seen.extend(asked) or 0.0)
    driver.prepare(driver.Job(model=str(nano.FOLDER), device="cpu"))
    name = nano.WORLDS[world].pools()["held_out"][0]
    k = nano.WORLDS[world].k
    driver.work(dict(world=world, pool="held_out", k=k, method="icl", config={}, task=name, seed=0, wrong=0.0))
    task = nano.make_task(world, name, driver.load(world)[1], 0)
    assert len(seen) == len(task.queries)
    for asked, query in zip(seen, task.queries):
        assert all(x == query.x for x, _ in asked.values()) and query.y in [y for _, y in asked.values()]
