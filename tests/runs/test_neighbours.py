"""nanoct neighbours: the table and the figure of the map, from lines of several jobs."""

import json
import sys

import pytest
from helpers import line

from nanoct.benchmarks.nano import read_settings
from nanoct.methods import KNOWN
from nanoct.runs import neighbours

PRESETS = read_settings()["strings"]



def lines_of(scores):
    """scores: {(method, task, seed): score}, at the presets; n_trained is the length of the method's name."""
    return [line(method, task, seed, score, config=PRESETS.get(method, {})) | dict(n_trained=len(method))
            for (method, task, seed), score in scores.items()]


def test_methods_stand_at_their_presets_and_differences_are_over_the_runs_that_both_have():
    lines = lines_of({("icl", "a", 0): 0.1, ("icl", "b", 0): 0.3, ("icl", "a", 1): 0.9, ("icl", "b", 1): 0.9,
                      ("ct_kv", "a", 0): 0.5, ("ct_kv", "b", 0): 0.5, ("ct_kv", "a", 1): 1.0, ("ct_kv", "b", 1): 1.0,
                      ("windows", "a", 0): 0.0, ("windows", "b", 0): 0.4})
    lines += [line("ct_kv", "a", 0, 0.0, config=PRESETS["ct_kv"] | dict(n_step=2)), line("ttt", "a", 0, 0.0)]
    text = neighbours.text(neighbours.at_presets(lines))
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("|")]
    assert text.startswith("strings: 2 tasks, k = 10, 2 seeds")
    assert ["ct_kv", "75.0 ± 0.0"] in cells and ["windows", "20.0 ± 20.0 (1 seed)"] in cells
    assert ["windows", "+0.0 ± 127.1"] in cells  # of seed 0 alone: 0.0 and 0.4 against 0.1 and 0.3
    assert ["windows", "-30.0 ± 254.1"] in cells
    assert ["windows", "7"] in cells and "ttt" not in text
    assert list(neighbours.at_presets(lines)["strings"]) == ["icl", "ct_kv", "windows"]


def test_the_command_writes_table_and_figure(tmp_path, monkeypatch):
    files = []
    for name in ("icl", "ct_kv", "qttt"):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(each) + "\n" for each in lines_of({(name, "a", 0): 0.5})))
    monkeypatch.setattr(sys, "argv", ["neighbours", *map(str, files), "--out", str(tmp_path / "map")])
    neighbours.main()
    assert "numbers trained" in (tmp_path / "map" / "table.md").read_text()
    assert (tmp_path / "map" / "map.png").stat().st_size > 10_000


def test_lines_of_other_methods_alone_are_refused():
    with pytest.raises(ValueError, match="no line is of icl, ct_kv, windows"):
        neighbours.at_presets([line("ttt")])


def test_the_rows_of_the_figure_start_and_lose_as_ct_kv_does():
    for method in neighbours.ALIKE:
        assert KNOWN[method].Config().leave_one_out
