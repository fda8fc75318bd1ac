"""Tables and figures of the public benchmarks, printed by paper.py: scores beside chance and the paper's scores.

All rows of a table are about the same tasks and seeds. Averages, errors and differences are computed as in report.py.
"""

from statistics import mean, median

from nanoct.benchmarks.presets import PUBLISHED, SETTINGS
from nanoct.io.files import publish
from nanoct.runs.report import (
    PAIRS,
    Setting,
    chosen,
    difference,
    highest,
    in_common,
    many,
    settings,
    shown,
    table,
    varied,
)
from nanoct.runs.report import words as words_of

FEW = 10  # a note names tasks with fewer queries
CONSTANT = "always the most frequent answer", "always one answer, their mean"  # rows that need no model


def report(lines, args, constants, timed=()):
    """Print the tables, write them to table.md in args.out, or settings.md if settings are compared, and draw.

    constants: {(task, seed): (best, mean) score of always giving one answer}. timed: lines of a run on a quiet
    machine; their seconds and memory are shown instead.
    """
    lines, untimed = with_times(lines, timed)
    asked, rows, published = len(args.tasks) * len(args.seeds), [], PUBLISHED.get(args.benchmark, {})
    done = {(line["task"], line["seed"]) for line in lines}
    methods, left_out = in_common(settings(lines)[args.benchmark])
    notes = [f"No method could do {asked - len(done)} of the {asked} (task, seed)."] if len(done) < asked else []
    notes += [note for note in (left_out, untimed) if note]
    if not methods:
        raise ValueError(f"there is no task that all methods did, so nothing to compare: {left_out}")
    first = next(iter(methods.values()))[0]
    floors = [Setting(name, {}, [dict(task=task, seed=seed, score=constants[task, seed][i])
                                 for task, seed in first.scores()]) for i, name in enumerate(CONSTANT)]
    icl, has_valid = methods.get("icl", [None])[0], any("valid" in line for line in lines)
    rows += [[s.method, f"{len({at[0] for at in s.scores()})}", s.cell, "–", difference(s, icl) if icl else "",
              "", "", "", "", *[""] * has_valid] for s in floors]
    for method, s in ((method, s) for method, among in methods.items() for s in among):
        known = lambda name: all(name in line for line in s.lines)
        of = lambda name, by: by(line[name] for line in s.lines) if known(name) else None
        peak = of("peak_bytes", max)
        rows.append([f"{method} {words_of(varied(s, methods[method]))}".strip(), f"{len({at[0] for at in s.scores()})}",
                     s.cell, f"{published.get(method, '–')}", "" if icl in (None, s) else difference(s, icl),
                     *[shown(of("valid", lambda shares: 100 * mean(shares)), ".0f")] * has_valid, f"{s.seconds:.1f}",
                     shown(of("seconds_score", median), ".1f"), "" if peak is None else f"{peak / 1e9:.2f}",
                     shown(s.mean("n_trained"), ",.0f")])
    if tied := [line["tied"] for line in lines if line.get("tied")]:
        notes.append(f"Options tie for the lowest loss in {sum(tied)} queries of {len(tied)} of the {len(lines)} runs.")
    if few := [line for line in first.lines if line.get("n_query", FEW) < FEW]:
        least = min(few, key=lambda line: line["n_query"])
        notes.append(f"{len(few)} of the {len(first.lines)} (task, seed) have fewer than {FEW} queries, "
                     f"{least['task']}, seed {least['seed']}, only {least['n_query']}: a query weighs much in them.")
    head = (f"{args.benchmark}, {args.model}: {many(first.lines, 'task')} of the {args.pool} pool, k = "
            f"{args.k or 'all'}, {many(first.lines, 'seed')}, {first.lines[0]['dtype']} on "
            f"{first.lines[0].get('device', 'an unknown device')}; score %, the mean over tasks within a seed, then "
            "over seeds, ± s.e. over tasks, seconds a task, peak memory of adapting and scoring")
    header = ["method", "tasks", "score", "paper", "minus ICL, 95%", *["valid %"] * has_valid, "s to adapt",
              "s to score", "peak GB", "trained"]
    parts = [head, *notes, table(rows, header)]
    main = {method: chosen(among, SETTINGS[args.benchmark].get(method, {})) for method, among in methods.items()}
    if pairs := [[f"{a} - {b}", difference(main[a], main[b])] for a, b in PAIRS if {a, b} <= main.keys()]:
        parts.append(table(pairs, ["difference", "points, 95%"]))
    parts.append(by_task(floors, main))
    single = all(len(among) == 1 for among in methods.values())
    publish("\n\n".join(parts) + "\n", args.out / f"{'table' if single else 'settings'}.md")
    draw({args.benchmark: methods}, main, args.out)


def by_task(floors, main):
    """A table of every task's scores, each the mean over its seeds."""
    shown = [*floors, *main.values()]
    scores = [{} for _ in shown]
    for of, s in zip(scores, shown):
        for (task, _), score in s.scores().items():
            of.setdefault(task, []).append(score)
    rows = [[task, *(f"{sum(of[task]) / len(of[task]):.0f}" for of in scores)] for task in scores[0]]
    return table(rows, ["task, score %", "most frequent", "mean answer", *main])


def with_times(lines, timed):
    """Give lines the median seconds and peak memory of their setting in `timed`; and say which methods it lacks."""
    of, names = {}, dict(seconds=median, seconds_score=median, peak_bytes=max)
    for line in timed:
        of.setdefault((line["method"], str(line["config"])), []).append(line)
    at = lambda line: of.get((line["method"], str(line["config"])))
    found = [line | {name: by(one[name] for one in same) for name, by in names.items() if all(name in one for one in
             same)} if (same := at(line)) else line for line in lines]
    lacking = list(dict.fromkeys(line["method"] for line in lines if timed and not at(line)))
    said = f"The timed lines lack {', '.join(lacking)}: seconds and memory are those of the lines themselves."
    return found, said if lacking else ""


def draw(groups, main, folder):
    """Draw accuracy_vs_seconds.png if settings differ in n_step alone, tasks.png of ICL and CT-KV if none differ."""
    from nanoct.runs import plots  # matplotlib is slow to import

    (methods,) = groups.values()
    varies = set().union(*(varied(s, among).keys() for among in methods.values() for s in among))
    if varies == {"n_step"}:
        plots.accuracy_vs_seconds(groups, folder / "accuracy_vs_seconds.png")
    if not varies and {"icl", "ct_kv"} <= main.keys():
        plots.tasks(main, folder / "tasks.png")


def report_sweep(lines, args):
    """Print every setting of every method, each beside the method's best, and write it to sweep.md."""
    rows, asked = [], len(args.tasks) * len(args.seeds)
    for method, among in settings(lines)[args.benchmark].items():
        best = highest(among)  # never one that gave no result on some tasks
        for s in among:
            beside = "" if len(among) == 1 else "best" if s is best else difference(s, best)
            rows.append([method, words_of(varied(s, among)), f"{len(s.lines)} of {asked}",
                         s.cell, beside, f"{s.seconds:.1f}"])
    header = ["method", "setting", "runs", "score % ± s.e.", "minus the best, 95%", "s to adapt"]
    n_task, names = len({line["task"] for line in lines}), ", ".join(map(str, args.seeds))
    head = (f"{args.benchmark}, {args.model}: {n_task} tasks of the {args.pool} pool, k = {args.k or 'all'}, demos of "
            f"seed {names}; differences are over the runs that both have")
    publish(f"{head}\n\n{table(rows, header)}\n", args.out / "sweep.md")


def report_ablations(lines, args, rows):
    """Print CT-KV's variants beside CT-KV itself, and write them to ablations.md. rows: {name: config}."""
    (icl, *_), variants = settings(lines)[args.benchmark].values()
    named = {name: next(s for s in variants if s.config == config) for name, config in rows.items()}
    whole = next(iter(named.values()))
    cells = [["ICL", icl.cell, difference(icl, whole)]]
    cells += [[name, s.cell, "" if s is whole else difference(s, whole)]
              for name, s in named.items()]
    head = (f"{args.benchmark}, {args.model}: {len(args.tasks)} tasks of the {args.pool} pool, k = {args.k or 'all'}, "
            f"demos of seed {', '.join(map(str, args.seeds))}; score % ± s.e. over tasks")
    publish(f"{head}\n\n{table(cells, ['CT-KV with a change', 'score', 'minus CT-KV, 95%'])}\n",
          args.out / "ablations.md")
