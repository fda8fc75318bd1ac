"""Assignment 2 in loops, from the last pair to the first, with one draw a number."""

from dataclasses import dataclass

import torch


@dataclass
class Row:
    tokens: object
    positions: object
    pair: object
    where: object
    target: object
    weight: object


def pack(pairs, start):
    tokens, positions, owner, where, target = [], [], [], [], []
    for i in reversed(range(len(pairs))):
        if pairs[i] is None:
            continue
        x, y = pairs[i]
        for j, token in enumerate(x + y[:-1]):
            tokens.append(token)
            positions.append(start + j)
            owner.append(i)
            if j >= len(x) - 1:
                where.append(len(tokens) - 1)
        target.extend(y)
    weight = torch.tensor([1 / len(target)] * len(target))
    return Row(*(torch.tensor([part]) for part in (tokens, positions, owner)), torch.tensor(where),
               torch.tensor(target), weight)


def visible(owner, k, leave_one_out, p, generator):
    seen = [[True] * len(owner) for _ in range(k)]
    for e in range(len(owner)):
        for i in range(k):
            if p > 0 and float(torch.rand(1, generator=generator)) < p:
                seen[i][e] = False
            if leave_one_out and int(owner[e]) == i:
                seen[i][e] = False
    return torch.tensor(seen)


def row_mask(row, seen):
    P, T = seen.shape[1], row.tokens.shape[1]
    mask = torch.zeros(1, T, P + T, dtype=torch.bool)
    for t in range(T):
        pair = int(row.pair[0, t])
        mask[0, t, :P] = seen[pair]
        for u in range(t + 1):
            mask[0, t, P + u] = int(row.pair[0, u]) == pair
    return mask
