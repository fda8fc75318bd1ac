"""Test-time training: fine-tune low-rank weights on the demonstrations, then read them (Akyürek et al., 2411.07279).

    phi*  = argmin  - 1/n · sum over random orders s of sum_i log p_phi(y_s(i) | x_s(1) y_s(1) … x_s(i))
    theta = KV(x_1 y_1 … x_k y_k) under phi*

It trains LoRA matrices on q, v, o, gate, up, down (not k) of every layer, rank·(in + out) numbers for each weight.
Every step draws `batch` random orders of the k demos; the loss covers all answers of every order. The adapter stays
an argument and is never merged: the model's weights do not change by a bit.

Cost. A step runs batch·P tokens, 4·N·batch·P FLOPs for N weights (forward and the gradient of the inputs;
the adapters add a share of about 2·rank/width). In one order only the last demo sees the k-1 others. So it
takes k orders until every demo has stood behind all the others once: O(k²).

    python -m nanoct.reproduce --methods icl ttt
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoct import adapters
from nanoct.fewshot import Adapted, concatenate, encode_context, is_answer
from nanoct.footprint import Footprint, LowRank, Pass
from nanoct.optimise import optimise

LABEL, COLOUR = "TTT", "#2a6fbb"  # in tables and figures
SWEEP = dict(n_step=(2, 8, 32), lr=(1e-3, 3e-3, 1e-2), rank=(8,), alpha=(16.0,), batch=(4,))  # values worth trying


@dataclass
class Config:
    n_step: int = 32  # optimiser steps
    batch: int = 4  # random orders of the demos in a step
    lr: float = 1e-3  # of AdamW, cosine decay to 0, no warm-up
    rank: int = 16  # of LoRA
    alpha: float = 16.0  # LoRA's change is scaled by alpha / rank
    dropout: float = 0.05  # on the inputs of LoRA


def adapt(model, task, config=Config(), seed=0, progress=None):
    """Train an adapter on random orders of task.demos; returns (model, adapter, prefix read with it).

    progress(step, loss) is called every step. Raises ValueError without demos, if they do not fit, or on a rank
    or batch below 1.
    """
    demos = task.need_demos("TTT")
    if config.batch < 1:
        raise ValueError(f"batch = {config.batch} must be at least 1.")
    order = torch.Generator().manual_seed(seed)
    adapter = adapters.attach(adapters.LoRA, model, config.rank, config.alpha, config.dropout,
                              torch.Generator(model.device).manual_seed(seed))

    def loss():
        orders = [torch.randperm(len(demos), generator=order).tolist() for _ in range(config.batch)]
        tokens, answers = sequences(model, task.instruction, [[demos[i] for i in s] for s in orders], task.separator)
        hidden, _ = model(tokens[:, :-1], adapter=adapter)
        return F.cross_entropy(model.logits(hidden[answers[:, 1:]]), tokens[:, 1:][answers[:, 1:]])

    optimise(loss, leaves := adapters.leaves(adapter), config, progress)
    theta = encode_context(model, task.instruction, demos, adapters.trained(adapter), task.separator)
    return Adapted(model, adapter, theta, n_trained=sum(leaf.numel() for leaf in leaves))


def sequences(model, instruction, orders, separator=()):
    """Orders of the same demos as tokens: each behind the instruction, with the separator between demos.

    Returns tokens (B, P), and which are answers (B, P) bool. All orders are equally long, so there is no padding.
    """
    tokens, answers = [], []
    for demos in orders:
        row, owner = concatenate(model, instruction, demos, separator)
        tokens.append(row[0])
        answers.append(is_answer(owner, demos))
    return torch.stack(tokens), torch.stack(answers)


def footprint(model_config, lengths, config):
    """Low-rank weights are trained; a step runs `batch` orders of all demos. At the end the demos are read once."""
    P, n = lengths.context, lengths.targets * config.batch
    low_rank = LowRank(adapters.LoRA, config.rank, config.dropout)
    passes = [Pass(config.batch, P - 1, P - 1, n, masked=False)]
    return Footprint(config.n_step, passes, read=P, prefix=P, low_rank=low_rank)
