"""Grades assignment 6: by examples whose answer a loop finds, by what must not change, and by simulated studies."""

import math
import random
from functools import cache
from statistics import mean, stdev

from grading import as_float, fail, first_line, points, untouched

T975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
        2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]
STUDIES = 800  # of each size; the share that an interval of 95% covers has a standard error of .8%


def number(value, of, case, section):
    """A number as a float; NaN is none."""
    found = as_float(value)
    if math.isnan(found):
        fail(f"{of} is no number.", case, f"{value!r}", "a float", f"What does {of} stand for?", section)
    return found


def near(got, want, broke, case, ask, section):
    if not abs(got - want) <= 1e-6:
        fail(broke, case, f"{got:.6g}", f"{want:.6g}", ask, section)


def refuses(call, broke, case, ask, section):
    """Wrong unless the call raises a ValueError."""
    try:
        got = call()
    except NotImplementedError:
        raise
    except ValueError:
        return
    except Exception as error:
        fail(broke, case, f"{type(error).__name__}: {first_line(error)}", "a ValueError", ask, section)
    fail(broke, case, repr(got), "a ValueError", ask, section)


# 1 macro F1 --------------------------------------------------------------------------------------------------------


def f1(c, predicted, gold):
    """Precision and recall, counted."""
    hits = said = there = 0
    for p, g in zip(predicted, gold):
        hits, said, there = hits + (p == c == g), said + (p == c), there + (g == c)
    if not hits:
        return 0.0
    precision, recall = hits / said, hits / there
    return 2 * precision * recall / (precision + recall)


def slow_macro_f1(predicted, gold):
    return sum(f1(c, predicted, gold) for c in set(gold)) / len(set(gold))


def said_f1(impl, predicted, gold, section="1"):
    with untouched("macro_f1", section, predicted=predicted, gold=gold):
        got = number(impl.macro_f1(predicted, gold), "macro_f1", f"predicted {predicted}, gold {gold}", section)
    return got


def labels(seed, n_class, n, share):
    """(predicted, gold): the first class has that share of all, all classes occur, and every one has a hit."""
    g, names = random.Random(f"{seed} {n}"), ["yes", "no", "maybe", "none"][:n_class]
    gold = names + [names[0] if g.random() < share else g.choice(names) for _ in range(n)]
    predicted = names + [c if g.random() < (0.9 if c == names[0] else 0.4) else names[0] for c in gold[n_class:]]
    order = list(range(len(gold)))
    g.shuffle(order)
    return [predicted[i] for i in order], [gold[i] for i in order]


@points(2, minutes=10, section="1")
def test_macro_f1_is_the_mean_over_classes(impl, seed):
    for predicted, gold in ([["a", "b", "b", "b"], ["a", "a", "b", "b"]], labels(seed, 2, 11, 0.7),
                            labels(seed, 3, 17, 0.7), labels(seed, 4, 23, 0.8)):
        near(said_f1(impl, predicted, gold), slow_macro_f1(predicted, gold),
             "macro_f1 is not the plain mean of every class's F1.", f"predicted {predicted}, gold {gold}",
             "How much does a class with one query count, and how much one with twenty?", "1")
    gold = [("x", 1), ("y",), ("x", 1)]
    near(said_f1(impl, list(gold), list(gold)), 1, "macro_f1 of answers that are all right is not 1.",
         f"gold {gold}", "What may a label be?", "1")
    mixed = [("x", 1), "x", 2, ("x", 1), 2, 2, "", 0]
    for predicted, gold in (([*mixed[1:], "x"], mixed), ([3, 1, 1, 2], [1, 1, 2, 2]), (["a"] * 5, ["a"] * 5),
                            (["a", "b"], ["a", "a"]), ([0, 0, 0, 1], [0, 1, 0, 0]),
                            ([1, "1", "1", 1], ["1", "1", 1, 1])):
        near(said_f1(impl, predicted, gold), slow_macro_f1(predicted, gold),
             "macro_f1 is not the plain mean of every class's F1.", f"predicted {predicted}, gold {gold}",
             "What may a label be, and how many classes are there?", "1")


@points(1, minutes=5, section="1")
def test_macro_f1_counts_the_classes_of_gold(impl, seed):
    for predicted, gold, what in (
        (["a", "a", "c", "a"], ["a", "a", "a", "b"], "c is predicted and is no class of gold; b is never predicted"),
        (["a", "a", "a"], ["a", "b", "c"], "b and c are never predicted"), (["c", "c"], ["a", "b"], "no hit at all"),
    ):
        near(said_f1(impl, predicted, gold), slow_macro_f1(predicted, gold),
             "macro_f1 is not over the classes that occur in gold.", f"predicted {predicted}, gold {gold}: {what}",
             "Which classes could have been answered, and what does a class get that never was?", "1")


@points(1, minutes=5, section="1")
def test_macro_f1_refuses_labels_that_do_not_fit(impl, seed):
    near(said_f1(impl, ["b", "a"], ["b", "a"]), 1, "macro_f1 of answers that are all right is not 1.",
         "predicted ['b', 'a'], gold ['b', 'a']", "Which labels fit each other?", "1")
    for predicted, gold in (["a", "b", "a"], ["a", "b"]), (["a"], ["a", "b"]), ([], []), ([], ["a"]), (["a"], []):
        refuses(lambda: impl.macro_f1(predicted, gold), "macro_f1 takes labels that do not fit each other.",
                f"predicted {predicted}, gold {gold}", "Which prediction belongs to which query here?", "1")


# 2 paired ----------------------------------------------------------------------------------------------------------


def study(g, n_task, gain=0.0, spread=1.0, hard=4.0, most=9):
    """(a, b) of one study: tasks differ in how hard they are (hard), and in what a gains on them (spread).

    A task with many queries gains more; `gain` is the mean over all tasks that there are. Rows are in any order.
    """
    a, b = [], []
    for task in range(n_task):
        n = g.randint(2, most)
        level = g.gauss(0, hard)
        d = gain + g.gauss(0, spread) + 0.2 * (n - (2 + most) / 2)
        for query in range(n):
            own = level + g.gauss(0, 1)
            a.append((f"task {task}", f"query {query}", own + d / 2 + g.gauss(0, 0.3)))
            b.append((f"task {task}", f"query {query}", own - d / 2 + g.gauss(0, 0.3)))
    g.shuffle(a)
    g.shuffle(b)
    return a, b


def ends(impl, a, b, case, section="2"):
    """(mean, low, high) of paired, with its arguments watched."""
    with untouched("paired", section, a=a, b=b):
        return three(impl, a, b, case, section)


def three(impl, a, b, case, section="2"):
    got = impl.paired(a, b)
    if not isinstance(got, (tuple, list)) or len(got) != 3:
        fail("paired returns three numbers: the mean difference, and the low and the high end.", case, f"{got!r}",
             "(mean, low, high)", "What does paired hand back?", section)
    centre, low, high = (number(x, f"the {name} of paired", case, section)
                         for x, name in zip(got, ("mean", "low end", "high end")))
    if not low <= centre <= high:
        fail("paired's mean is not between the ends of its interval.", case, f"{got!r}", "low <= mean <= high",
             "In which order are the three?", section)
    return centre, low, high


def slow_difference(a, b):
    """A task at a time: the mean over its queries of a, minus that of b."""
    tasks = {task for task, _, _ in a}
    of = lambda rows, task: mean(x for name, _, x in rows if name == task)
    return sum(of(a, task) - of(b, task) for task in tasks) / len(tasks)


def shown(rows):
    return " ".join(f"{task}/{query} {x:g}" for task, query, x in sorted(rows))


@points(2, minutes=5, section="2")
def test_paired_is_a_minus_b_over_tasks(impl, seed):
    one = [("s", "1", 3.0), ("s", "2", 5.0), ("t", "1", 8.0), ("t", "2", 9.0)]
    two = [("s", "1", 2.0), ("s", "2", 3.0), ("t", "1", 4.0), ("t", "2", 6.0)]
    case = f"a: {shown(one)}; b: {shown(two)}"
    near(ends(impl, one, two, case)[0], 2.5, "The mean difference has the wrong sign or size: it is a minus b.", case,
         "If a is the better method, is the number above 0?", "2")
    joined = [("1", "11", 3.0), ("11", "1", 9.0)], [("1", "11", 1.0), ("11", "1", 1.0)]
    near(ends(impl, *joined, f"a: {shown(joined[0])}; b: {shown(joined[1])}")[0], 5, "Two queries are taken for one.",
         f"a: {shown(joined[0])}; b: {shown(joined[1])}", "What says that two scores are of one query?", "2")
    more = [("t", f"{q}", 8.0) for q in range(3, 9)], [("t", f"{q}", 4.5) for q in range(3, 9)]
    case = f"a: {shown(one + more[0])}; b: {shown(two + more[1])}"
    near(ends(impl, one + more[0], two + more[1], case)[0], 2.5,
         "A task with many queries weighs more than one with few.", case, "What is one observation: a query or a task?",
         "2")
    for rows, other in (((one + more[0])[::-1], two + more[1]), (one + more[0], more[1] + two[::-1])):
        near(ends(impl, rows, other, case)[0], 2.5, "The mean difference depends on the order of the rows.",
             f"{case}, in another order", "What says that two scores are of one query?", "2")
    for n_task, most in ((2, 9), (30, 3), (31, 3), (32, 3), (33, 3), (60, 2)):
        a, b = study(random.Random(f"{seed} {n_task} tasks"), n_task, most=most)
        near(ends(impl, a, b, f"a study of {n_task} tasks")[0], slow_difference(a, b),
             "The mean difference is not the mean over tasks of the mean over queries.",
             f"a study of {n_task} tasks, {len(a)} queries in all", "How many tasks may there be?", "2")
    a, b = study(random.Random(f"{seed} mirror"), 7)
    near(ends(impl, a, b, "a study of 7 tasks")[0], slow_difference(a, b),
         "The mean difference is not the mean over tasks of the mean over queries.",
         f"a study of 7 tasks, {len(a)} queries in all", "Which mean is taken of which?", "2")
    there, back = ends(impl, a, b, "a study of 7 tasks"), ends(impl, b, a, "the study, a and b exchanged")
    near(back[0], -there[0], "b minus a is not minus (a minus b).", "a study of 7 tasks, a and b exchanged",
         "What changes if the two methods change places?", "2")


def half_width(impl, a, b, case):
    _, low, high = ends(impl, a, b, case)
    return (high - low) / 2


@points(2, minutes=5, section="2")
def test_the_interval_is_over_tasks(impl, seed):
    a, b = study(random.Random(f"{seed} copies"), 8)
    copies = lambda rows: [(task, f"{query}, copy {i}", x) for task, query, x in rows for i in range(9)]
    few = half_width(impl, a, b, "a study of 8 tasks")
    many = half_width(impl, copies(a), copies(b), "a study of 8 tasks, every query 9 times")
    if not 0.7 * few <= many <= 1.4 * few or not math.isfinite(few) or few <= 0:
        fail("More queries of the same tasks make the interval narrower, as if they were more tasks.",
             "a study of 8 tasks, and the same with every query 9 times under other names",
             f"half widths {few:.4g} and {many:.4g}", "two that are alike",
             "What would be drawn anew if someone did this study again?", "2")


@points(1, minutes=5, section="2")
def test_the_interval_is_of_pairs(impl, seed):
    a, b = study(random.Random(f"{seed} level"), 8, hard=0.0)
    level = lambda rows: [(task, query, x + 10 * int(task[-1]) ** 2) for task, query, x in rows]
    plain = half_width(impl, a, b, "a study of 8 tasks")
    harder = half_width(impl, level(a), level(b), "the study, some tasks much easier for both methods")
    if not 0.7 * plain <= harder <= 1.4 * plain or not math.isfinite(plain) or plain <= 0:
        fail("What both methods share makes the interval wider: it is not of paired differences.",
             "a study of 8 tasks, and the same with 0, 10, 40, 90 … added to all scores of a task",
             f"half widths {plain:.4g} and {harder:.4g}", "two that are alike",
             "Does an easy task say anything about which method is better?", "2")


def error(a, b):
    """(standard error of the mean difference, number of tasks): n - 1 in it, and a task is one observation."""
    rows = [{task: [x for t, _, x in of if t == task] for task, _, _ in of} for of in (a, b)]
    found = [mean(rows[0][task]) - mean(rows[1][task]) for task in rows[0]]
    return stdev(found) / math.sqrt(len(found)), len(found)


def check_multiple(impl, seed):
    """An interval that is a fixed number of standard errors wide has Student's t for that number. Coverage of a few
    hundred studies would not tell n from n - 1. Intervals that are made in another way are left to coverage.
    """
    for n_task in (2, 3, 5, 12, 31, 40):
        g, found = random.Random(f"{seed} {n_task} multiples"), []
        for _ in range(5):
            a, b = study(g, n_task, gain=1.5, most=4)
            found.append(half_width(impl, a, b, f"a study of {n_task} tasks") / error(a, b)[0])
        t = T975[min(n_task - 2, len(T975) - 1)]
        if not math.isfinite(found[0]) or max(found) - min(found) > 1e-6 * max(found):
            continue
        low, high = (0.985 * t, 1.015 * t) if n_task <= 31 else (1.955, 1.015 * t)
        case = f"studies of {n_task} tasks; half the width of the interval, in standard errors of the mean over tasks"
        want = f"{t:.3f}, Student's t with {n_task - 1} degrees of freedom" + " or 1.96" * (n_task > 31)
        if abs(found[0] / t - math.sqrt((n_task - 1) / n_task)) < 1e-3:
            fail("The interval is too narrow: the standard deviation has n in it, not n - 1.", case,
                 f"{found[0]:.3f}", want, "How is a spread around a mean estimated that was taken of the same numbers?",
                 "2")
        if not low <= found[0] <= high:
            fail(f"The interval is too {'narrow' if found[0] < low else 'wide'}: it is not Student's t times the "
                 "standard error.", case, f"{found[0]:.3f}", want,
                 "How many degrees of freedom do so many tasks have, and which entry of T975 is theirs?", "2")


@cache
def studies(seed, n_task):
    g = random.Random(f"{seed} {n_task} studies")
    return [study(g, n_task, gain=1.5, most=4) for _ in range(STUDIES if n_task < 40 else STUDIES // 4)]


@points(2, minutes=10, section="2")
def test_the_interval_covers_the_truth(impl, seed):
    for n_task in (12, 5, 40):
        found = [three(impl, list(a), list(b), f"a study of {n_task} tasks") for a, b in studies(seed, n_task)]
        covered = mean(low <= 1.5 <= high for _, low, high in found)
        case = f"{len(found)} studies of {n_task} tasks drawn at random, in which a gains 1.5 on the mean task"
        want = "between 92% and 98% of the intervals hold 1.5"
        few = 0.0 if n_task < 40 else 0.03  # fewer studies
        if covered < 0.92 - few:
            fail("The interval is too narrow: too few of them hold the true difference.", case, f"{covered:.1%}", want,
                 f"Which numbers does the standard error count, and what do {n_task} tasks know of their own spread?",
                 "2")
        if covered > 0.98 + few:
            fail("The interval is too wide: nearly all of them hold the true difference.", case, f"{covered:.1%}", want,
                 "Which part of a score's spread is not about the difference?", "2")
    check_multiple(impl, seed)


@points(1, minutes=5, section="2")
def test_paired_knows_what_it_cannot_say(impl, seed):
    one = [("s", "1", 3.0), ("s", "2", 5.0), ("s", "3", 5.0)], [("s", "1", 2.0), ("s", "2", 3.0), ("s", "3", 2.0)]
    centre, low, high = ends(impl, *one, "a single task of three queries")
    near(centre, 2, "The mean difference of a single task is wrong.", f"a: {shown(one[0])}; b: {shown(one[1])}",
         "What is the difference on each query?", "2")
    if (low, high) != (-math.inf, math.inf):
        fail("A single task gives an interval.", "one task of three queries", f"from {low:g} to {high:g}",
             "from -inf to inf", "What does one task say about the others?", "2")
    for a, b, what in ((one[0], one[1][:2], "b lacks a query"), (one[0][:2], one[1], "a lacks a query"),
                       ([], [], "none"), (one[0], [], "b has none"), ([], one[1], "a has none"),
                       (one[0], [*one[1], ("t", "1", 2.0)], "b was asked a task more"),
                       ([*one[0], ("t", "1", 2.0)], one[1], "a was asked a task more"),
                       (one[0], [*one[1][:2], ("s", "4", 2.0)], "b was asked another query"),
                       (one[0], [("other", *row[1:]) for row in one[1]], "b was asked another task")):
        refuses(lambda: impl.paired(a, b), "paired compares methods that were not asked the same queries.",
                f"a: {shown(a)}; b: {shown(b)}: {what}", "Which rows make a pair?", "2")


# 3 choose ----------------------------------------------------------------------------------------------------------


def choice(impl, lines, validation, case):
    with untouched("choose", "3", lines=lines, validation=validation):
        got = impl.choose(lines, validation)
    there = [setting for setting in dict.fromkeys(setting for setting, _, _ in lines)
             if isinstance(got, str) and str.__eq__(setting, got)]  # a class of its own may say that it equals all
    if not there:
        fail("choose returns no setting.", case, f"{got!r}", "the name of a setting", "What is chosen?", "3")
    return there[0]


def table(lines):
    return ", ".join(f"{setting} on {task} {x:g}" for setting, task, x in lines)


VALIDATION = {"v1", "v2", "v3"}


@cache
def settings_of_equals(seed):
    """Studies in which all settings are equally good: [(lines, {setting: its mean on the reported tasks})]."""
    g, found = random.Random(f"{seed} equals"), []
    for _ in range(150):
        lines = [(f"lr {s}", task, g.gauss(50, 10)) for s in range(8) for task in ("v1", "v2", "v3", "r1", "r2", "r3")]
        g.shuffle(lines)
        reported = {f"lr {s}": mean(x for name, task, x in lines if name == f"lr {s}" and task[0] == "r")
                    for s in range(8)}
        found.append((lines, reported))
    return found


@points(2, minutes=5, section="3")
def test_choose_never_looks_at_reported_tasks(impl, seed):
    lines = [("low", "v1", 40.0), ("high", "v1", 50.0), ("low", "r1", 90.0), ("high", "r1", 10.0)]
    got = choice(impl, lines, {"v1"}, table(lines))
    if got != "high":
        fail("choose looks at reported tasks: they decide.", f"validation is v1; {table(lines)}", got, "high",
             "When are the scores of reported tasks seen for the first time?", "3")
    lines = [("low", "v1", 40.0), ("high", "v1", 50.0), ("low", "r1", 90.0)]
    if choice(impl, lines, {"v1"}, table(lines)) != "high":
        fail("choose looks at reported tasks: a setting without a score there is passed over.",
             f"validation is v1; {table(lines)}", "low", "high", "Which scores must a setting have to take part?", "3")
    gained = []
    for lines, reported in settings_of_equals(seed):
        case = "8 settings on 3 validation and 3 reported tasks"
        got = choice(impl, list(lines), VALIDATION, case)
        swapped = [(setting, task, x if task in VALIDATION else 100 - x) for setting, task, x in lines]
        other = choice(impl, swapped, VALIDATION, case)
        if got != other:
            fail("choose looks at reported tasks: other scores there, and the choice changes.", case,
                 f"{got}, then {other}", "the same setting", "When are the scores of reported tasks seen first?", "3")
        gained.append(reported[got] - 50)
    if abs(mean(gained)) > 3:  # 6.2 standard errors
        fail("choose looks at reported tasks: chosen settings do better there than they deserve.",
             "150 studies of 8 settings that are all equally good, at 50.0",
             f"{50 + mean(gained):.1f} on reported tasks", "about 50",
             "Where does the gain come from if no setting is better?", "3")


@points(1, minutes=5, section="3")
def test_choose_takes_the_best_of_validation(impl, seed):
    cases = (
        ([("b", "v1", 60.0), ("a", "v1", 60.0), ("b", "v2", 50.0), ("a", "v2", 50.0)], "b", "two equal settings"),
        ([("a", "v1", 90.0), ("b", "v1", 60.0), ("b", "v2", 50.0)], "b", "a has no score on v2"),
        ([("a", "v1", 20.0), ("b", "v1", 30.0), ("a", "v2", 80.0), ("b", "v2", 65.0)], "a", "means 50 and 47.5"),
        ([("a", "v1", 90.0), ("a", "v1", 90.0), ("a", "v1", 90.0), ("a", "v2", 10.0), ("b", "v1", 60.0),
          ("b", "v2", 50.0)], "b", "three seeds of v1 are one task"),
        ([("a", "v1", -9.0), ("b", "v1", -5.0), ("b", "v2", -5.0), ("a", "v2", -7.0)], "b", "scores below 0"),
        ([("a", "v1", 0.0), ("b", "v1", -5.0), ("b", "v2", 4.0), ("a", "v2", 0.0)], "a", "scores of 0"),
        ([("z", "v2", 60.0), ("a", "v2", 60.0), ("a", "v1", 60.0), ("z", "v1", 60.0), ("m", "v1", 10.0)], "z",
         "two equal settings, in no order of the alphabet"),
        ([("a", "v1", 10.0), ("b", "v1", 20.0), ("c", "v1", 15.0), ("c", "v2", 15.0), ("b", "v2", 20.0),
          ("a", "v2", 10.0)], "b", "the best stands in the middle"),
        ([("a", "v1", 50.02), ("b", "v1", 50.04), ("a", "v2", 50.02), ("b", "v2", 50.04)], "b", "means 50.02, 50.04"),
    )
    seeds = [30.0, 90.0, 45.0, 60.0]  # their mean is 56.25, their median 52.5
    for other in (32.0, 88.0, 46.0, 50.0, 55.0, 57.0, 58.0, 62.0):  # the other's every seed: below or above that mean
        for turn in range(4):
            scores = seeds[turn:] + seeds[:turn]  # the first, the last and the best change their places
            lines = [row for i, x in enumerate(scores) for row in (("a", "v1", x), ("b", "v2", 10.0), ("a", "v2", 10.0),
                                                                   ("b", "v1", other))[: 4 if i < 2 else 3]]
            cases = *cases, (lines, "a" if other < 56.25 else "b", f"a has seeds {scores} on v1, b {other} each time")
    for lines, want, what in cases:
        got = choice(impl, list(lines), {"v1", "v2"}, what)
        if got != want:
            fail("choose does not take the best setting of the validation tasks.", f"{table(lines)}: {what}", got, want,
                 "What does every task weigh, and who takes part?", "3")
    lines = [("low", "v1", 1.0), ("high", "v1", 2.0)]
    if choice(impl, lines, {"v1"}, table(lines)) != "high":
        fail("choose does not take the best setting of the validation tasks.", f"validation is v1; {table(lines)}",
             "low", "high", "What does every task weigh, and who takes part?", "3")
    for lines, validation, what in (([], {"v1"}, "no lines"), ([("a", "v1", 1.0)], {"v1", "v2"}, "no setting has v2"),
                                    ([("a", "r1", 1.0)], {"v1"}, "only a reported task")):
        refuses(lambda: impl.choose(lines, validation), "choose chooses where nothing can be chosen.",
                f"{table(lines)}; validation {sorted(validation)}: {what}", "Who takes part?", "3")
