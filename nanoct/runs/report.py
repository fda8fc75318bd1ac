"""Tables and figures from results: what the main job prints.

Error bars are over tasks, the cluster: seeds of one task are averaged first. Differences between methods are
paired by task. Seconds are medians over runs. KL is the divergence of a method's answers from the exact Bayes
predictive, nats per query, the mean over tasks.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist, mean, median, stdev

PAIRS = [("ct_kv", "ttt"), ("ct_kv", "prefix_tuning"), ("ct_prompt", "prompt_tuning"), ("dora", "lora"),
         ("ttt", "lora"), ("ttt_ct_kv", "ttt"), ("ttt_ct_kv", "ct_kv")]  # shown as paired differences


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
    def kl(self):
        found = [line.get("kl") for line in self.lines]
        return None if None in found else mean(found)

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
    """Mean and half width of its confidence interval, Student's t (Cornish-Fisher expansion, good from 6 values on)."""
    n, z = len(values) - 1, NormalDist().inv_cdf((1 + level) / 2)
    t = z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2) if n else math.nan
    return mean(values), t * standard_error(values)


def settings(lines):
    """{world: {method: its settings, in the order of their values}}, worlds and methods in order of appearance."""
    groups = {}
    for line in lines:
        group = groups.setdefault(line["world"], {}).setdefault(line["method"], {})
        group.setdefault(json.dumps(line["config"]), Setting(line["method"], line["config"])).lines.append(line)
    by_values = lambda group: sorted(group.values(), key=lambda s: list(s.config.values()))
    return {world: {method: by_values(group) for method, group in methods.items()} for world, methods in groups.items()}


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
    place = lambda i, cell: cell.rjust(widths[i]) if i else cell.ljust(widths[i])
    line = lambda row: "| " + " | ".join(place(i, cell) for i, cell in enumerate(row)) + " |"
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def words(config):
    return " ".join(f"{name}={value}" for name, value in config.items())


def text(lines, presets):
    """The report in Markdown: the paper's table, differences to ICL, every setting, and the race between CT-KV and TTT.

    presets: {world: {method: config}}, which setting of a method the tables show.
    """
    groups, first = settings(lines), lines[0]
    main = {world: {method: chosen(among, presets.get(world, {}).get(method, {})) for method, among in methods.items()}
            for world, methods in groups.items()}
    is_ceiling = lambda method: method.startswith("bayes")
    rows = sorted(dict.fromkeys(line["method"] for line in lines), key=is_ceiling)  # ceilings last
    here = lambda world, field: [line[field] for line in lines if line["world"] == world]
    worlds = "; ".join(f"{w}: {len(set(here(w, 'task')))} tasks, k = {here(w, 'k')[0]}" for w in groups)
    n_seed = len({line["seed"] for line in lines})
    parts = [f"{first['pool'].replace('_', '-')} pool; {worlds}; {n_seed} seed{'s' * (n_seed > 1)} of demos; "
             "score % ± s.e. over tasks, in brackets seconds a task"]
    cell = lambda s: f"{s.score:.1f} ± {s.error:.1f}" + (f" ({s.seconds:.2f})" if s.config else "")
    cells = lambda method: [cell(of[method]) if method in of else "" for of in main.values()]
    parts.append(table([[method, *cells(method)] for method in rows], ["method", *groups]))
    minus = lambda a, b: ["{:+.1f} ± {:.1f}".format(*of[a].minus(of[b])) if {a, b} <= of.keys() else ""
                          for of in main.values()]
    others = [method for method in rows if method != "icl"]
    if "icl" in rows and others:
        parts.append(table([[method, *minus(method, "icl")] for method in others], ["minus ICL, 95%", *groups]))
    if differences := [(a, b) for a, b in PAIRS if {a, b} <= set(rows)]:
        parts.append(table([[f"{a} - {b}", *minus(a, b)] for a, b in differences], ["difference, 95%", *groups]))
    details = [[world, method, words(varied(s, among)), f"{s.score:.1f} ± {s.error:.1f}", f"{s.seconds:.2f}",
                "" if s.kl is None else f"{s.kl:.3f}", f"{mean(line['n_trained'] for line in s.lines):,.0f}"]
               for world, methods in groups.items() for method, among in methods.items() for s in among]
    header = ["world", "method", "setting", "score % ± s.e.", "s per task", "KL to Bayes", "trained"]
    parts.append(table(details, header))
    parts += [f"{world}. {race(main[world]['ct_kv'], methods['ct_kv'], methods['ttt'])}"
              for world, methods in groups.items() if {"ct_kv", "ttt"} <= methods.keys()]
    return "\n\n".join(parts) + "\n"


def race(main, ours, theirs):
    """CT-KV (at its preset, and all its settings) against the best of TTT in points, paired by task, and in seconds."""
    best = max(theirs, key=lambda s: s.score)
    seconds = min((s.seconds for s in ours if s.score >= best.score), default=None)
    said = f"TTT's best is {best.score:.1f}% in {best.seconds:.2f} s. CT-KV as in the first table is "
    times = main.seconds / best.seconds
    said += "{:+.1f} ± {:.1f} points from it, in {:.2f} times the seconds; ".format(*main.minus(best), times)
    if seconds is None:
        return said + "no setting of CT-KV here reaches it."
    return said + f"CT-KV first reaches it in {seconds:.2f} s, {seconds / best.seconds:.2f} times the seconds."


def report(lines, presets, folder):
    """Print the text, write it to table.md, and draw the figures if settings differ in n_step alone."""
    folder = Path(folder)
    written = text(lines, presets)
    print(f"\n{written}")
    (folder / "table.md").write_text(written)
    groups = settings(lines)
    if any(varied(s, of).keys() - {"n_step"} for methods in groups.values() for of in methods.values() for s in of):
        print(f"wrote table.md in {folder}")
        return  # a sweep over more than steps is no curve
    from nanoct.runs import plots  # matplotlib is slow to import

    plots.accuracy_vs_seconds(groups, folder / "accuracy_vs_seconds.png")
    plots.kl_vs_steps(groups, folder / "kl_vs_steps.png")
    print(f"wrote table.md, accuracy_vs_seconds.png and kl_vs_steps.png in {folder}")
