"""CT-KV: optimise the KV cache of the demonstrations (Context Tuning, arXiv 2507.04221, section 4).

    theta_0 = KV(x_1 y_1 … x_k y_k)
    theta*  = argmin  - 1/n · sum_i log p_phi(y_i | drop(theta without the entries of demo i), x_i)

phi is frozen, and every key (after RoPE) and value of theta is trained: 2·L·K·D·P numbers, float32.
In-context learning starts and stops at theta_0. Pair i is not shown its own demo, or it would learn to copy it
(leave-one-out); every entry is hidden from every pair with probability p at every step (token dropout).
New tokens always stand at positions P, P+1, …, and predictions see the whole of theta.

Cost. A step runs the k pairs, T tokens, in one packed row behind the P entries of theta: 4·N·T FLOPs for N weights
(forward and the gradient of the inputs, none of the weights) and 12·L·H·D·T·(P+T) for attention: a·k + b·k².
Memory: 5 float32 copies of theta (value, gradient, AdamW's two moments, the last good value).

    python -m nanoct.reproduce --methods icl prefix_tuning ct_kv
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoct.fewshot import Adapted, encode_context
from nanoct.footprint import Footprint, Pass, entry
from nanoct.optimise import optimise_masked
from nanoct.packing import answer_logits, can_leave_one_out, pack_demos, visible

LABEL, COLOUR = "CT-KV", "#d1495b"  # in tables and figures
SWEEP = dict(n_step=(2, 8, 32), lr=(1e-2, 3e-2, 1e-1), token_dropout=(0.05,))  # values worth trying
GRAPH = True  # its step can be kept as a CUDA graph: optimise.py


@dataclass
class Config:
    n_step: int = 32  # optimiser steps, one pass over all k pairs each
    lr: float = 1e-2  # of AdamW, cosine decay to 0, no warm-up
    token_dropout: float = 0.1  # probability that an entry is hidden from a pair in a step
    leave_one_out: bool = True  # hide demo i from pair i


def adapt(model, task, config=Config(), seed=0, progress=None, adapter=None):
    """Tune the KV cache of task.demos; returns (model, adapter, theta). progress(step, loss) is called every step.

    Raises ValueError without demos, on impossible settings, or if theta and the pairs do not fit the model.
    With a single demo leave-one-out is off, and a warning says so. adapter: part of phi, not trained.
    """
    task.need_demos(LABEL)
    generator = torch.Generator().manual_seed(seed)
    context = encode_context(model, task.instruction, task.demos, adapter, task.separator)
    row = pack_demos(task, model, context.next_position)
    leave_one_out = config.leave_one_out and can_leave_one_out(task)

    draw = lambda: visible(context.owner, len(task.demos), leave_one_out, config.token_dropout, generator)  # (k, P)

    keys, values = (part.float() for part in context.stack())  # (L, 1, K, P, D)
    leaves = [part.requires_grad_() for part in (keys, values)]

    def loss(row, keys, values, seen):
        theta = context.of(keys.to(model.dtype), values.to(model.dtype))  # once, and not in every layer
        logits = answer_logits(model, row, theta, adapter, row.mask(seen))
        return F.cross_entropy(logits, row.target)

    optimise_masked(model, loss, row, leaves, draw, config, progress, adapter)
    n_trained = sum(leaf.numel() for leaf in leaves)
    return Adapted(model, adapter, context.of(keys, values), n_trained)


def footprint(model_config, lengths, config):
    """P entries are read, kept and trained; a step is the row of all pairs behind them."""
    P, T = lengths.context, lengths.row
    theta = P * entry(model_config)
    return Footprint(config.n_step, [Pass(1, T, P + T, lengths.targets)], theta, start=theta, read=P, prefix=P)
