"""The world "strings": transform a short string of letters. k = 10, exact match; it mirrors the BBH column.

    <s> b c a = a c b ; p f f = f f p ; …           here: reverse

A task is a function on strings: one of the primitives below, or an ordered pair of them. Names lie:
`reverse then sort` is `sort`. So functions decide: two tasks with equal outputs on a large probe set
are one task. Of the distinct functions all primitives and two fifths of the pairs are trained on, and so
is every function that agrees with a trained one on more than half of the probes. The others are never seen
in training; they are cut once more: `validation`, on which settings are chosen, and `held_out`, on which
results are reported. The cut is by seed, made before any training.
"""

import random
from functools import cache

import numpy as np

from nanoct.fewshot import Demo, Query, Task

LETTERS = "abcdefghijklmnop"
BOS, EQUALS, END = "<s>", "=", ";"
SHORTEST, LONGEST, LONGEST_OUTPUT = 3, 6, 12
N_PROBE = 400
SPLIT_SEED = 2507  # of the pools
K, N_QUERY = 10, 30  # demos and queries of a task


def _shift(s, by):
    """Every letter moved along the alphabet by by(i, letter), cyclically."""
    return "".join(LETTERS[(LETTERS.index(c) + by(i, c)) % len(LETTERS)] for i, c in enumerate(s))


def _running_max(s):
    return "".join(max(s[: i + 1]) for i in range(len(s)))


def _front(s, i):
    return s[i] + s[:i] + s[i + 1 :]


def _back(s, i):
    return s[:i] + s[i + 1 :] + s[i]


def _halves(s):
    return s[: (len(s) + 1) // 2], s[(len(s) + 1) // 2 :]


def _riffle(s):
    a, b = _halves(s)
    return "".join(x + y for x, y in zip(a, b)) + a[len(b) :]


# chosen so that few of them commute or merge: by position, by letter, by value, by a condition, by the two halves
PRIMITIVES = {
    "reverse": lambda s: s[::-1],
    "rotate": lambda s: s[1:] + s[:1],
    "swap_ends": lambda s: s[-1] + s[1:-1] + s[0] if len(s) > 1 else s,
    "swap_pairs": lambda s: "".join(s[i : i + 2][::-1] for i in range(0, len(s), 2)),
    "drop_first": lambda s: s[1:],
    "drop_last": lambda s: s[:-1],
    "every_other": lambda s: s[::2],
    "swap_halves": lambda s: _halves(s)[1] + _halves(s)[0],
    "riffle": _riffle,  # interleave the two halves
    "unriffle": lambda s: s[::2] + s[1::2],
    "double": lambda s: "".join(c + c for c in s),
    "repeat": lambda s: s + s,
    "mirror": lambda s: s + s[::-1],
    "echo": lambda s: s + s[:1],  # the first letter once more at the end
    "bounce": lambda s: _halves(s)[0] + _halves(s)[1][::-1],
    "next": lambda s: _shift(s, lambda i, c: 1),
    "opposite": lambda s: s.translate(str.maketrans(LETTERS, LETTERS[::-1])),
    "ramp": lambda s: _shift(s, lambda i, c: i),
    "next_if_low": lambda s: _shift(s, lambda i, c: c < "i"),  # only the letters a to h move
    "sort": lambda s: "".join(sorted(s)),
    "dedupe": lambda s: "".join(dict.fromkeys(s)),
    "max_first": lambda s: _front(s, s.index(max(s))) if s else s,
    "min_last": lambda s: _back(s, s.index(min(s))) if s else s,
    "low_first": lambda s: "".join(sorted(s, key=lambda c: c >= "i")),  # stable, as all sorts here
    "odd_first": lambda s: "".join(sorted(s, key=lambda c: LETTERS.index(c) % 2)),  # a c e … before b d f …
    "running_max": _running_max,
    "turn": lambda s: s[::-1] if s and s[0] > s[-1] else s,  # reverse, if it starts higher than it ends
}


def apply(name, s):
    """The output of the task `name`, such as "sort" or "reverse then sort", on the string s."""
    for part in name.split(" then "):
        s = PRIMITIVES[part](s)
    return s


def draw(rng):
    """A random input: 3 to 6 letters out of a random part of the alphabet, so that letters recur."""
    some = rng.sample(LETTERS, rng.randint(2, len(LETTERS)))
    return "".join(rng.choices(some, k=rng.randint(SHORTEST, LONGEST)))


@cache
def pools():
    """{"train" | "validation" | "held_out": names of tasks}, disjoint as functions; see the module's docstring."""
    rng = random.Random(SPLIT_SEED)
    probes = [draw(rng) for _ in range(N_PROBE)]
    functions = {tuple(probes): None}  # outputs on the probes -> its first, shortest name; the identity is no task
    names = [*PRIMITIVES, *(f"{a} then {b}" for a in PRIMITIVES for b in PRIMITIVES)]
    for name in names:
        outputs = tuple(apply(name, s) for s in probes)
        if all(1 <= len(y) <= LONGEST_OUTPUT for y in outputs):
            functions.setdefault(outputs, name)
    functions = {name: outputs for outputs, name in functions.items() if name}
    pairs = [name for name in functions if name not in PRIMITIVES]
    rng.shuffle(pairs)
    train, unseen = [*PRIMITIVES, *pairs[: 2 * len(pairs) // 5]], pairs[2 * len(pairs) // 5 :]
    near = unseen
    while near:  # what joins the trained has neighbours of its own
        close = agreement([functions[n] for n in unseen], [functions[n] for n in train]).max(1) > 0.5
        near = [name for name, c in zip(unseen, close) if c]
        unseen = [name for name in unseen if name not in near]
        train += near
    return {"train": train, "validation": unseen[: len(unseen) // 5], "held_out": unseen[len(unseen) // 5 :]}


def agreement(a, b):
    """Share of probes on which function a_i and function b_j have the same output: (len(a), len(b))."""
    a, b = np.array(a), np.array(b)
    return np.stack([(row == b).mean(1) for row in a])


def pairs(name, n, rng):
    """n pairs (input, output) of the task `name` with distinct inputs."""
    inputs = {}
    while len(inputs) < n:
        inputs.setdefault(draw(rng))
    return [(s, apply(name, s)) for s in inputs]


def encode(tokenizer, x, y):
    """A pair of strings as the token ids of x with its delimiter, and of y with its terminator."""
    return tokenizer.encode(x + EQUALS), tokenizer.encode(y + END)


def make_task(name, tokenizer, seed, k=K, n_query=N_QUERY):
    """The task `name` with k demos and n_query queries drawn by seed, all inputs distinct."""
    drawn = pairs(name, k + n_query, random.Random(f"{name}/{seed}"))
    encoded = [encode(tokenizer, x, y) for x, y in drawn]
    return Task(
        name=name,
        demos=[Demo(x, y) for x, y in encoded[:k]],
        queries=[Query(x, y) for x, y in encoded[k:]],
        instruction=[tokenizer.bos_id],
        metric="ids",
    )
