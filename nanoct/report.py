"""Tables and figures from results: what the main job prints.

Error bars are over tasks, the cluster: seeds of one task are averaged first. Differences between methods are
paired by task. Seconds are medians over runs.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist, mean, median, stdev


@dataclass
class Setting:
    """One method with one config, and its lines."""

    method: str
    config: dict
    lines: list = field(default_factory=list)

    def by_task(self):
        """{task: score in percent, the mean over its seeds}."""
        scores = {}
        for line in self.lines:
            scores.setdefault(line["task"], []).append(100 * line["score"])
        return {task: mean(values) for task, values in scores.items()}

    @property
    def score(self):
        return mean(self.by_task().values())

    @property
    def error(self):
        return standard_error(list(self.by_task().values()))

    @property
    def seconds(self):
        return median(line["seconds"] for line in self.lines)

    def minus(self, other):
        """Difference to another setting in points, paired by task: mean and half width of its 95% interval."""
        ours, theirs = self.by_task(), other.by_task()
        return interval([ours[task] - theirs[task] for task in ours if task in theirs])


def standard_error(values):
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def interval(values, level=0.95):
    """Mean and half width of its confidence interval by Student's t (Cornish-Fisher expansion, good for 6 values or more)."""
    n, z = len(values) - 1, NormalDist().inv_cdf((1 + level) / 2)
    t = z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2) if n else math.nan
    return mean(values), t * standard_error(values)


def settings(lines):
    """{method: its settings, in the order of their values}, methods in order of appearance."""
    groups = {}
    for line in lines:
        group = groups.setdefault(line["method"], {})
        group.setdefault(json.dumps(line["config"]), Setting(line["method"], line["config"])).lines.append(line)
    return {method: sorted(group.values(), key=lambda s: list(s.config.values())) for method, group in groups.items()}


def varied(setting, among):
    """What tells a setting from the others of its method: {name: value}."""
    return {name: value for name, value in setting.config.items() if any(s.config[name] != value for s in among)}


def chosen(among, preset):
    """The setting that a preset names, else the last."""
    fits = lambda s: all(s.config.get(name) == value for name, value in preset.items())
    return next(filter(fits, among), among[-1])


def table(rows, header):
    """Rows of strings as a Markdown table, first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    line = lambda row: "| " + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))) + " |"
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def words(config):
    return " ".join(f"{name}={value}" for name, value in config.items())


def text(lines, presets):
    """The report in Markdown: a row per method at its preset, a row per setting, and the race between CT-KV and TTT."""
    groups, first = settings(lines), lines[0]
    main = {method: chosen(among, presets.get(method, {})) for method, among in groups.items()}
    n_task, n_seed = len({line["task"] for line in lines}), len({line["seed"] for line in lines})
    parts = [f"{first['world']}, {first['pool']} pool: {n_task} tasks x {n_seed} seed{'s' * (n_seed > 1)} of demos, "
             f"k = {first['k']}, model {first['model']}"]
    rows = []
    for method, s in main.items():
        difference = "{:+.1f} ± {:.1f}".format(*s.minus(main["icl"])) if "icl" in main and method != "icl" else ""
        n_trained = mean(line["n_trained"] for line in s.lines)
        rows.append([method, f"{s.score:.1f} ± {s.error:.1f}", difference, f"{s.seconds:.2f}", f"{n_trained:,.0f}", words(s.config)])
    parts.append(table(rows, ["method", "score % ± s.e.", "minus ICL, 95%", "s per task", "trained", "config"]))
    rows = [[method, words(varied(s, among)), f"{s.score:.1f} ± {s.error:.1f}", f"{s.seconds:.2f}"]
            for method, among in groups.items() if len(among) > 1 for s in among]
    if rows:
        parts.append(table(rows, ["method", "setting", "score % ± s.e.", "s per task"]))
    if "ct_kv" in groups and "ttt" in groups:
        parts.append(race(main["ct_kv"], groups["ct_kv"], groups["ttt"]))
    return "\n\n".join(parts) + "\n"


def race(main, ours, theirs):
    """CT-KV (at its preset, and all its settings) against the best of TTT in points, paired by task, and in seconds."""
    best = max(theirs, key=lambda s: s.score)
    seconds = min((s.seconds for s in ours if s.score >= best.score), default=None)
    said = f"TTT's best is {best.score:.1f}% in {best.seconds:.2f} s. CT-KV as in the first table is "
    said += "{:+.1f} ± {:.1f} points from it, in {:.2f} times the seconds; ".format(*main.minus(best), main.seconds / best.seconds)
    if seconds is None:
        return said + "no setting of CT-KV here reaches it."
    return said + f"CT-KV first reaches it in {seconds:.2f} s, {seconds / best.seconds:.2f} times the seconds."


def report(lines, presets, folder):
    """Print the text, write it to table.md, and draw accuracy_vs_seconds.png if settings differ in n_step alone."""
    folder = Path(folder)
    written = text(lines, presets)
    print(f"\n{written}")
    (folder / "table.md").write_text(written)
    groups = settings(lines)
    if any(varied(s, among).keys() - {"n_step"} for among in groups.values() for s in among):
        return  # a sweep over more than steps is no curve
    from nanoct import plots  # matplotlib is slow to import

    curves = {method: [(s.seconds, s.score, s.error, varied(s, among).get("n_step", "")) for s in among]
              for method, among in groups.items()}
    n_task, first = len({line["task"] for line in lines}), lines[0]
    title = f"{first['world']}: {n_task} {first['pool'].replace('_', '-')} tasks, k = {first['k']}"
    plots.accuracy_vs_seconds(curves, folder / "accuracy_vs_seconds.png", title)
    print(f"wrote table.md and accuracy_vs_seconds.png in {folder}")
