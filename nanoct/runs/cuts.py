"""What a tuned cache bears, as a study: the rows of --cuts, and their table. What is done to a cache is in caches.py.

    python -m nanoct.reproduce --cuts --world strings --tasks 24
    python -m nanoct.paper --model weights/smollm2 --benchmark words --cuts

Rows: the first entry frozen in training; another task's tuned context alone; and the caches of CT-KV and of ICL, each
with another task's before and behind it, and cut to shares of its entries: those with the most attention, with and
without new values, and random ones with new values, as a control.
"""

import itertools
from dataclasses import asdict, fields
from pathlib import Path

from nanoct.io.files import publish
from nanoct.methods import ct_kv
from nanoct.runs import ablations
from nanoct.runs.caches import NAME, Config
from nanoct.runs.stats import Setting, average, difference, plus_minus
from nanoct.runs.table import one_benchmark, seeds_of_demos, table, tasks_a_world

KEEP = (0.5, 0.25, 0.1)  # shares of the entries
HOW = {"by attention": {}, "by attention, values as they were": dict(refit=False), "at random": dict(choose="random")}
PLACES = "before", "behind"  # where another task's context stands
ALONE = "another task's context alone"


def rows(chosen):
    """{row of the table: (method, config, the row that it is compared with)}. chosen: CT-KV's settings."""
    full = asdict(Config(**chosen))
    frozen = asdict(ablations.Config(**chosen, freeze_first=True))
    found = {"CT-KV": (NAME, full, None), "first entry frozen": (ablations.NAME, frozen, "CT-KV")}
    found[ALONE] = NAME, full | dict(beside="alone"), "CT-KV"
    found["ICL"] = NAME, full | dict(n_step=0), "CT-KV"
    for whole in "CT-KV", "ICL":
        config = found[whole][1]
        for keep in KEEP:
            for how, change in HOW.items():
                found[f"{whole}, {keep:.0%} {how}"] = NAME, config | dict(keep=keep) | change, whole
        for place in PLACES:
            found[f"{whole}, another task's {place} it"] = NAME, config | dict(beside=place), whole
    return found


def variants(k, chosen, wrong=None):
    """(method, config, k, share of wrong labels) of every run on a task. chosen: CT-KV's settings in this world."""
    return [(method, config, k, wrong) for method, config, _ in rows(chosen).values()]


def groups(lines):
    """{world: ({row: Setting}, {row: the Setting that it is compared with})}."""
    found = {}
    for world in dict.fromkeys(line["world"] for line in lines):
        here = [line for line in lines if line["world"] == world]
        full = next(line["config"] for line in here if line["method"] == NAME and line["config"]["n_step"])
        named, against = rows({f.name: full[f.name] for f in fields(ct_kv.Config)}), {}
        settings = {row: Setting(method, config, [line for line in here if (line["method"], line["config"])
                                                  == (method, config)]) for row, (method, config, _) in named.items()}
        for row, (*_, whole) in named.items():
            against[row] = settings.get(whole)
        found[world] = settings, against
    return found


def text(lines, model=None):
    """The table in Markdown. model: of a public benchmark."""
    by_world, cells = groups(lines), []
    for row in rows({}):
        cells.append([row])
        for settings, against in by_world.values():
            minus = f" ({difference(settings[row], against[row])})" if against[row] else ""
            cells[-1].append(settings[row].cell + minus)
    for whole, place in itertools.product(("CT-KV", "ICL"), PLACES):
        row = f"{whole}, another task's {place} it"
        cells.append([f"{row}: answered as that alone"])
        for settings, _ in by_world.values():
            shares = {(line["task"], line["seed"]): 100 * line["as_other"] for line in settings[row].lines
                      if "as_other" in line}
            cells[-1].append(plus_minus(*average(shares)) if shares else "")
    head = f"{one_benchmark(lines, model)}, {seeds_of_demos(lines)}" if model else tasks_a_world(lines)
    said = "score % ± s.e. over tasks, in brackets minus CT-KV, or what is cut minus the whole, paired, 95%"
    return f"{head}; {said}\n\n{table(cells, ['', *by_world])}\n"


def report(lines, folder, model=None):
    """Print the table and write it to cuts.md."""
    publish(text(lines, model), Path(folder) / "cuts.md")
