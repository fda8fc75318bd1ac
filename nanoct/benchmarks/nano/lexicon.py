"""The world "lexicon": label a sentence of three words. k = 16 demos, two options, macro-F1. It mirrors NLP-LR.

    <s> sin val zol fox ; rel yam win owl ; …   here: the words of a fox sentence are alive, those of an owl one dead

A word has four hidden attributes; every combination of them occurs six times. The words of a sentence agree on what the
task labels. Spelling tells people the attributes (onset and vowel, `bits` below). It tells the model nothing, because a
word is one token. Pretraining has tasks that label one attribute. In half of them the labels name it, as "positive"
does in language. The others, called "renamed", have two random animals for labels, and only the demos (solved examples)
explain them. There is no "=" before the label: with it the model did not learn to match labels in context.

Four other kinds of tasks are unseen, labelled by animals too: AND of two attributes, XOR of two to four, most of
three, and arbitrary halves of the words.
"""

import random
import re
from collections import Counter
from functools import cache
from itertools import combinations, product
from math import comb, log

# the two labels of each attribute; a word's bit is 1 if the first one is true of it
ATTRIBUTES = [("alive", "dead"), ("big", "small"), ("hot", "cold"), ("fast", "slow")]
NAMES = [first for first, _ in ATTRIBUTES]
# onsets: s v x z are alive, t v y z are big (w x y z repeat r s t v); vowels: e o are hot, i o are fast; the coda
# says nothing
WORDS = [f" {onset}{vowel}{coda}" for onset in "rstvwxyz" for vowel in "aeio" for coda in "lmn"]
ANIMALS = [f" {name}" for name in ("ant bat bee cat cow crab deer dog duck eel elk fox frog goat hare hen horse lion "
                                   "mole mouse owl pig rat seal").split()]
N_WORD = 3
RENAMED = " renamed"
SPLIT_SEED = 2507


def bits(word):
    """The four attributes of a word, each True or False."""
    return tuple(bool(i >> b & 1) for i in ("rstvwxyz".index(word[1]), "aeio".index(word[2])) for b in (0, 1))


@cache
def classes(name):
    """Return the words of a task's two classes, as frozensets. The second class has all words that the first lacks.

    Names: "big", "big renamed", "big and not hot", "big xor hot", "most of big, hot, not fast", "half 3".
    """
    if name.startswith("half "):
        first = random.Random(name).sample(WORDS, len(WORDS) // 2)
    else:
        terms = re.split(" and | xor |, ", name.removesuffix(RENAMED).removeprefix("most of "))
        holds = lambda word, term: bits(word)[NAMES.index(term.split()[-1])] != term.startswith("not ")
        enough = {1, 3} if " xor " in name else {2, 3} if name.startswith("most of ") else {len(terms)}
        first = [word for word in WORDS if sum(holds(word, term) for term in terms) in enough]
    return frozenset(first), frozenset(WORDS) - frozenset(first)


def either(name):
    """A term and its negation."""
    return [name, f"not {name}"]


def ands():
    """Names of all ANDs of two attributes, each as it is or negated."""
    return [f"{a} and {b}" for two in combinations(NAMES, 2) for a, b in product(*map(either, two))]


def xors():
    """Names of all XORs of two, three and four attributes, true where an odd number of them holds."""
    return [" xor ".join(some) for n in (2, 3, 4) for some in combinations(NAMES, n)]


def mosts():
    """Names of all tasks that ask for at least two of three terms.

    The first is never negated: negating all three only swaps the classes.
    """
    return [f"most of {a}, {b}, {c}" for a, two, three in combinations(NAMES, 3)
            for b, c in product(either(two), either(three))]


def canonical(name):
    """Return the two labels that name a task's attribute; [] for a task whose labels name nothing."""
    return [f" {label}" for pair in ATTRIBUTES if name in pair for label in pair]


def words(x):
    """The words of a sentence."""
    return [" " + word for word in x.split()]


@cache
def pools():
    """{"train" | "validation" | "held_out": names of tasks}: attributes in the first, unseen kinds in the others."""
    rng = random.Random(SPLIT_SEED)
    kinds = [ands(), xors(), mosts(), [f"half {i}" for i in range(10)]]
    for kind in kinds:
        rng.shuffle(kind)
    in_turn = [name for four in zip(*kinds) for name in four]  # 10 of each kind
    train = [*NAMES, *(name + RENAMED for name in NAMES)]
    return {"train": train, "validation": in_turn[:16], "held_out": in_turn[16:]}


def sentences(name, labels, rng):
    """Endless examples (x, y): three random words of a random class, and the label of this class."""
    of_class = [[w for w in WORDS if w in words_of] for words_of in classes(name)]
    while True:
        i = rng.randrange(2)
        yield "".join(rng.choices(of_class[i], k=N_WORD)), labels[i]


class Lexicon:
    # no task has words with "p" or the labels " loud" to " old"; the other worlds' models have them in their vocabulary
    tokens = [*(f" {onset}{vowel}{coda}" for onset, vowel, coda in product("rstvwxyz", "aeio", "lmnp")),
              *(f" {label}" for pair in ATTRIBUTES for label in pair), " loud", " quiet", " new", " old", *ANIMALS]
    metric, k, n_query, delimiter = "macro_f1", 16, 48, ""

    def pools(self):
        return pools()

    def examples(self, name, seed, k, n_query):
        """k demos (x, y) and n_query queries (x, y, options) of the task `name`, all sentences distinct."""
        rng, pairs = random.Random(f"{name}/{seed}"), {}
        labels = canonical(name) or rng.sample(ANIMALS, 2)
        for x, y in sentences(name, labels, rng):
            if len(pairs) == k + n_query:
                break
            pairs.setdefault(x, y)
        pairs = list(pairs.items())
        return pairs[:k], [(x, y, labels) for x, y in pairs[k:]]

    def episode(self, rng, pool="train"):
        """Endless examples (x, y) of one task of the pool, as pretraining draws it."""
        name = rng.choice(pools()[pool])
        return sentences(name, canonical(name) or rng.sample(ANIMALS, 2), rng)

    def prior(self, which):
        """Return {hypothesis: log p}. A hypothesis is (a task's name, which of the sorted labels its first class has).

        "training": the attributes, equally likely. "all": attributes, AND, XOR, most of three and halves of the words,
        1/5 each, equally likely within a kind; "half" stands for all halves. Both are for labels that name nothing.
        """
        kinds = [NAMES] + [ands(), xors(), mosts(), ["half"]] * (which == "all")
        return {(name, i): -log(len(kinds) * len(kind) * 2) for kind in kinds for name in kind for i in (0, 1)}

    def fit(self, h, pairs, labels):
        """See bayes.py. Words in the wrong class contradict h; the others were drawn from their class.

        p(x, y | h) = 1/2 · product over the words of 1 / |class|. "half" is the sum over all C(n, n/2) halves, in
        closed form. Count how often a word was seen in the first class, minus in the second: the halves with the
        fewest contradictions take the n/2 words with the highest counts, and any choice among equal ones at the border.
        """
        name, i = h
        seen = [(word, y == sorted(labels)[i]) for x, y in pairs for word in words(x)]  # True: in the first class
        n, prior = len(WORDS), 0.0
        if name == "half":
            net = Counter(word for word, first in seen if first)
            net.subtract(word for word, first in seen if not first)
            ranked = sorted((net[word] for word in WORDS), reverse=True)
            half, border = ranked[: n // 2], ranked[n // 2 - 1]
            wrong = sum(first for _, first in seen) - sum(half)
            prior = log(comb(ranked.count(border), half.count(border))) - log(comb(n, n // 2))
            drawn = (len(seen) - wrong) * log(n // 2)
        else:
            of = {True: classes(name)[0], False: classes(name)[1]}
            right = [first for word, first in seen if word in of[first]]
            wrong, drawn = len(seen) - len(right), sum(log(len(of[first])) for first in right)
        return wrong, prior - drawn - len(pairs) * log(2)

    def answers(self, h, x, options, demos, fit):
        """See bayes.py. Return both labels, each with the fit of demos and query together."""
        if h[0] == "half":  # the half is not known, so demos and query are not independent
            return [(y, *self.fit(h, [*demos, (x, y)], options)) for y in options]
        return [(y, *map(sum, zip(fit, self.fit(h, [(x, y)], options)))) for y in options]


WORLD = Lexicon()
