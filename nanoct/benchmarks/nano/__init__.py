"""The built-in worlds: small, generated, readable by a person. One vocabulary; one checkpoint each in weights/nano.

    <s> x = y ; x = y ; …          a context, or a row of pretraining; lexicon has no "="

A world is an object with
    tokens                          what it adds to the vocabulary
    metric, k, n_query              the score, and the numbers of demos (solved examples) and queries (questions)
    delimiter                       what stands between x and y
    pools()                         {"train" | "validation" | "held_out": names of tasks}, disjoint as functions
    examples(name, seed, k, n)      k demos (x, y) and n queries (x, y, options or None) of a task, as text
    episode(rng, pool)              endless pairs (x, y) of text: a sequence of pretraining, or one task of a pool
    prior(which), fit(h, …), answers(h, …)    what the Bayes ceiling sums over (bayes.py)

Methods are tuned on validation tasks and reported on held-out ones. One rule fixed the held-out pools before any
method was tuned on them. A pool is all that its file names, split by seed. It is accepted if the Bayes ceiling with
the held-out pool in its prior is at least 10 points above ICL (in-context learning), averaged over the pool.
"""

import random
from pathlib import Path

from nanoct.benchmarks.nano import facts, grids, lexicon, strings
from nanoct.fewshot import Demo, Query, Task
from nanoct.io.files import read_json

BOS, EQUALS, END = "<s>", "=", ";"
WORLDS = {"strings": strings.WORLD, "grids": grids.WORLD, "lexicon": lexicon.WORLD, "facts": facts.WORLD}
VOCABULARY = [BOS, EQUALS, END, *(token for world in WORLDS.values() for token in world.tokens)]
FOLDER = Path(__file__).parents[3] / "weights" / "nano"


def read_settings():
    """Return {world: {method: config}} as `python -m nanoct.reproduce --sweep` chose it; {} before the first sweep."""
    return of_sweep("settings.json")


def read_curves():
    """Return {world: {method: configs}}, the best config at each of several numbers of steps; {} likewise."""
    return of_sweep("curves.json")


def of_sweep(name):
    """A file that the sweep wrote, read as a dict; {} if there is none."""
    file = FOLDER / name
    return read_json(file, kind=dict) if file.exists() else {}


def encode(tokenizer, x, y, delimiter=EQUALS):
    """Return the token ids of the text x with its delimiter, and of the text y with its terminator."""
    return tokenizer.encode(x + delimiter), tokenizer.encode(y + END)


def mislabel(demos, share, rng):
    """Give a share of the demos (x, y), rounded, the answer of another demo, if there is a different one."""
    given = [y for _, y in demos]
    wrong = rng.sample(range(len(demos)), round(share * len(demos)))
    others = lambda y: [other for other in given if other != y] or [y]
    return [(x, rng.choice(others(y)) if i in wrong else y) for i, (x, y) in enumerate(demos)]


def make_task(world, name, tokenizer, seed, k=None, n_query=None, wrong=0.0):
    """Return the task `name` of a world (its name) as token ids, with demos and queries drawn by seed.

    k, n_query: default, the world's. wrong: the share of demos with a wrong answer.
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


def pick(world, pool, asked, default):
    """The tasks of a world's pool that are asked for: names, or one text that is a number; without any, `default`.

    Raises ValueError on a number or a name that the pool lacks.
    """
    names = WORLDS[world].pools()[pool]
    if asked and not (len(asked) == 1 and asked[0].isdecimal()):
        if unknown := [name for name in asked if name not in names]:
            raise ValueError(f"--tasks: {unknown[0]!r} is not in the {pool} pool of {world}; `python -m "
                             f"nanoct.benchmarks.nano --world {world} --pool {pool}` lists it.")
        return list(dict.fromkeys(asked))
    n = int(asked[0]) if asked else min(default or len(names), len(names))
    if not 1 <= n <= len(names):
        raise ValueError(f"--tasks {n}: the {pool} pool of {world} has {len(names)} tasks.")
    return names[:n]
