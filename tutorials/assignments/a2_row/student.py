"""Assignment 2: k pairs, one row. Write the three functions; the handout says what they do.

Dimensions: k pairs, R rows of T tokens, P entries of the prefix, N answer tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Pair = tuple[list[int], list[int]]  # the ids of an input x and of its answer y, one or more each


@dataclass
class Row:
    """What goes through the model in a step. R = 1 if all pairs lie side by side; k padded rows are right as well."""

    tokens: torch.Tensor  # (R, T) int64
    positions: torch.Tensor  # (R, T) int64
    pair: torch.Tensor  # (R, T) int64, the pair that a token is of; -1: padding
    where: torch.Tensor  # (N,) int64, the index in tokens.flatten() of the token that predicts an answer token
    target: torch.Tensor  # (N,) int64, that answer token
    weight: torch.Tensor  # (N,) float32, what it counts: the loss is the sum of weight · -log p(target)


def pack(pairs: Sequence[Pair | None], start: int) -> Row:
    """Lay out pairs whose first tokens stand at position start. None: a pair that is left out."""
    raise NotImplementedError("pack")


def visible(owner: torch.Tensor, k: int, leave_one_out: bool, p: float,
            generator: torch.Generator | None) -> torch.Tensor:
    """Which entries of the prefix each of k pairs may see: (k, P) bool. owner (P,) int64, -1: of no demo.

    leave_one_out hides from pair i what demo i owns; p is the probability of token dropout.
    """
    raise NotImplementedError("visible")


def row_mask(row: Row, seen: torch.Tensor) -> torch.Tensor:
    """What each token of a row may look at, prefix first: (R, T, P+T) bool. seen (k, P) bool, as of visible."""
    raise NotImplementedError("row_mask")
