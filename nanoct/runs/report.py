"""Tables and figures from results: what the main job (nanoct.reproduce) prints.

Means and their errors are those of stats.py. All rows of a world are about the same tasks and seeds: what one method
could not do is left out of all rows, and a note says so. Differences between methods are paired by task and seed.
Seconds are medians over runs. KL is the divergence of a method's answers from the exact Bayes predictive, in nats a
query, the mean over runs.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from statistics import mean, median

from nanoct.benchmarks.nano import WORLDS
from nanoct.files import publish
from nanoct.methods import METHODS
from nanoct.runs.stats import average, interval, plus_minus, student  # noqa: F401  lessons find interval here

PAIRS = [("ct_kv", "ttt"), ("ct_kv", "prefix_tuning"), ("ct_prompt", "prompt_tuning"), ("dora", "lora"),
         ("ttt", "lora"), ("ttt_ct_kv", "ttt"), ("ttt_ct_kv", "ct_kv")]  # shown as paired differences
CEILINGS = {"bayes_training": "training", "bayes_all": "all"}  # row of the table -> prior
ROUNDING = 0.1, 10  # share of runs whose score another processor's rounding may change, and by how many points


@dataclass
class Setting:
    """One method with one config, and its lines."""

    method: str
    config: dict
    lines: list = field(default_factory=list)

    def scores(self):
        """{(task, seed): score in percent}."""
        return {(line["task"], line["seed"]): 100 * line["score"] for line in self.lines}

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

    def mean(self, name):
        """Mean of a field over the lines; None if a line lacks it, as lines of an older version may."""
        found = [line.get(name) for line in self.lines]
        return None if None in found else mean(found)

    @property
    def kl(self):
        return self.mean("kl")

    @property
    def seconds(self):
        return median(line["seconds"] for line in self.lines)

    def minus(self, other):
        """Difference to another setting in points, paired by task and seed: mean and half width of the 95% interval."""
        ours, theirs = self.scores(), other.scores()
        shared = {at: ours[at] - theirs[at] for at in ours if at in theirs}
        centre, error = average(shared)
        return centre, student(len({task for task, _ in shared})) * error


def settings(lines):
    """Return {world: {method: settings, ordered by their values}}, worlds and methods in order of appearance.

    Raises ValueError if lines of several jobs are mixed: a setting has a task and seed twice, or a world several
    models, pools or k.
    """
    groups = {}
    for line in lines:
        group = groups.setdefault(line["world"], {}).setdefault(line["method"], {})
        group.setdefault(json.dumps(line["config"]), Setting(line["method"], line["config"])).lines.append(line)
    every = ((w, m, s) for w, methods in groups.items() for m, of in methods.items() for s in of.values())
    for world, method, s in every:
        if len(s.scores()) < len(s.lines):
            seen = [[line[name] for line in s.lines] for name in ("task", "seed")]
            task, seed = Counter(zip(*seen)).most_common(1)[0][0]
            raise ValueError(f"{method} on {world} has more than one line of {task}, seed {seed}, as of several k or "
                             "models: take the lines of one job.")
    for world, name in product(groups, ("model", "pool", "k")):
        if len(found := {line.get(name) for line in lines if line["world"] == world}) > 1:
            found = ", ".join(sorted(map(str, found)))
            raise ValueError(f"the lines of {world} are of more than one {name} ({found}), which no row may mix: take "
                             "the lines of one job.")
    # numbers by size, then words
    order = lambda value: (0, value, "") if isinstance(value, (int, float)) else (1, 0, json.dumps(value))
    by_values = lambda group: sorted(group.values(), key=lambda s: list(map(order, s.config.values())))
    return {world: {method: by_values(group) for method, group in methods.items()} for world, methods in groups.items()}


def in_common(methods):
    """Return {method: [Setting]} of a world on the tasks and seeds that all settings have, and what is left out.

    What is left out is a sentence, or "" if it is nothing. With nothing in common the dict is empty.
    """
    done = {method: [s.scores().keys() for s in among] for method, among in methods.items()}
    every = set().union(*chain(*done.values()))
    shared = every.intersection(*chain(*done.values()))
    if shared == every:
        return methods, ""
    lacks = {method: max(len(every - keys) for keys in of) for method, of in done.items()}
    lacks = ", ".join(f"{method} {n}" for method, n in lacks.items() if n)
    said = (f"{len(every) - len(shared)} of {len(every)} (task, seed) are left out of all rows, as not every method "
            f"could do them ({lacks}).")
    keep = lambda s: Setting(s.method, s.config, [line for line in s.lines if (line["task"], line["seed"]) in shared])
    return {method: list(map(keep, among)) for method, among in methods.items()} if shared else {}, said


def complete(among):
    """The settings of a method with the most lines; the others gave no result on some tasks."""
    return [s for s in among if len(s.lines) == max(len(s.lines) for s in among)]


def highest(among):
    """The complete setting of the highest mean score; the first of equal ones."""
    return max(complete(among), key=lambda s: s.score)


def varied(setting, among):
    """What tells a setting apart from the others of its method: {name: value}."""
    return {name: value for name, value in setting.config.items() if any(s.config.get(name) != value for s in among)}


def chosen(among, preset):
    """The setting that a preset names, else the last."""
    fits = lambda s: all(s.config.get(name) == value for name, value in preset.items())
    return next(filter(fits, among), among[-1])


def table(rows, header):
    """Rows of strings as a Markdown table, the first column aligned left, the others right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    place = lambda i, cell: cell.rjust(widths[i]) if i else cell.ljust(widths[i])
    line = lambda row: "| " + " | ".join(place(i, cell) for i, cell in enumerate(row)) + " |"
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def shown(number, form):
    """A number in the format `form`; nothing for None."""
    return "" if number is None else f"{number:{form}}"


def difference(a, b):
    """Setting a minus b, with the half width of the 95% interval, as text.

    A width of 0 says that the tasks' differences are all equal, and not that they are certain: so does the text.
    """
    centre, half = a.minus(b)
    return plus_minus(centre, half, "+") + " (all equal)" * (half < 1e-9)


def many(lines, field):
    """How many tasks or seeds (the field) the lines have: '1 task', '2 tasks'."""
    n = len({line[field] for line in lines})
    return f"{n} {field}{'s' * (n != 1)}"


def words(config):
    return " ".join(f"{name}={value}" for name, value in config.items())


def comparable(lines):
    """Return {world: {method: [Setting]}} on what all methods of a world did, and sentences on what is left out.

    The order is that of WORLDS and METHODS, as lines may come in any order. Raises ValueError if nothing is left.
    """
    place = {name: i for i, name in enumerate([*WORLDS, *METHODS, *CEILINGS])}
    lines = sorted(lines, key=lambda line: [place.get(line[name], len(place)) for name in ("world", "method")])
    found = {world: in_common(methods) for world, methods in settings(lines).items()}
    left_out = [f"{world}: {why}" for world, (_, why) in found.items() if why]
    groups = {world: methods for world, (methods, _) in found.items() if methods}
    if not groups:
        raise ValueError(f"there is no task that all methods did, so nothing to compare: {left_out[0]}")
    return groups, left_out


def text(groups, left_out, presets, pairs=()):
    """The report in Markdown: the paper's table, differences to ICL, every setting, and the race between CT-KV and TTT.

    groups, left_out: from comparable(). presets: {world: {method: config}}, the setting of a method that the tables
    show. pairs: [(line, committed line)] of the live runs, those that this job did itself.
    """
    lines = [line for methods in groups.values() for among in methods.values() for s in among for line in s.lines]
    main = {world: {method: chosen(among, presets.get(world, {}).get(method, {})) for method, among in methods.items()}
            for world, methods in groups.items()}
    rows = sorted(dict.fromkeys(line["method"] for line in lines), key=lambda method: method in CEILINGS)
    of_world = {world: [line for line in lines if line["world"] == world] for world in groups}
    scope = "; ".join(f"{world}: {many(here, 'task')}, k = {here[0]['k']}, {many(here, 'seed')}"
                      for world, here in of_world.items())
    parts = [f"{lines[0]['pool'].replace('_', '-')} pool; {scope} of demos; score % ± s.e. over tasks, in brackets "
             "seconds a task", *left_out]
    if pairs:
        parts.append(f"{comparison(pairs)} Of the {len(lines)} runs below {len(pairs)} are live, the others committed: "
                     "the table of all settings says how many, how far off one is, and their seconds.")
    cell = lambda s: s.cell + (f" ({s.seconds:.2f})" if s.config else "")
    cells = lambda method: [cell(of[method]) if method in of else "" for of in main.values()]
    parts.append(table([[method, *cells(method)] for method in rows], ["method", *groups]))
    beside = lambda a, b: [difference(of[a], of[b]) if {a, b} <= of.keys() else "" for of in main.values()]
    others = [method for method in rows if method != "icl"]
    if "icl" in rows and others:
        parts.append(table([[method, *beside(method, "icl")] for method in others], ["minus ICL, 95%", *groups]))
    if differences := [(a, b) for a, b in PAIRS if {a, b} <= set(rows)]:
        parts.append(table([[f"{a} - {b}", *beside(a, b)] for a, b in differences], ["difference, 95%", *groups]))
    header = ["world", "method", "setting", "score % ± s.e.", "s per task", "KL to Bayes", "trained"]
    details = [[world, method, words(varied(s, among)), s.cell, f"{s.seconds:.2f}",
                shown(s.kl, ".3f"), shown(s.mean("n_trained"), ",.0f"), *marks(s, pairs)]
               for world, methods in groups.items() for method, among in methods.items() for s in among]
    parts.append(table(details, header + ["live", "off by", "s live"] * bool(pairs)))
    parts += [f"{world}. {race(main[world]['ct_kv'], methods['ct_kv'], methods['ttt'])}"
              for world, methods in groups.items() if {"ct_kv", "ttt"} <= methods.keys()]
    return "\n\n".join(parts) + "\n"


def marks(setting, pairs):
    """Cells on a setting's live runs: how many of all, the largest distance from a committed score, median seconds."""
    of = [(line, theirs) for line, theirs in pairs if any(line is own for own in setting.lines)]
    if not of:
        return ["", "", ""] if pairs else []
    return [f"{len(of)} of {len(setting.lines)}", f"{max(abs(off(*pair)) for pair in of):.1f}",
            f"{median(line['seconds'] for line, _ in of):.2f}"]


def off(line, partner):
    """Points by which a run's score is above its committed partner's."""
    return 100 * (line["score"] - partner["score"])


def comparison(pairs):
    """Say how many live runs have their committed score, which differs most, and if that is too much for rounding."""
    differ = [pair for pair in pairs if abs(off(*pair)) > 1e-9]
    said = f"{len(pairs) - len(differ)} of {len(pairs)} live runs have the score of their committed line"
    if not differ:
        return said + "."
    line, theirs = max(differ, key=lambda pair: abs(off(*pair)))
    said += (f"; the largest difference is {abs(off(line, theirs)):.1f} points, {line['method']} on {line['task']} of "
             f"{line['world']}, {words(line['config'] | dict(seed=line['seed']))}: {100 * line['score']:.1f}, "
             f"committed {100 * theirs['score']:.1f}")
    share, points = ROUNDING
    if len(differ) <= max(1, share * len(pairs)) and abs(off(line, theirs)) <= points:
        return said + ". Another processor rounds differently, and a run can differ by as much from that alone."
    versions = " and ".join(dict.fromkeys(f"torch {l.get('torch')} on {l.get('device')}" for l in (line, theirs)))
    return (f"WARNING: {said}. That is more than rounding on another processor does ({share:.0%} of runs, {points} "
            f"points): look for another torch or device ({versions}), or for changes in the code of methods, worlds, "
            "model or score.")


def race(main, ours, theirs):
    """Compare CT-KV, at its preset and in all settings, with TTT's best: in points, paired by task, and in seconds."""
    best = max(theirs, key=lambda s: s.score)
    seconds = min((s.seconds for s in ours if s.score >= best.score), default=None)
    said = f"TTT's best is {best.score:.1f}% in {best.seconds:.2f} s. CT-KV as in the first table is "
    times = main.seconds / best.seconds
    said += f"{difference(main, best)} points from it, in {times:.2f} times the seconds; "
    if seconds is None:
        return said + "no setting of CT-KV here reaches it."
    return said + f"CT-KV first reaches it in {seconds:.2f} s, {seconds / best.seconds:.2f} times the seconds."


def report(lines, presets, folder, pairs=()):
    """Print the text, write it to table.md, and draw the figures if settings differ in n_step alone."""
    folder, (groups, left_out) = Path(folder), comparable(lines)
    written = text(groups, left_out, presets, pairs)
    publish(written, folder / "table.md")
    if any(varied(s, of).keys() - {"n_step"} for methods in groups.values() for of in methods.values() for s in of):
        print(f"wrote table.md in {folder}")
        return  # settings that differ in more than steps make no curve
    from nanoct.runs import plots  # matplotlib is slow to import

    plots.accuracy_vs_seconds(groups, folder / "accuracy_vs_seconds.png")
    plots.kl_vs_steps(groups, folder / "kl_vs_steps.png")
    print(f"wrote table.md, accuracy_vs_seconds.png and kl_vs_steps.png in {folder}")
