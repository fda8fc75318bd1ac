"""Prompt tuning: optimise input embeddings that stand for no text (Lester et al., arXiv 2104.08691).

    theta* = KV(e*),    e* = argmin  - 1/n · sum_i log p_phi(y_i | KV(e), x_i)
    e_0    = embeddings of tokens 0, 1, … m-1, or noise

phi is frozen; m embeddings are trained, m·C numbers, float32. They run through the model at every step, and once
more at the end, to become a prefix. New tokens stand at positions m, m+1, …; the instruction, if there
is one, is at the head of every row.

Cost. Every step runs the m embeddings and the k pairs, T tokens, in one packed row: 4·N·(m+T) FLOPs for N weights
(forward and the gradient of the inputs) and 12·L·H·D·(m²/2 + T·(m+T)) for attention. Memory: 5 float32 copies of e.

    python -m nanoct.reproduce --methods icl prompt_tuning
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoct.fewshot import Adapted, Prefix, check_start, first_tokens, read_on
from nanoct.footprint import Footprint, Pass
from nanoct.optimise import optimise
from nanoct.packing import answer_logits, pack_demos

LABEL, COLOUR = "prompt tuning", "#e09f8f"  # in tables and figures
SWEEP = dict(n_step=(2, 8, 32), lr=(1e-2, 3e-2, 1e-1))  # values worth trying


@dataclass
class Config:
    n_step: int = 32  # optimiser steps, one pass over all k pairs each
    lr: float = 1e-2  # of AdamW, cosine decay to 0, no warm-up
    n_prefix: int = 32  # m
    start: str = "tokens"  # e_0; "noise": random, with the standard deviation of the "tokens" start


def adapt(model, task, config=Config(), seed=0, progress=None):
    """Tune m embeddings on task.demos; returns (model, their KV). progress(step, loss) is called every step.

    Raises ValueError without demos, if m is not positive or does not fit the model with the instruction and the
    pairs, or on an unknown start.
    """
    task.need_demos("prompt tuning")
    generator = torch.Generator().manual_seed(seed)
    check_start(config.start)
    tokens = torch.tensor([first_tokens(model, config.n_prefix)], device=model.device)
    owner = torch.full_like(tokens[0], -1)
    row = pack_demos(task, model, len(owner), task.instruction)

    embeds = model.embed(tokens).detach().float()  # (1, m, C)
    if config.start == "noise":
        embeds = torch.randn(embeds.shape, generator=generator).to(embeds) * embeds.std()
    embeds.requires_grad_()

    def theta():
        _, kv = model(embeds=embeds)
        return Prefix(kv, owner, len(owner))

    def loss():
        return F.cross_entropy(answer_logits(model, row, theta()), row.target)

    optimise(loss, [embeds], config, progress)
    with torch.no_grad():
        tuned = theta()
    return Adapted(model, prefix=read_on(model, tuned, task.instruction), n_trained=embeds.numel())


def footprint(model_config, lengths, config):
    """m embeddings are trained; a step runs them, then the row of all pairs behind them."""
    m, T = config.n_prefix, lengths.headed_row
    passes = [Pass(1, m, m, masked=False), Pass(1, T, m + T, lengths.targets)]
    return Footprint(config.n_step, passes, trained=m * model_config.n_embd, prefix=m)
