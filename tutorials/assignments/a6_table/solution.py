"""Assignment 6, solved."""

import math
from statistics import fmean as mean
from statistics import stdev

T975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
        2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]


def macro_f1(predicted, gold):
    if len(predicted) != len(gold) or not gold:
        raise ValueError(f"{len(predicted)} predictions for {len(gold)} labels: give one for each, and at least one.")
    found = []
    for c in dict.fromkeys(gold):
        hits = sum(p == c and g == c for p, g in zip(predicted, gold))
        found.append(2 * hits / (predicted.count(c) + gold.count(c)))
    return mean(found)


def paired(a, b):
    a, b = ({(task, query): score for task, query, score in rows} for rows in (a, b))
    if a.keys() != b.keys() or not a:
        raise ValueError("the two methods were not asked the same queries, or none at all.")
    by_task = {}
    for task, query in a:
        by_task.setdefault(task, []).append(a[task, query] - b[task, query])
    differences = [mean(found) for found in by_task.values()]
    n, centre = len(differences), mean(differences)
    if n == 1:
        return centre, -math.inf, math.inf
    half = (T975[n - 2] if n - 2 < len(T975) else 1.96) * stdev(differences) / math.sqrt(n)
    return centre, centre - half, centre + half


def choose(lines, validation):
    scores = {}
    for setting, task, score in lines:
        if task in validation:
            scores.setdefault(setting, {}).setdefault(task, []).append(score)
    whole = {setting: mean(map(mean, of.values())) for setting, of in scores.items() if of.keys() == validation}
    if not whole:
        raise ValueError("no setting has a score for every validation task.")
    order = dict.fromkeys(setting for setting, _, _ in lines)
    return max((setting for setting in order if setting in whole), key=whole.get)
