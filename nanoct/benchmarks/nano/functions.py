"""The worlds of functions, "strings" and "grids": what a task is, what is held out, what pretraining draws.

A task is a function: a primitive, or two primitives one after the other. Two names can mean the same task: `reverse
then sort` is `sort`. So two tasks with equal outputs on a large set of probe inputs are one task. Pretraining sees
all primitives, two fifths of the distinct pairs, and every function that agrees with one it sees on more than half
of the probes. It never sees the other functions. The last N_HELD_OUT of them are reported; settings are chosen on
the rest. The split is by seed, and was made before any training.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import log

import numpy as np

N_PROBE = 400
SPLIT_SEED = 2507
N_HELD_OUT = 24
P_SINGLE = 0.3  # probability that the task of a pretraining sequence is a primitive


class Certain:
    """What bayes.py needs of a world whose tasks give one certain answer, apply(name, x)."""

    def fit(self, h, pairs, labels=None):
        """Return how many pairs (x, y) contradict the hypothesis h, and the log-likelihood of the others, 0."""
        return sum(self.apply(h, x) != y for x, y in pairs), 0.0

    def answers(self, h, x, options, demos, fit):
        """Return the answer of h to x, with `fit`, its fit of the demos."""
        return [(self.apply(h, x), *fit)]


@dataclass(eq=False)
class Functions(Certain):
    """A world whose tasks are functions on texts.

    primitives: {name: function}. draw(rng) makes an input. fits(y): whether y may be an output. read and write
    turn a text into what the primitives work on, and back. k and n_query: demos (examples) and queries of a task.
    """

    tokens: list
    primitives: dict
    draw: Callable
    fits: Callable
    k: int
    n_query: int
    read: Callable = str
    write: Callable = str
    metric, delimiter = "ids", "="  # an answer is right if every token is

    def apply(self, name, text):
        """The output of the task `name`, such as "sort" or "reverse then sort", for the input text."""
        return self.write(self._run(name, self.read(text)))

    def _run(self, name, x):
        for part in name.split(" then "):
            x = self.primitives[part](x)
        return x

    def pools(self):
        """{"train" | "validation" | "held_out": names of tasks}, disjoint as functions; see the module's docstring."""
        return self._pools

    @cached_property
    def _pools(self):
        rng = random.Random(SPLIT_SEED)
        probes = [self.draw(rng) for _ in range(N_PROBE)]
        functions = {tuple(probes): None}  # {outputs on the probes: first, shortest name}; the identity is no task
        outputs = {name: tuple(map(f, probes)) for name, f in self.primitives.items()}
        outputs |= {f"{a} then {b}": tuple(map(f, outputs[a]))
                    for a in self.primitives for b, f in self.primitives.items()}
        for name, of_name in outputs.items():
            if all(map(self.fits, of_name)):
                functions.setdefault(of_name, name)
        functions = {name: outputs for outputs, name in functions.items() if name}
        pairs = [name for name in functions if name not in self.primitives]
        rng.shuffle(pairs)
        train, unseen = [*self.primitives, *pairs[: 2 * len(pairs) // 5]], pairs[2 * len(pairs) // 5 :]
        near = unseen
        while near:  # a task that joins `train` may have neighbours of its own
            close = agreement([functions[n] for n in unseen], [functions[n] for n in train]).max(1) > 0.5
            near = [name for name, c in zip(unseen, close) if c]
            unseen = [name for name in unseen if name not in near]
            train += near
        return {"train": train, "validation": unseen[:-N_HELD_OUT], "held_out": unseen[-N_HELD_OUT:]}

    def examples(self, name, seed, k, n_query):
        """k demos (x, y) and n_query queries (x, y, None) of the task `name`, all inputs distinct."""
        rng, inputs = random.Random(f"{name}/{seed}"), {}
        while len(inputs) < k + n_query:
            inputs.setdefault(self.draw(rng))
        pairs = [(self.write(x), self.write(self._run(name, x))) for x in inputs]
        return pairs[:k], [(x, y, None) for x, y in pairs[k:]]

    def episode(self, rng, pool="train"):
        """Endless examples (x, y) of one task of the pool, as pretraining draws it."""
        name = self.draw_name(rng, self.pools()[pool])
        while True:
            x = self.draw(rng)
            yield self.write(x), self.write(self._run(name, x))

    def draw_name(self, rng, names):
        single = [name for name in names if name in self.primitives]
        return rng.choice(single if single and rng.random() < P_SINGLE else names)

    def prior(self, which):
        """Return {task: log-probability}. "training": as pretraining draws tasks; "all": equal for all functions."""
        pools = self.pools()
        if which == "all":
            names = [name for pool in pools.values() for name in pool]
            return {name: -log(len(names)) for name in names}
        names = pools["train"]
        share = {name: (1 - P_SINGLE) / len(names) for name in names}
        return {name: log(p + P_SINGLE / len(self.primitives) * (name in self.primitives)) for name, p in share.items()}


def agreement(a, b):
    """Share of probes on which function a_i and function b_j have the same output: (len(a), len(b))."""
    ids = {}
    a, b = (np.array([[ids.setdefault(y, len(ids)) for y in row] for row in rows]) for rows in (a, b))
    return np.stack([(row == b).mean(1) for row in a])
