"""Means, standard errors, and intervals of scores, for every table.

A score is the mean over tasks within a seed, then over seeds, as in the authors' code. Its standard error (s.e.) is
over tasks, as runs of one task depend on each other. One task has no standard error and no interval.
"""

import math
from collections import Counter
from fractions import Fraction
from functools import cache
from statistics import mean, stdev


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


def interval(values, level=0.95):
    """Mean and half width of its confidence interval, Student's t."""
    return mean(values), student(len(values), level) * standard_error(values)


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


def plus_minus(centre, half, sign=""):
    """A mean and its error, or half width, as text; sign="+" writes that of the mean. One task has no error: "–"."""
    return f"{centre:{sign}.1f} ± " + ("–" if math.isnan(half) else f"{half:.1f}")
