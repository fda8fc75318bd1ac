"""A step of CT-KV and its loop; handout.md says what they compute."""

import math

import torch
import torch.nn.functional as F


def step_loss(model, keys, values, owner, demos, dropped):
    k, P = dropped.shape
    seen = ~dropped
    if k > 1:
        seen = seen & (owner != torch.arange(k)[:, None])
    tokens, positions, pair, where, target = [], [], [], [], []
    for i, (x, y) in enumerate(demos):
        ids = [*x, *y[:-1]]
        where += range(len(tokens) + len(x) - 1, len(tokens) + len(ids))
        positions += range(P, P + len(ids))
        tokens += ids
        target += y
        pair += [i] * len(ids)
    pair = torch.tensor(pair)
    own = pair[:, None] == pair
    mask = torch.cat([seen[pair], own.tril()], dim=1)
    logits, _, _ = model(torch.tensor([tokens]), torch.tensor([positions]), mask[None], keys, values)
    losses = F.cross_entropy(logits[0, where], torch.tensor(target), reduction="none")
    return losses.mean()


def tune(model, keys, values, owner, demos, dropped, lr):
    n_step = len(dropped)
    leaves = [part.detach().clone().requires_grad_() for part in (keys, values)]
    optimizer = torch.optim.AdamW(leaves, lr=lr, weight_decay=0.0)
    for t in range(n_step):
        optimizer.zero_grad()
        model.zero_grad()
        step_loss(model, *leaves, owner, demos, dropped[t]).backward()
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * t / n_step)) / 2
        optimizer.step()
    return leaves[0].detach(), leaves[1].detach()
