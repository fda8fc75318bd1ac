"""Names of curves stand apart, whatever the scores."""

import random

import pytest
from helpers import line
from matplotlib.text import Text

from nanoct.benchmarks.nano import FOLDER
from nanoct.methods import METHODS
from nanoct.runs import plots, report, results


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, as they are written."""
    drawn, write = [], plots._write
    monkeypatch.setattr(plots, "_write", lambda figure, path: drawn.append(figure) or write(figure, path))
    return drawn


def level(spread):
    """Results of all methods at nearly one score in nearly one time, four worlds."""
    rng, rows = random.Random(0), []
    for world in "strings", "grids", "lexicon", "facts":
        for method in [*METHODS, *plots.CEILINGS]:
            steps = (4, 16, 64) if method in ("ct_kv", "ttt") else (64,) if "n_step" in (
                METHODS[method].Config.__dataclass_fields__ if method in METHODS else ()) else (None,)
            rows += [line(method, t, score=.5 + spread * rng.random(), seconds=1 + spread * rng.random(), world=world,
                          kl=None if method in plots.CEILINGS else 1 + spread * rng.random(),
                          config={"n_step": n} if n else {}) for n in steps for t in "ab"]
    return report.comparable(rows)[0]


def boxes(figure):
    figure.canvas.draw()
    return {axes: {text.get_text(): Text.get_window_extent(text) for text in axes.texts} for axes in figure.axes}


@pytest.mark.parametrize("groups", [
    pytest.param(lambda: level(.01), id="level", marks=pytest.mark.slow),
    pytest.param(lambda: level(0), id="one point"),
    pytest.param(lambda: report.comparable(results.read(FOLDER / "results" / "full.jsonl"))[0], id="committed")])
@pytest.mark.parametrize("draw, n_name", [(plots.accuracy_vs_seconds, 12), (plots.kl_vs_steps, 10)])
def test_no_two_names_overlap_and_all_are_inside_the_figure(draw, n_name, groups, figures, tmp_path):
    draw(groups(), tmp_path / "a.png")
    figure, = figures
    assert figure.bbox.width == 800
    for axes, of in boxes(figure).items():
        assert len(of) == n_name
        for name, box in of.items():
            assert not [other for other in of if other != name and box.overlaps(of[other])], name
            assert box.x0 > axes.bbox.x1 and box.x1 < 800 and box.y0 > 0 and box.y1 < figure.bbox.height
            assert not [other for other in figure.axes if other is not axes and box.overlaps(other.bbox)]
        ticks = [text.get_window_extent() for text in axes.get_xticklabels() if text.get_text()]
        assert len(ticks) >= 2 and not any(a.x1 > b.x0 for a, b in zip(ticks, ticks[1:]))


def test_a_name_stands_at_its_curves_height_where_there_is_room(figures, tmp_path):
    scores = dict(ttt=.1, lora=.5, ct_kv=.9)
    rows = [line(m, t, score=x, config={"n_step": 4}) for m, x in scores.items() for t in "ab"]
    plots.accuracy_vs_seconds(report.comparable(rows)[0], tmp_path / "a.png")
    (axes, of), = boxes(figures[0]).items()
    for text in axes.texts:
        box = of[text.get_text()]
        assert (box.y0 + box.y1) / 2 == pytest.approx(axes.transData.transform(text.xy)[1], abs=3)
    assert of.keys() == {"TTT 4", "LoRA 4", "CT-KV 4"}


@pytest.mark.parametrize("heights, found", [
    ([10, 50, 90], [10, 50, 90]), ([50, 50], [45, 55]), ([50, 51, 80], [45.5, 55.5, 80]), ([0, 0], [0, 10]),
    ([99, 99], [89, 99]), ([10, 20, 21], [7, 17, 27]), ([], [])])
def test_heights_move_apart_as_little_as_can_be(heights, found):
    assert plots.apart(heights, 10, 0, 99) == pytest.approx(found)
