"""MMLU: 57 subjects; choose which of four answers follows a question. The model is not shown the options.

    nanoct benchmarks.mmlu --data F --show 2

A context is x₁ \\n y₁ \\n x₂ \\n y₂ …: x is a question, y the text of its right answer. A row, one question with one
option, begins with the line break too. So the loss is over the text of the option alone, and the option with the lowest
mean token loss is the answer. 16 demos (solved examples) are drawn by seed from the test file itself; all its other
questions are queries. A query is dropped if the context and a row, with any option, exceed 4,096 tokens (our choice:
NLP-LR's rule). Files: F/test/<subject>_test.csv without a header: question, A, B, C, D, letter of the answer.
"""

import csv
import io
import sys
from pathlib import Path

from nanoct import cli
from nanoct.benchmarks import common
from nanoct.fewshot import Demo, Query, Task
from nanoct.io.files import reading

K, LENGTH = 16, 4096
SEEDS = (42, 43, 44, 45, 46)


def tasks(folder):
    """Names of the subjects in a folder. Raises FileNotFoundError if there is none."""
    files = common.folders(folder, "test/*_test.csv", "MMLU, with test/<subject>_test.csv")
    return [file.name.removesuffix("_test.csv") for file in files]


def make_task(folder, name, tokenizer, seed, k=K, length=LENGTH, limit_queries=None):
    """Return the Task and its Counts. Raises FileNotFoundError or ValueError if the file is missing or not as above."""
    file = Path(folder) / "test" / f"{name}_test.csv"
    given, asked = common.draw(read(file), k, seed, file)
    x = lambda row: tokenizer.encode(row[0] + "\n")
    options = lambda row: [tokenizer.encode(option) for option in row[1:5]]
    answer = lambda row: options(row)["ABCD".index(row[5])]
    demos = [Demo(x(row), answer(row)) for row in given]
    task = Task(name, demos, [], common.bos(tokenizer), "accuracy", separator=tokenizer.encode("\n"))
    queries = (Query(x(row), answer(row), options(row)) for row in asked)
    return common.fill(task, queries, common.Counts(), length, limit_queries)


def read(file):
    """Return the rows of a file: question, four options, letter. Empty lines at the end are ignored."""
    with reading(file, "a CSV of MMLU, question, A, B, C, D, letter, without a header"):
        rows = list(csv.reader(io.StringIO(common.read(file))))
        while not any(cell.strip() for cell in rows[-1]):
            rows.pop()
        for n, row in enumerate(rows, 1):
            if len(row) != 6 or row[5] not in tuple("ABCD") or not all(row):
                raise ValueError(f"row {n} is {', '.join(row)[:60]!r}")
    return rows


if __name__ == "__main__":
    cli.run(lambda: common.main(sys.modules[__name__]))
