"""Figures: one function each, one colour per method everywhere, labels at the curves."""

import matplotlib

matplotlib.use("Agg")  # files, no window
import matplotlib.pyplot as plt

COLOURS = {"zero_shot": "#9a9a9a", "icl": "#4d4d4d", "ttt": "#2a6fbb", "ct_kv": "#d1495b"}
NAMES = {"zero_shot": "zero-shot", "icl": "ICL", "ttt": "TTT", "ct_kv": "CT-KV"}


def accuracy_vs_seconds(curves, path, title):
    """Score against seconds of adaptation, a curve per method over its numbers of steps.

    curves: {method: [(seconds, score %, s.e. %, label of the point)]}; untuned methods have one point, and
    a dashed line across. Writes an image of 800 x 500 px.
    """
    figure, axes = plt.subplots(figsize=(8, 5), dpi=100)
    for method, points in curves.items():
        colour, name = COLOURS.get(method, "black"), NAMES.get(method, method)
        points = sorted(points)
        seconds, score, error, labels = zip(*points)
        if len(points) == 1:
            axes.axhline(score[0], color=colour, linewidth=1, linestyle="--")
            axes.annotate(f"{name} {score[0]:.1f}%", (0.01, score[0]), xycoords=("axes fraction", "data"),
                          xytext=(0, 3), textcoords="offset points", color=colour, fontsize=10)
            continue
        axes.plot(seconds, score, color=colour, marker="o", markersize=5, linewidth=2)
        axes.errorbar(seconds, score, yerr=error, color=colour, linestyle="", elinewidth=1, alpha=0.35)
        for x, y, label in zip(seconds, score, labels):
            axes.annotate(label, (x, y), xytext=(5, -10), textcoords="offset points", color=colour, fontsize=8)
        axes.annotate(name, (seconds[0], score[0]), xytext=(-8, 0), textcoords="offset points", ha="right", va="center",
                      color=colour, fontsize=12, fontweight="bold")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("seconds of adaptation per task (median); numbers at the points are optimiser steps, bars ± s.e.")
    axes.set_ylabel("score on held-out tasks, %")
    axes.set_title(title, fontsize=11)
    axes.margins(x=0.15, y=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def pretraining(lines, path):
    """Exact-match accuracy at k = 10 and loss over the steps of pretraining; lines as in log.jsonl. 800 x 400 px."""
    figure, axes = plt.subplots(figsize=(8, 4), dpi=100)
    step = [line["step"] for line in lines]
    for pool, colour in (("train", COLOURS["ttt"]), ("validation", COLOURS["ct_kv"])):
        share = [100 * line[pool]["10"] for line in lines]
        axes.plot(step, share, color=colour, linewidth=2)
        axes.annotate(f"{pool} pool, k = 10", (step[-1], share[-1]), xytext=(0, 8), textcoords="offset points",
                      ha="right", color=colour, fontweight="bold")
    loss = axes.twinx()
    loss.plot(step, [line["loss"] for line in lines], color=COLOURS["zero_shot"], linewidth=1)
    loss.set_ylabel("loss, nats per answer token", color=COLOURS["zero_shot"])
    loss.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("answers right in every letter, %")
    axes.set_ylim(0, 100)
    axes.spines["top"].set_visible(False)
    loss.spines["top"].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
