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


def read(weights, tokens, past, positions):
    """One block over tokens [id] behind a past (keys, values), each (K, P, D), or None: token by token, head by head.

    weights as in assignment 1. Returns hidden (T, C), and the new keys and values, each (K, T, D).
    """
    w, D = weights, weights["head_dim"]
    n_head, n_kv = len(w["q_proj"]) // D, len(w["k_proj"]) // D
    heads = lambda y: list(y.view(-1, D))
    keys = [[] if past is None else list(past[0][j]) for j in range(n_kv)]
    values = [[] if past is None else list(past[1][j]) for j in range(n_kv)]
    hidden = []
    for token, position in zip(tokens, positions, strict=True):
        x = w["embed"][token]
        y = norm(x, w["norm_1"], w["eps"])
        for j, (key, value) in enumerate(zip(heads(w["k_proj"] @ y), heads(w["v_proj"] @ y))):
            keys[j].append(rope(key, position, w["theta"]))
            values[j].append(value)
        parts = []
        for h, q in enumerate(heads(w["q_proj"] @ y)):
            j = h * n_kv // n_head  # neighbours share a KV head
            parts.append(attend_one(rope(q, position, w["theta"]), keys[j], values[j], [True] * len(keys[j])))
        x = x + w["o_proj"] @ torch.cat(parts)
        y = norm(x, w["norm_2"], w["eps"])
        gate = w["gate_proj"] @ y
        hidden.append(x + w["down_proj"] @ (gate * gate.sigmoid() * (w["up_proj"] @ y)))
    new = lambda entries: torch.stack([torch.stack(entry[-len(tokens):]) for entry in entries])
    return torch.stack(hidden), (new(keys), new(values))


def pair_loss(model, prefix, seen, x, y, start):
    """Sum of -log p over the answer tokens y of one pair, read alone behind the entries of a prefix that are seen.

    model: embed (V, D), theta: one layer of one head whose keys, queries and values are the embeddings.
    prefix: (keys, values), each [(D,)]; seen [bool]; start: the position of the first token of x.
    """
    embed, loss, ids = model["embed"], 0.0, [*x, *y]
    keys, values = list(prefix[0]), list(prefix[1])
    for t, token in enumerate(ids[:-1]):  # the last token has nothing to predict
        turned = rope(embed[token], start + t, model["theta"])
        keys.append(turned)
        values.append(embed[token])
        if t + 1 >= len(x):  # the token that comes next is of the answer
            mixed = attend_one(turned, keys, values, [*seen, *[True] * (t + 1)])
            loss = loss + cross_entropy(embed @ (mixed + embed[token]), ids[t + 1])
    return loss


def pairs_loss(model, prefix, seen, pairs, start):
    """The mean over all answer tokens of k pairs, a pair at a time; None is a pair that is left out."""
    there = [(pair, line) for pair, line in zip(pairs, seen, strict=True) if pair is not None]
    total = sum(pair_loss(model, prefix, line, x, y, start) for (x, y), line in there)
    return total / sum(len(y) for (_, y), _ in there)
