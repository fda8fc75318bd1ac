"""Test-time training: fine-tune low-rank weights on the demonstrations, then read them (Akyürek et al., 2411.07279).

    phi*  = argmin  - 1/n · sum over random orders s of sum_i log p_phi(y_s(i) | x_s(1) y_s(1) … x_s(i))
    theta = KV(x_1 y_1 … x_k y_k) under phi*

Trained are LoRA matrices on q, v, o, gate, up, down (not k) of every layer, rank·(in + out) each. Every step
draws `batch` random orders of the k demos; the loss is on all the answers of each. The adapter stays an
argument and is never merged: the model's weights do not change by a bit.

Cost. A step runs batch·P tokens, 4·N·batch·P FLOPs for N weights (forward and the gradient of the inputs;
the adapters add a share of about 2·rank/width). In one order only the last demo sees k-1 others, so a pass
in which every demo is a target once with all the others before it is k orders: O(k²).

    python -m nanoct.reproduce --methods icl ttt        # with --full, facts: 66.4% in 4.7 s a task, ICL 27.9%
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoct.adapters import lora
from nanoct.fewshot import Adapted, check_fits, encode_context


@dataclass
class Config:
    n_step: int = 32  # optimiser steps
    batch: int = 4  # random orders of the demos in a step
    lr: float = 1e-3  # of AdamW, cosine decay to 0, no warm-up
    rank: int = 16  # of LoRA
    alpha: float = 16.0  # LoRA's change is scaled by alpha / rank
    dropout: float = 0.05  # on the inputs of LoRA


TARGETS = ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def adapt(model, task, config=Config(), seed=0, progress=None):
    """Train adapters on orders of task.demos; returns (model, adapter, prefix under it).

    progress(step, loss) is called every step. Raises ValueError without demos, or if they do not fit.
    """
    demos = task.need_demos("TTT")
    order = torch.Generator().manual_seed(seed)
    adapter = lora(model, TARGETS, config.rank, config.alpha, config.dropout,
                   torch.Generator(model.device).manual_seed(seed))
    leaves = [leaf for part in adapter.values() for leaf in (part.a, part.b)]
    optimizer = torch.optim.AdamW(leaves, lr=config.lr, betas=(0.9, 0.999), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(config.n_step, 1))
    for step in range(config.n_step):
        orders = [torch.randperm(len(demos), generator=order).tolist() for _ in range(config.batch)]
        tokens, is_answer = concatenate(model, task.instruction, [[demos[i] for i in s] for s in orders])
        hidden, _ = model(tokens[:, :-1], adapter=adapter)
        loss = F.cross_entropy(model.logits(hidden[is_answer[:, 1:]]), tokens[:, 1:][is_answer[:, 1:]])
        optimizer.zero_grad()
        loss.backward(inputs=leaves)
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        schedule.step()
        if progress:
            progress(step, loss.item())

    for part in adapter.values():
        part.dropout = 0.0
    for leaf in leaves:
        leaf.requires_grad_(False)
    theta = encode_context(model, task.instruction, demos, adapter)
    return Adapted(model, adapter, theta, n_trained=sum(leaf.numel() for leaf in leaves))


def concatenate(model, instruction, sequences):
    """Orders of the same demos, each behind the instruction: tokens (B, P) and which of them are answers (B, P) bool.

    All orders have one length, so there is no padding.
    """
    tokens = [[*instruction] + [t for demo in demos for t in (*demo.x, *demo.y)] for demos in sequences]
    answer = [[False] * len(instruction) + [a for demo in demos for a in [False] * len(demo.x) + [True] * len(demo.y)]
              for demos in sequences]
    check_fits(model, len(tokens[0]), f"a sequence of {len(sequences[0])} demos")
    return torch.tensor(tokens, device=model.device), torch.tensor(answer, device=model.device)
