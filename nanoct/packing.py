"""Packing: k pairs lie in ONE row behind one prefix, and a mask says who sees what.

The pairs of a training step, like the queries of a task, share the prefix and differ only in what they may see of it.
Three pairs, A B -> C and D -> E F and G -> H, behind the cache of these three demos, P = 8 entries:

    token       A  B  D  E  G
    position    8  9  8  9  8     each pair starts anew, right behind the prefix
    pair        0  0  1  1  2
    predicts    .  C  E  F  H     where = 1 2 3 4, the token before each answer token; target = C E F H

The last token of an answer predicts nothing, so C, F and H are not in the row. The mask has a line for each of the
row's T = 5 tokens and a column for each of the P + T entries that a token may look at; x means seen:

                        prefix              the row itself
                 A B C   D E F   G H      A B   D E   G
    owner, pair  0 0 0   1 1 1   2 2      0 0   1 1   2
      A          . . .   x x x   x x      x .   . .   .
      B          . . .   x x x   x x      x x   . .   .
      D          x x x   . . .   x x      . .   x .   .
      E          x x x   . . .   x x      . .   x x   .
      G          x x x   x x x   . .      . .   . .   x

In the row a pair sees itself, causally, and no other pair. In the prefix every entry has an owner, the demo it came
from, and the three holes are leave-one-out: pair i is not shown what demo i owns. Token dropout adds holes at random.

Loss and gradients are those of k padded rows with k copies of the prefix. The cost is T tokens through the model, with
no padding and no copies, and a bool mask of T·(P+T) bytes. Attention scores between pairs are computed, then masked.

A question with several answers to compare, its options, is in the row ONCE, and each option is a branch behind it.
Here is A B with the options C D and E F G, behind P = 8 entries, and on the right what a token sees of the row:

    token  position  branch  predicts      A B   C   E F
      A        8       -1      .           x .   .   . .      -1 is the question itself
      B        9       -1      C E         x x   .   . .      the first token of every option: where = 1 2 1 3 4
      C       10        0      D           x x   x   . .                                     target = C D E F G
      E       10        1      F           x x   .   x .                                     answer = 0 0 1 1 1
      F       11        1      G           x x   .   x x

A branch goes on where the question ends. It sees the prefix as its pair may, the question, and itself, causally, and no
other branch, so its loss is that of a row of its own. A pair with one answer, as in training, has one branch.

Dimensions: k pairs, T tokens of the row, P prefix entries, N answer tokens, V vocab.
"""

import math
from dataclasses import dataclass
from itertools import chain
from warnings import warn

import torch
import torch.nn.functional as F

from nanoct.fewshot import check_dropout, check_fits, check_ids


@dataclass
class Row:
    """k pairs or questions side by side, as drawn above; pair[where] is the pair of each answer token."""

    tokens: torch.Tensor  # (1, T) ids
    positions: torch.Tensor  # (1, T)
    pair: torch.Tensor  # (T,) the pair that a token belongs to
    where: torch.Tensor  # (N,) the index of the token that predicts an answer token
    target: torch.Tensor  # (N,) the id of the answer token
    branch: torch.Tensor | None = None  # (T,) the answer that a token belongs to, -1 in x; None: one answer a pair
    answer: torch.Tensor | None = None  # (N,) the answer that a target belongs to, counted through the whole row

    def mask(self, visible):
        """visible (k, P) bool, which prefix entries each pair may see -> the mask (1, T, P+T) of the row."""
        return self.mask_beside(visible[self.pair])

    def mask_beside(self, seen):
        """seen (T, P) bool, which prefix entries each token may see -> the mask (1, T, P+T) of the row."""
        own = self.pair[:, None] == self.pair  # (T, T)
        if self.branch is not None:
            own &= (self.branch == -1) | (self.branch[:, None] == self.branch)
        return torch.cat([seen, own.tril()], dim=1)[None]

    def padded(self, T, N):
        """The same row for training, with tokens added up to T and targets up to N: loss and gradients stay the same.

        The new tokens are the last ones, so no other token sees them. They are given to pair 0, and each sees itself at
        least. The new targets are -100, which F.cross_entropy leaves out of its mean.
        """
        tokens = lambda part: F.pad(part, (0, T - len(self.pair)))
        targets = lambda part, value=0: F.pad(part, (0, N - len(self.where)), value=value)
        branch = None if self.branch is None else tokens(self.branch)
        return Row(tokens(self.tokens), tokens(self.positions), tokens(self.pair), targets(self.where),
                   targets(self.target, -100), branch)


def pack_demos(task, model, start=0, head=()):
    """Pack the demos of a task as training sees them: each as head + separator + x + y from position `start` on.

    A pair that runs past the model's context, or the task's length, is left out with a warning; the others keep their
    numbers. Raises ValueError if no pair fits.
    """
    head = [*head, *task.separator]
    longest = min(model.config.n_position + 1, task.length or math.inf)  # the last token of y is not read
    pairs, n_long = [], 0
    for demo in task.demos:
        is_long = start + len(head) + len(demo.x) + len(demo.y) > longest
        pairs.append(None if is_long else (demo.x, demo.y))
        n_long += is_long
    if n_long == len(pairs) and task.length:
        raise ValueError(f"task {task.name!r}: no training pair fits {longest} tokens behind {start} of context: use "
                         "fewer or shorter demos, or a greater length.")
    if n_long == len(pairs):
        pairs = [(demo.x, demo.y) for demo in task.demos]  # pack says how long the first is
    elif n_long:
        warn(f"task {task.name!r}: {n_long} of {len(pairs)} training pairs are left out, since behind {start} tokens "
             f"of context they run past the {min(longest, model.config.n_position)} that there are.")
    return pack(pairs, model, start, head)


def pack(pairs, model, start=0, head=()):
    """Lay pairs [(x, y)] of token ids side by side, each as head + x + y from position `start` on; see below."""
    return pack_questions([pair and (pair[0], [pair[1]]) for pair in pairs], model, start, head)


def pack_questions(questions, model, start=0, head=()):
    """Lay questions [(x, [y, …])] side by side, each as head + x from position `start` on and a branch for each y.

    The last token of y predicts nothing and is left out, so T = sum(len(head) + len(x) + sum(len(y) - 1)). None is
    skipped. Raises ValueError if a question runs past the model's context.
    """
    tokens, targets, n_answer = [], [], 0  # (id, position, pair, branch) and (where, id, answer)
    for i, question in enumerate(questions):
        if question is None:
            continue
        x, ys = [*head, *question[0]], question[1]
        end = start + len(x)
        check_fits(model, end + max(map(len, ys)) - 1, f"pair {i} behind {start} tokens of context")
        check_ids(model, chain(x, *ys))
        tokens += [(token, position, i, -1) for position, token in enumerate(x, start)]
        last = len(tokens) - 1  # of x: it predicts the first token of every y
        for y in ys:
            where = [last, *range(len(tokens), len(tokens) + len(y) - 1)]
            targets += [(at, token, n_answer) for at, token in zip(where, y)]
            tokens += [(token, position, i, n_answer) for position, token in enumerate(y[:-1], end)]
            n_answer += 1
    columns = lambda rows: torch.tensor(list(zip(*rows)), dtype=torch.int64, device=model.device)
    (tokens, positions, pair, branch), (where, target, answer) = columns(tokens), columns(targets)
    return Row(tokens[None], positions[None], pair, where, target, branch, answer)


def can_leave_one_out(task):
    """Whether leave-one-out leaves anything to see. With one demo it does not, and a warning says so.

    Another warning follows if demos repeat, because each is then shown its twin, from which it can copy.
    """
    if n_twin := len(task.demos) - len({(*demo.x, -1, *demo.y) for demo in task.demos}):
        warn(f"task {task.name!r}: {n_twin} of {len(task.demos)} demos repeat another, from which they can copy their "
             "answer in spite of leave-one-out: give each demo once.")
    if len(task.demos) == 1:
        warn(f"task {task.name!r} has one demo, so leave-one-out would hide the whole context: going on without it.")
    return len(task.demos) > 1


def visible(owner, k, leave_one_out=False, token_dropout=0.0, generator=None):
    """Which of the P prefix entries each of k pairs may see: (k, P) bool. owner (P,): the demo of each entry.

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

    mask (1, T, P+T); by default every pair sees the whole prefix.
    """
    if mask is None:
        P = len(prefix.owner) if prefix is not None else 0
        mask = row.mask_beside(torch.ones(len(row.pair), P, dtype=torch.bool, device=row.pair.device))
    hidden, _ = model(row.tokens, positions=row.positions, mask=mask, prefix=prefix, adapter=adapter)
    return model.logits(hidden[0, row.where])
