"""Assignment 1 with complex numbers and a running softmax: no matrix of scores, no mask that is filled in."""

import torch


def rope(x, positions, theta):
    half = x.shape[-1] // 2
    z = torch.complex(x[..., :half].double(), x[..., half:].double())
    frequency = torch.tensor([theta ** (-d / half) for d in range(half)], dtype=torch.float64)
    turns = torch.outer(positions.flatten().double(), frequency)
    z = z * torch.polar(torch.ones_like(turns), turns).view(len(positions), 1, -1, half)
    return torch.cat([z.real, z.imag], dim=-1).to(x.dtype)


def attend(q, k, v, past, mask):
    rows, heads, new, width = q.shape
    group = heads // k.shape[1]
    grouped = q.view(rows, k.shape[1], group, new, width)
    old = 0 if past is None else past[0].shape[2]
    top = torch.full(grouped.shape[:-1], -torch.inf, dtype=q.dtype)
    total, result = torch.zeros_like(top), torch.zeros_like(grouped)
    for s in range(old + new):  # a key after the other, for all queries
        key, value = (past[0][:, :, s], past[1][:, :, s]) if s < old else (k[:, :, s - old], v[:, :, s - old])
        if mask is None:
            sees = (torch.arange(new) >= s - old).expand(rows, new)
        else:
            sees = mask[:, :, s]
        score = (grouped * key[:, :, None, None]).sum(-1) * width**-0.5
        score = torch.where(sees[:, None, None], score, -torch.inf)
        higher = torch.maximum(top, score)
        safe = torch.where(higher.isinf(), torch.zeros_like(higher), higher)
        keep, add = (top - safe).exp(), (score - safe).exp()
        result = result * keep[..., None] + add[..., None] * value[:, :, None, None]
        total, top = total * keep + add, higher
    return (result / total[..., None]).view(q.shape)


def read(weights, tokens, past, positions):
    def block(x, place, rows_past):
        def rms(x, gain):
            return torch.nn.functional.rms_norm(x, x.shape[-1:], gain, weights["eps"])

        def split(y):
            return torch.stack(y.split(weights["head_dim"], dim=-1), dim=1)

        y = rms(x, weights["norm_1"])
        q, k, v = (split(torch.nn.functional.linear(y, weights[name])) for name in ("q_proj", "k_proj", "v_proj"))
        q, k = rope(q, place, weights["theta"]), rope(k, place, weights["theta"])
        mixed = torch.cat(attend(q, k, v, rows_past, None).unbind(1), dim=-1)
        x = x + torch.nn.functional.linear(mixed, weights["o_proj"])
        y = rms(x, weights["norm_2"])
        gate = torch.nn.functional.linear(y, weights["gate_proj"])
        y = gate / (1 + (-gate).exp()) * torch.nn.functional.linear(y, weights["up_proj"])
        return x + torch.nn.functional.linear(y, weights["down_proj"]), k, v

    done = []
    for b in range(len(tokens)):  # a row after the other
        mine = past and [part[min(b, len(part) - 1)][None] for part in past]
        done.append(block(weights["embed"][tokens[b]][None], positions[b][None], mine))
    hidden, k, v = (torch.cat(part) for part in zip(*done))
    return hidden, (k, v)
