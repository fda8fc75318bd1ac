"""Assignment 1, solved."""

import math

import torch


def rope(x, positions, theta):
    D = x.shape[-1]
    frequency = theta ** (-torch.arange(0, D, 2, dtype=x.dtype) / D)  # (D/2,)
    angle = positions[:, None, :, None] * frequency  # (B, 1, T, D/2)
    a, b = x[..., : D // 2], x[..., D // 2 :]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def attend(q, k, v, past, mask):
    B, H, T, D = q.shape
    P = 0
    if past is not None:
        P = past[0].shape[2]
        k = torch.cat([past[0].expand(B, -1, -1, -1), k], dim=2)  # (B, K, P+T, D)
        v = torch.cat([past[1].expand(B, -1, -1, -1), v], dim=2)
    if mask is None:
        mask = torch.ones(B, T, P + T, dtype=torch.bool).tril(P)
    k = k.repeat_interleave(H // k.shape[1], dim=1)  # (B, H, P+T, D)
    v = v.repeat_interleave(H // v.shape[1], dim=1)
    scores = q @ k.transpose(-1, -2) / math.sqrt(D)  # (B, H, T, P+T)
    scores = scores.masked_fill(~mask[:, None], -math.inf)
    weights = scores.softmax(dim=-1)
    return weights @ v


def read(weights, tokens, past, positions):
    w, D = weights, weights["head_dim"]
    B, T = tokens.shape
    norm = lambda x, weight: weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + w["eps"])
    heads = lambda x: x.view(B, T, -1, D).transpose(1, 2)
    x = w["embed"][tokens]  # (B, T, C)
    y = norm(x, w["norm_1"])
    q = rope(heads(y @ w["q_proj"].T), positions, w["theta"])
    k = rope(heads(y @ w["k_proj"].T), positions, w["theta"])
    v = heads(y @ w["v_proj"].T)
    x = x + attend(q, k, v, past, None).transpose(1, 2).reshape(B, T, -1) @ w["o_proj"].T
    y = norm(x, w["norm_2"])
    x = x + (torch.nn.functional.silu(y @ w["gate_proj"].T) * (y @ w["up_proj"].T)) @ w["down_proj"].T
    return x, (k, v)
