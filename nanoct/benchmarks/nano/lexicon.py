"""The world "lexicon": label a sentence of three words. k = 16, two options, macro-F1; it mirrors the NLP-LR column.

    <s> sin val zop = fox ; rel yam win = owl ; …   here: the words of fox sentences are alive, those of owl are dead

A word has six hidden attributes, every combination occurs twice, and the words of a sentence agree on what
the task labels. Spelling tells people the attributes (onset, vowel and coda, ATTRIBUTES below) and tells
the model nothing: a word is one token. Pretraining knows tasks that label one attribute; in a quarter of them the
labels name it, as "positive" does in language, in the others they are any two animals.

Unseen are tasks of three other kinds, labelled by animals: AND and XOR of two attributes, and arbitrary
halves of the words.
"""

import random
from collections import Counter
from functools import cache
from itertools import combinations
from math import comb, log

# the label words of each attribute; a word's bit for it is 1 if it is the first
ATTRIBUTES = [("alive", "dead"), ("big", "small"), ("hot", "cold"), ("fast", "slow"), ("loud", "quiet"), ("new", "old")]
NAMES = [first for first, _ in ATTRIBUTES]
# alive are s v x z, big t v y z (r to v and w to z are alike: each combination occurs twice); hot are e o, fast i o;
# loud are m p, new n p
WORDS = [f" {onset}{vowel}{coda}" for onset in "rstvwxyz" for vowel in "aeio" for coda in "lmnp"]
ANIMALS = [f" {name}" for name in ("ant bat bee cat cow crab deer dog duck eel elk fox frog goat hare hen horse lion "
                                   "mole mouse owl pig rat seal").split()]
N_WORD = 3
P_CANONICAL = 0.25  # of a pretraining sequence: the labels name the attribute
SPLIT_SEED = 2507


def bits(word):
    """The six attributes of a word, each True or False."""
    o, v, c = "rstvwxyz".index(word[1]), "aeio".index(word[2]), "lmnp".index(word[3])
    return tuple(bool(i >> b & 1) for i in (o, v, c) for b in (0, 1))


@cache
def members(name):
    """The words of the first class of a task, a frozenset: its function. "big and not hot", "big xor hot", "half 3", "big"."""
    kind, *rest = name.split()
    if kind == "half":
        return frozenset(random.Random(name).sample(WORDS, len(WORDS) // 2))
    if not rest:
        return frozenset(w for w in WORDS if bits(w)[NAMES.index(name)])
    if "xor" in rest:
        a, b = name.split(" xor ")
        return frozenset(w for w in WORDS if bits(w)[NAMES.index(a)] != bits(w)[NAMES.index(b)])
    holds = lambda word, term: bits(word)[NAMES.index(term.split()[-1])] != term.startswith("not ")
    return frozenset(w for w in WORDS if all(holds(w, term) for term in name.split(" and ")))


def ands():
    """Names of all ANDs of two attributes, each as it is or negated."""
    return [f"{p}{a} and {q}{b}" for a, b in combinations(NAMES, 2) for p in ("", "not ") for q in ("", "not ")]


def xors():
    return [f"{a} xor {b}" for a, b in combinations(NAMES, 2)]


def words(x):
    """The words of a sentence."""
    return [" " + word for word in x.split()]


@cache
def pools():
    """{"train" | "validation" | "held_out": names of tasks}: one attribute each; AND, XOR and halves in turn."""
    rng = random.Random(SPLIT_SEED)
    kinds = [ands(), xors(), [f"half {i}" for i in range(15)]]
    for kind in kinds:
        rng.shuffle(kind)
    in_turn = [name for trio in zip(*kinds) for name in trio]  # 15 of each
    return {"train": NAMES, "validation": in_turn[:21], "held_out": in_turn[21:]}


def sentences(name, labels, rng):
    """Endless examples (x, y): a class at random, three words of it at random, the class's label."""
    first = members(name)
    classes = [[w for w in WORDS if w in first], [w for w in WORDS if w not in first]]
    while True:
        i = rng.randrange(2)
        yield "".join(rng.choices(classes[i], k=N_WORD)), labels[i]


class Lexicon:
    tokens = [*WORDS, *(f" {label}" for pair in ATTRIBUTES for label in pair), *ANIMALS]
    metric, k, n_query = "macro_f1", 16, 48

    def pools(self):
        return pools()

    def examples(self, name, seed, k, n_query):
        """k demos (x, y) and n_query queries (x, y, options) of the task `name`, all sentences distinct."""
        rng, pairs = random.Random(f"{name}/{seed}"), {}
        labels = rng.sample(ANIMALS, 2)
        for x, y in sentences(name, labels, rng):
            if len(pairs) == k + n_query:
                break
            pairs.setdefault(x, y)
        pairs = list(pairs.items())
        return pairs[:k], [(x, y, labels) for x, y in pairs[k:]]

    def episode(self, rng, pool="train"):
        """Endless examples (x, y) of one task of the pool, as pretraining draws it."""
        name = rng.choice(pools()[pool])
        canonical = [f" {label}" for pair in ATTRIBUTES if name in pair for label in pair]
        labels = canonical if canonical and rng.random() < P_CANONICAL else rng.sample(ANIMALS, 2)
        return sentences(name, labels, rng)

    def prior(self, which):
        """{hypothesis: log p}. A hypothesis is (name of a task, which of the two labels, sorted, is its first class's).

        "training": the six attributes alike. "all": attributes, AND, XOR and halves of the words with 1/4 each,
        alike within a kind; "half" stands for all halves at once.
        """
        kinds = {"attribute": NAMES}
        if which == "all":
            kinds |= dict(AND=ands(), XOR=xors(), half=["half"])
        return {(name, i): -log(2 * len(kinds) * len(names)) for names in kinds.values() for name in names for i in (0, 1)}

    def fit(self, h, pairs, labels):
        """bayes.py: words that are in the wrong class contradict h; the others were drawn from theirs.

        p(x, y | h) = 1/2 · product over the words of 1 / |class|. "half" is the sum over all C(n, n/2) halves, in
        closed form: those that contradict least take the n/2 words seen most often in the first class, net of the
        second; where words are level at this border, any choice of them will do.
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
            first_class = members(name)
            size = {True: len(first_class), False: n - len(first_class)}
            right = [first for word, first in seen if (word in first_class) == first]
            wrong, drawn = len(seen) - len(right), sum(log(size[first]) for first in right)
        return wrong, prior - drawn - len(pairs) * log(2)

    def answers(self, h, x, options, demos, fit):
        """bayes.py: both labels, each with what it makes of demos and query together."""
        if h[0] == "half":  # its demos and query are not independent: which half it is, is open
            return [(y, *self.fit(h, [*demos, (x, y)], options)) for y in options]
        return [(y, *map(sum, zip(fit, self.fit(h, [(x, y)], options)))) for y in options]


WORLD = Lexicon()
