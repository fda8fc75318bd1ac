"""How k pairs become ONE row, and who sees what."""

from dataclasses import dataclass
from warnings import warn

import torch

from nanoct.fewshot import check_dropout, check_fits


@dataclass
class Row:
    """k pairs side by side: tokens and positions (1, T), pair (T,), and for the N answer tokens where (N,), the
    index of the token that predicts them, target (N,), their id, and their pair, pair[where]."""

    tokens: torch.Tensor
    positions: torch.Tensor
    pair: torch.Tensor
    where: torch.Tensor
    target: torch.Tensor

    def mask(self, visible):
        """visible (k, P) bool, which prefix entries each pair may see -> the mask (1, T, P+T) of the row."""
        own = self.pair[:, None] == self.pair  # (T, T)
        return torch.cat([visible[self.pair], own.tril()], dim=1)[None]


def pack_demos(task, model, start=0, head=()):
    """The row that training sees: head, separator and pair of every demo of a task from position `start` on.

    A pair that runs past the model's context is left out, with a warning; the others keep their number.
    Raises ValueError if none is left.
    """
    head = [*head, *task.separator]
    long = [i for i, demo in enumerate(task.demos) if start + len(head) + len(demo.x) + len(demo.y) - 1 > model.config.n_position]
    if 0 < len(long) < len(task.demos):
        warn(f"task {task.name!r}: {len(long)} of {len(task.demos)} training pairs are left out, since behind {start} tokens "
             f"of context they run past the model's {model.config.n_position}.")
        return pack([None if i in long else (demo.x, demo.y) for i, demo in enumerate(task.demos)], model, start, head)
    return pack([(demo.x, demo.y) for demo in task.demos], model, start, head)


def pack(pairs, model, start=0, head=()):
    """Lay pairs [(x, y)] of token ids side by side, each as head + x + y from position `start` on; None is passed over.

    The last token of y predicts nothing and is left out, so T = sum(len(head) + len(x) + len(y) - 1).
    Raises ValueError if a pair runs past the model's context.
    """
    tokens, positions, pair, where, target = [], [], [], [], []
    for i, (x, y) in ((i, found) for i, found in enumerate(pairs) if found):
        ids = [*head, *x, *y]
        check_fits(model, start + len(ids) - 1, f"pair {i} behind {start} tokens of context")
        where += range(len(tokens) + len(ids) - len(y) - 1, len(tokens) + len(ids) - 1)
        target += y
        tokens += ids[:-1]
        positions += range(start, start + len(ids) - 1)
        pair += [i] * (len(ids) - 1)
    tensor = lambda values: torch.tensor(values, dtype=torch.int64, device=model.device)
    return Row(tensor(tokens)[None], tensor(positions)[None], tensor(pair), tensor(where), tensor(target))


def can_leave_one_out(task):
    """Whether leave-one-out leaves anything: not with a single demo, which is said in a warning."""
    if len(task.demos) == 1:
        warn(f"task {task.name!r} has one demo, so leave-one-out would hide the whole context: going on without it.")
    return len(task.demos) > 1


def visible(owner, k, leave_one_out=False, token_dropout=0.0, generator=None):
    """Which of the P prefix entries each of k pairs may see: (k, P) bool. owner (P,): the prefix's.

    leave_one_out hides from pair i the entries that demo i owns; token_dropout hides every entry from every
    pair independently with that probability, the instruction's too, and nothing is rescaled. The draw is made
    on the CPU: a seed gives the same masks on every device.
    """
    seen = torch.ones(k, len(owner), dtype=torch.bool, device=owner.device)
    check_dropout("token_dropout", token_dropout)
    if leave_one_out:
        seen &= owner != torch.arange(k, device=owner.device)[:, None]
    if token_dropout:
        seen &= (torch.rand(k, len(owner), generator=generator) >= token_dropout).to(owner.device)
    return seen


def answer_logits(model, row, prefix=None, adapter=None, mask=None):
    """Logits (N, V) float32 at the answer tokens of a packed row, and nowhere else.

    mask (1, T, P+T): default, every pair sees the whole prefix.
    """
    if mask is None:
        P = len(prefix.owner) if prefix is not None else 0
        mask = row.mask(torch.ones(int(row.pair[-1]) + 1, P, dtype=torch.bool, device=row.pair.device))
    hidden, _ = model(row.tokens, positions=row.positions, mask=mask, prefix=prefix, adapter=adapter)
    return model.logits(hidden[0, row.where])
