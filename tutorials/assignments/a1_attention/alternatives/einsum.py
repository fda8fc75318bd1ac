"""Assignment 1 by einsum: rotations as matrices, grouped heads kept apart, a mask that is added and then applied."""

import torch


def rope(x, positions, theta):
    half = x.size(3) // 2
    speed = torch.exp(torch.arange(half).double() * -(torch.tensor(theta, dtype=torch.float64).log() / half))
    angle = torch.einsum("bt,d->btd", positions.double(), speed)[:, None]
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    pairs = torch.stack([x[..., :half], x[..., half:]], -1).double()
    turned = torch.einsum("bhtdij,bhtdj->bhtid", turn.expand(-1, x.size(1), -1, -1, -1, -1), pairs)
    return turned.flatten(-2).to(x.dtype)


def attend(q, k, v, past, mask):
    (B, H, T, D), K = q.shape, k.shape[1]
    if past is not None:
        k, v = (torch.cat((old.repeat(B // len(old), 1, 1, 1), new), -2) for old, new in zip(past, (k, v)))
    S = k.shape[-2]
    if mask is None:
        mask = torch.ones(B, T, S).tril(S - T) > 0
    scores = torch.einsum("bkgtd,bksd->bkgts", q.reshape(B, K, H // K, T, D), k) * D**-0.5
    scores = torch.where(mask[:, None, None], scores, torch.finfo(q.dtype).min)
    return torch.einsum("bkgts,bksd->bkgtd", scores.softmax(-1), v).reshape(B, H, T, D)


def read(weights, tokens, past, positions):
    D, theta = weights["head_dim"], weights["theta"]

    def normed(x, gain):
        return x / (x.square().mean(-1, keepdim=True) + weights["eps"]) ** 0.5 * gain

    x = torch.nn.functional.embedding(tokens, weights["embed"])
    y = normed(x, weights["norm_1"])
    q, k, v = (torch.einsum("btc,hdc->bhtd", y, weights[f"{name}_proj"].unflatten(0, (-1, D))) for name in "qkv")
    q, k = rope(q, positions, theta), rope(k, positions, theta)
    x = x + torch.einsum("bhtd,chd->btc", attend(q, k, v, past, None), weights["o_proj"].unflatten(1, (-1, D)))
    y = normed(x, weights["norm_2"])
    gate, up = (torch.einsum("btc,fc->btf", y, weights[name]) for name in ("gate_proj", "up_proj"))
    return x + torch.einsum("btf,cf->btc", gate * torch.sigmoid(gate) * up, weights["down_proj"]), (k, v)
