"""ARC-AGI-1: learn from pairs of coloured grids to predict the output of a new one, every cell right.

    nanoct benchmarks.arc --data F --show 1

A grid is written as text: its shape, such as "3 4", then its rows of digits, one a line. It is encoded cell by cell, so
that every cell is a token of its own in any tokenizer that has the digits. (The text as a whole would merge digits, up
to three in Llama-3's.) x is "input " and a grid; y is "output ", the other grid and one more line break. All demos
(solved pairs) are in the context, and every test grid is a query. It is decided by teacher forcing: the model must
predict each token of y behind the right ones, as greedy decoding would. A query that does not fit 8,192 tokens with its
context is dropped. Files: F/evaluation/<id>.json (F/training for fine-tuning) of {"train": [{"input", "output"}, …],
"test": […]}.
"""

import sys
from pathlib import Path

from nanoct import cli
from nanoct.benchmarks import common
from nanoct.fewshot import Demo, Query, Task
from nanoct.io.files import read_json, reading

K, LENGTH = None, 8192  # all demos
SEEDS = (0,)  # nothing is drawn; the seed is the method's
SIDE = 30  # of the largest grid


def tasks(folder, split="evaluation"):
    """Names of the tasks in a folder. Raises FileNotFoundError if there is none."""
    return [file.stem for file in common.folders(folder, f"{split}/*.json", f"ARC-AGI-1, with {split}/<id>.json")]


def make_task(folder, name, tokenizer, seed=0, k=K, length=LENGTH, limit_queries=None, split="evaluation"):
    """Return the Task and its Counts. Raises FileNotFoundError or ValueError if the file is missing or not as above."""
    file = Path(folder) / split / f"{name}.json"
    given, asked = read(file)
    if k is not None and k > len(given):
        raise ValueError(f"{file} has {len(given)} demos: use --k {len(given)} or less.")
    demos = [Demo(*encode(tokenizer, *pair)) for pair in given[:k]]
    task = Task(name, demos, [], common.bos(tokenizer))
    queries = (Query(*encode(tokenizer, *pair)) for pair in asked)
    return common.fill(task, queries, common.Counts(), length, limit_queries)


def encode(tokenizer, x, y):
    """Return two grids as the token ids of x and y."""
    return encode_grid(tokenizer, "input ", x), encode_grid(tokenizer, "output ", y) + tokenizer.encode("\n")


def encode_grid(tokenizer, name, grid):
    """Token ids of a grid's text, cell by cell."""
    head, end = f"{name}{len(grid)} {len(grid[0])}\n", tokenizer.encode("\n")
    digit = [tokenizer.encode(str(cell)) for cell in range(10)]
    return tokenizer.encode(head) + [i for row in grid for ids in (*(digit[cell] for cell in row), end) for i in ids]


class Training:
    """The training tasks as a world for nanoct.pretrain; every tenth task is kept for validation.

    An episode has all pairs of a task, test pairs included, in random order. Its grids are turned and mirrored in one
    of eight ways, and colours 1 to 9 are permuted (0 is the background).
    """

    k, encode = 2, staticmethod(encode)

    def __init__(self, folder):
        names = tasks(folder, "training")
        parts = {name: read(Path(folder) / "training" / f"{name}.json") for name in names}
        self.tasks = {name: [*demos, *tests] for name, (demos, tests) in parts.items()}
        self.pools = dict(train=[n for i, n in enumerate(names) if i % 10 or len(names) < 10], validation=names[::10])

    def episode(self, rng, pool):
        """Return the pairs of a random task of a pool, changed as said above."""
        pairs = list(self.tasks[rng.choice(self.pools[pool])])
        rng.shuffle(pairs)
        n_turn, mirrored, colours = rng.randrange(4), rng.random() < 0.5, [0, *rng.sample(range(1, 10), 9)]

        def changed(grid):
            for _ in range(n_turn):
                grid = list(zip(*grid[::-1]))
            return [[colours[cell] for cell in (row[::-1] if mirrored else row)] for row in grid]

        return [(changed(x), changed(y)) for x, y in pairs]


def read(file):
    """Return the demos and the tests of a file as pairs of grids."""
    with reading(common.there(file), "a task of ARC-AGI-1"):
        data, pairs = read_json(file), {}
        for part in "train", "test":
            pairs[part] = [(pair["input"], pair["output"]) for pair in data[part]]
            if not pairs[part]:
                raise ValueError(f"it has no {part} pairs")
            for n, pair in enumerate(pairs[part]):
                if not all(map(is_grid, pair)):
                    raise ValueError(f"{part} pair {n} is not two grids, 1 to {SIDE} rows of one length of colours 0 "
                                     "to 9")
    return pairs["train"], pairs["test"]


def is_grid(rows):
    """Whether `rows` is a grid: 1 to SIDE lists of one length, 1 to SIDE, of colours 0 to 9."""
    if not 1 <= len(rows) <= SIDE or not 1 <= len(rows[0]) <= SIDE or any(len(row) != len(rows[0]) for row in rows):
        return False
    return all(type(cell) is int and 0 <= cell <= 9 for row in rows for cell in row)


if __name__ == "__main__":
    cli.run(lambda: common.main(sys.modules[__name__]))
