"""--sweep: as many settings for all, edges that are extended, TTT before TTT+CT-KV, and the table of what is a tie."""

import json
import sys
from itertools import product
from math import log10

import pytest
from helpers import interval, line

from nanoct.benchmarks import nano
from nanoct.benchmarks.nano import read_curves, read_settings
from nanoct.methods import METHODS
from nanoct.reproduce import main
from nanoct.runs import results, sweep
from nanoct.runs.sweep import beyond, choose, curves, grid, neighbours, search

TASKS = "abcdef"


def scored(peak, seen=None, lacks=()):
    """do(todo) that scores settings the higher, the nearer their lr and steps are to the peak's; seen gets all todo."""
    distance = lambda config: sum(abs(log10(config[name] / value)) for name, value in peak.items())

    def do(todo):
        if seen is not None:
            seen.append(todo)
        return [line(method, task, score=1 / (1 + distance(config)) if config else .1, config=config, world=world)
                for (world, method), configs in todo.items() for config in configs if config.get("lr") not in lacks
                for task in TASKS]

    return do


def test_every_tuned_method_starts_with_as_many_settings():
    swept = {method: grid(method, {}, {}) for method, module in METHODS.items() if hasattr(module, "SWEEP")}
    assert swept.keys() == METHODS.keys() - {"zero_shot", "icl"} and {len(of) for of in swept.values()} == {9}
    assert grid("icl", {}, {}) == [{}]
    assert len(grid("ct_kv", {"lr": ["1", "2"]}, {})) == 6


@pytest.mark.parametrize("values, found", [
    ([.01, .03, .1], .3), ([.1, .03, .01], .003), ([.03, .1, .3], 1), ([.003, .01], .033), ([4, 16, 64], 256),
    ([64, 16, 4], 1), ([32, 8, 2], 1), ([4, 1], 1), ([2, 4], 8)])
def test_a_grid_goes_on_in_its_ratio(values, found):
    assert beyond(values) == pytest.approx(found) and type(beyond(values)) is type(values[0])


@pytest.mark.parametrize("peak, chosen, n_lr, n_step", [
    (dict(lr=.03, n_step=8), (.03, 8), 3, 3),  # inside: nothing is added
    (dict(lr=.3, n_step=8), (.3, 8), 5, 3),  # found behind the edge, and its neighbour behind it
    (dict(lr=.001, n_step=8), (.001, 8), 6, 3),
    (dict(lr=100, n_step=8), (3, 8), 6, 3),  # not farther than EXTEND
    (dict(lr=.03, n_step=10**4), (.03, 128), 3, 4),
    (dict(lr=.03, n_step=1), (.03, 1), 3, 4),
    (dict(lr=.3, n_step=128), (.3, 128), 5, 4),
])
def test_edges_are_extended_until_the_best_has_neighbours_or_the_limit_is_reached(peak, chosen, n_lr, n_step):
    lines, start = search(["facts"], ["ct_kv"], {}, {}, scored(peak))
    best, tried = choose(lines)["facts"]["ct_kv"], {(line["config"]["lr"], line["config"]["n_step"]) for line in lines}
    assert (best["lr"], best["n_step"]) == chosen and len(lines) == len(TASKS) * len(tried)  # none twice
    assert (len({lr for lr, _ in tried}), len({n for _, n in tried})) == (n_lr, n_step)
    assert len(tried) == 9 if peak == dict(lr=.03, n_step=8) else 9 < len(tried) <= n_lr * n_step
    assert neighbours(best, [line["config"] for line in lines], start["facts", "ct_kv"]) == []


@pytest.mark.parametrize("gain, longest", [(dict.fromkeys(TASKS, .1), 128), (dict(zip(TASKS, (.3, -.2) * 3)), 32)])
def test_more_steps_are_tried_only_where_the_last_ones_paid(gain, longest):
    """In the second case 32 steps have the highest mean, and are tied with 8."""
    do = lambda todo: [line("ct_kv", task, score=.5 + gain[task] * (config["n_step"] >= 32), config=config,
                            world="facts") for config in todo["facts", "ct_kv"] for task in TASKS]
    lines, _ = search(["facts"], ["ct_kv"], {}, {}, do)
    assert max(line["config"]["n_step"] for line in lines) == longest
    assert choose(lines)["facts"]["ct_kv"]["n_step"] == 32


def test_of_equal_settings_the_fewest_steps_are_taken_and_what_has_no_result_is_not_tried_again():
    lines, _ = search(["facts"], ["ct_kv"], {}, {}, scored({}))
    assert choose(lines)["facts"]["ct_kv"].items() >= dict(n_step=1, lr=.0003).items()
    seen = []
    search(["facts"], ["ct_kv"], {}, {}, scored(dict(lr=1, n_step=8), seen, lacks=(.3,)))
    asked = [json.dumps(config) for todo in seen for config in todo["facts", "ct_kv"]]
    assert len(asked) == len(set(asked)) and len(seen) == 2
    assert search(["facts"], ["ct_kv"], {}, {}, lambda todo: [])[0] == []


def test_what_is_not_swept_is_not_extended():
    one = {"ct_kv": {"lr": ["0.1"], "n_step": ["4", "16"]}}
    lines, _ = search(["facts"], ["icl", "ct_kv"], one, {}, scored(dict(lr=1, n_step=4)))
    assert {line["config"]["lr"] for line in lines if line["config"]} == {.1}
    assert {line["config"]["n_step"] for line in lines if line["config"]} == {1, 4, 16}
    assert len(lines) == len(TASKS) * 4
    from_zero = {"ct_kv": {"lr": ["0", "0.1"], "n_step": ["4"]}}
    assert len(search(["facts"], ["ct_kv"], from_zero, {}, lambda todo: [
        line("ct_kv", config=config, score=config["lr"], world="facts") for config in todo["facts", "ct_kv"]])[0]) == 2


def test_ttt_ct_kv_takes_the_settings_that_were_chosen_for_ttt():
    presets = {"facts": {"ttt": dict(n_step=3, lr=.5, rank=2)}}
    seen = []
    lines, start = search(["strings", "facts"], ["ttt_ct_kv", "ttt", "icl"], {}, presets,
                          scored(dict(lr=.003, n_step=32), seen))
    assert all("ttt_ct_kv" not in {method for _, method in todo} for todo in seen[:2])  # the edge of 32 steps, first
    of = lambda method: [line["config"] for line in lines if line["method"] == method]
    assert {(c["ttt_lr"], c["ttt_n_step"], c["rank"], c["batch"]) for c in of("ttt_ct_kv")} == {(.003, 32, 8, 4)}
    ours = choose(lines)["facts"]
    assert ours["ttt"].items() >= dict(lr=.003, n_step=32).items()
    assert {c["lr"] for c in of("ttt_ct_kv")} >= set(METHODS["ct_kv"].SWEEP["lr"]) and (
        ours["ttt_ct_kv"]["lr"], len(start["facts", "ttt_ct_kv"])) == (.003, 9)
    alone, _ = search(["facts"], ["ttt_ct_kv"], {}, presets, scored(dict(lr=.03, n_step=8)))
    assert {(l["config"]["ttt_lr"], l["config"]["ttt_n_step"], l["config"]["rank"]) for l in alone} == {(.5, 3, 2)}
    forced, _ = search(["facts"], ["ttt_ct_kv"], {"ttt_ct_kv": {"ttt_lr": ["7"]}}, presets,
                       scored(dict(lr=.03, n_step=8)))
    assert {l["config"]["ttt_lr"] for l in forced} == {7}


def test_the_table_says_the_chosen_the_ties_and_what_was_added():
    scores = {.01: (.5, .7, .9), .03: (.6, .8, .4), .1: (.1, .2, .3), .3: (.1, .1, .1)}
    lines = [line("ct_kv", t, score=x, config=dict(lr=lr, n_step=4), world="facts")
             for lr, of in scores.items() for t, x in zip("abc", of)]
    lines += [line("icl", t, score=.5, world="facts") for t in "abc"]
    lines += [line("ct_kv", "a", score=1, config=dict(lr=9, n_step=4), world="facts")]  # of one task alone
    start = {("facts", "ct_kv"): [dict(lr=lr, n_step=4) for lr in (.01, .03, .1)], ("facts", "icl"): [{}]}
    said = sweep.text(lines, start)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in said.splitlines() if row.startswith("| ")]
    of = {row[1].strip("*"): row for row in rows if row[0] == "ct_kv"}
    assert of["lr=0.01"] == ["ct_kv", "**lr=0.01**", "**70.0 ± 11.5**", "", ""]
    difference = lambda *values: "{:+.1f} ± {:.1f}".format(*interval(values))
    assert of["lr=0.03"][3:] == [difference(10, 10, -50), "tie"]
    assert of["lr=0.1"][3:] == [difference(-40, -50, -60), ""]
    assert of["lr=0.3"][3:] == [difference(-40, -60, -80), "added"] and of["lr=9"][4] == "added"
    assert "facts: 3 tasks, 1 seed. The" in said and "methods had up to 3 settings" in said
    assert "facts: at the edge still" in said and "ct_kv lr=0.01." in said and "n_step" not in said
    assert ["icl", "", "50.0 ± 0.0", "", ""] in rows


def test_the_job_extends_and_chooses(model_folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    """From the command line, with a score in the place of all work."""
    asked = []

    def execute(runs, *_):
        asked.extend(runs)
        near = lambda c: 1 / (1 + abs(log10(c["lr"] / .3)) + abs(log10(c["n_step"] / 8))) if c else 0
        return [dict(run, score=near(run["config"]), seconds=1.0) for run in runs]

    monkeypatch.setattr("nanoct.runs.job.execute", execute)
    monkeypatch.setattr(sys, "argv", ["reproduce", "--model", str(model_folder), "--world", "strings", "facts", "--out",
                                      str(tmp_path), "--methods", "icl", "ct_kv", "bayes_all", "--sweep"])
    main()
    out, n = capsys.readouterr().out, {"strings": (16, 1), "facts": (4, 4)}
    assert "facts: the validation pool has 4 tasks, fewer than 16: each gets 4 seeds" in out
    assert "strings: the" not in out
    for world, (n_task, n_seed) in n.items():
        tasks = nano.WORLDS[world].pools()["validation"][:n_task]
        assert {(run["task"], run["seed"]) for run in asked if run["world"] == world} == set(
            product(tasks, range(n_seed)))
    chosen = json.loads((tmp_path / "settings.json").read_text())
    assert {world: (c["ct_kv"]["lr"], c["ct_kv"]["n_step"]) for world, c in chosen.items()} == {
        "strings": (.3, 8), "facts": (.3, 8)} and all(c.keys() == {"ct_kv"} for c in chosen.values())
    assert {run["config"].get("lr") for run in asked} == {None, .01, .03, .1, .3, 1.0}
    written = (tmp_path / "sweep.md").read_text(encoding="utf-8")
    assert written in out and written.count("**n_step=8 lr=0.3**") == 2 and written.count("added") == 2 * 4
    assert f"{len(asked)} of {len(asked)} runs" in out and len(asked) == (16 + 4 * 4) * (9 + 1 + 4)


SWEPT = nano.FOLDER / "results" / "sweep.jsonl", nano.FOLDER.parent / "map" / "sweep.jsonl"  # the paper's, the map's


def test_the_shipped_settings_are_what_the_shipped_sweep_chose():
    lines = [line for file in SWEPT for line in results.read(file)]
    assert {line["pool"] for line in lines} == {"validation"}
    assert choose(lines) == read_settings() and read_settings().keys() == nano.WORLDS.keys()
    assert curves(lines) == read_curves() and read_curves().keys() == nano.WORLDS.keys()


def test_a_curve_has_the_best_rate_of_each_number_of_steps():
    lines = [line("ttt", t, score=x, config=dict(n_step=n, lr=lr)) for n, lr, x in (
        (2, .1, .5), (2, .2, .6), (8, .1, .7), (8, .2, .7), (32, .1, .9), (16, .1, 1.0)) for t in "ab"]
    lines += [line("ttt", "a", score=1.0, config=dict(n_step=2, lr=.3)), line("lora", config=dict(n_step=2))]
    assert curves(lines) == {"strings": {"ttt": [dict(n_step=2, lr=.2), dict(n_step=8, lr=.1), dict(n_step=32, lr=.1)]}}


def test_choose_takes_the_best_mean_over_tasks_of_each_world():
    lines = [line("ct_kv", t, score=x, config=dict(lr=lr), world=w) for w, level in (("strings", .4), ("facts", .6))
             for lr, scores in ((1, (.9, .1)), (2, (level, level))) for t, x in zip("ab", scores)]
    # better, where it came to a result
    lines += [line("ct_kv", "a", score=1.0, config=dict(lr=3), world="facts"), line("icl")]
    assert choose(lines) == {"strings": {"ct_kv": dict(lr=1)}, "facts": {"ct_kv": dict(lr=2)}}
