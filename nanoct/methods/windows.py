"""Parallel windows: read the demonstrations in groups that do not see each other (Ratner et al., arXiv 2212.10947).

    theta = KV(group 1) ∪ KV(group 2) ∪ … ∪ KV(group M),    each behind the same instruction and from the same position

phi is frozen and nothing is trained; who sees whom is all that changes. The question stands behind the longest window
and sees all of them. It is ICL with one window, and the demos of M windows may be M times as long as the model's
context. `structured` is structured prompting (Hao et al., arXiv 2212.06713): windows end together, and the question's
own tokens count M times in the softmax. The same is to subtract log M from the scores of the windows' entries; the
instruction, which would stand at the head of each window, is there once for M copies and keeps its weight.

Cost. One forward over the P context tokens, 2·N·P FLOPs for N weights, with attention inside the windows only.

    python -m nanoct.reproduce --methods icl windows
"""

import math
from dataclasses import dataclass

import torch

from nanoct.fewshot import Adapted, Prefix, concatenate, encode_context, groups_of
from nanoct.footprint import Footprint

LABEL, COLOUR = "parallel windows", "#6c757d"  # in tables and figures
SWEEP = dict(size=(1, 2), structured=(False, True))  # values worth trying


@dataclass
class Config:
    size: int = 2  # demos in a window; 0: all of them, one window
    structured: bool = False  # windows end together, and the question's own tokens count as often as there are windows


@torch.no_grad()
def adapt(model, task, config=Config(), seed=0, progress=None):
    """Read task.demos in windows; returns (model, theta).

    Raises ValueError without demos, if a window does not fit the model, or on a size that does not divide the demos.
    """
    demos, n_head = task.need_demos(LABEL), len(task.instruction)
    groups = groups_of(demos, config.size or len(demos))
    windows = [concatenate(model, task.instruction, group, task.separator) for group in groups]
    end = max(len(owner) for _, owner in windows)
    head = encode_context(model, task.instruction)
    parts, owners = ([head.kv], [head.owner]) if head else ([], [])
    for i, (tokens, owner) in enumerate(windows):
        start = n_head + (end - len(owner)) * config.structured
        positions = torch.arange(start, start + len(owner) - n_head, device=model.device)[None]
        parts.append(model(tokens[:, n_head:], positions=positions, prefix=head)[1])
        owners.append(owner[n_head:] + i * len(groups[0]))
    kv = [tuple(torch.cat(part, dim=2) for part in zip(*layer)) for layer in zip(*parts)]
    theta = Prefix(kv, torch.cat(owners), end)
    if config.structured:
        theta.log_weight = torch.where(theta.owner == -1, 0.0, -math.log(len(groups)))
    return Adapted(model, prefix=theta)


def footprint(model_config, lengths, config):
    """The context is read."""
    return Footprint(read=lengths.context, prefix=lengths.context)
