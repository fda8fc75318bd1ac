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
12·L·H·D·T·(P+T) for attention: a·k + b·k². Memory: 5 float32 copies of theta (value, gradient,
AdamW's two, the last good one).

    python -m nanoct.reproduce --methods icl ct_kv      # with --full, facts: 89.9% in 1.9 s a task, ICL 28.4%
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoct.fewshot import Adapted, encode_context, noise_like
from nanoct.optimise import optimise
from nanoct.packing import answer_logits, can_leave_one_out, pack_demos, visible

LABEL, COLOUR = "CT-KV", "#d1495b"  # in tables and figures
SWEEP = dict(n_step=(16, 64), lr=(3e-3, 1e-2, 3e-2, 1e-1), token_dropout=(0.05,))  # values worth trying


@dataclass
class Config:
    n_step: int = 32  # optimiser steps, one pass over all k pairs each
    lr: float = 1e-2  # of AdamW, cosine decay to 0, no warm-up
    token_dropout: float = 0.1  # probability that an entry is hidden from a pair in a step
    leave_one_out: bool = True  # hide demo i from pair i
    start: str = "demos"  # theta_0; "noise": as many random entries; "others": the KV of task.others, another task's demos
    values_only: bool = False  # CT-V: the keys stay as they are
    bf16: bool = False  # train bfloat16 numbers, as the authors' code does: steps below half an ulp are lost


def adapt(model, task, config=Config(), seed=0, progress=None, adapter=None):
    """Tune the KV cache of task.demos; returns (model, adapter, tuned prefix). progress(step, loss) is called every step.

    adapter: of phi, left as it is. Raises ValueError without demos, if context and pairs do not fit the model,
    or on an unknown start. With a single demo leave-one-out would leave nothing to attend to: it is switched
    off with a warning.
    """
    demos = task.need_demos("CT-KV")
    generator = torch.Generator().manual_seed(seed)
    if config.start not in ("demos", "noise", "others") or config.start == "others" and not task.others:
        raise ValueError(f'start = {config.start!r} must be "demos", "noise", or, if the task has others, "others".')
    context = encode_context(model, task.instruction, task.others if config.start == "others" else demos, adapter, task.separator)
    if config.start == "noise":
        context = noise_like(context, generator)
    leave_one_out = config.leave_one_out and config.start == "demos" and can_leave_one_out(task)
    row = pack_demos(task, model, context.next_position)

    keys, values = (part.to(torch.bfloat16 if config.bf16 else torch.float32) for part in context.stack())  # (L, 1, K, P, D)
    leaves = [part.requires_grad_() for part in ([values] if config.values_only else [keys, values])]

    def loss():
        mask = row.mask(visible(context.owner, len(demos), leave_one_out, config.token_dropout, generator))
        return F.cross_entropy(answer_logits(model, row, context.of(keys, values), adapter, mask), row.target)

    optimise(loss, leaves, config, progress)
    return Adapted(model, adapter, context.of(keys, values), n_trained=sum(leaf.numel() for leaf in leaves))
