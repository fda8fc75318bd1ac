"""Print method A minus method B, paired by task and seed, for every two of their settings in a file of results.

    nanoct minus weights/nano/results/full.jsonl ct_kv ttt
    nanoct minus weights/smollm2/results/results.jsonl ct_prompt ct_kv --tasks capital plural

± is the half width of the 95% interval over tasks. What only one of the two has done is left out, and the number of
tasks stands beside each difference.
"""

from nanoct import cli
from nanoct.runs.results import read
from nanoct.runs.stats import Setting, difference, settings, varied
from nanoct.runs.table import named_values, table


def rows(groups, a, b):
    """Rows of the table, from settings() of some lines. Raises ValueError if no world has both methods on one task."""
    found = []
    for world, methods in groups.items():
        for ours in methods.get(a, ()):
            for theirs in methods.get(b, ()):
                shared = ours.scores().keys() & theirs.scores().keys()
                if shared and ours.config | dict(method=a) != theirs.config | dict(method=b):
                    found.append([world, said(ours, methods[a]), said(theirs, methods[b]),
                                  str(len({task for task, _ in shared})), difference(ours, theirs)])
    if not found:
        raise ValueError(f"no task has a line of {a} and one of {b}: the file has "
                         f"{', '.join(dict.fromkeys(name for methods in groups.values() for name in methods))}.")
    return found


def said(setting: Setting, among):
    """A setting's method, with the values in which it differs from the others and its median seconds."""
    return f"{setting.method} {named_values(varied(setting, among))}".strip() + f", {setting.seconds:.2f} s"


def main():
    p = cli.Parser(prog="nanoct minus", description=__doc__)
    p.add_argument("file", help="lines of results, as reproduce and paper write them")
    p.add_argument("a", metavar="A", help="a method")
    p.add_argument("b", metavar="B", help="the method to take away")
    p.add_argument("--tasks", nargs="+", help="default: all")
    args = p.parse_args()
    lines = read(args.file)
    if args.tasks:
        lines = [line for line in lines if line["task"] in args.tasks]
    print(table(rows(settings(lines), args.a, args.b), ["world", "A", "B", "tasks", "A - B, 95%"]))


if __name__ == "__main__":
    cli.run(main)
