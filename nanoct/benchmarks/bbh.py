"""BBH: 27 BIG-Bench-Hard tasks; the answer is decoded greedily and compared as text.

    python -m nanoct.benchmarks.bbh --data F --show 2

A context is the instruction, then "\\n\\nQ: …\\nA: …" for every demo; the instruction is the line after the dashes in
cot-prompts/<task>.txt. An answer ends with the two line breaks before the next question, tokenised apart, so that all
demos end alike; a decoded one ends where its text holds them, or with a special token. Trimmed and in lower case it must
be the target. 10 demos are drawn by seed, all others are queries. A
query is dropped if context and row exceed 2,048 tokens (ours: NLP-LR's rule). Files: F/bbh/<task>.json with examples[] of {"input", "target"}.
"""

import sys
from pathlib import Path

from nanoct import cli
from nanoct.benchmarks import common
from nanoct.fewshot import Demo, Query, Task

K, LENGTH = 10, 2048
SEEDS = (42, 43, 44, 45, 46)
DASHES, END = "-----", "\n\n"


def tasks(folder):
    """Names of the tasks in a folder. Raises FileNotFoundError if there is none."""
    return [file.stem for file in common.folders(folder, "bbh/*.json", "BBH, with bbh/<task>.json and cot-prompts/<task>.txt")]


def make_task(folder, name, tokenizer, seed, k=K, length=LENGTH, limit_queries=None):
    """A Task and its Counts. Raises FileNotFoundError or ValueError with a sentence on files that are not as above."""
    file, end = Path(folder) / "bbh" / f"{name}.json", tokenizer.encode(END)
    given, asked = common.draw(read(file), k, seed, file)
    instruction = read_instruction(Path(folder) / "cot-prompts" / f"{name}.txt")
    x = lambda text: tokenizer.encode(f"Q: {text}\nA:")
    y = lambda text: tokenizer.encode(f" {text}") + end
    task = Task(name, [Demo(x(i), y(t)) for i, t in given], [], common.bos(tokenizer) + tokenizer.encode(instruction) + end,
                "text", tokenizer.decode, lambda text: text.strip().lower(), terminator=END,
                ends=set(tokenizer.special.values()))
    return common.fill(task, (Query(x(i), y(t)) for i, t in asked), common.Counts(), length, limit_queries)


def read(file):
    """The (input, target) of all examples of a file."""
    data = common.read_json(common.read(file), file)
    examples = data.get("examples") if isinstance(data, dict) else None
    if not isinstance(examples, list) or not examples:
        raise ValueError(f"{file} has no examples, a list of {{'input', 'target'}}: fetch it again.")
    for n, example in enumerate(examples):
        if not isinstance(example, dict) or not all(isinstance(example.get(f), str) and example[f] for f in ("input", "target")):
            raise ValueError(f"{file}: example {n} is {example!r:.60}, expected an input and a target: fetch it again.")
        if END in example["target"]:
            raise ValueError(f"{file}: the target of example {n} holds an empty line, which ends an answer: leave the task out of "
                             "--tasks.")
    return [(example["input"], example["target"]) for example in examples]


def read_instruction(file):
    """The line after the dashes."""
    lines = common.read(file).splitlines()
    if DASHES not in lines[:-1] or not lines[lines.index(DASHES) + 1].strip():
        raise ValueError(f"{file} has no line of dashes with the instruction behind it: fetch it again.")
    return lines[lines.index(DASHES) + 1]


if __name__ == "__main__":
    cli.run(lambda: common.main(sys.modules[__name__]))
