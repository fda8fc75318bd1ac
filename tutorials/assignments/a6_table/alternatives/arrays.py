"""Correct, and different: arrays, a confusion matrix, Student's t from its density; choices by sorting."""

import math
from collections import defaultdict

import torch


def macro_f1(predicted, gold):
    if not len(gold) or len(gold) != len(predicted):
        raise ValueError("labels")
    names = sorted({*map(repr, gold), *map(repr, predicted)})
    table = torch.zeros(len(names), len(names), dtype=torch.float64)
    for p, g in zip(predicted, gold):
        table[names.index(repr(g)), names.index(repr(p))] += 1
    hits, there, said = table.diagonal(), table.sum(1), table.sum(0)
    recall = hits / there.clamp(min=1)
    precision = torch.where(said > 0, hits / said.clamp(min=1), 1.0)
    f1 = torch.where(hits > 0, 2 * precision * recall / (precision + recall).clamp(min=1e-300), 0.0)
    return f1[there > 0].mean()  # a tensor with one number


def quantile(df):
    """The 97.5% quantile of Student's t: the density, summed."""
    x = torch.linspace(0, 60, 600_001, dtype=torch.float64)
    log_c = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - math.log(df * math.pi) / 2
    mass = torch.cumsum(torch.exp(log_c - (df + 1) / 2 * torch.log1p(x**2 / df)), 0) * 1e-4
    return float(x[(mass < 0.475).sum()])


QUANTILES = {}


def paired(a, b):
    a, b = sorted(a), sorted(b)
    if not a or [row[:2] for row in a] != [row[:2] for row in b]:
        raise ValueError("queries")
    sums = defaultdict(lambda: [0.0, 0])
    for (task, _, x), (_, _, y) in zip(a, b):
        sums[task][0] += x - y
        sums[task][1] += 1
    d = torch.tensor([total / n for total, n in sums.values()], dtype=torch.float64)
    if len(d) == 1:
        return [float(d), float("-inf"), float("inf")]
    if len(d) not in QUANTILES:
        QUANTILES[len(d)] = quantile(len(d) - 1)
    half = QUANTILES[len(d)] * float(d.std()) / len(d) ** 0.5
    return [float(d.mean()), float(d.mean()) - half, float(d.mean()) + half]


def choose(lines, validation):
    cells = defaultdict(list)
    for place, (setting, task, score) in enumerate(lines):
        cells[setting, task].append((place, score))
    ranked = []
    for setting in {setting for setting, _, _ in lines}:
        if validation and all(cells.get((setting, task)) for task in validation):
            means = [sum(score for _, score in cells[setting, task]) / len(cells[setting, task]) for task in validation]
            first = next(i for i, line in enumerate(lines) if line[0] == setting)
            ranked.append((-round(sum(means) / len(means), 9), first, setting))
    if not ranked:
        raise ValueError("settings")
    return sorted(ranked)[0][2]
