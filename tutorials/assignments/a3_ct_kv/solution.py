"""A3 solved: k pairs in one packed row behind one prefix."""

import math

import torch
import torch.nn.functional as F


@torch.no_grad()
def start(model, instruction, demos):
    tokens, owner = list(instruction), [-1] * len(instruction)
    for i, (x, y) in enumerate(demos):
        tokens += [*x, *y]
        owner += [i] * (len(x) + len(y))
    positions = torch.arange(len(tokens))[None]
    _, keys, values = model(torch.tensor([tokens]), positions)
    return keys.float(), values.float(), torch.tensor(owner)


def step_loss(model, keys, values, owner, demos, dropped):
    k, P = dropped.shape
    seen = ~dropped
    if k > 1:
        seen = seen & (owner != torch.arange(k)[:, None])
    tokens, positions, pair, where, target = [], [], [], [], []
    for i, (x, y) in enumerate(demos):
        ids = [*x, *y][:-1]
        where += range(len(tokens) + len(x) - 1, len(tokens) + len(ids))
        target += y
        positions += range(P, P + len(ids))
        tokens += ids
        pair += [i] * len(ids)
    pair = torch.tensor(pair)
    own = (pair[:, None] == pair).tril()
    mask = torch.cat([seen[pair], own], dim=1)[None]
    logits, _, _ = model(torch.tensor([tokens]), torch.tensor([positions]), mask, keys, values)
    return F.cross_entropy(logits[0, where], torch.tensor(target))


def adapt(model, instruction, demos, n_step, lr, p, seed):
    generator = torch.Generator().manual_seed(seed)
    keys, values, owner = start(model, instruction, demos)
    leaves = [keys.requires_grad_(), values.requires_grad_()]
    optimizer = torch.optim.AdamW(leaves, lr=lr, weight_decay=0.0)
    for step in range(n_step):
        dropped = torch.rand(len(demos), len(owner), generator=generator) < p
        loss = step_loss(model, keys, values, owner, demos, dropped)
        optimizer.zero_grad()
        loss.backward(inputs=leaves)
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * step / n_step)) / 2
        optimizer.step()
    return keys.detach(), values.detach()


@torch.no_grad()
def answer(model, keys, values, x, options):
    P, losses = keys.shape[3], []
    for option in options:
        ids = [*x, *option][:-1]
        positions = torch.arange(P, P + len(ids))[None]
        logits, _, _ = model(torch.tensor([ids]), positions, None, keys, values)
        losses.append(F.cross_entropy(logits[0, len(x) - 1 :], torch.tensor(option)))
    return torch.stack(losses)
