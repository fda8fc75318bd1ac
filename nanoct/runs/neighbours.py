"""The map of in-context optimisation: ICL, CT-KV and its nine neighbours, from the lines of several jobs.

    nanoct neighbours weights/nano/results/full.jsonl weights/map/results.jsonl --out weights/map

Each method stands at its chosen setting. Differences are paired by task and seed, so where two methods have other
seeds, they are over the runs that both have. The figure has the methods that share CT-KV's start and loss: they differ
in nothing but the numbers that are trained, so it shows what it costs to train fewer.
"""

from pathlib import Path
from statistics import mean

from nanoct import cli
from nanoct.benchmarks.nano import read_settings
from nanoct.benchmarks.presets import SETTINGS
from nanoct.io.files import publish
from nanoct.methods import MAP
from nanoct.runs.report import presets_of
from nanoct.runs.results import read
from nanoct.runs.stats import difference, settings
from nanoct.runs.table import many, table

ALIKE = "anchors", "ia3", "ct_kv", "qttt"  # the same start, ICL's cache, and the same leave-one-out loss
ROWS = "icl", "ct_kv", *MAP


def at_presets(lines):
    """{world: {method: Setting}} of the methods in ROWS at their chosen settings. Raises ValueError without any."""
    groups, presets = settings([line for line in lines if line["method"] in ROWS]), SETTINGS | read_settings()
    if not groups:
        raise ValueError(f"no line is of {', '.join(ROWS)}.")
    return {world: presets_of(methods, presets.get(world, {})) for world, methods in groups.items()}


def text(main):
    """Four tables in Markdown with a column for each world: score, minus ICL, minus CT-KV, and numbers trained."""
    def rows(cell):
        found = []
        for method in ROWS:
            cells = [cell(of_world[method], of_world) if method in of_world else "" for of_world in main.values()]
            if any(cells):
                found.append([method, *cells])
        return found

    def minus(other):
        return lambda setting, of_world: "" if setting.method == other or other not in of_world else difference(
            setting, of_world[other])

    def score(setting, of_world):
        longest = max((each.lines for each in of_world.values()), key=len)
        fewer = [many(setting.lines, of) for of in ("task", "seed") if many(setting.lines, of) != many(longest, of)]
        return setting.cell + (f" ({', '.join(fewer)})" if fewer else "")

    def trained(setting, of_world):
        return f"{setting.over_lines('n_trained', mean) or 0:,.0f}"

    heads = []
    for world, of_world in main.items():
        most = max(of_world.values(), key=lambda setting: len(setting.lines))
        heads.append(f"{world}: {many(most.lines, 'task')}, k = {most.lines[0]['k']}, {many(most.lines, 'seed')}")
    head = f"{'; '.join(heads)} of demos, fewer where a row says so; score % ± s.e. over tasks"
    kinds = {"score": score, "minus ICL, 95%": minus("icl"), "minus CT-KV, 95%": minus("ct_kv"),
             "numbers trained": trained}
    return "\n\n".join([head, *(table(rows(cell), [name, *main]) for name, cell in kinds.items())]) + "\n"


def main():
    p = cli.Parser(prog="nanoct neighbours", description=__doc__)
    p.add_argument("files", nargs="+", help="lines of results, as reproduce and paper write them")
    p.add_argument("--out", default="results/map", type=Path, help="folder of table.md and map.png")
    args = p.parse_args()
    of_worlds = at_presets([line for file in args.files for line in read(file)])
    args.out.mkdir(parents=True, exist_ok=True)
    publish(text(of_worlds), args.out / "table.md")

    from nanoct.runs import plots  # matplotlib is slow to import

    plots.trained(of_worlds, ALIKE, args.out / "map.png")


if __name__ == "__main__":
    cli.run(main)
