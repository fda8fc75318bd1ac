"""Prefix tuning: optimise keys and values that stand for no text (Li & Liang, arXiv 2101.00190, without their MLP).

    theta_0 = KV(tokens 0, 1, … m-1), or noise
    theta*  = argmin  - 1/n · sum_i log p_phi(y_i | theta, x_i)

phi is frozen. What CT-KV (ct_kv.py) does, but from a start that knows nothing of the demos, so that nothing
need be hidden from pair i. m keys (after RoPE) and values per layer are trained, 2·L·K·D·m numbers, float32.
New tokens stand at positions m, m+1, …; the instruction, if there is one, is at the head of every row.

Cost. Every step runs the k pairs, T tokens, in one packed row: 4·N·T FLOPs for N weights (forward and the
gradient of the inputs, none of the weights) and 12·L·H·D·T·(m+T) for attention: a·k + b·k². Memory: 5 float32
copies of theta (value, gradient, AdamW's two, the last good one).

    python -m nanoct.reproduce --methods icl prefix_tuning ct_kv
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoct.fewshot import Adapted, encode_context, first_tokens, noise_like, read_on
from nanoct.optimise import optimise
from nanoct.packing import answer_logits, pack_demos

LABEL, COLOUR = "prefix tuning", "#e07a3f"  # in tables and figures
SWEEP = dict(n_step=(16, 64), lr=(3e-3, 1e-2, 3e-2, 1e-1))  # values worth trying


@dataclass
class Config:
    n_step: int = 32  # optimiser steps, one pass over all k pairs each
    lr: float = 1e-2  # of AdamW, cosine decay to 0, no warm-up
    n_prefix: int = 32  # m
    start: str = "tokens"  # theta_0; "noise": as many random entries


def adapt(model, task, config=Config(), seed=0, progress=None):
    """Tune m keys and values on task.demos; returns (model, tuned prefix). progress(step, loss) is called every step.

    Raises ValueError without demos, if m is not positive or does not fit the model with the instruction and the
    pairs, or on an unknown start.
    """
    task.need_demos("prefix tuning")
    generator = torch.Generator().manual_seed(seed)
    if config.start not in ("tokens", "noise"):
        raise ValueError(f'start = {config.start!r} must be "tokens" or "noise".')
    context = encode_context(model, first_tokens(model, config.n_prefix))
    if config.start == "noise":
        context = noise_like(context, generator)
    row = pack_demos(task, model, context.next_position, task.instruction)

    keys, values = (part.float() for part in context.stack())  # (L, 1, K, m, D)
    leaves = [part.requires_grad_() for part in (keys, values)]

    def loss():
        return F.cross_entropy(answer_logits(model, row, context.of(keys, values)), row.target)

    optimise(loss, leaves, config, progress)
    theta = read_on(model, context.of(keys, values), task.instruction)
    return Adapted(model, prefix=theta, n_trained=sum(leaf.numel() for leaf in leaves))
