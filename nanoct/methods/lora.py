"""LoRA: fine-tune low-rank weights on the demonstrations, one at a time (Hu et al., arXiv 2106.09685).

    phi* = argmin  - 1/n · sum_i log p_phi(y_i | x_i),    theta = KV(instruction)

LoRA never sees two demos together; TTT (ttt.py) shows the model one behind the other. It trains LoRA matrices on
q, v, o, gate, up, down (not k) of every layer, rank·(in + out) numbers for each weight, float32.

Cost. Every step runs the k pairs, T tokens, in one packed row: 4·N·T FLOPs for N weights (forward and the gradient
of the inputs; the adapters add a share of about 2·rank/width) and 12·L·H·D·T² for attention. Memory: 5 float32
copies of the adapter.

    python -m nanoct.reproduce --methods icl lora ttt
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoct import adapters
from nanoct.fewshot import Adapted, encode_context
from nanoct.footprint import Footprint, LowRank, Pass
from nanoct.optimise import optimise
from nanoct.packing import answer_logits, pack_demos

LABEL, COLOUR = "LoRA", "#7fb3d5"  # in tables and figures
SWEEP = dict(n_step=(2, 8, 32), lr=(1e-3, 3e-3, 1e-2), rank=(8,), alpha=(16.0,))  # values worth trying


@dataclass
class Config:
    n_step: int = 32  # optimiser steps, one pass over all k pairs each
    lr: float = 1e-3  # of AdamW, cosine decay to 0, no warm-up
    rank: int = 16
    alpha: float = 16.0  # the change of weights is scaled by alpha / rank
    dropout: float = 0.05  # on the inputs of the change


def adapt(model, task, config=Config(), seed=0, progress=None, kind=adapters.LoRA):
    """Train an adapter on task.demos; returns (model, adapter, KV of the instruction).

    progress(step, loss) is called every step. kind: class of the adapter, LoRA or DoRA. Raises ValueError without
    demos, if they do not fit, or on a rank below 1.
    """
    task.need_demos(kind.__name__)
    generator = torch.Generator(model.device).manual_seed(seed)
    adapter = adapters.attach(kind, model, config.rank, config.alpha, config.dropout, generator)
    row = pack_demos(task, model, head=task.instruction)

    def loss():
        return F.cross_entropy(answer_logits(model, row, adapter=adapter), row.target)

    optimise(loss, leaves := adapters.leaves(adapter), config, progress)
    theta = encode_context(model, task.instruction, adapter=adapters.trained(adapter))
    return Adapted(model, adapter, theta, n_trained=sum(leaf.numel() for leaf in leaves))


def footprint(model_config, lengths, config, kind=adapters.LoRA):
    """Low-rank weights are trained; a step is the row of all pairs, each with the instruction at its head."""
    T = lengths.headed_row
    low_rank = LowRank(kind, config.rank, config.dropout)
    return Footprint(config.n_step, [Pass(1, T, T, lengths.targets)], low_rank=low_rank)
