"""NLP-LR: the 26 low-resource tasks of MetaICL's hr→lr split, in the format of the authors' code.

    nanoct benchmarks.nlp_lr --data F --show 2

A context is x₁ ␣ y₁ ␣ x₂ ␣ y₂ …: inputs and outputs are tokenised apart, with one space token between all parts. Every
row that is trained or asked begins with the space too. There is no beginning-of-sequence token and no terminator. An
input keeps its first 256 - n tokens, where n counts the tokens of its output, or of the longest option in a query; from
n = 256 on it keeps none. Demos (solved examples) are never dropped from the context. A query is dropped if the context
and it, with any of its options, exceed 1,024 tokens. After 100 such queries in a row the task ends; the queries kept so
far count. The option with the lowest mean token loss is the answer.

A pair that exceeds 1,024 tokens behind the context is not trained on. One thing is not as in the release: the release
shuffles the queries before it counts 100 in a row; here they keep the order of the file.

Files: F/<task>/<task>_16_<seed>_{train,test}.jsonl, lines of {"task", "input", "output", "options"}.
"""

import sys
from pathlib import Path

from nanoct import cli
from nanoct.benchmarks import common
from nanoct.fewshot import Demo, Query, Task
from nanoct.io.files import read_json_lines, reading

K, LENGTH, LONGEST, PATIENCE = 16, 1024, 256, 100
SEEDS = (13, 21, 42, 87, 100)
CLASSIFICATION = """financial_phrasebank glue-mrpc sick medical_questions_pairs poem_sentiment glue-wnli climate_fever
    ethos-national_origin ethos-race ethos-religion hate_speech18 glue-rte superglue-cb tweet_eval-hate
    tweet_eval-stance_atheism tweet_eval-stance_feminist""".split()  # scored by macro-F1, all others by accuracy


def tasks(folder):
    """Names of the tasks in a folder. Raises FileNotFoundError if there is none."""
    files = common.folders(folder, "*/*_16_*_test.jsonl", "NLP-LR, with <task>/<task>_16_<seed>_test.jsonl")
    return list(dict.fromkeys(file.parent.name for file in files))


def make_task(folder, name, tokenizer, seed, k=K, length=LENGTH, limit_queries=None):
    """Return the Task and its Counts. Raises FileNotFoundError or ValueError if a file is missing or not as above."""
    space, counts = tokenizer.encode(" "), common.Counts()
    rows = {part: read(Path(folder) / name / f"{name}_16_{seed}_{part}.jsonl") for part in ("train", "test")}
    if len(rows["train"]) < k:
        raise ValueError(f"{name}, seed {seed}, has {len(rows['train'])} demos: use --k {len(rows['train'])} or less.")

    def x(text, n):
        ids, room = tokenizer.encode(text), max(0, LONGEST - n)
        counts.cut += len(ids) > room
        return ids[:room] + space

    demos = [Demo(x(row["input"], len(y)), y) for row in rows["train"][:k] for y in [tokenizer.encode(row["output"])]]
    metric = "macro_f1" if name in CLASSIFICATION else "accuracy"
    task = Task(name, demos, [], separator=space, metric=metric, length=length)

    def queries():
        for row in rows["test"]:
            options = [tokenizer.encode(option) for option in row["options"]]
            yield Query(x(row["input"], max(map(len, options))), tokenizer.encode(row["output"]), options)

    return common.fill(task, queries(), counts, length, limit_queries, PATIENCE)


def read(file):
    """The rows of a file."""
    rows = read_json_lines(common.there(file))
    if not rows:
        raise ValueError(f"{file} is empty: fetch it again.")
    for where, row in rows:
        with reading(where, "a line of MetaICL's files"):
            if not all(isinstance(text, str) and text for text in [row["input"], row["output"]] + row["options"]):
                raise ValueError("its input, output or an option is empty, or no text")
            if row["output"] not in row["options"] and file.stem.endswith("test"):
                raise ValueError(f"its output {cli.not_among(row['output'], row['options'])}")
    return [row for _, row in rows]


if __name__ == "__main__":
    cli.run(lambda: common.main(sys.modules[__name__]))
