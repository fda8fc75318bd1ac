"""Assignment 1 in loops over rows, heads and tokens; a softmax of what is seen alone, in float32; a token at a time."""

import math

import torch


def rope(x, positions, theta):
    out = torch.zeros_like(x)
    B, H, T, D = x.shape
    for b in range(B):
        for t in range(T):
            for d in range(D // 2):
                angle = float(positions[b, t]) / theta ** (2 * d / D)
                for h in range(H):
                    u, w = float(x[b, h, t, d]), float(x[b, h, t, d + D // 2])
                    out[b, h, t, d] = u * math.cos(angle) - w * math.sin(angle)
                    out[b, h, t, d + D // 2] = u * math.sin(angle) + w * math.cos(angle)
    return out


def attend(q, k, v, past, mask):
    out = torch.empty_like(q)
    for b in range(len(q)):
        for h in range(q.shape[1]):
            j = h // (q.shape[1] // k.shape[1])
            keys, values = k[b, j], v[b, j]
            if past is not None:
                row = b if len(past[0]) > 1 else 0
                keys, values = torch.cat([past[0][row, j], keys]), torch.cat([past[1][row, j], values])
            for t in range(q.shape[2]):
                sees = mask[b, t] if mask is not None else torch.arange(len(keys)) <= len(keys) - q.shape[2] + t
                scores = (keys[sees].float() @ q[b, h, t].float()) / math.sqrt(q.shape[3])
                out[b, h, t] = (scores.softmax(0) @ values[sees].float()).to(q.dtype)
    return out


def read(weights, tokens, past, positions):
    keys, values, hidden = [], [], []
    for t in range(tokens.shape[1]):
        x = weights["embed"][tokens[:, t]]
        y = x * weights["norm_1"] / torch.sqrt((x * x).mean(1, True) + weights["eps"])
        q, k, v = ((y @ weights[name].t()).reshape(len(y), -1, 1, weights["head_dim"])
                   for name in ("q_proj", "k_proj", "v_proj"))
        q, k = (rope(part, positions[:, t : t + 1], weights["theta"]) for part in (q, k))
        x = x + attend(q, k, v, past, None).reshape(len(y), -1) @ weights["o_proj"].t()
        past = (k, v) if past is None else tuple(torch.cat([old.expand(len(new), -1, -1, -1), new], 2)
                                                 for old, new in zip(past, (k, v)))
        y = x * weights["norm_2"] / torch.sqrt((x * x).mean(1, True) + weights["eps"])
        gate = torch.nn.SiLU()(y @ weights["gate_proj"].t())
        hidden.append(x + (gate * (y @ weights["up_proj"].t())) @ weights["down_proj"].t())
        keys.append(k)
        values.append(v)
    return torch.stack(hidden, 1), (torch.cat(keys, 2), torch.cat(values, 2))
