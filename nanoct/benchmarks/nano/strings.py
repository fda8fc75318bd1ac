"""The world "strings": transform a short string of letters. k = 10 demos, exact match. It mirrors the paper's BBH.

    <s> b c a = a c b ; p f f = f f p ; …           here: reverse

A task is one of the primitives below, or an ordered pair of them; functions.py says which are held out.
"""

from nanoct.benchmarks.nano.functions import Functions

LETTERS = "abcdefghijklmnop"
SHORTEST, LONGEST, LONGEST_OUTPUT = 3, 6, 12


def draw(rng):
    """A random input: 3 to 6 letters out of a random part of the alphabet, so that letters recur."""
    some = rng.sample(LETTERS, rng.randint(2, len(LETTERS)))
    return "".join(rng.choices(some, k=rng.randint(SHORTEST, LONGEST)))


def _shift(s, by):
    """Move letter i along the alphabet by by(i, letter) places, cyclically."""
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


# chosen so that few of them commute or are the same function; they act by position, by letter, by value, by a
# condition, or on the two halves
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


WORLD = Functions(
    tokens=[*LETTERS],
    primitives=PRIMITIVES,
    draw=draw,
    fits=lambda y: 1 <= len(y) <= LONGEST_OUTPUT,
    k=10,
    n_query=30,
)
