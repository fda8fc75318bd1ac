"""Mistakes that assignment 6 must catch, each with the test that says so."""

from grading import Mutant

MEAN, GOLD = "test_macro_f1_is_the_mean_over_classes", "test_macro_f1_counts_the_classes_of_gold"
SIGN, TASKS = "test_paired_is_a_minus_b_over_tasks", "test_the_interval_is_over_tasks"
PAIRS, COVERS = "test_the_interval_is_of_pairs", "test_the_interval_covers_the_truth"
LOOKS, BEST = "test_choose_never_looks_at_reported_tasks", "test_choose_takes_the_best_of_validation"
KNOWS, F1 = "test_paired_knows_what_it_cannot_say", "    return mean(found)\n"
BY_TASK = "    differences = [mean(found) for found in by_task.values()]"
HALF = "    half = (T975[n - 2] if n - 2 < len(T975) else 1.96) * stdev(differences) / math.sqrt(n)"

MUTANTS = [
    Mutant("labels as texts", MEAN, "plain mean", [
        ("    found = []", "    predicted, gold = list(map(str, predicted)), list(map(str, gold))\n    found = []")]),
    Mutant("refuses all labels", "test_macro_f1_refuses_labels_that_do_not_fit", "ValueError", [
        ("if len(predicted) != len(gold) or not gold:", "if True:")]),
    Mutant("task and query joined", SIGN, "for one", [
        ("{(task, query): score for", "{task + query: (task, query, score) for"),
        ("    for task, query in a:\n        by_task.setdefault(task, []).append(a[task, query] - b[task, query])",
         "    for name, (task, _, score) in a.items():\n"
         "        by_task.setdefault(task, []).append(score - b[name][2])")]),
    Mutant("means rounded for print", BEST, "best setting", [
        ("mean(map(mean, of.values()))", "round(mean(map(mean, of.values())), 1)")]),
    Mutant("micro for macro", MEAN, "every class", [
        (F1, "    return sum(p == g for p, g in zip(predicted, gold)) / len(gold)\n")]),
    Mutant("classes weighted by their queries", MEAN, "every class", [
        (F1, "    return sum(f * gold.count(c) for f, c in zip(found, dict.fromkeys(gold))) / len(gold)\n")]),
    Mutant("recall for F1", MEAN, "F1", [("2 * hits / (predicted.count(c) + gold.count(c))", "hits / gold.count(c)")]),
    Mutant("F1 of the mean precision and recall", MEAN, "F1", [(F1, """\
    classes = list(dict.fromkeys(gold))
    hits = [sum(p == g == c for p, g in zip(predicted, gold)) for c in classes]
    precision = mean(h / predicted.count(c) if h else 0 for h, c in zip(hits, classes))
    recall = mean(h / gold.count(c) for h, c in zip(hits, classes))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
""")]),
    Mutant("classes that were predicted", GOLD, "occur in gold", [
        ("dict.fromkeys(gold)", "dict.fromkeys(predicted)")]),
    Mutant("classes of both", GOLD, "occur in gold", [("dict.fromkeys(gold)", "dict.fromkeys(predicted + gold)")]),
    Mutant("classes that were never predicted are passed over", GOLD, "occur in gold", [
        (F1, "    return mean([f for f, c in zip(found, dict.fromkeys(gold)) if c in predicted] or [0.0])\n")]),
    Mutant("a zip that cuts off", "test_macro_f1_refuses_labels_that_do_not_fit", "do not fit", [
        ("len(predicted) != len(gold) or not gold", "not gold")]),
    Mutant("b minus a", SIGN, "a minus b", [
        ("a[task, query] - b[task, query]", "b[task, query] - a[task, query]")]),
    Mutant("pairs by place", SIGN, "order of the rows", [
        ("    for task, query in a:", "    for (task, _), x, y in zip(a, a.values(), b.values()):"),
        ("append(a[task, query] - b[task, query])", "append(x - y)")]),
    Mutant("mean over queries", SIGN, "many queries", [
        ("centre = len(differences), mean(differences)",
         "centre = len(differences), mean(d for found in by_task.values() for d in found)")]),
    Mutant("median for mean", SIGN, "mean over tasks", [
        ("centre = len(differences), mean(differences)", "centre = len(differences), median(differences)"),
        ("from statistics import stdev", "from statistics import median, stdev")]),
    Mutant("interval over queries", TASKS, "more tasks", [
        (HALF, "    every = [d for found in by_task.values() for d in found]\n"
               "    half = 1.96 * stdev(every) / math.sqrt(len(every))")]),
    Mutant("interval over queries, by coverage", COVERS, "too narrow", [
        (HALF, "    every = [d for found in by_task.values() for d in found]\n"
               "    half = 1.96 * stdev(every) / math.sqrt(len(every))")]),
    Mutant("queries as one task each", SIGN, "many queries", [
        ("by_task.setdefault(task, [])", "by_task.setdefault((task, query), [])")]),
    Mutant("unpaired", PAIRS, "paired", [
        (HALF, "    side = lambda rows: [mean(x for (t, _), x in rows.items() if t == task) for task in by_task]\n"
               "    half = 1.96 * math.sqrt((stdev(side(a)) ** 2 + stdev(side(b)) ** 2) / n)")]),
    Mutant("unpaired, by coverage", COVERS, "too wide", [
        (HALF, "    side = lambda rows: [mean(x for (t, _), x in rows.items() if t == task) for task in by_task]\n"
               "    half = 1.96 * math.sqrt((stdev(side(a)) ** 2 + stdev(side(b)) ** 2) / n)")]),
    Mutant("normal for Student's t", COVERS, "too narrow", [
        ("(T975[n - 2] if n - 2 < len(T975) else 1.96)", "1.96")]),
    Mutant("one standard error", COVERS, "too narrow", [
        ("(T975[n - 2] if n - 2 < len(T975) else 1.96)", "1")]),
    Mutant("spread of tasks for the error of their mean", COVERS, "too wide", [(" / math.sqrt(n)", "")]),
    Mutant("one task is certain", KNOWS, "single task", [
        ("return centre, -math.inf, math.inf", "return centre, centre, centre")]),
    Mutant("what both were asked", KNOWS, "same queries", [
        ("    if a.keys() != b.keys() or not a:", "    a = {at: x for at, x in a.items() if at in b}\n    if not a:")]),
    Mutant("chosen on reported tasks", LOOKS, "reported", [
        ("if task in validation:", "if task not in validation:"), ("of.keys() == validation", "of")]),
    Mutant("chosen on all tasks", LOOKS, "reported", [
        ("if task in validation:", "if True:"), ("of.keys() == validation", "of.keys() >= validation")]),
    Mutant("settings that lack a reported task", LOOKS, "reported", [
        ("if of.keys() == validation}", "if of.keys() == validation and whole(setting)}"),
        ("    scores = {}", "    tasks = lambda of: {task for setting, task, _ in lines if setting in of}\n"
                           "    whole = lambda setting: tasks([setting]) == tasks([s for s, _, _ in lines])\n"
                           "    scores = {}")]),
    Mutant("the last of equal settings", "test_choose_takes_the_best_of_validation", "best setting", [
        ("max((setting for setting in order if setting in whole), key=whole.get)",
         "max((setting for setting in reversed(order) if setting in whole), key=whole.get)")]),
    Mutant("the worst", BEST, "best setting", [("return max(", "return min(")]),
    Mutant("the best task for the mean", BEST, "best setting", [
        ("mean(map(mean, of.values()))", "max(map(mean, of.values()))")]),
    Mutant("seeds as tasks", BEST, "best setting", [
        ("mean(map(mean, of.values()))", "mean(x for found in of.values() for x in found)")]),
    Mutant("settings that lack a task", BEST, "best setting", [("if of.keys() == validation", "if of")]),
]
