"""I2CL: demonstrations as a vector for every layer's attention and MLP (Li et al., arXiv 2405.14660).

    out <- s_1 · out + s_0 · v,    v = mean over i of out at the last token of x_i y_i, read alone,    s = (.1, 1)
    s* = argmin  - 1/n · sum_i log p_phi,s(y_i | x_i)

`out` is what a layer's attention or MLP adds to the stream of every token: o_proj's and down_proj's output. phi is
frozen, and theta is the instruction's; 4·L numbers are trained, two for each vector, on the demos without a context.
A question costs what it costs zero-shot. The paper's AdamW decays s by 1e-3, ours does not; a bias is added behind.

Cost. k short forwards. A step is one of LoRA's: a packed row of T tokens, 4·N·T FLOPs for N weights.

    python -m nanoct.reproduce --methods zero_shot i2cl lora
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoct import adapters
from nanoct.fewshot import Adapted, check_dropout, concatenate, encode_context
from nanoct.footprint import Footprint, Pass
from nanoct.optimise import optimise
from nanoct.packing import answer_logits, pack_demos

LABEL, COLOUR = "I2CL", "#b56576"  # in tables and figures
SWEEP = dict(n_step=(32, 100), lr=(1e-2, 1e-1))  # values worth trying


@dataclass
class Config:
    n_step: int = 100  # optimiser steps, one pass over all k pairs each
    lr: float = 1e-2  # of AdamW, cosine decay to 0, no warm-up
    vector: float = 0.1  # s_0 at the start, the weight of the vector
    output: float = 1.0  # s_1 at the start, that of the output
    noise: float = 0.001  # on an output while training, in units of its length


class Injection(adapters.Part):
    """s_1 times the output of a linear map, and s_0 times a vector (out,); mix (2,) is (s_0, s_1), and is trained."""

    noise = 0.0  # while training: its standard deviation, in units of the output's length

    @property
    def leaves(self):
        return [self.mix]

    @staticmethod
    def shapes(weight, seen):
        return dict(vector=weight[:1], mix=(2,))

    def __call__(self, x, weight):
        out = self.mix[1] * F.linear(x, weight) + self.mix[0] * self.vector
        if self.noise:
            length = self.noise * out.detach().norm(dim=-1, keepdim=True)
            out = out + length * torch.randn(out.shape, device=x.device, generator=self.generator)
        return out.to(x.dtype)


def adapt(model, task, config=Config(), seed=0, progress=None):
    """Weigh the vectors of task.demos; returns (model, vectors, theta). progress(step, loss) is called every step.

    Raises ValueError without demos, if they do not fit, or on noise that is not from 0 to below 1.
    """
    demos = task.need_demos(LABEL)
    check_dropout("noise", config.noise)
    row, generator = pack_demos(task, model, head=task.instruction), torch.Generator(model.device).manual_seed(seed)
    mix = torch.tensor([config.vector, config.output], device=model.device)
    means = vectors(model, task.instruction, demos)
    adapter = {name: Injection(vector=vector, mix=mix) for name, vector in means.items()}
    for part in adapter.values():
        part.noise, part.generator = config.noise, generator
        part.vector.requires_grad_(False)

    def loss():
        return F.cross_entropy(answer_logits(model, row, adapter=adapter), row.target)

    optimise(loss, leaves := adapters.leaves(adapter), config, progress)
    for part in adapter.values():
        part.noise = 0.0  # for predictions
    theta = encode_context(model, task.instruction, adapter=adapter)
    return Adapted(model, adapter, theta, n_trained=sum(leaf.numel() for leaf in leaves))


@torch.no_grad()
def vectors(model, instruction, demos):
    """{name: (out,)}: the mean output of what ends attention and MLPs at the last token of a demo, read alone."""
    taps = {name: adapters.Tap() for name in model.linears if name.endswith(("o_proj", "down_proj", "c_proj"))}
    total = dict.fromkeys(taps, 0)
    for demo in demos:
        tokens, _ = concatenate(model, instruction, [demo])
        model(tokens, adapter=taps)
        total = {name: total[name] + tap.seen[0, -1].float() for name, tap in taps.items()}
    return {name: value / len(demos) for name, value in total.items()}


def footprint(model_config, lengths, config):
    """Two numbers for each of 2·L vectors are trained; a step is the row of pairs, each behind the instruction."""
    step = Pass(1, lengths.headed_row, lengths.headed_row, lengths.targets)
    return Footprint(config.n_step, [step], 4 * model_config.n_layer, read=lengths.instruction)
