"""qTTT: train the queries, and keep the cache of the demonstrations as it is (arXiv 2512.13898).

    W_Q* = argmin  - 1/n · sum_i log p_phi(y_i | theta without the entries of demo i, x_i),    theta = KV(demos)

A float32 copy of W_Q is trained, L·C·H·D numbers. theta is read once, with the model's own W_Q, and never again. CT-KV
(ct_kv.py) has the same start and loss, and trains what is attended to, while qTTT trains what attends. `objective`
"span" is the paper's: the next tokens of a random span of the context, drawn anew for every step. A token of the span
sees the frozen entries up to its own, and nothing that the step computes. The paper decays weights (.01); nothing
decays here. In GPT-2 W_Q is a third of one linear map.

Cost. A step is one of CT-KV's: a packed row of T tokens behind P entries; with "span", that many tokens. Memory:
5 float32 copies of W_Q.

    python -m nanoct.reproduce --methods icl qttt ct_kv
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoct import adapters
from nanoct.fewshot import Adapted, concatenate, encode_context
from nanoct.footprint import Footprint, Pass, entry
from nanoct.optimise import optimise
from nanoct.packing import answer_logits, can_leave_one_out, pack_demos, visible

LABEL, COLOUR = "qTTT", "#1f7a8c"  # in tables and figures
SWEEP = dict(lr=(1e-4, 3e-4, 1e-3, 3e-3))  # values worth trying


@dataclass
class Config:
    n_step: int = 32  # optimiser steps, one pass over all k pairs each
    lr: float = 1e-3  # of AdamW, cosine decay to 0, no warm-up
    leave_one_out: bool = True  # hide demo i from pair i
    objective: str = "pairs"  # or "span": the next tokens of a span of the context
    n_span: int = 128  # tokens of a span, at most


class Queries(adapters.Part):
    """A linear map whose first rows are `weight`, and the others the model's."""

    def __call__(self, x, weight):
        queries = F.linear(x, self.weight.to(x.dtype))
        n = len(self.weight)
        return queries if n == len(weight) else torch.cat([queries, F.linear(x, weight[n:])], dim=-1)

    @staticmethod
    def shapes(weight, seen):
        (n_out, n_in), (n, *_) = weight, seen.get("weight") or (0,)
        return dict(weight=(max(1, min(n, n_out)), n_in))


def adapt(model, task, config=Config(), seed=0, progress=None):
    """Train W_Q on task.demos; returns (model, W_Q, theta). progress(step, loss) is called every step.

    Raises ValueError without demos, if theta and the pairs do not fit the model, or on an unknown objective. With a
    single demo leave-one-out is off, and a warning says so.
    """
    demos, generator = task.need_demos(LABEL), torch.Generator().manual_seed(seed)
    if config.objective not in ("pairs", "span") or config.n_span < 1:
        raise ValueError(f'objective = {config.objective!r} must be "pairs" or "span", and n_span = {config.n_span} at '
                         "least 1.")
    theta = encode_context(model, task.instruction, demos, separator=task.separator)
    n = model.config.n_head * model.config.head_dim
    adapter = {name: Queries(weight=layer.weight[:n]) for name, layer in model.linears.items()
               if name.endswith(("q_proj", "c_attn"))}
    if config.objective == "pairs":
        row = pack_demos(task, model, theta.next_position)
        mask = row.mask(visible(theta.owner, len(demos), config.leave_one_out and can_leave_one_out(task)))
    tokens, _ = concatenate(model, task.instruction, demos, task.separator)

    def loss():
        if config.objective == "span":
            return span_loss(model, tokens, theta, adapter, config.n_span, generator)
        return F.cross_entropy(answer_logits(model, row, theta, adapter, mask), row.target)

    optimise(loss, leaves := adapters.leaves(adapter), config, progress)
    return Adapted(model, adapter, theta, n_trained=sum(leaf.numel() for leaf in leaves))


def span_loss(model, tokens, theta, adapter, n_span, generator):
    """The mean loss of the next tokens of a random span: [the cache up to the token itself | nothing of the row]."""
    P = len(theta.owner)
    n = min(n_span, P - 1)
    first = int(torch.randint(P - n, (), generator=generator))
    place, entries = torch.arange(first, first + n, device=model.device), torch.arange(P + n, device=model.device)
    mask = (entries <= place[:, None]) & (entries < P)  # (n, P+n)
    hidden, _ = model(tokens[:, place], positions=place[None], mask=mask[None], prefix=theta, adapter=adapter)
    return F.cross_entropy(model.logits(hidden[0]), tokens[0, place + 1])


def footprint(model_config, lengths, config):
    """W_Q is trained; a step is the row of all pairs behind the context, or a span of it."""
    c, P, T, n = model_config, lengths.context, lengths.row, lengths.targets
    if config.objective == "span":
        T = n = min(config.n_span, P - 1)
    weights = c.n_layer * c.n_embd * c.n_head * c.head_dim
    return Footprint(config.n_step, [Pass(1, T, P + T, n)], weights, P * entry(c), read=P, prefix=P)
