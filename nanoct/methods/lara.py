"""LARA: weigh the answers of several contexts, a group of demonstrations in each (arXiv 2410.10074).

    p(y | x) = softmax( sum_g w_g · logits(y | KV(group g), x) ),    sum_g w_g = 1,    w_g = 1/G at the start
    w* = argmin over w in [-1.5, 1.5]  - 1/n · sum_i log p(y_i | groups of the half without demo i, x_i)

phi is frozen; G numbers are searched, without a gradient. The groups are halved, and each half answers the demos of the
other; it keeps the sum of its weights, which count as if that were 1. The search changes the best w at random, in steps
that shrink; the paper takes a library's. Without `size`, that of 2, 4 and 8 with the lowest loss is taken, or 1.

Cost. 2·N·(P + T·G/2) FLOPs for N weights; the search reads the logits that are kept. A question costs G forwards.

    python -m nanoct.reproduce --methods icl lara
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoct.fewshot import Adapted, Mixture, encode_context, groups_of
from nanoct.footprint import Footprint, Pass
from nanoct.packing import answer_logits, pack

LABEL, COLOUR = "LARA", "#3f88c5"  # in tables and figures
SWEEP = dict(n_step=(5, 20), sigma=(0.1, 0.3))  # values worth trying
SIZES, BOUND = (2, 4, 8), 1.5  # of groups, and of a weight


@dataclass
class Config:
    n_step: int = 20  # evaluations of the search
    size: int = 0  # demos in a group; 0: that of SIZES with the lowest loss
    sigma: float = 0.3  # standard deviation of the first change of a weight, in units of 1/G; the last has a tenth


@torch.no_grad()
def adapt(model, task, config=Config(), seed=0, progress=None):
    """Weigh groups of task.demos; returns (model, contexts with weights). progress(step, loss) is called every step.

    Raises ValueError without two demos, if a context and a pair do not fit, or on an impossible setting.
    """
    if (k := len(task.need_demos(LABEL))) == 1:
        raise ValueError(f"task {task.name!r} has one demo, and LARA needs two: each group answers the other's demos.")
    if config.n_step < 0 or not 0 <= config.sigma < torch.inf:
        raise ValueError(f"n_step = {config.n_step} and sigma = {config.sigma} must be at least 0, and sigma finite.")
    sizes = [size for size in SIZES if k % size == 0 and size < k] or [1]
    found = []
    for size in [config.size] if config.size else sizes:
        contexts = [encode_context(model, task.instruction, group, separator=task.separator)
                    for group in groups_of(task.demos, size)]
        for g, context in enumerate(contexts):
            context.owner[context.owner >= 0] += g * size
        of_halves = halves(model, task, contexts, size) if size < k else []
        found.append((*search(of_halves, len(contexts), config, seed), contexts))
    losses, weights, contexts = min(found, key=lambda one: one[0][-1])
    for step, now in enumerate(losses[1:] if progress else []):
        progress(step, now)
    return Adapted(model, prefix=Mixture(list(zip(weights.tolist(), contexts))), n_trained=len(contexts))


def halves(model, task, contexts, size):
    """For each half: (its groups, logits (g, N, V) behind each at the other half's answers, their ids (N,))."""
    numbers, n, found = list(range(len(contexts))), len(contexts) // 2, []
    for groups, others in ((numbers[:n], task.demos[n * size :]), (numbers[n:], task.demos[: n * size])):
        pairs, logits = [(demo.x, demo.y) for demo in others], []
        for g in groups:
            row = pack(pairs, model, contexts[g].next_position, task.separator)
            logits.append(answer_logits(model, row, contexts[g]))
        found.append((groups, torch.stack(logits), row.target))
    return found


def search(halves, n_group, config, seed):
    """Change 1/G at random, n_step times: (the lowest loss so far, before and after each; its weights (G,))."""
    def loss(weights):
        total, n = 0.0, 0
        for groups, logits, target in halves:
            of_half = weights[groups].to(logits) * n_group / len(groups)  # their sum is 1
            mixed = torch.einsum("g,gnv->nv", of_half, logits)
            total, n = total + F.cross_entropy(mixed, target, reduction="sum").item(), n + len(target)
        return total / max(n, 1)

    generator, best = torch.Generator().manual_seed(seed), torch.full((n_group,), 1 / n_group)
    lowest = [loss(best)]
    for step in range(config.n_step):
        change = torch.randn(n_group, generator=generator) * config.sigma / n_group * 0.1 ** (step / config.n_step)
        for groups, *_ in halves:
            change[groups] -= change[groups].mean()  # the half keeps its sum
        now = loss(best + change) if (best + change).abs().max() <= BOUND else torch.inf
        best = best + change if now < lowest[-1] else best
        lowest.append(min(now, lowest[-1]))
    return lowest, best


def footprint(model_config, lengths, config):
    """The contexts are read, and once behind each the pairs of the other half; the search costs next to nothing."""
    P, T = lengths.context, lengths.row
    G = max(1, len(lengths.demos) // (config.size or SIZES[0]))
    behind = Pass(G, T // 2, P // G + T // 2, lengths.targets * G // 2, trains=False)
    return Footprint(1, [behind], read=P, prefix=P)
