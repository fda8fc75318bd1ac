"""Correct, and different: counts of hits, false alarms and misses; numpy; settings one after the other."""

import math

import numpy as np

T975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
        2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]


def macro_f1(predicted, gold):
    if len(gold) == 0 or len(predicted) != len(gold):
        raise ValueError("labels")
    hits, alarms, misses = {}, {}, {}
    for p, g in zip(predicted, gold):
        for counts, c in ((hits, g),) if p == g else ((alarms, p), (misses, g)):
            counts[c] = counts.get(c, 0) + 1
    of = lambda c: [counts.get(c, 0) for counts in (hits, alarms, misses)]
    return np.mean([2 * tp / (2 * tp + fp + fn) for tp, fp, fn in map(of, set(gold))])


def paired(a, b):
    ours, theirs = ({(task, query): score for task, query, score in rows} for rows in (a, b))
    if set(ours) != set(theirs) or not ours:
        raise ValueError("rows")
    by_task = {}
    for (task, query), score in ours.items():
        by_task.setdefault(task, []).append(score - theirs[task, query])
    d = np.array([np.mean(found) for found in by_task.values()])
    if len(d) == 1:
        return float(d[0]), -math.inf, math.inf
    half = T975[min(len(d) - 2, 29)] * d.std(ddof=1) / np.sqrt(len(d))
    return d.mean(), d.mean() - half, d.mean() + half


def choose(lines, validation):
    best, name = -math.inf, None
    for setting in dict.fromkeys(row[0] for row in lines if row[1] in validation):
        means = []
        for task in sorted(validation):
            scores = [row[2] for row in lines if row[:2] == (setting, task)]
            if not scores:
                break
            means.append(sum(scores) / len(scores))
        else:
            mean = sum(means) / len(means)
            if mean > best + 1e-12:
                best, name = mean, setting
    if name is None:
        raise ValueError("nothing")
    return name
