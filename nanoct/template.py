r"""Between text and token ids: a template makes a demonstration (demo) or a question of text.

    template = "{input}\n{output}\n\n"        x = ids of "dog\n"        y = ids of "chien", then ids of "\n\n"

What stands before {output} is x, the question. y is {output} and what follows, the terminator, which ends every answer.
It is tokenised apart from the answer: a tokenizer that merges "." and a line break would end every answer differently.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from nanoct.fewshot import Demo, Task, Text
from nanoct.score import decode

PLAIN = "{input}\n{output}\n\n"


def split(template):
    """The text before {input}, between, after {output}. Raises ValueError unless both occur once, in this order."""
    found = re.fullmatch(r"(.*?)\{input\}(.*?)\{output\}(.*)", template, re.DOTALL)
    if not found or template.count("{input}") + template.count("{output}") != 2:
        raise ValueError(f"the template {template!r} must contain {{input}} once and {{output}} once after it.")
    return found.groups()


def encode_example(where, question, answers, tokenizer, template, chat=False):
    """Ids of x, and {answer: ids of y}. Raises ValueError that begins with `where` if there is no token for a text.

    chat: whether the template is one of a chat, whose special tokens are meant; then no other text may name one, and
    texts stand without the spaces around them, as many chat templates write them.
    """
    before, between, after = split(template)
    bare, marked = (str.strip, dict(special=True)) if chat else (str, {})
    for name in tokenizer.special if chat else ():
        if any(name in text for text in (question, *answers)):
            raise ValueError(f"{where} has {name!r} in its text, which is a mark of the chat template: take it out.")
    try:
        x, end = tokenizer.encode(before + bare(question) + between, **marked), tokenizer.encode(after, **marked)
        ys = {answer: tokenizer.encode(bare(answer)) + end for answer in answers}
    except ValueError as error:
        raise ValueError(f"{where}: {error}.{hint(tokenizer)}") from None
    if not all([x, *ys.values()]):
        raise ValueError(f"{where} gives an empty input or answer: put text around it in the template.")
    return x, ys


def is_embedded(tokenizer):
    """Whether a tokenizer is that of the built-in models, which all have one vocabulary."""
    return Path(tokenizer.source).name == "vocab.json"


def hint(tokenizer):
    """A sentence for errors about text that the built-in models cannot read; "" for all others."""
    return (" The built-in model knows strings of the letters a to p and no English: `make smollm2` gets a model that "
            "does." if is_embedded(tokenizer) else "")


def check_ends(where, answer, template, option="template"):
    """Raise ValueError unless a decoded answer has an end: a terminator in the template that is not in the answer.

    answer: None if it is not known. option: what the caller names the template.
    """
    *_, after = split(template)
    if not after:
        raise ValueError(f"the template {template!r} ends with {{output}}, so decoding cannot tell where an answer "
                         "ends: put a terminator behind it, such as a line break, or give options.")
    if after in (answer or ""):
        raise ValueError(f"{where}: the output {answer!r:.60} contains {after!r}, which ends an answer in "
                         f"this template; take another {option}.")


def text_of(tokenizer, template):
    """The Text of answers in a template, compared without the spaces around them."""
    return Text(tokenizer.decode, split(template)[2], str.strip, set(tokenizer.special.values()))


def task_of(pairs, tokenizer, instruction="", template=PLAIN, name="pairs"):
    r"""A Task of your own examples: every pair is a demo, and there are no queries; ask with `answer`.

    pairs: [("dog", "chien"), …] or [{"input": "dog", "output": "chien"}, …]. instruction: text at the head of the
    context, behind the tokenizer's beginning-of-sequence token if its model expects one. template: text with {input}
    and {output}; the built-in models have no line break and take "{input}={output};". Raises ValueError, in one
    sentence, without pairs, on a pair that is not two strings, on text that the tokenizer lacks, and on a template
    without {input}, {output} and an end of answers.
    """
    demos = []
    _need("the template", template)
    if isinstance(pairs, (str, dict)) or not isinstance(pairs, Iterable):
        raise ValueError(f"the pairs are {pairs!r:.60}; they must be a list of (input, output).")
    for i, pair in enumerate(pairs):
        question, output = _strings(i, pair)
        check_ends(f"pair {i}", output, template)
        x, ys = encode_example(f"pair {i}", question, [output], tokenizer, template)
        demos.append(Demo(x, ys[output]))
    if not demos:
        raise ValueError("there are no pairs to learn from: give at least one (input, output).")
    _need("the instruction", instruction)
    head = tokenizer.encode(instruction, bos=tokenizer.adds_bos)
    return Task(name, demos, [], head, "text", text_of(tokenizer, template))


def answer(adapted, question, tokenizer, template=PLAIN, max_new_tokens=32):
    """The answer of an Adapted to a question, as text: decoded greedily up to the template's end, spaces stripped.

    template: that of the task. At most max_new_tokens are decoded, one forward pass each.
    Raises ValueError if the question is no string, has text that the tokenizer lacks, or does not fit the model.
    """
    _need("the question", question)
    _need("the template", template)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens = {max_new_tokens} must be at least 1.")
    check_ends("the question", None, template)
    x, _ = encode_example(f"the question {question!r:.60}", question, [], tokenizer, template)
    return decode(adapted, [x], max_new_tokens, text_of(tokenizer, template))[0]


def _strings(i, pair):
    """Input and output of a pair."""
    parts = [pair.get("input"), pair.get("output")] if isinstance(pair, dict) else pair
    if not isinstance(parts, (list, tuple)) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise ValueError(f'pair {i} is {pair!r:.60}; it must be two strings, ("dog", "chien") or '
                         '{"input": "dog", "output": "chien"}.')
    return parts


def _need(what, value):
    if not isinstance(value, str):
        raise ValueError(f"{what} is {value!r:.60}; it must be a string.")
