"""--ablations and --scaling: what they run, how they are counted, and their tables."""

import random
import sys
from dataclasses import asdict

import pytest
import torch
from helpers import line, tiny_llama

from nanoct import cli
from nanoct.benchmarks.nano import WORLDS, mislabel
from nanoct.methods import METHODS
from nanoct.model import LlamaConfig
from nanoct.reproduce import main
from nanoct.runs import ablations, cuts, leak, results, scaling

base = lambda method: asdict(METHODS[method].Config())


def test_mislabel_takes_answers_of_other_demos():
    demos = [(f"x{i}", f"y{i % 3}") for i in range(12)]
    for share, n in ((0.0, 0), (0.25, 3), (0.5, 6), (1.0, 12)):
        got = mislabel(demos, share, random.Random(1))
        assert [x for x, _ in got] == [x for x, _ in demos] and {y for _, y in got} <= {"y0", "y1", "y2"}
        assert sum(y != z for (_, y), (_, z) in zip(got, demos)) == n
    assert mislabel(demos, 0.5, random.Random(1)) != mislabel(demos, 0.5, random.Random(2))
    only = [("a", "y"), ("b", "y")]
    assert mislabel(only, 1.0, random.Random(0)) == only  # there is no other answer


def test_ablations_differ_from_ct_kv_in_what_they_name():
    runs = ablations.variants(7, base)
    assert all(k == 7 for _, _, k, _ in runs) and len(runs) == len({str(run) for run in runs}) == 8 + 5 + 4
    full = runs[0][1]
    assert base("ct_kv").items() <= full.items()
    differ = [{name for name in full if config[name] != full[name]} for method, config, _, wrong in runs[:8]]
    assert differ == [set(), {"leave_one_out"}, {"token_dropout"}, {"leave_one_out", "token_dropout"}, {"values_only"},
                      {"start"}, {"start"}, {"bf16"}]
    assert [(method, wrong) for method, _, _, wrong in runs[8:]] == [("icl", w) for w in (0, .25, .5, .75, 1)] + [
        (ablations.NAME, w) for w in (.25, .5, .75, 1)]


def test_ablation_lines_find_their_rows():
    runs = ablations.variants(3, base)
    lines = [line(method, task, score=(n + 1 + (task == "b")) / 100, config=config, wrong=wrong, world=world)
             for n, (method, config, _, wrong) in enumerate(runs) for task in "ab" for world in ("strings", "facts")]
    random.Random(0).shuffle(lines)  # as workers end
    (rows, wrong) = ablations.groups(lines)["facts"]
    assert [s.score for s in rows.values()] == pytest.approx([n + 1.5 for n in range(8)])
    assert [s.score for s in wrong["icl"].values()] == pytest.approx([9.5, 10.5, 11.5, 12.5, 13.5])
    assert [s.score for s in wrong["ct_kv"].values()] == pytest.approx([1.5, 14.5, 15.5, 16.5, 17.5])


def test_the_fit_finds_a_and_b():
    k = [2, 4, 8, 16, 32]
    assert scaling.fit(k, [0.3 * n + 0.02 * n * n for n in k]) == pytest.approx((0.3, 0.02))
    assert scaling.fit(k, [5.0 * n for n in k]) == pytest.approx((5, 0), abs=1e-9)


def test_a_pass_makes_every_demo_a_target_once(monkeypatch):
    """k rows of TTT, one step of the others."""
    model, seen = tiny_llama(), []
    for method in scaling.TUNED:
        adapt = METHODS[method].adapt

        def spy(model, task, config, adapt=adapt, method=method, **options):
            seen.append((method, len(task.demos), getattr(config, "batch", 1)))
            return adapt(model, task, config, **options)

        monkeypatch.setattr(METHODS[method], "adapt", spy)
        assert scaling.pass_seconds(model, method, 3) > 0
    assert seen == [("ct_kv", 3, 1), ("ct_prompt", 3, 1), ("ttt", 3, 3)]


def test_passes_are_timed_in_one_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "RANDOM", tiny_llama().config)
    monkeypatch.setattr(scaling, "pass_seconds", lambda *_: 1.0)
    torch.set_num_threads(2)
    try:
        assert {line["n_thread"] for line in scaling.passes(tiny_llama(), tmp_path)} == {1}
    finally:
        torch.set_num_threads(1)


def test_scaling_runs_every_k_with_the_settings_of_the_world():
    runs = scaling.variants(10, base)
    methods = ("icl", "ct_kv", "ct_prompt", "ttt")
    assert {(method, k) for method, _, k, _ in runs} == {(m, k) for m in methods for k in (2, 4, 8, 16, 32)}
    assert all(config == base(method) and not wrong for method, config, _, wrong in runs)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["--ablations", "--cuts", "--scaling"])
def test_the_jobs_from_end_to_end(job, model_folder, tmp_path, monkeypatch):  # noqa: F811
    tiny = LlamaConfig(vocab_size=50, n_layer=1, n_head=2, n_kv_head=1, n_embd=16, head_dim=8, n_ffn=16, n_position=512)
    monkeypatch.setattr(scaling, "RANDOM", tiny)
    monkeypatch.setattr(scaling, "K", (2, 5, 32))
    monkeypatch.setattr(scaling, "N_PASS", 1)
    short = {method: {f: 1 for f in ("n_step", "batch") if f in base(method)} for method in METHODS}
    monkeypatch.setattr("nanoct.runs.worlds.read_settings", lambda: {world: short for world in WORLDS})
    monkeypatch.setattr(sys, "argv", ["reproduce", "--model", str(model_folder), "--world", "grids", "facts", "--tasks",
                                      "1", job, "--out", str(tmp_path), "--workers", "2"])
    main()
    name = job.strip("-")
    lines = results.read(tmp_path / f"{name}.jsonl")
    assert {l["world"] for l in lines} == {"grids", "facts"}
    if job == "--ablations":
        assert len(lines) == 2 * 17 and {l["wrong"] for l in lines} == set(ablations.WRONG)
        rows, wrong = ablations.groups(lines)["facts"]
        losses = {row: s.lines[0]["loss"] for row, s in (rows | wrong["ct_kv"]).items()}
        others = losses["start: another task's demos"]
        assert losses[0.0] == losses["CT-KV"] and losses["CT-KV"] not in (losses[1.0], losses["start: noise"], others)
        assert others != losses["no leave-one-out"]  # which the same task's demos would give
    elif job == "--cuts":
        assert len(lines) == 2 * len(cuts.rows({}))
        shares = {line["config"]["beside"]: line for line in lines if line["world"] == "grids" and "as_other" in line}
        assert set(shares) == {"before", "behind", "alone"}  # facts has options
        assert shares["alone"]["as_other"] == 1 - shares["alone"]["score"]
        assert "ICL, another task's before it: answered as that alone" in (tmp_path / "cuts.md").read_text()
    else:
        assert {(l["world"], l["k"]) for l in lines} >= {("facts", k) for k in scaling.K if k < 32}  # 32 people
        assert ("grids", 32) not in {(l["world"], l["k"]) for l in lines}  # does not fit 512 tokens
        assert len((tmp_path / "passes.jsonl").read_text().splitlines()) == 2 * len(scaling.K) * 3
    drawn = [f"{name}.png"] if job != "--cuts" else []
    assert all((tmp_path / f).stat().st_size > 200 for f in (f"{name}.md", *drawn))
    assert WORLDS["facts"].k == 16


def test_ablations_are_not_compared_with_one_that_came_to_no_result(model_folder, tmp_path, monkeypatch):  # noqa: F811
    all_but_one = lambda runs, *_: [dict(run, score=0, seconds=0) for run in runs[1:]]
    monkeypatch.setattr("nanoct.runs.job.execute", all_but_one)
    monkeypatch.setattr(sys, "argv", ["reproduce", "--model", str(model_folder), "--world", "facts", "--tasks", "1",
                                      "--ablations", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="1 of 17 runs came to no result"):
        main()


@pytest.mark.parametrize("arguments, says", [
    (["--tasks", "-1"], "--tasks -1"), (["--tasks", "0"], "--tasks 0 must be at least 1"),
    (["--tasks", "25", "--world", "facts"], "--tasks 25: the held_out pool of facts has 24 tasks"),
    (["--tasks", "zzz"], "zzz"), (["--out", ""], "--out is empty"), (["--world", ""], "--world"),
])
def test_mistakes_of_leak_get_one_sentence(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(leak, "load_model", None)
    monkeypatch.setattr(sys, "argv", ["leak", "--out", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run(leak.main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and says in said and len(said.strip().splitlines()) == 1


def test_leak_runs_as_many_tasks_as_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(leak, "retrieved", lambda *_: (0.25, 0.5))
    monkeypatch.setattr(sys, "argv", ["leak", "--out", str(tmp_path / "new"), "--tasks", "2", "--world", "facts"])
    leak.main()
    lines = (tmp_path / "new" / "leak.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 3 and torch.get_num_threads() == 1
    written = (tmp_path / "new" / "leak.md").read_text(encoding="utf-8")
    assert "25.0 ± 0.0" in written and "over 2 held-out tasks" in written and written in capsys.readouterr().out
