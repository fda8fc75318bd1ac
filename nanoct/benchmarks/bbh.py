"""BBH: 27 BIG-Bench-Hard tasks; the answer is decoded greedily and compared as text.

    nanoct benchmarks.bbh --data F --show 2

A context is the instruction, then "\\n\\nQ: …\\nA: …" for every demo (solved example). The instruction is the line
after the dashes in cot-prompts/<task>.txt, then a sentence on the form of the answer, such as "Answer with Yes or No
and nothing else." Without this sentence a model that has no demos in context answers in whole sentences, which are all
wrong. The paper's zero-shot score suggests that its prompts have such a sentence. Its words are ours, made from the
kind of all targets (`form_of`); form=False leaves it out.

An answer ends with the two line breaks before the next question. They are tokenised apart, so that all demos end alike.
A decoded answer ends where its text holds them, or with a special token. Trimmed and in lower case it must be the
target; if it is any target of the file, it is valid. 10 demos are drawn by seed; all other examples are queries. A
query is dropped if the context and its row exceed 2,048 tokens (our choice: NLP-LR's rule). Files: F/bbh/<task>.json
with examples[] of {"input", "target"}.
"""

import re
import sys
from pathlib import Path

from nanoct import cli
from nanoct.benchmarks import common
from nanoct.fewshot import Demo, Query, Task, Text
from nanoct.io.files import read_json, reading

K, LENGTH = 10, 2048
SEEDS = (42, 43, 44, 45, 46)
DASHES, END = "-----", "\n\n"
FORMS = {  # what targets look like -> how to say it
    r"\([A-Z]\)": "the letter of the right option in brackets, such as (A),",
    r"-?\d+(\.\d+)?": "a number",
    r"[()\[\]{}<>]( [()\[\]{}<>])*": "the missing brackets, separated by spaces,",
    r"\S+": "a word",
    r"[^\s,]+( [^\s,]+)*": "the words, separated by spaces,",
    r"(?s:.*)": "a few words",
}


def tasks(folder):
    """Names of the tasks in a folder. Raises FileNotFoundError if there is none."""
    what = "BBH, with bbh/<task>.json and cot-prompts/<task>.txt"
    return [file.stem for file in common.folders(folder, "bbh/*.json", what)]


def make_task(folder, name, tokenizer, seed, k=K, length=LENGTH, limit_queries=None, form=True):
    """Return the Task and its Counts. form: whether the instruction says how to answer.

    Raises FileNotFoundError or ValueError if a file is missing or not as above.
    """
    file, end = Path(folder) / "bbh" / f"{name}.json", tokenizer.encode(END)
    examples = read(file)
    given, asked = common.draw(examples, k, seed, file)
    instruction = read_instruction(Path(folder) / "cot-prompts" / f"{name}.txt")
    if form:
        instruction += f" {form_of([target for _, target in examples])}"
    x = lambda text: tokenizer.encode(f"Q: {text}\nA:")
    y = lambda text: tokenizer.encode(f" {text}") + end
    head = common.bos(tokenizer) + tokenizer.encode(instruction) + end
    normalise = lambda text: text.strip().lower()
    possible = {normalise(target) for _, target in examples}
    text = Text(tokenizer.decode, END, normalise, set(tokenizer.special.values()), possible)
    task = Task(name, [Demo(x(i), y(t)) for i, t in given], [], head, "text", text)
    return common.fill(task, (Query(x(i), y(t)) for i, t in asked), common.Counts(), length, limit_queries)


def form_of(targets):
    """Return a sentence on how to answer, made from the kind of the targets; one in ten may be of another kind.

    Two to four words that come again and again are all named, such as Yes and No; FORMS covers all other targets.
    """
    kinds = sorted(set(targets), reverse=True)
    are_words = all(re.fullmatch("[A-Za-z]+", kind) for kind in kinds)
    if are_words and 2 <= len(kinds) <= 4 and 5 * len(kinds) <= len(targets):
        what = " or ".join(kinds)
    else:
        fits = lambda pattern: sum(bool(re.fullmatch(pattern, target)) for target in targets)
        what = next(words for pattern, words in FORMS.items() if 10 * fits(pattern) >= 9 * len(targets))
    return f"Answer with {what} and nothing else."


def read(file):
    """Return the (input, target) of all examples of a file."""
    pairs = []
    with reading(common.there(file), "a task of BBH, with examples of an input and a target"):
        for n, example in enumerate(read_json(file)["examples"]):
            pairs.append((example["input"], example["target"]))
            if not all(part.strip() for part in pairs[-1]):
                raise ValueError(f"example {n} has an empty part")
            if END in example["target"]:
                raise ValueError(f"{file}: the target of example {n} holds an empty line, which ends an answer: leave "
                                 "the task out of --tasks.")
    return pairs


def read_instruction(file):
    """The line after the dashes."""
    lines = [line.rstrip("\r") for line in common.read(file).split("\n")]
    if DASHES not in lines[:-1] or not lines[lines.index(DASHES) + 1].strip():
        raise ValueError(f"{file} has no line of dashes with the instruction behind it: fetch it again.")
    return lines[lines.index(DASHES) + 1]


if __name__ == "__main__":
    cli.run(lambda: common.main(sys.modules[__name__]))
