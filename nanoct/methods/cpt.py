"""CPT: tune the embeddings of the demonstrations, near to what they say (Blau et al., arXiv 2410.17222; as in peft).

    theta* = KV(e + d*),    d* = argmin  (k · sum_j decay^(k-j) · L_j(e + d) + sum_i L_i(KV(e + d)))  /  ((k + 1) · n)
    |d_t| <= epsilon · sqrt(C / 2048) for every token t,    d = 0 at the start

L_j(e + d) is the loss of demo j's answer inside the prompt, j = 0 … k-1, and L_i(KV) that of pair i behind the whole
prompt, summed over tokens; n are the tokens of all answers. It is the mean over k sequences, each the prompt and one
pair, where an answer counts decay for every answer behind it. phi is frozen; d has C numbers for every token that is no
answer, float32. A d that has left its ball is put back on it before every forward. CT-Prompt (ct_prompt.py) hides demo
i from pair i; here the pair sees its own answer, and the ball is what keeps d from storing it. Tokens of the
instruction have a ball of their own, format_epsilon; format inside a demo cannot be told from its input here.

Cost. A step runs the prompt of P tokens once and the row of k pairs, T tokens, behind it: 4·N·(P+T) FLOPs for N
weights. Memory: the activations of P + T tokens, and 5 float32 copies of d.

    python -m nanoct.reproduce --methods icl cpt ct_prompt
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoct.fewshot import Adapted, Prefix, concatenate, is_answer
from nanoct.footprint import Footprint, Pass
from nanoct.optimise import optimise
from nanoct.packing import answer_logits, pack_demos

LABEL, COLOUR = "CPT", "#c97fb5"  # in tables and figures
SWEEP = dict(lr=(3e-3, 1e-2), epsilon=(0.1, 1.0))  # values worth trying


@dataclass
class Config:
    n_step: int = 32  # optimiser steps, one pass over all k pairs each
    lr: float = 1e-2  # of AdamW, cosine decay to 0, no warm-up
    decay: float = 0.95  # weight of an answer for every answer behind it
    epsilon: float = 0.1  # radius of the ball of an input's token, at width 2048
    format_epsilon: float = 0.1  # that of a token of the instruction


def adapt(model, task, config=Config(), seed=0, progress=None):
    """Tune the embeddings of task.demos; returns (model, their KV). progress(step, loss) is called every step.

    Raises ValueError without demos, if context and pairs do not fit the model, or on an impossible decay
    or radius.
    """
    demos = task.need_demos(LABEL)
    check(config)
    tokens, owner = concatenate(model, task.instruction, demos, task.separator)
    row = pack_demos(task, model, len(owner))
    answer = is_answer(owner, demos)  # (P,)
    answers, others = answer.nonzero().flatten(), (~answer).nonzero().flatten()
    weight = config.decay ** (len(demos) - owner[answers])  # (n,)
    embeds = model.embed(tokens).detach().float()  # (1, P, C)
    radius = torch.where(owner == -1, config.format_epsilon, config.epsilon)[others, None]
    radius = radius * math.sqrt(embeds.shape[-1] / 2048)
    offset = torch.zeros(1, len(others), embeds.shape[-1], device=model.device, requires_grad=True)

    def read():
        with torch.no_grad():
            length = offset.norm(dim=-1, keepdim=True)
            offset.mul_(radius / length.clamp(min=radius).clamp(min=torch.finfo(radius.dtype).tiny))  # no 0/0
        hidden, kv = model(embeds=embeds.index_add(1, others, offset))
        return hidden, Prefix(kv, owner, len(owner))

    def loss():
        hidden, theta = read()
        inside = F.cross_entropy(model.logits(hidden[0, answers - 1]), tokens[0, answers], reduction="none")
        pairs = F.cross_entropy(answer_logits(model, row, theta), row.target, reduction="sum")
        k = len(row.pair.unique())  # sequences: pairs that fit
        return (k * (weight * inside).sum() + pairs) / (k * len(answers) + len(row.target))

    optimise(loss, [offset], config, progress)
    with torch.no_grad():
        _, theta = read()
    return Adapted(model, prefix=theta, n_trained=offset.numel())


def check(config):
    """Raise ValueError on a decay outside 0 … 1, or a radius that is negative or not finite."""
    if not 0 <= config.decay <= 1:
        raise ValueError(f"decay = {config.decay} must be from 0 to 1.")
    for name in ("epsilon", "format_epsilon"):
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name} = {getattr(config, name)} must be at least 0 and finite.")


def footprint(model_config, lengths, config):
    """Embeddings of all but the answers are trained; a step runs the prompt, then the row of pairs behind it."""
    P, T, n = lengths.context, lengths.row, lengths.targets
    passes = [Pass(1, P, P, n, masked=False), Pass(1, T, P + T, n)]
    return Footprint(config.n_step, passes, trained=(P - n) * model_config.n_embd, read=P, prefix=P)
