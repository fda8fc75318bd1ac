"""The world "grids": transform a small coloured grid. k = 4 demos, every cell right. It mirrors the paper's ARC.

    <s> /1 0 3 3 /2 0 0 1 = /1 3 3 0 /2 1 0 0 ; …   here: mirror; /1 /2 … begin a row, 0 is the background

A task is one of the primitives below, or an ordered pair of them; functions.py says which are held out.
Inside this file a grid is a tuple of rows, each a string of digits.
"""

from collections import Counter

from nanoct.benchmarks.nano.functions import Functions

COLOURS = "123456789"
PALETTE = ("#333333", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00",  # the colours that people see for 0 to 9, as in ARC
           "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25")
SMALLEST, LARGEST = 2, 5  # sides of an input
LARGEST_OUTPUT = 6


def draw(rng):
    """A random input: 2 to 5 cells a side, about half of them background, one to four colours."""
    h, w = rng.randint(SMALLEST, LARGEST), rng.randint(SMALLEST, LARGEST)
    palette, empty = rng.sample(COLOURS, rng.randint(1, 4)), rng.uniform(0.2, 0.7)
    return tuple("".join("0" if rng.random() < empty else rng.choice(palette) for _ in range(w)) for _ in range(h))


def _transpose(g):
    return tuple(map("".join, zip(*g)))


def _columns(f):
    """Make f, a function of rows, work on columns."""
    return lambda g: _transpose(f(_transpose(g)))


def _rows(f):
    """Make f, a function of one row, work on every row."""
    return lambda g: tuple(map(f, g))


def _cells(f):
    """Apply f(cell, the grid's commonest colour) to every cell. Of several take the lowest, of none "0"."""

    def run(g):
        counts = Counter("".join(sorted("".join(g)))) - Counter({"0": 99})
        commonest = counts.most_common(1)[0][0] if counts else "0"  # of equals, the first that was counted
        return tuple("".join(f(c, commonest) for c in row) for row in g)

    return run


def _crop(g):
    """Return the smallest rectangle that holds all coloured cells."""
    rows = [i for i, row in enumerate(g) if row.strip("0")]
    columns = [i for i, column in enumerate(_transpose(g)) if column.strip("0")]
    return tuple(row[columns[0] : columns[-1] + 1] for row in g[rows[0] : rows[-1] + 1]) if rows else g


def _rays(row):
    """Let every colour run to the right over background cells."""
    out = ""
    for c in row:
        out += c if c != "0" or not out else out[-1]
    return out


def _frame(g):
    inside = lambda i, row: ("5" + row[1:-1] + "5")[: len(row)] if 0 < i < len(g) - 1 else "5" * len(row)
    return tuple(inside(i, row) for i, row in enumerate(g))


def _checker(g):
    """Every other cell becomes background."""
    return tuple("".join("0" if (i + j) % 2 else c for j, c in enumerate(row)) for i, row in enumerate(g))


_gravity = _rows(lambda row: "0" * row.count("0") + row.replace("0", ""))  # to the right
_mirror = _rows(lambda row: row[::-1])

PRIMITIVES = {
    "mirror": _mirror,
    "flip": lambda g: g[::-1],
    "transpose": _transpose,
    "rotate": lambda g: _mirror(_transpose(g)),  # a quarter turn clockwise
    "half_turn": lambda g: _mirror(g[::-1]),
    "fall_right": _gravity,
    "fall_left": lambda g: _mirror(_gravity(_mirror(g))),
    "fall": _columns(_gravity),
    "roll_right": _rows(lambda row: row[-1] + row[:-1]),
    "roll_down": lambda g: g[-1:] + g[:-1],
    "drop_row": lambda g: g[1:] if len(g) > 1 else g,
    "drop_column": _rows(lambda row: row[1:] if len(row) > 1 else row),
    "double_row": lambda g: g[:1] + g,
    "double_column": _rows(lambda row: row[:1] + row),
    "rays_right": _rows(_rays),
    "rays_down": _columns(_rows(_rays)),
    "crop": _crop,
    "frame": _frame,
    "next_colour": _cells(lambda c, _: c if c == "0" else str(int(c) % 9 + 1)),
    "fill": _cells(lambda c, commonest: commonest if c == "0" else c),
    "one_colour": _cells(lambda c, commonest: "0" if c == "0" else commonest),
    "keep_commonest": _cells(lambda c, commonest: c if c == commonest else "0"),
    "drop_commonest": _cells(lambda c, commonest: "0" if c == commonest else c),
    "exchange": _cells(lambda c, commonest: commonest if c == "0" else "0" if c == commonest else c),
    "symmetric": _rows(lambda row: row[: (len(row) + 1) // 2] + row[: len(row) // 2][::-1]),
    "checker": _checker,
}


def read(text):
    return tuple(row[1:] for row in text.split("/")[1:])


def write(grid):
    return "".join(f"/{i}{row}" for i, row in enumerate(grid, 1))


WORLD = Functions(
    tokens=[*(f"/{i}" for i in range(1, LARGEST_OUTPUT + 1)), *"0123456789"],
    primitives=PRIMITIVES,
    draw=draw,
    fits=lambda y: 1 <= len(y) <= LARGEST_OUTPUT and 1 <= len(y[0]) <= LARGEST_OUTPUT,
    k=4,
    n_query=20,
    read=read,
    write=write,
)
