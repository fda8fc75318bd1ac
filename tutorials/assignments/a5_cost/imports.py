"""nanoct passes its own course: assignment 5 by the package's estimates; it has no fit of its own."""

import torch

from nanoct.costs.memory import add_up
from nanoct.footprint import Footprint, Lengths, Pass, entry


def estimate(c, P, T, n):
    says = Footprint(1, [Pass(1, T, P + T, n)], trained=P * entry(c), prefix=P)
    return add_up(c, says, Lengths(0, [], 1), torch.float32, checkpoint=False, cuda=False)


def flops_step(c, P, T, n):
    return estimate(c, P, T, n).flops_step


def peak_bytes(c, P, T, n):
    return estimate(c, P, T, n).beside - 4 * P * entry(c)  # the package keeps the last good entries too


def fit(k, seconds):
    if len(k) != len(seconds) or len(set(k)) < 2 or min(*k, *seconds) <= 0:
        raise ValueError("two different k at least, and seconds for each, all positive")
    x, y = (torch.tensor(part, dtype=torch.float64) for part in (k, seconds))
    return tuple(torch.linalg.lstsq(torch.stack([x / y, x**2 / y], dim=1), torch.ones_like(y)[:, None]).solution[:, 0])
