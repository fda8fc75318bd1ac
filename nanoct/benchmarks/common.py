"""What the readers of public benchmarks share: reading files, the limit on length, and showing tasks.

A demo is a solved example in the context. A query is a question; its row, x and y, follows the context. A benchmark is
a module with K (demos a task), SEEDS, LENGTH (the most tokens of context and row) and

    tasks(folder)                                                          names of the tasks in a folder
    make_task(folder, name, tokenizer, seed, k, length, limit_queries)     a Task, Counts of what was left out
    pools(folder)                          {"validation" | "test": names of tasks}; without it, all tasks are "test"
"""

import random
from dataclasses import dataclass, fields
from pathlib import Path

from nanoct import cli
from nanoct.io.files import as_text, read_bytes
from nanoct.io.tokenizer import load_tokenizer


@dataclass
class Counts:
    demos: int = 0
    queries: int = 0  # queries that are asked
    dropped: int = 0  # queries that are too long behind the demos
    cut: int = 0  # inputs of demos and queries that were shortened
    given_up: int = 0  # tasks whose last queries were not looked at: too many in a row had been too long
    repeats: int = 0  # queries whose input is that of a demo, word for word; they are asked like all others

    def __add__(self, other):
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __str__(self):
        text = f"{self.demos} demos, {self.queries} queries, {self.dropped} too long, {self.cut} inputs cut"
        text += f", {self.repeats} that repeat a demo's input" if self.repeats else ""
        return text + (f", given up: {self.given_up}" if self.given_up else "")


def folders(folder, pattern, what):
    """Return the files of a folder that match a pattern, sorted. Raises FileNotFoundError if there is none."""
    if not (files := sorted(Path(folder).glob(pattern))):
        raise FileNotFoundError(f"{folder} holds no {pattern}: --data takes the folder of {what}.")
    return files


def there(file):
    """Return the file. Raises FileNotFoundError if it does not exist, ValueError if it is empty."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}: fetch the data again, or take other --tasks or --seeds.")
    if not file.stat().st_size:
        raise ValueError(f"{file} is empty: fetch it again.")
    return file


def read(file):
    """Return the text of a file. Raises FileNotFoundError without a file, ValueError if it is empty or not UTF-8."""
    text = as_text(read_bytes(there(file)), file)
    if not text.strip():
        raise ValueError(f"{file} is empty: fetch it again.")
    is_of_windows = text.count("\r\n") == text.count("\n")  # then a line break within a cell was converted too
    return text.replace("\r\n", "\n") if is_of_windows else text


def draw(items, k, seed, where):
    """Draw k demos by seed; return them and the other items in order. Raises ValueError if there are k or fewer."""
    if len(items) <= k:
        raise ValueError(f"{where} has {len(items)} examples, too few for k = {k} demos and a query: use a lower --k.")
    demos = random.Random(seed).sample(range(len(items)), k)
    return [items[i] for i in demos], [item for i, item in enumerate(items) if i not in set(demos)]


def bos(tokenizer):
    """Return [beginning-of-sequence token] for the instruction, or [] if the model's own tokenizer adds none."""
    return [tokenizer.bos_id] if tokenizer.adds_bos else []


def fill(task, queries, counts, length, limit=None, patience=None):
    """Add to a task the queries that fit into `length` tokens with its context, even with their longest option.

    Returns the task and its Counts. limit: how many queries to keep. patience: how many may be too long in a row
    before the rest is given up.
    """
    between = len(task.separator) * (len(task.demos) - 1)
    context = len(task.instruction) + sum(len(d.x) + len(d.y) for d in task.demos) + between
    counts.demos, in_row = len(task.demos), 0
    for query in queries:
        if len(task.queries) == limit:
            break
        longest = max(map(len, query.options or [query.y]))
        if context + len(task.separator) + len(query.x) + longest <= length:
            task.queries.append(query)
            in_row = 0
            continue
        counts.dropped += 1
        in_row += 1
        if in_row == patience:
            counts.given_up = 1
            break
    counts.queries, counts.repeats = len(task.queries), n_repeat(task)
    return task, counts


def n_repeat(task):
    """How many queries have the input of a demo."""
    given = {tuple(demo.x) for demo in task.demos}
    return sum(tuple(query.x) in given for query in task.queries)


def show(task, tokenizer, n):
    """Print a task as the model will see it: the instruction, then x and y of the demos and of n queries."""
    text = lambda ids: repr(tokenizer.decode(ids))
    print(f"\n{task.name}: {len(task.demos)} demos, {len(task.queries)} queries, metric {task.metric}")
    print(f"  instruction {text(task.instruction)}   before every pair but the first of the context "
          f"{text(task.separator)}")
    for mark, pair in [(" ", demo) for demo in task.demos] + [("?", query) for query in task.queries[:n]]:
        options = getattr(pair, "options", None)
        among = f"   of {', '.join(map(text, options))}" if options else ""
        print(f"{mark} x {text(pair.x)}\n  y {text(pair.y)}{among}")


def main(benchmark):
    """The command line of a benchmark's module."""
    name = benchmark.__spec__.name if benchmark.__spec__ else benchmark.__name__
    p = cli.Parser(prog=name, description=benchmark.__doc__)
    packaged = getattr(benchmark, "PACKAGED", None)  # the name of the files that come with nanoct
    p.add_argument("--data", required=packaged is None, default=packaged, help="folder of the benchmark's files")
    p.add_argument("--model", help="folder or hub name whose tokenizer is used; default: UTF-8 bytes as tokens")
    p.add_argument("--tasks", nargs="+", help="names; default: all in the folder")
    p.add_argument("--seed", type=int, default=benchmark.SEEDS[0], help="seed that draws the demos")
    p.add_argument("--k", type=int, default=benchmark.K, help="demos a task; default: the paper's")
    p.add_argument("--length", type=int, default=benchmark.LENGTH,
                   help="tokens of context and row; default: the paper's")
    p.add_argument("--show", type=int, metavar="N", help="print N tasks as the model will see them, 2 queries each")
    args = p.parse_args()
    cli.at_least_one(args, "k", "length", "show")
    if args.model:
        from nanoct.io.weights import fetch  # only here

        args.model = fetch(args.model, weights=False)
    there = benchmark.tasks(args.data)
    tokenizer = load_tokenizer(args.model or "bytes")
    names, total = list(dict.fromkeys(args.tasks or there)), Counts()
    check_names(names, there, args.data)
    if args.show is not None:
        names = names[: args.show]
    for name in names:
        task, counts = benchmark.make_task(args.data, name, tokenizer, args.seed, args.k, args.length)
        if args.show is not None:
            show(task, tokenizer, 2)
        print(f"{name:40} {counts}")
        total += counts
    print(f"{f'{len(names)} of {len(there)} tasks':40} {total}")


def pick(benchmark, name, folder, tasks=None, pool=None, to_choose=False):
    """The pool and the tasks that options ask for. name: the benchmark's; to_choose: whether settings are chosen.

    Settings are chosen on a validation pool, where there is one, and never on the tasks that are reported. Raises
    ValueError if there are no such tasks, or they are of two pools.
    """
    pools = benchmark.pools(folder) if hasattr(benchmark, "pools") else {"test": benchmark.tasks(folder)}
    pool_of = {task: pool for pool, names in pools.items() for task in names}
    names, has_own = list(dict.fromkeys(tasks or ())), bool(pools.get("validation"))
    check_names(names, list(pool_of), folder)
    if to_choose and not names and not has_own:
        raise ValueError(f"--sweep: {name} in {folder} has no validation pool: name the --tasks to choose on.")
    pool = pool or (pool_of[names[0]] if names else "validation" if to_choose else "test")
    if to_choose and has_own and pool != "validation":
        raise ValueError(f"--sweep chooses on the validation pool, and {names[0] if names else '--pool test'} is of "
                         "the pool that is reported: leave it out.")
    if others := [task for task in names if pool_of[task] != pool]:
        raise ValueError(f"--tasks: {others[0]!r} is of the {pool_of[others[0]]} pool and not of the {pool} pool: give "
                         "the tasks of one pool.")
    if not pools.get(pool):
        raise ValueError(f"--pool {pool}: {name} in {folder} has no such pool.")
    return pool, names or pools[pool]


def check_names(names, there, folder):
    """Raise ValueError if one of the names is not in `there`."""
    if unknown := [name for name in names if name not in there]:
        raise ValueError(f"--tasks: {unknown[0]!r} is not in {folder}, which has {', '.join(there[:5])}"
                         + (f" and {len(there) - 5} more." if len(there) > 5 else "."))
