"""Deep-Thinking: read the demonstrations again and again behind their own cache (Yang et al., arXiv 2305.13016).

    theta_0 = KV(x_1 y_1 … x_k y_k),    m <- (KV(x_1 … y_k | theta) - theta) + momentum · m,    theta <- theta + lr · m

The cache moves towards what the same tokens compute while they attend to all of it, their own entry and later demos
included, and causally to each other. Keys and values have an m each; the first m is the difference. All 2·L·K·D·P
numbers of CT-KV's theta (ct_kv.py) move from the same start, without a loss and without a gradient. Tokens are read at
their own positions. The public code goes on counting behind the context, which mixes keys of two rotations under RoPE;
and it reports the best round on all its questions, while here the number of rounds is a setting.

Cost. A round is one forward of P tokens behind P entries, 2·N·P FLOPs for N weights. Memory: 4 float32 copies of theta.

    python -m nanoct.reproduce --methods icl deep_thinking ct_kv
"""

import math
from dataclasses import dataclass

import torch

from nanoct.fewshot import Adapted, concatenate, encode_context
from nanoct.footprint import Footprint, Pass, entry

LABEL, COLOUR = "Deep-Thinking", "#8a6d9b"  # in tables and figures
SWEEP = dict(n_step=(5, 15), lr=(1e-3, 1e-2))  # values worth trying


@dataclass
class Config:
    n_step: int = 5  # rounds; up to 15 in the paper
    lr: float = 1e-2  # share of m that the cache moves by in a round
    momentum: float = 0.9  # share of m that stays from round to round


@torch.no_grad()
def adapt(model, task, config=Config(), seed=0, progress=None):
    """Move the KV cache of task.demos; returns (model, theta). There is no loss, so progress is never called.

    Raises ValueError without demos, if they do not fit the model, or on impossible rounds, rate or momentum.
    """
    demos = task.need_demos(LABEL)
    if config.n_step < 0 or not 0 < config.lr < math.inf or not 0 <= config.momentum < 1:
        raise ValueError(f"n_step = {config.n_step} must be at least 0, lr = {config.lr} positive and finite, and "
                         f"momentum = {config.momentum} at least 0 and less than 1.")
    tokens, _ = concatenate(model, task.instruction, demos, task.separator)
    context = encode_context(model, task.instruction, demos, separator=task.separator)
    positions = torch.arange(tokens.shape[1], device=model.device)[None]
    theta = [part.float() for part in context.stack()]  # keys and values, (L, 1, K, P, D)
    moves = [torch.zeros_like(part) for part in theta]
    for _ in range(config.n_step):
        _, kv = model(tokens, positions=positions, prefix=context.of(*theta))
        for part, move, again in zip(theta, moves, map(torch.stack, zip(*kv))):
            move.mul_(config.momentum).add_(again - part)
            part.add_(config.lr * move)
    return Adapted(model, prefix=context.of(*theta), n_trained=sum(part.numel() for part in theta))


def footprint(model_config, lengths, config):
    """The context is read, and in every round once more behind itself."""
    P = lengths.context
    theta = P * entry(model_config)
    return Footprint(config.n_step, [Pass(1, P, 2 * P, trains=False)], theta, read=P, prefix=P)
