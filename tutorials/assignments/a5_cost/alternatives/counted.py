"""Correct, and different: every product of matrices is listed and added up; the fit by search."""

import torch


def flops_step(c, P, T, n):
    total = 0
    for layer in range(c.n_layer):
        first = layer == 0  # its inputs, the embeddings, need no gradient
        wide = c.n_head * c.head_dim
        for out, n_in, below in ((wide, c.n_embd, first), (c.n_kv_head * c.head_dim, c.n_embd, first),
                                 (c.n_kv_head * c.head_dim, c.n_embd, first), (c.n_embd, wide, False),
                                 (c.n_ffn, c.n_embd, False), (c.n_ffn, c.n_embd, False), (c.n_embd, c.n_ffn, False)):
            total += (1 if below else 2) * 2 * T * out * n_in
        product = 2 * c.n_head * T * (P + T) * c.head_dim
        total += (5 if first else 6) * product
    return torch.tensor(float(total + 2 * 2 * n * c.vocab_size * c.n_embd))


def peak_bytes(c, P, T, n):
    numbers = dict(leaves=2 * c.n_layer * c.n_kv_head * P * c.head_dim)
    numbers["gradients"] = numbers["first moments"] = numbers["second moments"] = numbers["leaves"]
    numbers["keys and values, new and old"] = 2 * c.n_layer * c.n_kv_head * (P + T) * c.head_dim
    numbers["float mask and bool mask"] = T * (P + T) * 1.25
    per_layer = [T * c.n_embd] * 2 + [T * c.n_head * c.head_dim] * 2 + [T * c.n_ffn] * 3 + [T * c.n_head]
    numbers["layers"] = c.n_layer * sum(per_layer)
    numbers["at work"] = max(n * c.vocab_size * 3, T * c.n_ffn * 3)
    return int(4 * sum(numbers.values()))


def fit(k, seconds):
    if len(k) != len(seconds) or len(dict.fromkeys(k)) < 2 or any(x <= 0 for x in [*k, *seconds]):
        raise ValueError("measure at two k or more")
    def best(b):  # a for this b: one unknown is left
        left = [(1 - b * x * x / y, x / y) for x, y in zip(k, seconds)]
        a = sum(r * u for r, u in left) / sum(u * u for _, u in left)
        return a, sum((r - a * u) ** 2 for r, u in left)

    low, high = 0.0, max(y / x**2 for x, y in zip(k, seconds))
    for _ in range(200):  # the sum of squares has one valley
        one, two = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, two) if best(one)[1] < best(two)[1] else (one, high)
    return best(low)[0], low
