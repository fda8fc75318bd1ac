"""A3 a pair at a time, each with a mask; losses by one_hot and einsum; Adam by hand in float32."""

import math

import torch


def start(model, instruction, demos):
    ids = sum((x + y for x, y in demos), list(instruction))
    _, keys, values = model(torch.tensor(ids)[None], torch.arange(len(ids))[None])
    sizes = torch.tensor([len(instruction)] + [len(x) + len(y) for x, y in demos])
    owner = torch.repeat_interleave(torch.arange(-1, len(demos)), sizes)
    return keys.detach().float(), values.detach().float(), owner


def costs(model, ids, n, P, keys, values, mask):
    """-log p of the last n ids."""
    ids = torch.tensor(ids)
    logits, _, _ = model(ids[None, :-1], P + torch.arange(len(ids) - 1)[None], mask, keys, values)
    log_p = torch.log_softmax(logits[0, -n:].float(), -1)
    return -torch.einsum("nv,nv->n", log_p, torch.nn.functional.one_hot(ids[-n:], log_p.shape[-1]).float())


def step_loss(model, keys, values, owner, demos, dropped):
    every = []
    for i, (x, y) in enumerate(demos):
        sees = ~dropped[i] & ((owner != i) | (len(demos) == 1))
        T = len(x) + len(y) - 1
        mask = torch.cat([sees.expand(T, -1), torch.ones(T, T, dtype=torch.bool).tril()], 1)[None]
        every.append(costs(model, x + y, len(y), len(owner), keys, values, mask))
    return torch.cat(every).mean()


def adapt(model, instruction, demos, n_step, lr, p, seed):
    generator = torch.Generator()
    generator.manual_seed(seed + 17)
    *parts, owner = start(model, instruction, demos)
    mean, square = ([torch.zeros_like(part) for part in parts] for _ in range(2))
    for t in range(n_step):
        leaves = [part.clone().requires_grad_() for part in parts]
        dropped = torch.stack([torch.rand(len(owner), generator=generator) < p for _ in demos])
        slopes = torch.autograd.grad(step_loss(model, *leaves, owner, demos, dropped), leaves)
        length = torch.cat([slope.flatten() for slope in slopes]).norm()
        rate = lr * math.cos(math.pi * t / n_step / 2) ** 2
        for i, slope in enumerate(slopes):
            slope = slope / length if length > 1 else slope
            mean[i] = 0.9 * mean[i] + 0.1 * slope
            square[i] = 0.999 * square[i] + 0.001 * slope**2
            step = mean[i] / (1 - 0.9 ** (t + 1)) / ((square[i] / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
            parts[i] = parts[i] - rate * step
    return tuple(parts)


def answer(model, keys, values, x, options):
    with torch.no_grad():
        return torch.stack([costs(model, x + option, len(option), keys.shape[-2], keys, values, None).mean()
                            for option in options])
