"""A step of CT-KV and its loop; handout.md says what they compute."""

from math import cos, pi

import torch


def surprises(model, ids, first, keys, values):
    """-log p of every id but the first, of a text from position `first` on, behind the entries of keys and values."""
    said = []
    for n, (token, wanted) in enumerate(zip(ids, ids[1:])):
        logits, k, v = model(torch.tensor([[token]]), torch.tensor([[first + n]]), None, keys, values)
        keys, values = torch.cat([keys, k], dim=3), torch.cat([values, v], dim=3)
        said.append(logits[0, 0].logsumexp(0) - logits[0, 0, wanted])
    return said


def step_loss(model, keys, values, owner, demos, dropped):
    everything = []
    for i, (x, y) in enumerate(demos):
        hidden = dropped[i] | (owner == i) if len(demos) > 1 else dropped[i]
        part = surprises(model, [*x, *y], len(owner), keys[..., ~hidden, :], values[..., ~hidden, :])
        everything += part[-len(y) :]
    return sum(everything) / len(everything)


def tune(model, keys, values, owner, demos, dropped, lr):
    both = [keys.detach(), values.detach()]
    mean, square = [0, 0], [0, 0]
    for t, hidden in enumerate(dropped):
        both = [part.detach().requires_grad_() for part in both]
        loss = step_loss(model, *both, owner, demos, hidden)
        slopes = torch.autograd.grad(loss, both, materialize_grads=True)
        length = sum((slope**2).sum() for slope in slopes) ** 0.5
        rate, moved = lr * (1 + cos(pi * t / len(dropped))) / 2, []
        for j, slope in enumerate(slopes):
            slope = slope / max(length, 1)
            mean[j] = 0.9 * mean[j] + 0.1 * slope
            square[j] = 0.999 * square[j] + 0.001 * slope**2
            step = mean[j] / (1 - 0.9 ** (t + 1)) / ((square[j] / (1 - 0.999 ** (t + 1))) ** 0.5 + 1e-8)
            moved.append(both[j].detach() - rate * step)
        both = moved
    return both[0], both[1]
