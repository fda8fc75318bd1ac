"""Assignment 2, solved: one row."""

from dataclasses import dataclass

import torch


@dataclass
class Row:
    tokens: torch.Tensor
    positions: torch.Tensor
    pair: torch.Tensor
    where: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor


def pack(pairs, start):
    tokens, positions, pair, where, target, weight = [], [], [], [], [], []
    for i, both in enumerate(pairs):
        if both is None:
            continue
        x, y = both
        ids = [*x, *y]
        read = ids[:-1]  # the last token of y predicts nothing
        first = len(tokens)
        where += [first + t for t in range(len(x) - 1, len(ids) - 1)]
        target += ids[len(x):]
        weight += [1.0 for _ in ids[len(x):]]
        tokens += read
        positions += [start + t for t in range(len(read))]
        pair += [i] * len(read)
    weight = torch.tensor(weight)
    line = lambda values: torch.tensor(values, dtype=torch.int64)
    return Row(line(tokens)[None], line(positions)[None], line(pair)[None], line(where), line(target),
               weight / weight.sum())


def visible(owner, k, leave_one_out, p, generator):
    seen = torch.ones(k, len(owner), dtype=torch.bool)
    if leave_one_out:
        seen &= owner != torch.arange(k)[:, None]
    if p > 0:
        seen &= torch.rand(k, len(owner), generator=generator) >= p
    return seen


def row_mask(row, seen):
    pair = row.pair[0]
    own = pair[:, None] == pair  # (T, T)
    own = own.tril()
    behind = seen[pair]  # (T, P)
    return torch.cat([behind, own], dim=1)[None]
