"""The world "lexicon": label a sentence of three words. k = 16, two options, macro-F1; it mirrors the NLP-LR column.

    <s> sin val zop = fox ; rel yam win = owl ; …   here: the words of fox sentences are alive, those of owl are dead

A word has six hidden attributes, every combination occurs twice, and the words of a sentence agree on what
the task labels. Spelling tells people the attributes (onset, vowel and coda, ATTRIBUTES below) and tells
the model nothing: a word is one token. Pretraining knows tasks that label one attribute, or one to four of them
that go together: "alive+cold" tells what is alive and cold from what is dead and hot. (The more go together, the
more alike are the words of a class: a path from matching words to matching attributes.) The labels are any two
animals; half of the time that there is one attribute they name it, as "positive" does in language, and as they
always do in `examples`.

Unseen are tasks of three other kinds, labelled by animals: AND and XOR of two attributes, and arbitrary
halves of the words.
"""

import random
from collections import Counter
from functools import cache
from itertools import combinations, product
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
P_SINGLE = 0.5  # of a pretraining sequence: its task labels one attribute
P_CANONICAL = 0.5  # of such a sequence: the labels name the attribute
LARGEST = 4  # attributes that go together
SPLIT_SEED = 2507


def bits(word):
    """The six attributes of a word, each True or False."""
    o, v, c = "rstvwxyz".index(word[1]), "aeio".index(word[2]), "lmnp".index(word[3])
    return tuple(bool(i >> b & 1) for i in (o, v, c) for b in (0, 1))


@cache
def classes(name):
    """The words of both classes of a task, two frozensets: its function.

    "big", "big+cold"; "big and not hot", "big xor hot", "half 3", where the second class is all other words.
    """
    holds = lambda word, terms: [bits(word)[NAMES.index(attribute)] == value for attribute, value in terms]
    if name.startswith("half "):
        first = random.Random(name).sample(WORDS, len(WORDS) // 2)
    elif " xor " in name:
        terms = [(term, True) for term in name.split(" xor ")]
        first = [w for w in WORDS if sum(holds(w, terms)) == 1]
    elif " and " in name:
        terms = [(term.split()[-1], not term.startswith("not ")) for term in name.split(" and ")]
        first = [w for w in WORDS if all(holds(w, terms))]
    else:
        terms = [(pair[0], term == pair[0]) for term in name.split("+") for pair in ATTRIBUTES if term in pair]
        first = [w for w in WORDS if all(holds(w, terms))]
        return frozenset(first), frozenset(w for w in WORDS if not any(holds(w, terms)))
    return frozenset(first), frozenset(WORDS) - frozenset(first)


@cache
def together():
    """Names of the tasks of one to LARGEST attributes that go together, up to the order of the classes."""
    return ["+".join([first, *others]) for n in range(LARGEST) for i, (first, _) in enumerate(ATTRIBUTES)
            for some in combinations(ATTRIBUTES[i + 1 :], n) for others in product(*some)]


@cache
def of_size(n):
    """Names of the tasks of n attributes that go together."""
    return [name for name in together() if name.count("+") == n - 1]


def ands():
    """Names of all ANDs of two attributes, each as it is or negated."""
    return [f"{p}{a} and {q}{b}" for a, b in combinations(NAMES, 2) for p in ("", "not ") for q in ("", "not ")]


def xors():
    return [f"{a} xor {b}" for a, b in combinations(NAMES, 2)]


def canonical(name):
    """The two labels that name the attribute of a task; none if it is not a single attribute."""
    return [f" {label}" for pair in ATTRIBUTES if name in pair for label in pair]


def words(x):
    """The words of a sentence."""
    return [" " + word for word in x.split()]


@cache
def pools():
    """{"train" | "validation" | "held_out": names of tasks}: attributes, single first; AND, XOR and halves in turn."""
    rng = random.Random(SPLIT_SEED)
    kinds = [ands(), xors(), [f"half {i}" for i in range(15)]]
    for kind in kinds:
        rng.shuffle(kind)
    in_turn = [name for trio in zip(*kinds) for name in trio]  # 15 of each
    return {"train": together(), "validation": in_turn[:21], "held_out": in_turn[21:]}


def sentences(name, labels, rng):
    """Endless examples (x, y): a class at random, three words of it at random, the class's label."""
    of_class = [[w for w in WORDS if w in words_of] for words_of in classes(name)]
    while True:
        i = rng.randrange(2)
        yield "".join(rng.choices(of_class[i], k=N_WORD)), labels[i]


class Lexicon:
    tokens = [*WORDS, *(f" {label}" for pair in ATTRIBUTES for label in pair), *ANIMALS]
    metric, k, n_query = "macro_f1", 16, 48

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
        labels, name = rng.sample(ANIMALS, 2), rng.choice(pools()[pool])
        if pool == "train":
            n = 1 if rng.random() < P_SINGLE else rng.randint(2, LARGEST)
            name = rng.choice(of_size(n))
            if n == 1 and rng.random() < P_CANONICAL:
                labels = canonical(name)
        return sentences(name, labels, rng)

    def prior(self, which):
        """{hypothesis: log p}. A hypothesis is (name of a task, which of the two labels, sorted, is its first class's).

        "training": as pretraining draws tasks with animals for labels, so one attribute with probability
        P_SINGLE (1 - P_CANONICAL) : 1 - P_SINGLE. "all": that, AND, XOR and halves of the words with 1/4 each, alike
        within a kind; "half" stands for all halves at once. Both are for labels that say nothing, which animals do.
        """
        single = P_SINGLE * (1 - P_CANONICAL) / (1 - P_SINGLE * P_CANONICAL)
        kinds = [(single, of_size(1))] + [((1 - single) / (LARGEST - 1), of_size(n)) for n in range(2, LARGEST + 1)]
        if which == "all":
            kinds = [(p / 4, names) for p, names in kinds] + [(1 / 4, ands()), (1 / 4, xors()), (1 / 4, ["half"])]
        return {(name, i): log(p / len(names) / 2) for p, names in kinds for name in names for i in (0, 1)}

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
            of = {True: classes(name)[0], False: classes(name)[1]}
            right = [first for word, first in seen if word in of[first]]
            wrong, drawn = len(seen) - len(right), sum(log(len(of[first])) for first in right)
        return wrong, prior - drawn - len(pairs) * log(2)

    def answers(self, h, x, options, demos, fit):
        """bayes.py: both labels, each with what it makes of demos and query together."""
        if h[0] == "half":  # its demos and query are not independent: which half it is, is open
            return [(y, *self.fit(h, [*demos, (x, y)], options)) for y in options]
        return [(y, *map(sum, zip(fit, self.fit(h, [(x, y)], options)))) for y in options]


WORLD = Lexicon()
