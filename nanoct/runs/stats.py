"""Means, standard errors, intervals and paired differences of scores, and the settings that lines are grouped into.

A score is the mean over tasks within a seed, then over seeds, as in the authors' code. Its standard error (s.e.) is
over tasks, as runs of one task depend on each other. One task has no standard error and no interval. Differences are
paired by task and seed. Seconds are medians over runs.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from statistics import mean, median, stdev


def average(values):
    """Average {(task, seed): x} over tasks within a seed, then over seeds: the mean and its standard error over tasks.

    A task's share of the mean is the sum of the weights of its runs; they differ where a seed has fewer tasks.
    """
    n_task, n_seed = Counter(seed for _, seed in values), len({seed for _, seed in values})
    weights = {at: Fraction(1, n_seed * n_task[at[1]]) for at in values}
    centre = sum(weights[at] * Fraction(x) for at, x in values.items())  # exact, as statistics.mean is
    parts = Counter()
    for at, x in values.items():
        parts[at[0]] += weights[at] * (Fraction(x) - centre)
    n = len(parts)
    variance = sum(part**2 for part in parts.values()) * n / (n - 1) if n > 1 else math.nan
    return float(centre) if n else math.nan, math.sqrt(variance)


def standard_error(values):
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


@cache
def student(n, level=0.95):
    """Half width of a confidence interval of the mean of n values, in standard errors; nan for fewer than two."""
    low, high = 0, math.pi / 2
    while low < (angle := (low + high) / 2) < high:  # until no number lies between them
        low, high = (angle, high) if within(angle, n - 1) < level else (low, angle)
    return math.sqrt(n - 1) * math.tan(angle) if n > 1 else math.nan


def within(angle, freedom):
    """P(|T| < sqrt(freedom) tan(angle)), Student's T (Abramowitz and Stegun, 26.7.3-4): a sum of freedom / 2 terms."""
    is_odd, total = freedom % 2, 0
    term = math.cos(angle) if is_odd else 1
    for i in range(freedom // 2):
        total += term
        term *= math.cos(angle) ** 2 * (2 * i + 1 + is_odd) / (2 * i + 2 + is_odd)
    return 2 / math.pi * (angle + math.sin(angle) * total) if is_odd else math.sin(angle) * total


def plus_minus(centre, half, sign="", form=".1f"):
    """A mean and its error, or half width, as text; sign="+" writes that of the mean. One task has no error: "–"."""
    return f"{centre:{sign}{form}} ± " + ("–" if math.isnan(half) else f"{half:{form}}")


@dataclass
class Setting:
    """One method with one config, and its lines."""

    method: str
    config: dict
    lines: list = field(default_factory=list)

    def scores(self):
        """{(task, seed): score in percent}."""
        return {(line["task"], line["seed"]): 100 * line["score"] for line in self.lines}

    def by_task(self):
        """{task: the mean of its scores in percent over seeds}."""
        scores = {}
        for (task, _), score in self.scores().items():
            scores.setdefault(task, []).append(score)
        return {task: sum(of_seeds) / len(of_seeds) for task, of_seeds in scores.items()}

    @property
    def score(self):
        return average(self.scores())[0]

    @property
    def error(self):
        return average(self.scores())[1]

    @property
    def cell(self):
        """Score ± its error, as text."""
        return plus_minus(*average(self.scores()))

    def over_lines(self, name, summary):
        """summary() of a field's values in all lines; None if a line lacks it, as lines of an older version may."""
        values = [line.get(name) for line in self.lines]
        return None if None in values else summary(values)

    @property
    def kl(self):
        return self.over_lines("kl", mean)

    @property
    def seconds(self):
        return self.over_lines("seconds", median)

    def minus(self, other):
        """Difference to another setting in points, paired by task and seed: mean and half width of the 95% interval."""
        ours, theirs = self.scores(), other.scores()
        shared = {key: ours[key] - theirs[key] for key in ours if key in theirs}
        centre, error = average(shared)
        return centre, student(len({task for task, _ in shared})) * error


def score_and_seconds(setting):
    """The score as text, with the seconds of a method that has settings."""
    return setting.cell + (f" ({setting.seconds:.2f})" if setting.config else "")


def difference(a, b):
    """Setting a minus b, with the half width of the 95% interval, as text.

    A width of 0 says that the tasks' differences are all equal, and not that they are certain: so does the text.
    """
    centre, half = a.minus(b)
    return plus_minus(centre, half, "+") + " (all equal)" * (half < 1e-9)


def settings(lines):
    """Return {world: {method: settings, ordered by their values}}, worlds and methods in order of appearance.

    Raises ValueError if lines of several jobs are mixed: a setting has a task and seed twice, or a world several
    models, pools or k.
    """
    groups, lines_of = {}, {}
    for line in lines:
        configs = groups.setdefault(line["world"], {}).setdefault(line["method"], {})
        setting = configs.setdefault(json.dumps(line["config"]), Setting(line["method"], line["config"]))
        setting.lines.append(line)
        lines_of.setdefault(line["world"], []).append(line)
    for world, methods in groups.items():
        for method, configs in methods.items():
            _check_none_twice(world, method, configs.values())
            methods[method] = sorted(configs.values(), key=_by_values)
        for name in ("model", "pool", "k", "dtype", "length", "limit_queries", "skip_queries", "tokenizer", "form"):
            values = {line.get(name) for line in lines_of[world]}
            if len(values) > 1:
                raise ValueError(f"the lines of {world} are of more than one {name} "
                                 f"({', '.join(sorted(map(str, values)))}), which no row may mix: take the lines of "
                                 "one job.")
    return groups


def _check_none_twice(world, method, among):
    for setting in among:
        (task, seed), n = Counter((line["task"], line["seed"]) for line in setting.lines).most_common(1)[0]
        if n > 1:
            raise ValueError(f"{method} on {world} has more than one line of {task}, seed {seed}, as of several k or "
                             "models: take the lines of one job.")


def _by_values(setting):
    """A key that sorts settings: numbers by size, then words."""
    is_number = lambda value: isinstance(value, (int, float))
    return [(0, value, "") if is_number(value) else (1, 0, json.dumps(value)) for value in setting.config.values()]


def in_common(methods):
    """Return {method: [Setting]} of a world on the tasks and seeds that all settings have, and what is left out.

    What is left out is a sentence, or "" if it is nothing. With nothing in common the dict is empty.
    """
    every_setting = [setting for among in methods.values() for setting in among]
    every = set().union(*(setting.scores() for setting in every_setting))
    shared = every.intersection(*(setting.scores() for setting in every_setting))
    if shared == every:
        return methods, ""
    kept, lacks = {}, []
    for method, among in methods.items():
        n_lacking = max(len(every - setting.scores().keys()) for setting in among)
        if n_lacking:
            lacks.append(f"{method} {n_lacking}")
        kept[method] = []
        for setting in among:
            lines = [line for line in setting.lines if (line["task"], line["seed"]) in shared]
            kept[method].append(Setting(method, setting.config, lines))
    left_out = (f"{len(every) - len(shared)} of {len(every)} (task, seed) are left out of all rows, as not every "
                f"method could do them ({', '.join(lacks)}).")
    return kept if shared else {}, left_out


def complete(among):
    """The settings of a method with the most lines; the others gave no result on some tasks."""
    most = max(len(setting.lines) for setting in among)
    return [setting for setting in among if len(setting.lines) == most]


def highest(among):
    """The complete setting of the highest mean score; the first of equal ones."""
    return max(complete(among), key=lambda setting: setting.score)


def varied(setting, among):
    """What tells a setting apart from the others of its method: {name: value}."""
    differs = lambda name, value: any(other.config.get(name) != value for other in among)
    return {name: value for name, value in setting.config.items() if differs(name, value)}


def chosen(among, preset):
    """The setting that a preset names, else the last."""
    for setting in among:
        if all(setting.config.get(name) == value for name, value in preset.items()):
            return setting
    return among[-1]
