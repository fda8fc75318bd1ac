"""(IA)³: multiply keys, values and the inner layer of the MLP by trained factors (Liu et al., arXiv 2205.05638).

    k = f_k · (W_k x)    v = f_v · (W_v x)    MLP(x) = W_down (f_m · inner(x))         per channel, f = 1 at the start
    f* = argmin  - 1/n · sum_i log p_phi,f(y_i | theta without the entries of demo i, x_i),    theta = KV(demos)

theta stays as phi reads it; the factors act on what comes behind: L·(2·K·D + F) numbers for an MLP of inner width F,
float32. That is CT-KV's loss (ct_kv.py) with another parameter. With in_context = False the pairs stand alone and
theta is the instruction's, read with the factors, as the paper does it. Keys are multiplied before RoPE, and a bias is
added behind the factor (peft multiplies it too). Left out are the paper's other losses (unlikelihood, length).
In GPT-2, keys and values are two thirds of one linear map.

Cost. A step is one of CT-KV's: a packed row of T tokens behind P entries. Memory: the factors are small.

    python -m nanoct.reproduce --methods icl ia3 ct_kv
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoct import adapters
from nanoct.fewshot import Adapted, encode_context
from nanoct.footprint import Footprint, Pass, entry
from nanoct.optimise import optimise
from nanoct.packing import answer_logits, can_leave_one_out, pack_demos, visible

LABEL, COLOUR = "(IA)³", "#b8860b"  # in tables and figures
SWEEP = dict(lr=(3e-3, 1e-2, 3e-2, 1e-1))  # values worth trying


@dataclass
class Config:
    n_step: int = 32  # optimiser steps, one pass over all k pairs each
    lr: float = 1e-2  # of AdamW, cosine decay to 0, no warm-up
    leave_one_out: bool = True  # hide demo i from pair i
    in_context: bool = True  # behind the cache of the demos; False: on single pairs, without it


class Factors(adapters.Part):
    """`output` multiplies the last channels of what a linear map returns, or `input` what it is given."""

    def __call__(self, x, weight):
        if "input" in self.names:
            return F.linear((x * self.input).to(x.dtype), weight)
        factor = F.pad(self.output, (len(weight) - len(self.output), 0), value=1.0)
        return (F.linear(x, weight) * factor).to(x.dtype)

    @staticmethod
    def shapes(weight, seen):
        (n_out, n_in), (n, *_) = weight, seen.get("output") or (0,)
        return dict(input=(n_in,)) if "input" in seen else dict(output=(max(1, min(n, n_out)),))


def attach(model):
    """Factors of 1 for the linear maps of keys and values, and for the last one of the MLP: {name: part}."""
    c, parts = model.config, {}
    for name, layer in model.linears.items():
        ones = lambda n: torch.ones(n, device=model.device)
        if name.endswith(("k_proj", "v_proj", "c_attn")):
            parts[name] = Factors(output=ones(c.n_kv_head * c.head_dim * (2 if name.endswith("c_attn") else 1)))
        elif name.endswith(("down_proj", "mlp.c_proj")):
            parts[name] = Factors(input=ones(layer.in_features))
    return parts


def adapt(model, task, config=Config(), seed=0, progress=None):
    """Train the factors on task.demos; returns (model, factors, theta). progress(step, loss) is called every step.

    Raises ValueError without demos, or if theta and the pairs do not fit the model. With a single demo leave-one-out
    is off, and a warning says so.
    """
    demos, theta, mask = task.need_demos(LABEL), None, None
    adapter = attach(model)
    if config.in_context:
        theta = encode_context(model, task.instruction, demos, separator=task.separator)
        row = pack_demos(task, model, theta.next_position)
        mask = row.mask(visible(theta.owner, len(demos), config.leave_one_out and can_leave_one_out(task)))
    else:
        row = pack_demos(task, model, head=task.instruction)

    def loss():
        return F.cross_entropy(answer_logits(model, row, theta, adapter, mask), row.target)

    optimise(loss, leaves := adapters.leaves(adapter), config, progress)
    theta = theta if config.in_context else encode_context(model, task.instruction, adapter=adapter)
    return Adapted(model, adapter, theta, n_trained=sum(leaf.numel() for leaf in leaves))


def footprint(model_config, lengths, config):
    """A step is the row of all pairs behind the context, or each with the instruction at its head."""
    c, P, T = model_config, lengths.context, lengths.row
    factors = c.n_layer * (2 * c.n_kv_head * c.head_dim + c.n_ffn)
    if not config.in_context:
        return Footprint(config.n_step, [Pass(1, lengths.headed_row, lengths.headed_row, lengths.targets)], factors)
    return Footprint(config.n_step, [Pass(1, T, P + T, lengths.targets)], factors, P * entry(c), read=P, prefix=P)
