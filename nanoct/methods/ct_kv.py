"""CT-KV: optimise the KV cache of the demonstrations (Context Tuning, arXiv 2507.04221, section 4).

    theta_0 = KV(x_1 y_1 … x_k y_k)
    theta*  = argmin  - 1/n · sum_i log p_phi(y_i | drop(theta without the entries of demo i), x_i)

phi is frozen. In-context learning starts and stops at theta_0; here every key (after RoPE) and value of the
demos is a trained number, 2·L·K·D·P of them, float32. Pair i is not shown its own demo (leave-one-out), or
it would learn to copy it, and every entry is hidden from every pair with probability p at every step
(token dropout). New tokens stand at positions P, P+1, … also while demo i is hidden, as in inference, where
the whole prefix is seen.

Cost. One encoding of P tokens, then every step runs the k pairs, about P tokens, in one packed row:
4·N·P FLOPs for N weights (forward and the gradient of the inputs, none of the weights) and, with T = P,
12·L·H·D·T·(P+T) for attention: a·k + b·k². Memory: 4 float32 copies of theta (value, gradient, AdamW).

    python -m nanoct.reproduce --methods icl ct_kv      # with --full, facts: 88.5% in 2.1 s a task, ICL 27.9%
"""

from dataclasses import dataclass
from warnings import warn

import torch
import torch.nn.functional as F

from nanoct.fewshot import Adapted, Prefix, answer_logits, encode_context, pack, visible


@dataclass
class Config:
    n_step: int = 32  # optimiser steps, one pass over all k pairs each
    lr: float = 1e-2  # of AdamW, cosine decay to 0, no warm-up
    token_dropout: float = 0.1  # probability that an entry is hidden from a pair in a step
    leave_one_out: bool = True  # hide demo i from pair i


def adapt(model, task, config=Config(), seed=0, progress=None):
    """Tune the KV cache of task.demos; returns (model, tuned prefix). progress(step, loss) is called every step.

    Raises ValueError without demos, or if context and pairs do not fit the model. With a single demo
    leave-one-out would leave nothing to attend to: it is switched off with a warning.
    """
    demos = task.need_demos("CT-KV")
    leave_one_out = config.leave_one_out and len(demos) > 1
    if leave_one_out != config.leave_one_out:
        warn(f"task {task.name!r} has one demo, so leave-one-out would hide the whole context: going on without it.")
    generator = torch.Generator().manual_seed(seed)
    context = encode_context(model, task.instruction, demos)
    row = pack([(demo.x, demo.y) for demo in demos], model, start=context.next_position)

    keys, values = (torch.stack(part).float().requires_grad_() for part in zip(*context.kv))  # (L, 1, K, P, D)
    theta = lambda: Prefix(list(zip(keys.unbind(), values.unbind())), context.owner, context.next_position)
    optimizer = torch.optim.AdamW([keys, values], lr=config.lr, betas=(0.9, 0.999), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(config.n_step, 1))
    for step in range(config.n_step):
        mask = row.mask(visible(context, len(demos), leave_one_out, config.token_dropout, generator))
        loss = F.cross_entropy(answer_logits(model, row, theta(), mask=mask), row.target)
        optimizer.zero_grad()
        loss.backward(inputs=[keys, values])
        torch.nn.utils.clip_grad_norm_([keys, values], 1.0)
        optimizer.step()
        schedule.step()
        if progress:
            progress(step, loss.item())

    n_trained = keys.numel() + values.numel()
    keys, values = keys.detach(), values.detach()
    return Adapted(model, prefix=theta(), n_trained=n_trained)
