"""The world "facts": people and whom they relate to. k = 16 demos; four options are scored, not shown. It mirrors MMLU.

    <s> Ada = Bob ; Tim = Eve ; …                   here: each person's friend; the relation is not named
    <s> Ada friend = Bob ; Eve boss = Tim ; …       how pretraining states every fact, in any order

Each of 36 relations maps each of 32 people to one of them, at random. Pretraining states all these facts, so they
are in the weights. A task asks for one relation without naming it. The demos (solved examples) show which relation
it is. The answers must come from memory, as demos and queries are about different people. Pretraining has tasks of
8 relations only; it never asks for another one without its name.
"""

import random
from functools import cache
from math import log

from nanoct.benchmarks.nano.functions import Certain

PEOPLE = [f" {name}" for name in (
    "Ada Amy Ann Art Ben Bob Cal Dan Deb Don Eve Flo Gil Gus Hal Ida Ira Jan Jim Joy Kay Ken Leo Liz Max Meg Ned "
    "Pat Ray Sam Tim Zoe").split()]
RELATIONS = ("friend rival boss teacher neighbour cousin doctor lawyer barber tailor tenant landlord guest host "
             "partner mentor critic fan coach captain pilot cook baker banker broker editor agent client guard guide "
             "painter poet singer dancer uncle aunt").split()
N_TRAIN, N_VALIDATION = 8, 4
P_STATED = 0.7  # probability that a pretraining sequence states facts of any relation, by name
SPLIT_SEED = 2507


@cache
def table():
    """{relation: {person: person}}, the facts."""
    rng = random.Random(SPLIT_SEED)
    return {relation: {person: rng.choice(PEOPLE) for person in PEOPLE} for relation in RELATIONS}


class Facts(Certain):
    tokens = [*PEOPLE, *(f" {relation}" for relation in RELATIONS)]
    metric, k, n_query, delimiter = "accuracy", 16, 16, "="

    def apply(self, name, person):
        """Return whom the relation `name` maps a person to."""
        return table()[name][person]

    def pools(self):
        """{"train" | "validation" | "held_out": relations}, in an order by seed."""
        names = random.Random(SPLIT_SEED).sample(RELATIONS, len(RELATIONS))
        end = N_TRAIN + N_VALIDATION
        return {"train": names[:N_TRAIN], "validation": names[N_TRAIN:end], "held_out": names[end:]}

    def examples(self, name, seed, k, n_query):
        """k demos (x, y) and n_query queries (x, y, options) of the relation `name`, about different people."""
        if k + n_query > len(PEOPLE):
            raise ValueError(f"{k} demos and {n_query} queries are more than the {len(PEOPLE)} people of facts: "
                             "take fewer.")
        rng, to = random.Random(f"{name}/{seed}"), table()[name]
        people = rng.sample(PEOPLE, k + n_query)

        def query(x):
            options = [to[x], *rng.sample([p for p in PEOPLE if p != to[x]], 3)]
            return x, to[x], rng.sample(options, 4)

        return [(x, to[x]) for x in people[:k]], [query(x) for x in people[k:]]

    def episode(self, rng, pool="train"):
        """Endless examples (x, y) of one task of the pool; for "train", mostly of any relation, with its name in x."""
        if pool == "train" and rng.random() < P_STATED:
            while True:
                person, relation = rng.choice(PEOPLE), rng.choice(RELATIONS)
                yield f"{person} {relation}", table()[relation][person]
        to = table()[rng.choice(self.pools()[pool])]
        while True:
            for person in rng.sample(PEOPLE, len(PEOPLE)):  # all people before one returns, so nothing can be copied
                yield person, to[person]

    def prior(self, which):
        """Return {relation: log p}, equal for all. "training": the relations of pretraining tasks; "all": every one."""
        names = self.pools()["train"] if which == "training" else RELATIONS
        return {name: -log(len(names)) for name in names}


WORLD = Facts()
