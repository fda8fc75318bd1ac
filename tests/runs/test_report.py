"""Live runs held against the committed ones: what is said of them, and which table comes out."""

import json
import sys
from argparse import Namespace

import pytest
from helpers import line, text_of

from nanoct import reproduce
from nanoct.benchmarks.nano import read_settings
from nanoct.runs import job, report, results, worlds

COMMITTED = [line(method, task, seed, score=.4 + .1 * n, config=config, world=world)
             for world in ("strings", "facts") for n, (method, config) in enumerate([
                 ("icl", {}), ("ct_kv", dict(n_step=4)), ("ct_kv", dict(n_step=16))])
             for task in "abcd" for seed in (0, 1)]
LIVE = [dict(l, seconds=9.0, torch="9.9") for l in COMMITTED if l["task"] in "ab" and l["seed"] == 0]


def changed(lines, **by):
    """The lines, of which the first has these fields changed."""
    return [dict(lines[0], **by), *lines[1:]]


def test_pairs_are_the_same_run():
    shuffled = [dict(reversed(l.items())) for l in COMMITTED[::-1]]
    pairs, own = results.compare(LIVE, shuffled)
    assert len(pairs) == len(LIVE) == 12 and not own and all(a["task"] == b["task"] for a, b in pairs)
    for name, value in dict(model="other", world="grids", pool="validation", k=3, method="ttt", config=dict(n_step=5),
                            task="z", seed=7, wrong=.5).items():
        pairs, own = results.compare(changed(LIVE, **{name: value}), COMMITTED)
        assert len(pairs) == 11 and own == [dict(LIVE[0], **{name: value})], name


def test_equal_and_differing_runs_are_counted_and_the_farthest_is_named():
    said = lambda lines: report.comparison(results.compare(lines, COMMITTED)[0])
    assert said(LIVE) == "12 of 12 live runs have the score of their committed line."
    one = changed(LIVE, score=LIVE[0]["score"] - .033)
    assert said(one) == (
        "11 of 12 live runs have the score of their committed line; the largest difference is 3.3 points, icl on a of "
        "strings, seed=0: 36.7, committed 40.0. Another processor rounds differently, and a run can differ by as much "
        "from that alone.")
    two = [*one[:-1], dict(LIVE[-1], score=LIVE[-1]["score"] + .05)]
    for lines, points in (two, "5.0"), (changed(LIVE, score=.9), "50.0"):  # too many, too much
        assert said(lines).startswith("WARNING: 1") and f"the largest difference is {points} points" in said(lines)
        assert "torch 9.9 on None and torch None on None" in said(lines) and "changes in the code" in said(lines)
    assert "n_step=16 seed=0: 65.0, committed 60.0" in said(two)


def ending(capsys, tmp_path, lines, committed=COMMITTED):
    """The end of the main job whose live lines are these; what it prints."""
    file = tmp_path / "full.jsonl"
    known = [results.completed(l) for l in committed or []]
    report.against_committed(lines, known, file, read_settings(), tmp_path)
    return capsys.readouterr().out


def rows(said):
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in said.splitlines() if row.startswith("| ")]


def test_the_whole_committed_table_comes_out_with_the_live_runs_marked(tmp_path, capsys):
    said = ending(capsys, tmp_path, LIVE)
    assert "12 of 12 live runs have the score" in said and "Of the 48 runs below 12 are live" in said
    assert "strings: 4 tasks" in said and "2 seeds" in said
    details = [row for row in rows(said) if row[0] in ("strings", "facts")]
    assert len(details) == 6 and all(row[-3:] == ["2 of 8", "0.0", "9.00"] for row in details)
    plain = text_of(COMMITTED, read_settings())
    assert [row[:-3] for row in details] == [row for row in rows(plain) if row[0] in ("strings", "facts")]
    assert "live" not in plain
    assert all((tmp_path / name).stat().st_size > 5_000 for name in ("accuracy_vs_seconds.png", "kl_vs_steps.png"))
    assert (tmp_path / "table.md").read_text(encoding="utf-8") in said

    some = [dict(l, score=l["score"] + .1) for l in LIVE[:1]]  # one method, one world, and not as it was
    said = ending(capsys, tmp_path, some)
    marked = [row for row in rows(said) if row[-3:-2] == ["1 of 8"]]
    assert len(marked) == 1 and marked[0][:2] == ["strings", "icl"] and marked[0][-2:] == ["10.0", "9.00"]
    assert marked[0][3].startswith("41.2 ")  # (7 · 40 + 50) / 8
    assert sum(row[-3:] == ["", "", ""] for row in rows(said)) == 5


@pytest.mark.parametrize("committed, says", [
    (None, "There is no "), ([dict(l, model="other") for l in COMMITTED], "is of other models")])
def test_with_nothing_to_hold_against_there_is_one_sentence_and_the_table_of_the_live_runs(committed, says, tmp_path,
                                                                                           capsys):
    said = ending(capsys, tmp_path, LIVE, committed)
    assert says in said.splitlines()[0] and "full.jsonl" in said.splitlines()[0]
    assert said.count("full.jsonl") == 1 and "committed line" not in said
    assert said.split("\n\n", 1)[1].startswith(text_of(LIVE, read_settings()).split("\n\n")[0][:20])
    assert "2 tasks" in said and "1 seed of" in said and "live" not in said.split("\n\n", 1)[1]


def test_runs_without_a_partner_are_said_and_stand_in_the_table_of_the_live_runs(tmp_path, capsys):
    mine = [dict(l, method="mine", config={}) for l in LIVE[:2]]
    said = ending(capsys, tmp_path, LIVE + mine)
    assert said.startswith("2 of 14 runs (mine) have no partner in ") and "12 of 12 live runs have" in said
    assert "strings: 2 tasks" in said and [row[0] for row in rows(said)].count("mine") == 2  # scores, minus ICL
    other_k = [dict(l, k=3) for l in LIVE]
    said = ending(capsys, tmp_path, other_k)
    assert said.startswith("12 of 12 runs (icl, ct_kv) have no partner") and "live runs have" not in said
    assert "strings: 2 tasks, k = 3" in said


def test_each_world_says_how_many_tasks_and_seeds_it_has():
    lines = [line(m, "a", world="grids", seed=s) for m in ("icl", "ttt") for s in (0, 1)]
    lines += [line(m, t, world="facts") for m in ("icl", "ttt") for t in "ab"]
    assert "grids: 1 task, k = 10, 2 seeds; facts: 2 tasks, k = 10, 1 seed of demos;" in text_of(lines, {})


def test_the_race_with_a_ttt_of_no_seconds_is_said():
    lines = [line(method, task=task, seconds=seconds, config=dict(n_step=4)) for task in "ab"
             for method, seconds in (("ct_kv", 2.0), ("ttt", 0.0))]
    said = text_of(lines, {})
    assert "in inf times the seconds; CT-KV first reaches it in 2.00 s, inf times the seconds." in said


def test_the_order_of_lines_is_not_that_of_the_table():
    lines = [line(m, t, world=w) for w in ("grids", "facts") for m in ("icl", "ttt", "bayes_training", "bayes_all")
             for t in "ab"]
    first = text_of(lines, {})
    assert text_of(lines[::-1], {}) == text_of(lines[1::2] + lines[::2], {}) == first
    assert [row[0] for row in rows(first)][1:5] == ["icl", "ttt", "bayes_training", "bayes_all"]


def test_a_difference_is_no_failure(tmp_path, monkeypatch, capsys):
    """From the command line: whatever the scores, the job ends well."""
    (tmp_path / "full.jsonl").write_text("".join(json.dumps(l) + "\n" for l in COMMITTED))
    monkeypatch.setattr(worlds, "COMMITTED", tmp_path / "full.jsonl")
    monkeypatch.setattr(job, "execute", lambda *_: [dict(l, score=0.0) for l in LIVE])
    monkeypatch.setattr(sys, "argv", ["reproduce", "--out", str(tmp_path)])
    monkeypatch.setattr(worlds, "plan", lambda *_: LIVE)
    monkeypatch.setattr(job, "load_model", lambda *_: Namespace(config=Namespace(n_position=512, vocab_size=267)))
    monkeypatch.setattr(job, "fingerprint", lambda model: "m")
    reproduce.main()
    assert "WARNING: 0 of 12 live runs" in capsys.readouterr().out


@pytest.mark.parametrize("name, other", [("model", "n"), ("pool", "validation"), ("k", 3), ("dtype", "float16"),
                                         ("skip_queries", 9)])
def test_lines_of_several_jobs_are_in_no_table_together(name, other, tmp_path, monkeypatch):
    """Not even if no task stands twice, so that each would be averaged once. Worlds may differ in all three."""
    lines = [line(task=task, world=world) for world in ("strings", "facts") for task in "ab"]
    one_world = [dict(each, **{name: other}) if each["world"] == "facts" else each for each in lines]
    assert "2 tasks" in text_of(one_world, {})
    mixed = changed(lines, **{name: other})
    with pytest.raises(ValueError, match=rf"the lines of strings are of more than one {name} \(.*{other}.*of one job"):
        text_of(mixed, {})
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(each) + "\n" for each in mixed))
    monkeypatch.setattr(sys, "argv", ["reproduce", "--report", str(tmp_path / "mixed.jsonl")])
    with pytest.raises(ValueError, match=f"more than one {name}"):
        reproduce.main()
    assert not (tmp_path / "table.md").exists()


@pytest.mark.parametrize("rates, drawn", [((0.1, 0.1), False), ((0.1, 0.3), True)])
def test_settings_of_one_number_of_steps_make_no_curve(rates, drawn, tmp_path, capsys):
    """Two rates at 4 steps are two points above each other; at 4 and 8 steps a line leads from one to the other."""
    steps = (4, 8) if drawn else (4, 4)
    configs = [dict(n_step=n_step, lr=lr + i) for i, (n_step, lr) in enumerate(zip(steps, rates))]
    lines = [line("ct_kv", task, config=config) for config in configs for task in "ab"]
    report.report(lines, {}, tmp_path)
    assert (tmp_path / "accuracy_vs_seconds.png").exists() is drawn
    assert ("kl_vs_steps.png" in capsys.readouterr().out) is drawn and (tmp_path / "table.md").exists()
