"""nanoct passes its own course: assignment 6 by the package's scoring and reports."""

import math
from statistics import mean

from nanoct import score
from nanoct.runs import sweep
from nanoct.runs.stats import Setting


def macro_f1(predicted, gold):
    if len(predicted) != len(gold) or not gold:  # the package makes one prediction a query
        raise ValueError("as many predictions as labels, and at least one")
    return score.macro_f1(predicted, gold)


def paired(a, b):
    rows = [{(task, query): score for task, query, score in of} for of in (a, b)]
    if rows[0].keys() != rows[1].keys() or not rows[0]:  # the package pairs what is there
        raise ValueError("the same queries for both, and at least one")
    line = lambda task, of: dict(task=task, seed=0, score=mean(x for (t, _), x in of.items() if t == task) / 100)
    tasks = dict.fromkeys(task for task, _ in rows[0])
    ours, theirs = (Setting("", {}, [line(task, of) for task in tasks]) for of in rows)
    centre, half = ours.minus(theirs)
    return (centre, centre - half, centre + half) if len(tasks) > 1 else (centre, -math.inf, math.inf)


def choose(lines, validation):
    order, scores = list(dict.fromkeys(setting for setting, _, _ in lines)), {}
    for setting, task, found in lines:
        if task in validation:
            scores.setdefault((setting, task), []).append(found)
    whole = [s for s in order if all((s, task) in scores for task in validation)]
    if not whole or not validation:
        raise ValueError("a setting with a score for every validation task")
    best = sweep.choose([dict(world="", method="", config=dict(place=order.index(s), setting=s), task=task, seed=0,
                              score=mean(scores[s, task])) for s in whole for task in sorted(validation)])
    return best[""][""]["setting"]
