"""Choose the settings of every tuned method on validation tasks, which are neither trained on nor reported.

    python -m nanoct.reproduce --sweep

Each method starts with all combinations of the values in its SWEEP, the same number for all methods. The best setting
has the highest mean over tasks. Its neighbours in lr and n_step are tried next, and so on, until all neighbours of the
best are tried. A grid is extended by at most EXTEND values to each side, in its own ratio. More steps than the grid
has are tried only where the last ones paid: where the best setting beats the best one of fewer steps by more than a
tie. TTT+CT-KV keeps the settings chosen for TTT, as in the paper; only its CT-KV part is swept.
"""

import json
import math
from dataclasses import fields
from itertools import product
from pathlib import Path

from nanoct import cli
from nanoct.io.files import publish, replace_file
from nanoct.methods import KNOWN
from nanoct.runs.results import distinct
from nanoct.runs.stats import complete, difference, highest, settings, varied
from nanoct.runs.table import many, named_values, one_benchmark, seeds_of_demos, table

N_TASK = 16  # of the validation pool of each world; a pool with fewer has several seeds of each task
EXTEND = dict(lr=3, n_step=1)  # more steps cost more
CURVES = "ct_kv", "ttt"  # the methods that reproduce runs at several numbers of steps
AFTER = {"ttt_ct_kv": "ttt"}  # {method: the method whose chosen settings it takes}


def n_seed(world, n_task, n_pool):
    """How many seeds each task of a world gets: where its pool is small, more make as many runs of each setting."""
    n = math.ceil(N_TASK / n_task) if n_task == n_pool else 1
    if n > 1:
        print(f"{world}: the validation pool has {n_task} tasks, fewer than {N_TASK}: each gets {n} seeds.")
    return n


def grid(method, overridden, chosen):
    """The configs that a method starts with. chosen: {method: config} of this world; overridden: {field: [texts]}."""
    first, names, values = AFTER.get(method), {f.name for f in fields(KNOWN[method].Config)}, {}
    for name, value in chosen.get(first, {}).items():
        longer = f"{first}_{name}"
        values[longer if longer in names else name] = [value]
    values |= getattr(KNOWN[method], "SWEEP", {})
    return distinct(cli.configs(method, KNOWN[method].Config, values, overridden))


def choose(lines):
    """{world: {method: config}} of the highest mean score. If equal, fewer steps win, then the lower lr."""
    best = {}
    for world, methods in settings(lines).items():
        best[world] = {method: highest(among).config for method, among in methods.items() if among[0].config}
    return best


def curves(lines):
    """{world: {method: configs}} of CURVES: at each number of steps of the grid the config of the highest mean score.

    So that CT-KV and TTT are compared at equal seconds, each number of steps has a rate of its own: the rate that is
    best for many steps is too low for few.
    """
    best = {}
    for world, methods in settings(lines).items():
        for method in CURVES:
            for n_step in KNOWN[method].SWEEP["n_step"]:
                if among := [setting for setting in methods.get(method, ()) if setting.config["n_step"] == n_step]:
                    best.setdefault(world, {}).setdefault(method, []).append(highest(among).config)
    return best


def paid(among):
    """Whether steps paid: the best setting minus the best one of fewer steps has a 95% interval above 0."""
    best = highest(among)
    n_step = best.config.get("n_step", 0)
    fewer = [setting for setting in complete(among) if setting.config.get("n_step", 0) < n_step]
    centre, half = best.minus(highest(fewer)) if fewer else (0, 0)
    return centre > half


def neighbours(best, tried, start, longer=True):
    """The configs next to the best in lr or n_step that were not tried yet.

    start: the configs tried first. longer: whether the grid may be extended to more steps.
    """
    found = []
    for (name, most), end in product(EXTEND.items(), (max, min)):
        axis = sorted({config[name] for config in tried if name in config}, reverse=end is min)  # outwards
        if len(axis) < 2 or min(axis) <= 0:
            continue  # not swept, or without a ratio
        n_added = len(axis) - 1 - axis.index(end(config[name] for config in start))
        if axis[-1] == best[name] and n_added < most and (longer or (name, end) != ("n_step", max)):
            axis.append(beyond(axis))
        if best[name] != axis[-1]:
            found.append(best | {name: axis[axis.index(best[name]) + 1]})
    return [config for config in found if config not in tried]


def beyond(values):
    """The next value of a grid, in its ratio: after 1, 3, 10 comes 30. Steps are whole numbers from 1 on."""
    found = values[-1] * values[-2] / values[-3] if len(values) > 2 else values[-1] ** 2 / values[-2]
    return max(1, round(found)) if isinstance(values[-1], int) else float(f"{found:.2g}")


def search(worlds, methods, overridden, presets, do):
    """Run the sweep: all its lines, and {(world, method): the configs it started with}.

    do({(world, method): configs}) -> lines. overridden: {method: {field: [texts]}}. presets: {world: {method: config}},
    for a method that is part of another one and is not swept itself.
    """
    for method in methods:
        if fields(KNOWN[method].Config) and not hasattr(KNOWN[method], "SWEEP"):
            print(f"{method} has no SWEEP, the values worth trying: it runs at its defaults.")
    start, tried, lines = {}, {}, []
    for is_after in (False, True):
        best, todo = choose(lines), {}
        for world, method in product(worlds, methods):
            if (method in AFTER) == is_after:
                chosen = presets.get(world, {}) | best.get(world, {})
                todo[world, method] = grid(method, overridden.get(method, {}), chosen)
        start |= todo
        while todo:
            for pair, configs in todo.items():
                tried[pair] = tried.get(pair, []) + configs
            lines += do(todo)
            best, groups, following = choose(lines), settings(lines), {}
            for world, method in todo:
                if method not in best.get(world, {}):
                    continue
                more = neighbours(best[world][method], tried[world, method], start[world, method],
                                  paid(groups[world][method]))
                if more:
                    following[world, method] = more
            todo = following
    return lines, start


def text(lines, start):
    """All settings of the worlds in Markdown, one table a world, each with its paired difference to the chosen one."""
    groups, scopes = settings(lines), []
    for world in groups:
        here = [line for line in lines if line["world"] == world]
        scopes.append(f"{world}: {many(here, 'task')}, {many(here, 'seed')}")
    parts = [f"validation pool; {'; '.join(scopes)}. The chosen setting is bold, the highest mean. The difference to "
             "it is paired by task, with its 95% interval; a tie is one whose interval holds 0. Added are neighbours "
             f"of what was best; methods had up to {max(map(len, start.values()))} settings before."]
    for world, methods in groups.items():
        rows, at_edge = [], []
        for method, among in methods.items():
            best = highest(among)
            for setting in among:
                cells, marks = [named_values(varied(setting, among)), setting.cell], []
                if setting is best and setting.config:
                    cells = [f"**{cell}**" for cell in cells]
                if is_tie(setting, best):
                    marks.append("tie")
                if setting.config not in start[world, method]:
                    marks.append("added")
                rows.append([method, *cells, minus_best(setting, best), ", ".join(marks)])
            at_edge += [f"{method} {name}={best.config[name]}" for name in edges(best, among)]
        parts.append(table(rows, [world, "setting", "score % ± s.e.", "minus the chosen", ""]))
        if at_edge:
            parts.append(f"{world}: at the edge still, as a grid is extended so far and no farther, and to more steps "
                         f"only where steps paid: {', '.join(at_edge)}.")
    return "\n\n".join(parts) + "\n"


def minus_best(setting, best):
    """The difference to the best setting as text; nothing for the best itself."""
    return "" if setting is best else difference(setting, best)


def is_tie(setting, best):
    """Whether a setting with as many lines as the best has an interval of the difference that holds 0."""
    if setting is best or len(setting.lines) < len(best.lines):
        return False
    centre, half = setting.minus(best)
    return abs(centre) <= half


def edges(best, among):
    """The names of EXTEND in which the settings vary and the best has the lowest or highest value of all."""
    names = []
    for name in EXTEND:
        if name in varied(best, among):
            values = [setting.config[name] for setting in among]
            if best.config[name] in (min(values), max(values)):
                names.append(name)
    return names


def report_public(lines, model, n_asked, folder):
    """Print all settings on one benchmark, and write them to sweep.md. n_asked: runs of each that were asked for."""
    rows, (methods,) = [], settings(lines).values()
    for method, among in methods.items():
        best = highest(among)  # never one that gave no result on some tasks
        for setting in among:
            is_chosen = setting is best and len(among) > 1
            rows.append([method, named_values(varied(setting, among)), f"{len(setting.lines)} of {n_asked}",
                         setting.cell, "best" if is_chosen else minus_best(setting, best), f"{setting.seconds:.1f}"])
    header = ["method", "setting", "runs", "score % ± s.e.", "minus the best, 95%", "s to adapt"]
    head = f"{one_benchmark(lines, model)}, {seeds_of_demos(lines)}; differences are over the runs that both have"
    publish(f"{head}\n\n{table(rows, header)}\n", folder / "sweep.md")


def report(lines, start, folder):
    """Write what was chosen to settings.json and curves.json; print the text and write it to sweep.md."""
    written = text(lines, start)
    publish(written, Path(folder) / "sweep.md")
    for name, found in (("settings", choose(lines)), ("curves", curves(lines))):
        replace_file(Path(folder) / f"{name}.json", (json.dumps(found, indent=1) + "\n").encode())
    print(f"wrote sweep.md, settings.json and curves.json in {folder}")
