"""The embedded worlds: small, generated, readable by a person. One vocabulary; one checkpoint each in weights/nano.

    <s> x = y ; x = y ; …          a context, and a row of pretraining; lexicon goes without "="

A world is an object with
    tokens                          what it adds to the vocabulary
    metric, k, n_query              the protocol of its column
    delimiter                       what stands between x and y
    pools()                         {"train" | "validation" | "held_out": names of tasks}, disjoint as functions
    examples(name, seed, k, n)      k demos (x, y) and n queries (x, y, options or None) of a task, as text
    episode(rng, pool)              endless pairs (x, y) of text: a sequence of pretraining, or one task of a pool
    prior(which), fit(h, …), answers(h, …)    what the Bayes ceiling sums over (bayes.py)

Methods are tuned on validation tasks and reported on held-out ones. The rule that fixed the held-out pools,
before any of them was tuned on: a pool is the whole of what its file names, cut by seed, and it stands if the
Bayes ceiling with the held-out pool in its prior lies at least 10 points above ICL on average over the pool.
"""

import random
from pathlib import Path

from nanoct.benchmarks.nano import facts, grids, lexicon, strings
from nanoct.fewshot import Demo, Query, Task
from nanoct.files import read_json

BOS, EQUALS, END = "<s>", "=", ";"
WORLDS = {"strings": strings.WORLD, "grids": grids.WORLD, "lexicon": lexicon.WORLD, "facts": facts.WORLD}
VOCABULARY = [BOS, EQUALS, END, *(token for world in WORLDS.values() for token in world.tokens)]
FOLDER = Path(__file__).parents[3] / "weights" / "nano"


def read_settings():
    """{world: {method: config}}, what `python -m nanoct.reproduce --sweep` chose; nothing before the first sweep."""
    file = FOLDER / "settings.json"
    return read_json(file, kind=dict) if file.exists() else {}


def encode(tokenizer, x, y, delimiter=EQUALS):
    """A pair of texts as the token ids of x with its delimiter, and of y with its terminator."""
    return tokenizer.encode(x + delimiter), tokenizer.encode(y + END)


def mislabel(demos, share, rng):
    """Demos (x, y) of which this share, rounded, have another demo's answer instead of their own, if there is one."""
    given = [y for _, y in demos]
    wrong = rng.sample(range(len(demos)), round(share * len(demos)))
    others = lambda y: [other for other in given if other != y] or [y]
    return [(x, rng.choice(others(y)) if i in wrong else y) for i, (x, y) in enumerate(demos)]


def make_task(world, name, tokenizer, seed, k=None, n_query=None, wrong=0.0):
    """The task `name` of a world (by name) as token ids, demos and queries drawn by seed.

    k, n_query: the world's by default; wrong: the share of demos with a wrong answer.
    """
    world = WORLDS[world]
    n_demo, n_query = (world.k if k is None else k), (world.n_query if n_query is None else n_query)
    demos, queries = world.examples(name, seed, n_demo, n_query)
    demos = mislabel(demos, wrong, random.Random(f"wrong/{name}/{seed}"))
    ids_of = lambda options: options and [tokenizer.encode(y + END) for y in options]
    return Task(
        name=name,
        demos=[Demo(*encode(tokenizer, x, y, world.delimiter)) for x, y in demos],
        queries=[Query(*encode(tokenizer, x, y, world.delimiter), ids_of(options)) for x, y, options in queries],
        instruction=[tokenizer.bos_id],
        metric=world.metric,
    )
