"""Prefix tuning: optimise keys and values that stand for no text (Li & Liang, arXiv 2101.00190, without their MLP).

    theta_0 = KV(tokens 0, 1, … P-1), or noise
    theta*  = argmin  - 1/n · sum_i log p_phi(y_i | theta, x_i)

phi is frozen, and every key (after RoPE) and value of theta is trained: 2·L·K·D·P numbers, float32.
It is CT-KV (ct_kv.py) from a start that does not know the demos, so nothing has to be hidden from pair i.
The instruction, if there is one, is at the head of every row.
New tokens always stand at positions P, P+1, …, and predictions see the whole of theta.

Cost. A step runs the k pairs, T tokens, in one packed row behind the P entries of theta: 4·N·T FLOPs for N weights
(forward and the gradient of the inputs, none of the weights) and 12·L·H·D·T·(P+T) for attention: a·k + b·k².
Memory: 5 float32 copies of theta (value, gradient, AdamW's two moments, the last good value).

    python -m nanoct.reproduce --methods icl prefix_tuning ct_kv
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoct.fewshot import Adapted, check_start, encode_context, first_tokens, noise_like, read_on
from nanoct.footprint import Footprint, Pass, entry
from nanoct.optimise import optimise_masked
from nanoct.packing import answer_logits, pack_demos, visible

LABEL, COLOUR = "prefix tuning", "#e07a3f"  # in tables and figures
SWEEP = dict(n_step=(2, 8, 32), lr=(1e-2, 3e-2, 1e-1))  # values worth trying
GRAPH = True  # its step can be kept as a CUDA graph: optimise.py


@dataclass
class Config:
    n_step: int = 32  # optimiser steps, one pass over all k pairs each
    lr: float = 1e-2  # of AdamW, cosine decay to 0, no warm-up
    n_prefix: int = 32  # P
    start: str = "tokens"  # theta_0; "noise": as many random entries


def adapt(model, task, config=Config(), seed=0, progress=None):
    """Tune P keys and values on task.demos; returns (model, theta). progress(step, loss) is called every step.

    Raises ValueError without demos, on impossible settings, or if theta and the pairs do not fit the model.
    """
    task.need_demos(LABEL)
    generator = torch.Generator().manual_seed(seed)
    check_start(config.start)
    context = encode_context(model, first_tokens(model, config.n_prefix))
    if config.start == "noise":
        context = noise_like(context, generator)
    row = pack_demos(task, model, context.next_position, task.instruction)

    draw = lambda: visible(context.owner, len(task.demos))  # (k, P): everything

    keys, values = (part.float() for part in context.stack())  # (L, 1, K, P, D)
    leaves = [part.requires_grad_() for part in (keys, values)]

    def loss(row, keys, values, seen):
        theta = context.of(keys.to(model.dtype), values.to(model.dtype))  # once, and not in every layer
        logits = answer_logits(model, row, theta, mask=row.mask(seen))
        return F.cross_entropy(logits, row.target)

    optimise_masked(model, loss, row, leaves, draw, config, progress)
    n_trained = sum(leaf.numel() for leaf in leaves)
    return Adapted(model, None, read_on(model, context.of(keys, values), task.instruction), n_trained)


def footprint(model_config, lengths, config):
    """P entries are read, kept and trained; a step is the row of all pairs behind them."""
    P, T = config.n_prefix, lengths.headed_row
    theta = P * entry(model_config)
    return Footprint(config.n_step, [Pass(1, T, P + T, lengths.targets)], theta, start=theta, read=P, prefix=P)
