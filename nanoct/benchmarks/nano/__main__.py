"""Look at tasks of a built-in world.

    nanoct benchmarks.nano --world facts --pool train           # names of the tasks of a pool
    nanoct benchmarks.nano --world grids --show 2               # two tasks, in colour if this is a terminal
    nanoct benchmarks.nano --world grids --show 2 --picture grids.png

Demos (solved examples) come first. A "?" marks a query, with its answer and its options. NO_COLOR=1 prints digits.
"""

import os
import sys
from textwrap import fill

from nanoct import cli
from nanoct.benchmarks.nano import WORLDS, grids, lexicon

N_QUERY = 3


def one_line(x, y, options=None):
    """An example of words or letters."""
    return f"{x.strip()} → {y.strip()}" + (f"   (of{','.join(options)})" if options else "")


def side_by_side(x, y, cell):
    """Lines that show two grids and an arrow between; cell(colour) is two characters wide."""
    a, b = grids.read(x), grids.read(y)
    row = lambda g, i: "".join(map(cell, g[i])) if i < len(g) else "  " * len(g[0])
    arrow = lambda i: " →  " if i == (len(a) - 1) // 2 else "    "
    return [(row(a, i) + arrow(i) + row(b, i)).rstrip() for i in range(max(len(a), len(b)))]


def painted(colour):
    """A cell for a terminal: two spaces on a 24-bit background."""
    return "\x1b[48;2;{};{};{}m  \x1b[0m".format(*bytes.fromhex(grids.PALETTE[int(colour)][1:]))


def show(world, name, demos, queries, colour):
    """Print a task for people."""
    print(f"\n{name}")
    if world == "lexicon":
        (one, other), (words, others) = queries[0][2], lexicon.classes(name)
        listed = f"{other} has {len(others)} words,{one} these:{''.join(sorted(words))}"
        print(fill(listed.strip(), 100, initial_indent="  ", subsequent_indent="  "))
    gap = "\n" if world == "grids" else ""
    for mark, (x, y, *options) in [(" ", demo) for demo in demos] + [("?", query) for query in queries]:
        lines = side_by_side(x, y, painted if colour else "{} ".format) if gap else [one_line(x, y, *options)]
        print(f"{gap}{mark} " + "\n  ".join(lines))


def main():
    p = cli.Parser(prog="nanoct benchmarks.nano", description=__doc__)
    p.add_argument("--world", choices=list(WORLDS), default="strings")
    p.add_argument("--pool", choices=("held_out", "validation", "train"), default="held_out")
    p.add_argument("--show", type=int, metavar="N", help="print N tasks instead of all names")
    p.add_argument("--picture", metavar="FILE.png", help="also draw the shown grids, with one query each")
    p.add_argument("--k", type=int, help="demos a task; default: the world's")
    p.add_argument("--seed", type=int, default=0, help="seed that draws the demos")
    args = p.parse_args()
    world = WORLDS[args.world]
    pool, k = world.pools()[args.pool], world.k if args.k is None else args.k
    if args.show is not None and not 1 <= args.show <= len(pool):
        raise ValueError(f"--show is {args.show}: the pool {args.pool} of {args.world} has 1 to {len(pool)} tasks to "
                         "show.")
    if k < 1:
        raise ValueError(f"--k is {k}: a task has at least one demo.")
    if args.picture and (args.world != "grids" or args.show is None):
        raise ValueError("--picture draws the grids that are shown: it goes with --world grids --show N.")
    tasks = {name: world.examples(name, args.seed, k, N_QUERY) for name in pool[: args.show or 0]}
    print(f"{args.world}, {args.pool}: {len(pool)} tasks, distinct as functions")
    if not tasks:
        print("\n".join(pool))
    for name, (demos, queries) in tasks.items():
        show(args.world, name, demos, queries, sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    if args.picture:
        from nanoct.runs import plots  # matplotlib takes a second

        pairs = lambda demos, queries: [(grids.read(x), grids.read(y)) for x, y, *_ in (*demos, queries[0])]
        plots.grids({name: pairs(*task) for name, task in tasks.items()}, args.picture)
        print(f"\ndrawn in {args.picture}")


if __name__ == "__main__":
    cli.run(main)
