"""A step of CT-KV and its loop; handout.md says what they compute."""

import math

import torch
import torch.nn.functional as F


def step_loss(model, keys, values, owner, demos, dropped):
    k, P = dropped.shape
    total, n_token = 0.0, 0
    for i, (x, y) in enumerate(demos):
        T, hidden = len(x) + len(y), dropped[i].clone()
        if k > 1:
            hidden |= owner == i
        bias = torch.triu(torch.ones(T, P + T), diagonal=P + 1).bool()
        bias[:, :P] = hidden
        logits, _, _ = model(torch.tensor([x + y]), torch.arange(P, P + T)[None], ~bias[None], keys, values)
        log_p = F.log_softmax(logits[0, len(x) - 1 : T - 1], dim=1)  # (answer, V)
        total -= torch.einsum("av,av->", log_p, F.one_hot(torch.tensor(y), log_p.shape[1]).to(log_p))
        n_token += len(y)
    return total / n_token


def tune(model, keys, values, owner, demos, dropped, lr):
    flat = torch.stack([keys, values]).detach().requires_grad_()  # (2, L, 1, K, P, D): one leaf has one norm
    descent = torch.optim.AdamW([flat], lr=lr, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(descent, lambda t: (1 + math.cos(math.pi * t / len(dropped))) / 2)
    for hidden in dropped:
        (slope,) = torch.autograd.grad(step_loss(model, *flat, owner, demos, hidden), flat)
        flat.grad = slope / max(1.0, float(torch.linalg.vector_norm(slope)))
        descent.step()
        falling.step()
    return flat.detach().unbind()
