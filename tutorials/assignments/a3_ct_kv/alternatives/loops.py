"""A3 in loops: one token a call of the model, what is hidden is cut out of the prefix, Adam by hand, float64 leaves."""

import random
from math import cos, pi

import torch


def crawl(model, ids, first, keys, values):
    """Feeds ids one by one, from position `first` on: the logits after each, and the cache."""
    after = []
    for offset, token in enumerate(ids):
        line, k, v = model(torch.tensor([[token]]), torch.tensor([[first + offset]]), None, keys, values)
        keys = k if keys is None else torch.cat((keys, k), 3)
        values = v if values is None else torch.cat((values, v), 3)
        after.append(line[0, 0])
    return after, keys, values


def start(model, instruction, demos):
    whole = list(instruction)
    for question, reply in demos:
        whole.extend(question)
        whole.extend(reply)
    with torch.no_grad():
        _, keys, values = crawl(model, whole, 0, None, None)
    labels = [-1 for _ in instruction]
    for i in range(len(demos)):
        labels.extend([i] * len(demos[i][0] + demos[i][1]))
    return keys.double(), values.double(), torch.LongTensor(labels)


def surprise(model, ids, n_asked, first, keys, values):
    """-log p of each of the last n_asked ids."""
    after, _, _ = crawl(model, ids[:-1], first, keys, values)
    return [torch.logsumexp(line, 0) - line[token] for line, token in zip(after[-n_asked:], ids[-n_asked:])]


def step_loss(model, keys, values, owner, demos, dropped):
    everything = []
    for i, (question, reply) in enumerate(demos):
        stays = [e for e in range(len(owner)) if not dropped[i, e] and (len(demos) == 1 or owner[e] != i)]
        mine = (keys[..., stays, :], values[..., stays, :]) if stays else (None, None)
        everything += surprise(model, question + reply, len(reply), len(owner), *mine)
    return torch.stack(everything).mean()


def adapt(model, instruction, demos, n_step, lr, p, seed):
    dice = random.Random(seed)
    keys, values, owner = start(model, instruction, demos)
    state = [(torch.zeros_like(part), torch.zeros_like(part)) for part in (keys, values)]
    for t in range(n_step):
        keys, values = keys.detach().requires_grad_(True), values.detach().requires_grad_(True)
        dropped = torch.tensor([[dice.random() < p for _ in owner] for _ in demos])
        slopes = torch.autograd.grad(step_loss(model, keys, values, owner, demos, dropped), (keys, values))
        shrink = min(1.0, 1.0 / torch.cat([slope.flatten() for slope in slopes]).norm().item())
        moved = []
        for part, slope, (m, v) in zip((keys, values), slopes, state):
            m.mul_(0.9).add_(0.1 * shrink * slope)
            v.mul_(0.999).add_(0.001 * (shrink * slope) ** 2)
            step = (m / (1 - 0.9 ** (t + 1))) / ((v / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
            moved.append(part.detach() - lr * 0.5 * (1 + cos(pi * t / n_step)) * step)
        keys, values = moved
    return keys, values


def answer(model, keys, values, x, options):
    result = []
    with torch.no_grad():
        for option in options:
            parts = surprise(model, x + option, len(option), keys.shape[-2], keys, values)
            result.append(sum(parts) / len(parts))
    return torch.stack(result)
