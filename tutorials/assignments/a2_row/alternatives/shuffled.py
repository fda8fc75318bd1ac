"""Assignment 2 with the pairs interleaved in one row, from the last to the first, and a filler at each end."""

from collections import namedtuple

import torch

Row = namedtuple("Row", "tokens positions pair where target weight")


def pack(pairs, start):
    cells = [(t, -i, token, i, start + t) for i, pair in enumerate(pairs) if pair is not None
             for t, token in enumerate((list(pair[0]) + list(pair[1]))[:-1])]
    cells = [(0, 0, 9, -1, 7), *sorted(cells), (0, 0, 9, -1, 0)]
    index = {(i, t): n for n, (t, _, _, i, _) in enumerate(cells) if i >= 0}
    answers = [(index[i, len(x) + j - 1], token) for i, (x, y) in ((i, pair) for i, pair in enumerate(pairs) if pair)
               for j, token in enumerate(y)][::-1]
    column = lambda c: torch.tensor([[cell[c] for cell in cells]], dtype=torch.int32)
    where, target = torch.tensor(answers).T
    return Row(column(2), column(4), column(3), where, target, torch.ones(len(answers)).softmax(0))


def visible(owner, k, leave_one_out, p, generator):
    lines = []
    for i in reversed(range(k)):
        gone = torch.empty(len(owner)).bernoulli_(p, generator=generator).bool() if p else owner.isnan()
        lines.append(~(gone | owner.eq(i)) if leave_one_out else ~gone)
    return torch.stack(lines[::-1])


def row_mask(row, seen):
    pair, T = row.pair[0].long(), row.pair.shape[1]
    together = torch.einsum("ti,ui->tu", *[torch.nn.functional.one_hot(pair + 1)] * 2).bool()
    prefix = torch.cat([torch.ones_like(seen[:1]), seen])[pair + 1]
    return torch.cat([prefix, together & (torch.arange(T) <= torch.arange(T)[:, None])], dim=1).unsqueeze(0)
