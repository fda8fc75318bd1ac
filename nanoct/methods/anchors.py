"""Label anchors: weigh the answers of the demonstrations in the cache (Wang et al., arXiv 2305.14160).

    theta = KV(x_1 y_1 … x_k y_k), where the values of demo i's answer are multiplied by exp(beta_i)
    beta* = argmin  - 1/n · sum_i log p_phi(y_i | theta without the entries of demo i, x_i),    beta_0 = 0

phi is frozen. Every layer, KV head and demo has one number: L·K·k, float32. Multiplying an answer's values is the same
as multiplying, after the softmax, the attention that a question pays to that answer, without rescaling the rest. CT-KV
(ct_kv.py) starts from the same cache and has the same loss, but trains every number of it. `compress` keeps only the
answers, the token before each, the instruction, and the context's first token, which heads look at when they look at
nothing; positions stay. The paper trains on examples beside the demos and compresses without training: n_step = 0 does
that.

Cost. A step is one of CT-KV's: a packed row of T tokens behind P entries, or about P/2 if compressed.

    python -m nanoct.reproduce --methods icl anchors ct_kv
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoct.fewshot import Adapted, Prefix, encode_context, is_answer
from nanoct.footprint import Footprint, Pass, entry
from nanoct.optimise import optimise
from nanoct.packing import answer_logits, can_leave_one_out, pack_demos, visible

LABEL, COLOUR = "label anchors", "#7b9e38"  # in tables and figures
SWEEP = dict(lr=(1e-2, 3e-2, 1e-1, 3e-1))  # values worth trying


@dataclass
class Config:
    n_step: int = 32  # optimiser steps, one pass over all k pairs each
    lr: float = 1e-1  # of AdamW, cosine decay to 0, no warm-up
    leave_one_out: bool = True  # hide demo i from pair i
    compress: bool = False  # keep the anchors alone


def adapt(model, task, config=Config(), seed=0, progress=None):
    """Weigh the answers of task.demos; returns (model, theta). progress(step, loss) is called every step.

    Raises ValueError without demos, or if theta and the pairs do not fit the model. With a single demo leave-one-out
    is off, and a warning says so.
    """
    demos = task.need_demos(LABEL)
    context = encode_context(model, task.instruction, demos, separator=task.separator)
    answer = is_answer(context.owner, demos)  # (P,)
    if config.compress:
        kept = anchors(context.owner, answer)
        context, answer = select(context, kept), answer[kept]
    row = pack_demos(task, model, context.next_position)
    mask = row.mask(visible(context.owner, len(demos), config.leave_one_out and can_leave_one_out(task)))

    keys, values = (part.float() for part in context.stack())  # (L, 1, K, P, D)
    L, _, K, *_ = keys.shape
    beta = torch.zeros(L, 1, K, len(demos), device=model.device, requires_grad=True)

    def theta():
        factor = torch.where(answer, beta.exp()[..., context.owner], 1.0)  # (L, 1, K, P); owner -1 is no answer
        return context.of(keys, values * factor[..., None])

    def loss():
        return F.cross_entropy(answer_logits(model, row, theta(), mask=mask), row.target)

    optimise(loss, [beta], config, progress)
    return Adapted(model, prefix=theta(), n_trained=beta.numel())


def anchors(owner, answer):
    """Which entries (P,) are kept: answers, the token before each, the instruction, and the first token."""
    kept = answer | F.pad(answer[1:], (0, 1)) | (owner == -1)
    kept[0] = True
    return kept


def select(context, kept):
    """The entries of a Prefix that are kept (P,), at their positions."""
    kv = [(keys[:, :, kept], values[:, :, kept]) for keys, values in context.kv]
    return Prefix(kv, context.owner[kept], context.next_position)


def footprint(model_config, lengths, config):
    """k numbers are trained in each layer and KV head; a step is the row of all pairs behind the entries kept."""
    k, T, P = len(lengths.demos), lengths.row, lengths.context
    kept = lengths.instruction + lengths.targets + k if config.compress else P
    beta = model_config.n_layer * model_config.n_kv_head * k
    passes = [Pass(1, T, kept + T, lengths.targets)]
    return Footprint(config.n_step, passes, beta, start=2 * kept * entry(model_config), read=P, prefix=kept)
