"""The specification, slow: float64, one pair, one head, one key at a time. No packing, nothing from nanoct.

It is here to be right and to be read. Autograd goes through it. An implementation need not look like it.
"""

import math

import torch


def rope(x, position, theta):
    """One vector x (D,) turned to a position: component d makes a pair with d + D/2."""
    D = len(x)
    out = [None] * D
    for d in range(D // 2):
        angle = torch.as_tensor(float(position) * theta ** (-2 * d / D), dtype=x.dtype)
        out[d] = x[d] * angle.cos() - x[d + D // 2] * angle.sin()
        out[d + D // 2] = x[d + D // 2] * angle.cos() + x[d] * angle.sin()
    return torch.stack(out)


def attend_one(q, keys, values, seen):
    """One query q (D,) of one head over the keys [(D,)] that are seen [bool]: the weighted mean of values (D,)."""
    pairs = [(key, value) for key, value, is_seen in zip(keys, values, seen, strict=True) if is_seen]
    scores = [(q * key).sum() / math.sqrt(len(q)) for key, _ in pairs]
    top = max(score.item() for score in scores)
    weights = [(score - top).exp() for score in scores]
    return sum(weight * value for weight, (_, value) in zip(weights, pairs)) / sum(weights)


def norm(x, weight, eps):
    """RMSNorm of one vector (C,)."""
    return weight * x / (x.pow(2).mean() + eps).sqrt()


def cross_entropy(logits, target):
    """-log p(target) of one vector of logits (V,)."""
    return logits.logsumexp(0) - logits[target]
