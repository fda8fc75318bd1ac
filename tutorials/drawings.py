"""Drawings that the lessons share, and the picture of the README.

    python tutorials/drawings.py        # writes idea.svg beside this file

A unit of the axes is one entry of a cache, so that caches, masks and rows of tokens stand to scale beside each other. A
colour is an owner: the demonstration that an entry came from; grey is what belongs to none, such as an instruction.
"""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

OWNERS = ["#2a6fbb", "#d1495b", "#2f8f5b", "#d9a021", "#7b5ea7", "#4a9aa5"]
NOBODY, HIDDEN, INK = "#8d8d8d", "#ececec", "#333333"


def owner_colour(owner):
    """The colour of a demonstration's index; of -1, nobody's."""
    return NOBODY if owner < 0 else OWNERS[owner % len(OWNERS)]


def mix(colour, other, share):
    """A colour between two, both as #rrggbb; share 0 is the first."""
    parts = [[int(each[i : i + 2], 16) for i in (1, 3, 5)] for each in (colour, other)]
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(*parts))


def canvas(width, height, size=8):
    """Axes without axes: `width` times `height` units, y pointing down, `size` inches wide."""
    figure, axes = plt.subplots(figsize=(size, size * height / width))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.axis("off")
    return figure, axes


def square(axes, x, y, colour, size=0.86, height=0.86, **style):
    """One cell, whose place is (x, y) to (x + 1, y + 1)."""
    low = (x + (1 - size) / 2, y + (1 - height) / 2)
    axes.add_patch(Rectangle(low, size, height, facecolor=colour, **({"linewidth": 0} | style)))


def text(axes, x, y, said, size=10, colour=INK, **style):
    axes.text(x, y, said, color=colour, fontsize=size, **({"ha": "center", "va": "center"} | style))


def box(axes, x, y, width, height, said="", colour="#f4f4f4", edge="#b8b8b8", size=10, **style):
    """A rounded box with words in its middle."""
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.25", facecolor=colour,
                                  edgecolor=edge, linewidth=1))
    text(axes, x + width / 2, y + height / 2, said, size, **style)


def arrow(axes, start, end, said="", colour=INK, bend=0.0, above=0.7, size=9):
    """An arrow from one (x, y) to another, with words over its middle."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=colour, linewidth=1.3,
                                   connectionstyle=f"arc3,rad={bend}", shrinkA=0, shrinkB=0))
    if said:
        text(axes, (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 - above, said, size, colour)


def cache(axes, x, y, owner, n_layer=3, hidden=(), shade=0.0, letters=None):
    """A KV cache: a column for each entry, a row for each layer, a cell for its key and value in that layer.

    owner: of each entry, an index or -1. hidden: owners whose entries are left out, drawn as a dashed hole. shade: how
    far colours are mixed with black, for a cache that was trained. letters: a text over each entry.
    """
    for column, each in enumerate(owner):
        for layer in range(n_layer):
            colour = mix(owner_colour(each), "#000000", shade)
            square(axes, x + column, y + layer, HIDDEN if each in hidden else colour)
        if letters:
            text(axes, x + column + 0.5, y - 0.45, letters[column], 8, owner_colour(each), family="monospace")
    for each in hidden:
        columns = [column for column, found in enumerate(owner) if found == each]
        axes.add_patch(Rectangle((x + columns[0], y), len(columns), n_layer, facecolor="none", linestyle=(0, (3, 2)),
                                 edgecolor=owner_colour(each), linewidth=1.6))


def mask(axes, x, y, seen, row_owner, column_owner, n_prefix=0, letters=None, dot=0.34):
    """A mask as squares: a row for each token that looks, a column for each thing it may look at.

    seen: (T, S) bool, coloured by the owner of the column where True, pale where False. An owner None is padding.
    n_prefix: the first columns are a cache and stand apart. What a row does not see of its own owner there is a hole,
    and what else is hidden there has a dot: token dropout. letters: of the rows and of the columns, two lists. dot: how
    wide that dot is.
    """
    place = [x + s + (0 < n_prefix <= s) for s in range(len(column_owner))]
    for t, line in enumerate(seen):
        for s, is_seen in enumerate(line):
            in_cache, is_own = s < n_prefix, row_owner[t] == column_owner[s]
            colour = owner_colour(column_owner[s]) if column_owner[s] is not None else HIDDEN
            if row_owner[t] is None or column_owner[s] is None:
                square(axes, place[s], y + t, "#ffffff", 0.7, 0.7, hatch="//////", edgecolor="#c4c4c4")
            elif is_seen:
                square(axes, place[s], y + t, colour if in_cache or not n_prefix else mix(colour, "#000000", 0.35))
            elif not (in_cache and is_own):
                square(axes, place[s], y + t, HIDDEN)
                if in_cache:
                    square(axes, place[s], y + t, colour, dot, dot)
        if letters and row_owner[t] is not None:
            text(axes, x - 0.7, y + t + 0.5, letters[0][t], 8, owner_colour(row_owner[t]), family="monospace")
        elif not letters:
            square(axes, x - 1.2, y + t, owner_colour(row_owner[t]), 0.4)
    for s, name in enumerate(letters[1] if letters else ()):
        if column_owner[s] is not None:
            text(axes, place[s] + 0.5, y - 0.6, name, 8, owner_colour(column_owner[s]), family="monospace")
    for owner in {each for each in row_owner[: len(seen) if n_prefix else 0] if each is not None}:
        columns = [s for s in range(n_prefix) if column_owner[s] == owner]
        rows = [t for t, each in enumerate(row_owner) if each == owner]
        if columns and not seen[rows[0]][columns[0]]:
            axes.add_patch(Rectangle((x + columns[0] + 0.15, y + rows[0] + 0.15), len(columns) - 0.3, len(rows) - 0.3,
                                     facecolor="none", linestyle=(0, (3, 2)), edgecolor=owner_colour(owner)))


def idea():
    """Demonstrations -> cache -> gradient steps -> trained cache, with the hole that leave-one-out makes."""
    pairs = [("dog", "mammal"), ("ant", "insect"), ("cod", "fish")]
    owner = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    figure, axes = canvas(47, 15.5, 9)
    text(axes, 4.3, 0.8, "demonstrations", 10, weight="bold")
    for i, (x, y) in enumerate(pairs):
        box(axes, 0, 1.9 + 2.1 * i, 8.6, 1.6, f"{x} → {y}", mix(OWNERS[i], "#ffffff", 0.8), OWNERS[i])
    arrow(axes, (9, 4.6), (13.4, 4.6), "read once")
    text(axes, 18.2, 0.8, "their KV cache, θ₀", 10, weight="bold")
    cache(axes, 13.7, 3.1, owner)
    text(axes, 18.2, 7.1, "a column is a token, a row a layer", 8, NOBODY)
    arrow(axes, (23.2, 4.6), (31.6, 4.6), "gradient steps")
    text(axes, 36.6, 0.8, "the trained cache, θ*", 10, weight="bold")
    cache(axes, 32.1, 3.1, owner, shade=0.35)
    text(axes, 36.6, 7.1, "the weights stay as they are", 8, NOBODY)

    text(axes, 16.2, 9.2, "one term of the loss: ant without its own entries", 9, weight="bold")
    cache(axes, 13.7, 10.3, owner, hidden=(1,))
    box(axes, 23.6, 11, 3.6, 1.6, "ant →", mix(OWNERS[1], "#ffffff", 0.8), OWNERS[1])
    arrow(axes, (27.4, 11.8), (29.2, 11.8))
    text(axes, 31.5, 11.8, "insect?", 10, OWNERS[1])
    arrow(axes, (28.6, 10.8), (28.6, 5.0), colour=NOBODY, bend=0.12)
    text(axes, 18.2, 14.2, "so that it cannot copy its answer", 8, NOBODY)

    arrow(axes, (36.6, 8), (36.6, 9.5), colour=INK)
    box(axes, 34.6, 9.9, 4, 1.6, "bee →", "#f4f4f4")
    arrow(axes, (38.9, 10.7), (40.7, 10.7))
    text(axes, 43, 10.7, "insect", 10, weight="bold")
    text(axes, 39, 12.6, "a new question reads θ*", 8, NOBODY)
    return figure


def main():
    plt.rcParams |= {"svg.hashsalt": "nanoct", "svg.fonttype": "path", "font.size": 10}
    idea().savefig(Path(__file__).with_name("idea.svg"), bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
