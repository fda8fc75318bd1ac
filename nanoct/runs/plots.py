"""Figures: one function each, one colour per method everywhere, labels at the curves.

A method's label and colour are LABEL and COLOUR of its module; without them, its name and a colour of MORE.
"""

from itertools import chain
from math import nan
from statistics import mean

import matplotlib

matplotlib.use("Agg")  # files, no window
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.text import Text
from matplotlib.ticker import LogLocator

from nanoct.benchmarks.nano.grids import PALETTE
from nanoct.io.files import replacing
from nanoct.methods import KNOWN

CEILINGS = {"bayes_training": ("Bayes, training prior", "#c9a227"),
            "bayes_all": ("Bayes, all tasks", "#3c8d5a")}
MORE = "#8c564b", "#17becf", "#bcbd22", "#e377c2", "#1b7837", "#b15928"


def style(method):
    """Label and colour of a method."""
    if method in CEILINGS:
        return CEILINGS[method]
    module, without = KNOWN.get(method), [name for name in KNOWN if not hasattr(KNOWN[name], "COLOUR")]
    colour = MORE[without.index(method) % len(MORE)] if method in without else "black"
    return getattr(module, "LABEL", method.replace("_", " ")), getattr(module, "COLOUR", colour)


def new_figure(n_row, n_column, height, width=8, labelsize=7, **options):
    """A figure and its panels (n_row, n_column), open at the top and right; sizes in inches of 100 px."""
    figure, axes = plt.subplots(n_row, n_column, figsize=(width, height), dpi=100, squeeze=False, **options)
    for each in axes.flat:
        each.tick_params(labelsize=labelsize)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _name(axes, name, colour, x, y, xycoords="data"):
    """Write a name to the right of the panel, with a thin line to its point (x, y); save finds the name's height."""
    line = dict(arrowstyle="-", color=colour, linewidth=0.6, alpha=0.6, shrinkA=0, shrinkB=0, relpos=(0, 0.5))
    axes.annotate(name, (x, y), xytext=(1.05, 0.5), xycoords=xycoords, textcoords="axes fraction", va="center",
                  color=colour, fontsize=8, arrowprops=line, annotation_clip=False, gid="name")


def save(figure, path, bottom=0.0):
    """Write a figure, its names beside their curves. bottom: the share of the height that is left for a legend."""
    figure.tight_layout(rect=(0, bottom, 1, 1))
    for axes in figure.axes:
        names = [text for text in axes.texts if text.get_gid() == "name"]
        ends = {text: axes.transData.transform(text.xy)[1] for text in names}
        names.sort(key=ends.get)
        gap = 1.25 * max((Text.get_window_extent(text).height for text in names), default=0)
        for text, height in zip(names, apart([ends[text] for text in names], gap, axes.bbox.y0, axes.bbox.y1)):
            text.xyann = 1.05, (height - axes.bbox.y0) / axes.bbox.height
    _write(figure, path)


def apart(heights, gap, low, high):
    """Move ascending heights at least `gap` apart, as little as possible, and between low and high if they fit.

    Least squares: height i minus i·gap has to ascend, so neighbours that do not are merged at their mean.
    """
    blocks = []  # (sum, number) of merged heights
    for i, height in enumerate(heights):
        blocks.append((height - i * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            (a, n), (b, m) = blocks.pop(), blocks.pop()
            blocks.append((a + b, n + m))
    means = [total / n for total, n in blocks for _ in range(n)]
    top = high - (len(heights) - 1) * gap
    return [max(min(mean, top), low) + i * gap for i, mean in enumerate(means)]


def _write(figure, path):
    with replacing(path) as new:
        figure.savefig(new, format="png")
    plt.close(figure)


def accuracy_vs_seconds(groups, path):
    """Score against seconds of adaptation, a panel per world, a curve per method over its numbers of steps.

    groups: {world: {method: [Setting]}} of report.py. A method at one number of steps is a point; a method that tunes
    nothing is a dashed line. The image is 800 px wide.
    """
    seconds = "seconds of adaptation a task (median); numbers behind a name: optimiser steps, from left to right"
    _curves(groups, path, lambda s: (s.seconds, s.score, s.error), seconds, "score on {pool} tasks, %")


def kl_vs_steps(groups, path):
    """KL divergence from the exact Bayes predictive to a method's answers against optimiser steps, panels as above."""
    steps = lambda s: (s.config.get("n_step", 0), s.kl, 0)
    _curves(groups, path, steps, "optimiser steps", "KL to Bayes, nats a query, {pool}")


def _curves(groups, path, point, x_label, y_label):
    n_row = (len(groups) + 1) // 2
    figure, panels = new_figure(n_row, min(len(groups), 2), 0.6 + 3.2 * n_row if len(groups) > 1 else 5, labelsize=8)
    for axes, (world, methods) in zip(panels.flat, groups.items()):
        lines = [line for among in methods.values() for s in among for line in s.lines]
        for method, among in methods.items():
            name, colour = style(method)
            points = sorted((*point(s), s.config.get("n_step")) for s in among if point(s)[1] is not None)
            if len(points) == 1 and not points[0][3]:  # a method that tunes nothing
                axes.axhline(points[0][1], color=colour, linewidth=1, linestyle="--")
                _name(axes, name, colour, 1, points[0][1], ("axes fraction", "data"))
            elif points:
                x, y, error, steps = zip(*points)
                axes.plot(x, y, color=colour, marker="o", markersize=4, linewidth=2)
                axes.errorbar(x, y, yerr=error, color=colour, linestyle="", elinewidth=1, alpha=0.35)
                _name(axes, " ".join(map(str, [name, *filter(None, steps)])), colour, x[-1], y[-1])
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_title(f"{world}: {len({line['task'] for line in lines})} tasks, k = {lines[0]['k']}", fontsize=10)
        axes.margins(x=0.05, y=0.1)
        left, right = axes.get_xlim()
        wider = max(1, 10 * left / right) ** 0.5  # at least a decade, which has two ticks
        axes.set_xlim(left / wider, right * wider)
    for axes in panels.flat[len(groups) :]:
        axes.set_visible(False)
    figure.supxlabel(x_label, fontsize=9)
    figure.supylabel(y_label.format(pool=lines[0]["pool"].replace("_", "-")), fontsize=9)
    save(figure, path)


def trained(groups, methods, path):
    """Score against how many numbers a method trains, a panel a world, ICL as a dashed line; 800 px wide.

    groups: {world: {method: Setting}}; methods: those that are drawn, each where the world has it.
    """
    n_row = (len(groups) + 1) // 2
    figure, panels = new_figure(n_row, min(len(groups), 2), 0.6 + 2.8 * n_row, labelsize=8)
    for axes, (world, of_world) in zip(panels.flat, groups.items()):
        if "icl" in of_world:
            name, colour = style("icl")
            axes.axhline(of_world["icl"].score, color=colour, linewidth=1, linestyle="--")
            _name(axes, name, colour, 1, of_world["icl"].score, ("axes fraction", "data"))
        for method, marker in zip(methods, "v^os"):
            if method not in of_world:
                continue
            (name, colour), setting = style(method), of_world[method]
            n = setting.over_lines("n_trained", mean)
            axes.errorbar(n, setting.score, yerr=setting.error, color=colour, marker=marker, markersize=6)
            _name(axes, name, colour, n, setting.score)
        axes.set_xscale("log")
        axes.set_title(world, fontsize=10)
        axes.margins(x=0.1, y=0.15)
    for axes in panels.flat[len(groups) :]:
        axes.set_visible(False)
    figure.supxlabel("numbers trained, from the same start and by the same loss", fontsize=9)
    figure.supylabel("score, % ± s.e. over tasks", fontsize=9)
    save(figure, path)


def ablations(groups, path):
    """Bars of CT-KV's ablations with s.e., and score against the share of wrong labels; 240 px a world.

    groups: {world: ({row: Setting}, {method: {share: Setting}})} of ablations.py.
    """
    figure, panels = new_figure(2, len(groups), 5.4, width=max(4, 2.4 * len(groups) + 1.4))
    for column, (bars, wrong), world in zip(panels.T, groups.values(), groups):
        rows = list(bars)[::-1]
        colours = [style("ct_kv" if row == "CT-KV" else "zero_shot")[1] for row in rows]
        column[0].barh(rows, [bars[row].score for row in rows], xerr=[bars[row].error for row in rows], color=colours,
                       ecolor="#444444")
        column[0].set_title(world, fontsize=10)
        column[0].set_xlabel("score, %", fontsize=8)
        for method, shares in wrong.items():
            x, y, e = zip(*((100 * share, s.score, s.error) for share, s in shares.items()))
            name, own = style(method)
            column[1].errorbar(x, y, yerr=e, color=own, marker="o", markersize=4)
            _name(column[1], name, own, x[-1], y[-1])
        column[1].set_xlabel("wrong labels among the demos, %", fontsize=8)
    for axes in panels[0, 1:]:
        axes.set_yticks([])
    save(figure, path)


def tasks(main, path):
    """A row per task: a line from ICL's score to CT-KV's, and TTT's score if there is one. In ICL's order; 800 px wide.

    main: {method: Setting}; a task's score is the mean over its seeds.
    """
    seen = {method: main[method].by_task() for method in ("icl", "ttt", "ct_kv") if method in main}
    order = sorted(seen["icl"], key=lambda task: (seen["icl"][task], seen["ct_kv"][task]))
    figure, ((axes,),) = new_figure(1, 1, 0.9 + 0.24 * len(order), labelsize=8)
    across = lambda method: [seen[method][task] for task in order]
    axes.hlines(order, across("icl"), across("ct_kv"), color=style("ct_kv")[1], linewidth=2, alpha=0.4)
    for method in seen:
        name, colour = style(method)
        axes.scatter(across(method), order, s=30, color=colour, marker="|" if method == "ttt" else "o", label=name,
                     zorder=4 if method == "ttt" else 3, linewidths=2)
    axes.set_xlabel("answers right, %", fontsize=9)
    axes.set_xlim(-2, 102)
    axes.set_yticks(range(len(order)), [task.replace("_", " ") for task in order])
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    save(figure, path)


def scaling(by_k, timed, path):
    """Score against k, a panel per world, and seconds of one pass against k, a panel per model. 800 px wide.

    by_k: {k: {world: {method: [Setting]}}}; timed: lines of scaling.passes.
    """
    worlds, models = dict.fromkeys(chain(*by_k.values())), dict.fromkeys(line["model"] for line in timed)
    n_row = (len(worlds) + len(models) + 1) // 2
    figure, panels = new_figure(n_row, 2, 0.4 + 2.8 * n_row, labelsize=8)
    passes = "seconds of a pass, {}".format
    curves = {f"{world}: score, %": {} for world in worlds} | {passes(model): {} for model in models}
    for k, groups in by_k.items():
        for world, methods in groups.items():
            for method, (setting, *_) in methods.items():
                curves[f"{world}: score, %"].setdefault(method, []).append((k, setting.score))
    for line in timed:
        curves[passes(line["model"])].setdefault(line["method"], []).append((line["k"], line["seconds"]))
    for axes, (title, of_method) in zip(panels.flat, curves.items()):
        for method, points in of_method.items():
            name, colour = style(method)
            axes.plot(*zip(*points), color=colour, marker="o", markersize=4)
            _name(axes, name, colour, *points[-1])
        axes.set_xscale("log", base=2)
        axes.set_yscale("log" if title.startswith("seconds") else "linear")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(title, fontsize=10)
        axes.margins(x=0.05)
    for axes in panels.flat[len(curves) :]:
        axes.set_visible(False)
    figure.supxlabel("k, demos", fontsize=9)
    save(figure, path)


def pretraining(lines, path):
    """Exact-match accuracy at the world's k, and loss, over the steps of pretraining; lines as in log.jsonl. 800 px.

    Where a share is None, as no row was long enough, the curve has a gap.
    """
    figure, axes = plt.subplots(figsize=(8, 4), dpi=100)
    step, k = [line["step"] for line in lines], max(lines[0]["train"], key=int)
    for pool, of in (("train", "ttt"), ("validation", "ct_kv")):
        share, colour = [nan if line[pool][k] is None else 100 * line[pool][k] for line in lines], style(of)[1]
        axes.plot(step, share, color=colour, linewidth=2)
        axes.annotate(f"{pool} pool, k = {k}", (step[-1], share[-1]), xytext=(0, 8), textcoords="offset points",
                      ha="right", color=colour, fontweight="bold")
    loss = axes.twinx()
    loss.plot(step, [line["loss"] for line in lines], color=style("zero_shot")[1], linewidth=1)
    loss.set_ylabel("loss, nats per answer token", color=style("zero_shot")[1])
    loss.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("answers right in every letter, %")
    axes.set_ylim(0, 100)
    axes.spines["top"].set_visible(False)
    loss.spines["top"].set_visible(False)
    save(figure, path)


def grids(tasks, path):
    """A row per task of "grids": its demos, each input and output, then one query with its output. 800 px wide.

    tasks: {name: [(input, output)]}, every grid a tuple of rows of digits.
    """
    n = max(map(len, tasks.values()))
    size = max(len(side) for pairs in tasks.values() for pair in pairs for g in pair for side in (g, g[0]))
    cell = 8 / n / (2 * size + 2.4)  # inches
    figure, axes = plt.subplots(len(tasks), n, figsize=(8, len(tasks) * (size * cell + 0.55)), dpi=100, squeeze=False)
    for row, (name, pairs) in zip(axes, tasks.items()):
        row[0].annotate(name, (0, 1), xycoords="axes fraction", xytext=(4, 18), textcoords="offset points",
                        fontweight="bold")
        for i, (panel, (x, y)) in enumerate(zip(row, pairs)):
            for left, g in ((0, x), (len(x[0]) + 1.6, y)):
                top = (size - len(g)) / 2
                panel.pcolormesh([left + j for j in range(len(g[0]) + 1)], [top + j for j in range(len(g) + 1)],
                                 [[int(c) for c in line] for line in g], cmap=ListedColormap(PALETTE), vmin=0, vmax=9,
                                 edgecolors="#777777", linewidth=0.5)
            panel.annotate("", (len(x[0]) + 1.5, size / 2), (len(x[0]) + 0.1, size / 2),
                           arrowprops=dict(arrowstyle="->", color="#444444", shrinkA=0, shrinkB=0))
            is_query = i == len(pairs) - 1
            panel.set_title("query" if is_query else f"demo {i + 1}", fontsize=9, loc="left", pad=2, color="#444444",
                            fontweight="bold" if is_query else "normal")
            panel.set(xlim=(-0.2, 2 * size + 2.2), ylim=(size + 0.1, -0.1), aspect="equal")
    for panel in axes.flat:
        panel.axis("off")
    figure.subplots_adjust(0, 0, 1, 1 - 0.45 / figure.get_figheight(), wspace=0, hspace=0.55 / (size * cell))
    _write(figure, path)
