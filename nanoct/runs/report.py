"""Tables and figures from results: of the built-in worlds, beside committed lines, and of one public benchmark.

All rows of a world or benchmark are about the same tasks and seeds: what one method could not do is left out of all
rows, and a note says so. KL is the divergence of a method's answers from the exact Bayes predictive, in nats a query,
the mean over runs. Means, errors and differences are those of stats.py.
"""

import math
from pathlib import Path
from statistics import mean, median

from nanoct.benchmarks.nano import WORLDS
from nanoct.benchmarks.presets import PUBLISHED, SETTINGS
from nanoct.io.files import publish
from nanoct.methods import KNOWN, MAP
from nanoct.runs.results import compare, completed, key
from nanoct.runs.stats import Setting, chosen, difference, in_common, score_and_seconds, settings, varied
from nanoct.runs.table import many, named_values, one_benchmark, shown, table

PAIRS = [("ct_kv", "ttt"), ("ct_kv", "prefix_tuning"), ("ct_prompt", "prompt_tuning"), ("dora", "lora"),
         ("ttt", "lora"), ("ttt_ct_kv", "ttt"), ("ttt_ct_kv", "ct_kv"),
         *((method, "ct_kv") for method in MAP)]  # shown as paired differences
CEILINGS = {"bayes_training": "training", "bayes_all": "all"}  # row of the table -> prior
ROUNDING = 0.1, 10  # share of runs whose score another processor's rounding may change, and by how many points
FEW = 10  # a note names tasks with fewer queries
CONSTANT = "always the most frequent answer", "always one answer, their mean"  # rows that need no model


# --- what both reports share ---


def presets_of(methods, presets):
    """{method: the setting that the presets {method: config} name} of one world's {method: settings}."""
    return {method: chosen(among, presets.get(method, {})) for method, among in methods.items()}


def beside(main, a, b):
    """Cells of method a minus method b, one for each world of main {world: {method: Setting}} that has both."""
    cells = []
    for methods in main.values():
        cells.append(difference(methods[a], methods[b]) if a in methods and b in methods else "")
    return cells


def differences(main):
    """Rows of the PAIRS of methods that there are in main."""
    methods = {method for of_world in main.values() for method in of_world}
    return [[f"{a} - {b}", *beside(main, a, b)] for a, b in PAIRS if {a, b} <= methods]


def makes_curves(groups):
    """Whether the settings of every method have different numbers of steps, so that a line through them is a curve."""
    for methods in groups.values():
        for among in methods.values():
            if len({setting.config.get("n_step") for setting in among}) < len(among):
                return False
    return True


# --- the built-in worlds: a column for each, beside committed lines of the same runs ---


def comparable(lines):
    """Return {world: {method: [Setting]}} on what all methods of a world did, and sentences on what is left out.

    The order is that of WORLDS and KNOWN, as lines may come in any order. Raises ValueError if nothing is left.
    """
    place = {name: i for i, name in enumerate([*WORLDS, *KNOWN, *CEILINGS])}
    lines = sorted(lines, key=lambda line: [place.get(line[name], len(place)) for name in ("world", "method")])
    groups, left_out = {}, []
    for world, methods in settings(lines).items():
        shared, why = in_common(methods)
        if shared:
            groups[world] = shared
        if why:
            left_out.append(f"{world}: {why}")
    if not groups:
        raise ValueError(f"there is no task that all methods did, so nothing to compare: {left_out[0]}")
    return groups, left_out


def text(groups, left_out, presets, pairs=()):
    """The report in Markdown: the paper's table, differences to ICL, every setting, and the race between CT-KV and TTT.

    groups, left_out: from comparable(). presets: {world: {method: config}}, the setting of a method that the tables
    show. pairs: [(line, committed line)] of the live runs, those that this job did itself.
    """
    main, lines_of, rows = {}, {}, {}
    for world, methods in groups.items():
        main[world] = presets_of(methods, presets.get(world, {}))
        every = [setting for among in methods.values() for setting in among]
        lines_of[world] = [line for setting in every for line in setting.lines]
        rows |= dict.fromkeys(methods)
    rows = sorted(rows, key=lambda method: method in CEILINGS)
    scope = "; ".join(f"{world}: {many(lines, 'task')}, k = {lines[0]['k']}, {many(lines, 'seed')}"
                      for world, lines in lines_of.items())
    pool = next(iter(lines_of.values()))[0]["pool"].replace("_", "-")
    parts = [f"{pool} pool; {scope} of demos; score % ± s.e. over tasks, in brackets seconds a task", *left_out]
    if pairs:
        n_line = sum(map(len, lines_of.values()))
        parts.append(f"{comparison(pairs)} Of the {n_line} runs below {len(pairs)} are live, the others committed: "
                     "the table of all settings says how many, how far off one is, and their seconds.")
    scores = []
    for method in rows:
        cells = [score_and_seconds(methods[method]) if method in methods else "" for methods in main.values()]
        scores.append([method, *cells])
    parts.append(table(scores, ["method", *groups]))
    others = [method for method in rows if method != "icl"]
    if "icl" in rows and others:
        minus_icl = [[method, *beside(main, method, "icl")] for method in others]
        parts.append(table(minus_icl, ["minus ICL, 95%", *groups]))
    if of_pairs := differences(main):
        parts.append(table(of_pairs, ["difference, 95%", *groups]))
    parts.append(every_setting(groups, pairs))
    for world, methods in groups.items():
        if {"ct_kv", "ttt"} <= methods.keys():
            parts.append(f"{world}. {race(main[world]['ct_kv'], methods['ct_kv'], methods['ttt'])}")
    return "\n\n".join(parts) + "\n"


def every_setting(groups, pairs):
    """The table with a row for every setting; with marks() on the live runs, if there are pairs."""
    header = ["world", "method", "setting", "score % ± s.e.", "s per task", "KL to Bayes", "trained"]
    rows = []
    for world, methods in groups.items():
        for method, among in methods.items():
            for setting in among:
                rows.append([world, method, named_values(varied(setting, among)), setting.cell,
                             f"{setting.seconds:.2f}", shown(setting.kl, ".3f"),
                             shown(setting.over_lines("n_trained", mean), ",.0f")] + marks(setting, pairs))
    return table(rows, header + ["live", "off by", "s live"] * bool(pairs))


def marks(setting, pairs):
    """Cells on a setting's live runs: how many of all, the largest distance from a committed score, median seconds."""
    own = {id(line) for line in setting.lines}
    live = [(line, partner) for line, partner in pairs if id(line) in own]
    if not live:
        return ["", "", ""] if pairs else []
    farthest = max(abs(points_off(line, partner)) for line, partner in live)
    seconds = median(line["seconds"] for line, _ in live)
    return [f"{len(live)} of {len(setting.lines)}", f"{farthest:.1f}", f"{seconds:.2f}"]


def points_off(line, partner):
    """Points by which a run's score is above its committed partner's."""
    return 100 * (line["score"] - partner["score"])


def comparison(pairs):
    """Say how many live runs have their committed score, which differs most, and if that is too much for rounding."""
    differ = [pair for pair in pairs if abs(points_off(*pair)) > 1e-9]
    counted = f"{len(pairs) - len(differ)} of {len(pairs)} live runs have the score of their committed line"
    if not differ:
        return counted + "."
    line, partner = max(differ, key=lambda pair: abs(points_off(*pair)))
    largest = abs(points_off(line, partner))
    counted += (f"; the largest difference is {largest:.1f} points, {line['method']} on {line['task']} of "
                f"{line['world']}, {named_values(line['config'] | dict(seed=line['seed']))}: "
                f"{100 * line['score']:.1f}, committed {100 * partner['score']:.1f}")
    share, points = ROUNDING
    if len(differ) <= max(1, share * len(pairs)) and largest <= points:
        return counted + ". Another processor rounds differently, and a run can differ by as much from that alone."
    versions = dict.fromkeys(f"torch {each.get('torch')} on {each.get('device')}" for each in (line, partner))
    return (f"WARNING: {counted}. That is more than rounding on another processor does ({share:.0%} of runs, {points} "
            f"points): look for another torch or device ({' and '.join(versions)}), or for changes in the code of "
            "methods, worlds, model or score.")


def race(main, ours, theirs):
    """Compare CT-KV, at its preset and in all settings, with TTT's best: in points, paired by task, and in seconds."""
    best = max(theirs, key=lambda setting: setting.score)
    seconds = min((setting.seconds for setting in ours if setting.score >= best.score), default=None)
    times = lambda seconds: f"{seconds / best.seconds if best.seconds else math.inf:.2f} times the seconds"
    verdict = (f"TTT's best is {best.score:.1f}% in {best.seconds:.2f} s. CT-KV as in the first table is "
               f"{difference(main, best)} points from it, in {times(main.seconds)}; ")
    if seconds is None:
        return verdict + "no setting of CT-KV here reaches it."
    return verdict + f"CT-KV first reaches it in {seconds:.2f} s, {times(seconds)}."


def report(lines, presets, folder, pairs=()):
    """Print the text, write it to table.md, and draw the figures if its settings make curves."""
    folder, (groups, left_out) = Path(folder), comparable(lines)
    publish(text(groups, left_out, presets, pairs), folder / "table.md")
    if not makes_curves(groups):
        print(f"wrote table.md in {folder}")
        return
    from nanoct.runs import plots  # matplotlib is slow to import

    plots.accuracy_vs_seconds(groups, folder / "accuracy_vs_seconds.png")
    plots.kl_vs_steps(groups, folder / "kl_vs_steps.png")
    print(f"wrote table.md, accuracy_vs_seconds.png and kl_vs_steps.png in {folder}")


def against_committed(lines, committed, file, presets, folder):
    """Report lines beside the committed ones, which are in `file`: all of those, or the lines alone if some are new."""
    lines = [completed(line) for line in lines]
    pairs, own = compare(lines, committed)
    if not committed:
        print(f"There is no {file} to hold these runs against.")
    elif not {line["model"] for line in lines} & {line["model"] for line in committed}:
        print(f"{file} is of other models: there is nothing to hold these runs against.")
    elif own:
        methods = ", ".join(dict.fromkeys(line["method"] for line in own))
        print(f"{len(own)} of {len(lines)} runs ({methods}) have no partner in {file}, as of other models, tasks or "
              "settings: this table is of the live runs alone.", comparison(pairs) if pairs else "")
    if own:
        return report(lines, presets, folder)
    live = {key(line): line for line in lines}
    report([live.get(key(line), line) for line in committed], presets, folder, pairs)


# --- a public benchmark: scores beside chance and the paper's scores ---


def report_public(lines, model, n_asked, folder, constants, timed=()):
    """Print the tables, write them to table.md in the folder, or settings.md if settings are compared, and draw.

    n_asked: how many (task, seed) the job asked for. constants: {(task, seed): (best, mean) score of always giving
    one answer}. timed: lines of a run on a quiet machine; their seconds and memory are shown instead.
    """
    lines, untimed = with_times(lines, timed)
    benchmark = lines[0]["world"]
    methods, left_out = in_common(settings(lines)[benchmark])
    if not methods:
        raise ValueError(f"there is no task that all methods did, so nothing to compare: {left_out}")
    first = next(iter(methods.values()))[0]
    n_done = len({(line["task"], line["seed"]) for line in lines})
    notes = [f"No method could do {n_asked - n_done} of the {n_asked} (task, seed)."] if n_done < n_asked else []
    notes += [note for note in (left_out, untimed, note_on_ties(lines), note_on_few(first.lines)) if note]
    floors = []
    for i, name in enumerate(CONSTANT):
        scores = [dict(task=task, seed=seed, score=constants[task, seed][i]) for task, seed in first.scores()]
        floors.append(Setting(name, {}, scores))
    icl = methods["icl"][0] if "icl" in methods else None
    published, has_valid = PUBLISHED.get(benchmark, {}), any("valid" in line for line in lines)
    rows = [public_row(setting, [setting], icl, published, has_valid) for setting in floors]
    for among in methods.values():
        rows += [public_row(setting, among, icl, published, has_valid) for setting in among]
    head = (f"{one_benchmark(first.lines, model)}, {many(first.lines, 'seed')}, {first.lines[0]['dtype']} on "
            f"{first.lines[0].get('device', 'an unknown device')}; score %, the mean over tasks within a seed, then "
            "over seeds, ± s.e. over tasks, seconds a task, peak memory of adapting and scoring")
    header = ["method", "tasks", "score", "paper", "minus ICL, 95%", *["valid %"] * has_valid, "s to adapt",
              "s to score", "peak GB", "trained"]
    parts = [head, *notes, table(rows, header)]
    main = presets_of(methods, SETTINGS[benchmark])
    if of_pairs := differences({benchmark: main}):
        parts.append(table(of_pairs, ["difference", "points, 95%"]))
    parts.append(by_task(floors, main))
    is_single = all(len(among) == 1 for among in methods.values())
    publish("\n\n".join(parts) + "\n", folder / f"{'table' if is_single else 'settings'}.md")
    from nanoct.runs import plots  # matplotlib is slow to import

    if not is_single and makes_curves({benchmark: methods}):
        plots.accuracy_vs_seconds({benchmark: methods}, folder / "accuracy_vs_seconds.png")
    if is_single and {"icl", "ct_kv"} <= main.keys():
        plots.tasks(main, folder / "tasks.png")


def public_row(setting, among, icl, published, has_valid):
    """A setting's row of the table; a cell is empty where lines, as of an older version, lack its field."""
    valid, peak = setting.over_lines("valid", mean), setting.over_lines("peak_bytes", max)
    row = [f"{setting.method} {named_values(varied(setting, among))}".strip(),
           f"{len({task for task, _ in setting.scores()})}", setting.cell, f"{published.get(setting.method, '–')}",
           "" if icl in (None, setting) else difference(setting, icl)]
    if has_valid:
        row.append("" if valid is None else f"{100 * valid:.0f}")
    row += [shown(setting.seconds, ".1f"), shown(setting.over_lines("seconds_score", median), ".1f"),
            "" if peak is None else f"{peak / 1e9:.2f}", shown(setting.over_lines("n_trained", mean), ",.0f")]
    return row


def note_on_ties(lines):
    """A sentence on options that tie for the lowest loss; "" if none does."""
    tied = [line["tied"] for line in lines if line.get("tied")]
    return (f"Options tie for the lowest loss in {sum(tied)} queries of {len(tied)} of the {len(lines)} runs." if tied
            else "")


def note_on_few(lines):
    """A sentence on tasks of few queries; "" if there is none."""
    few = [line for line in lines if line.get("n_query", FEW) < FEW]
    if not few:
        return ""
    least = min(few, key=lambda line: line["n_query"])
    return (f"{len(few)} of the {len(lines)} (task, seed) have fewer than {FEW} queries, {least['task']}, seed "
            f"{least['seed']}, only {least['n_query']}: a query weighs much in them.")


def by_task(floors, main):
    """A table of every task's scores, each the mean over its seeds."""
    columns = [setting.by_task() for setting in (*floors, *main.values())]
    rows = [[task, *(f"{column[task]:.0f}" for column in columns)] for task in columns[0]]
    return table(rows, ["task, score %", "most frequent", "mean answer", *main])


def with_times(lines, timed):
    """Give lines the median seconds and peak memory of their setting in `timed`; and say which methods it lacks."""
    timed_settings, replaced, lacking = {}, [], {}
    jobs = lambda lines: {tuple(line.get(name) for name in ("model", "world", "k", "dtype")) for line in lines}
    if not jobs(timed) <= jobs(lines):
        raise ValueError("--seconds: its lines are of another model, benchmark, k or dtype: take those of this job.")
    for line in timed:
        name = line["method"], str(line["config"])
        timed_settings.setdefault(name, Setting(*name)).lines.append(line)
    for line in lines:
        setting = timed_settings.get((line["method"], str(line["config"])))
        if setting is None:
            replaced.append(line)
            lacking[line["method"]] = None
            continue
        times = dict(seconds=setting.seconds, seconds_score=setting.over_lines("seconds_score", median),
                     peak_bytes=setting.over_lines("peak_bytes", max))
        replaced.append(line | {name: value for name, value in times.items() if value is not None})
    if not timed or not lacking:
        return replaced, ""
    return replaced, (f"The timed lines lack {', '.join(lacking)}: seconds and memory are those of the lines "
                      "themselves.")
