"""nanoct passes its own course: assignment 2 by the package's packing."""

from types import SimpleNamespace

import torch

from nanoct import packing

ANY_MODEL = SimpleNamespace(config=SimpleNamespace(n_position=10**6, vocab_size=10**6), device="cpu")
pack_row = lambda pairs, start: packing.pack([both and tuple(map(list, both)) for both in pairs], ANY_MODEL, start)


def pack(pairs, start):
    row = pack_row(pairs, start)
    weight = torch.full((len(row.target),), 1 / len(row.target))  # the mean of F.cross_entropy
    return SimpleNamespace(tokens=row.tokens, positions=row.positions, pair=row.pair[None], where=row.where,
                           target=row.target, weight=weight)


def visible(owner, k, leave_one_out, p, generator):
    return packing.visible(owner, k, leave_one_out, p, generator)


def row_mask(row, seen):
    return packing.Row(row.tokens, row.positions, row.pair[0], row.where, row.target).mask(seen)
