"""A3 as a batch: a row for each pair, filled up to the longest, behind k copies of the prefix. Adam by torch."""

import torch


def start(model, instruction, demos):
    text, whose = torch.tensor(instruction, dtype=torch.long), [torch.full((len(instruction),), -1)]
    for number, demo in enumerate(demos):
        piece = torch.tensor(demo[0] + demo[1])
        text = torch.cat((text, piece))
        whose.append(torch.full_like(piece, number))
    with torch.inference_mode():
        cache = model(text.unsqueeze(0), torch.arange(text.numel()).unsqueeze(0))[1:]
    return cache[0].to(torch.float32).clone(), cache[1].to(torch.float32).clone(), torch.cat(whose)


def step_loss(model, keys, values, owner, demos, dropped):
    n_pair, n_prefix = len(demos), owner.numel()
    width = max(len(a) + len(b) for a, b in demos)
    batch = torch.zeros((n_pair, width), dtype=torch.long)
    labels = torch.full((n_pair, width), -100)
    allowed = torch.zeros((n_pair, width, n_prefix + width), dtype=torch.bool)
    for row, (question, reply) in enumerate(demos):
        size = len(question) + len(reply)
        batch[row, :size] = torch.tensor(question + reply)
        labels[row, len(question) : size] = torch.tensor(reply)
        allowed[row, :, :n_prefix] = torch.logical_not(dropped[row])
        if n_pair != 1:
            allowed[row, :, :n_prefix][:, owner == row] = False
        for column in range(width):
            allowed[row, column:, n_prefix + column] = True
    place = n_prefix + torch.arange(width)
    out = model(batch, place.expand(n_pair, width), allowed, keys.expand(-1, n_pair, -1, -1, -1),
                values.expand(-1, n_pair, -1, -1, -1))[0]
    chance = out[:, :-1].log_softmax(dim=2)
    wanted = labels[:, 1:]
    real = wanted >= 0
    taken = chance.gather(2, wanted.clamp(min=0).unsqueeze(2)).squeeze(2)
    return -(taken * real).sum() / real.sum()


def adapt(model, instruction, demos, n_step, lr, p, seed):
    k0, v0, owner = start(model, instruction, demos)
    trained = [torch.nn.Parameter(k0), torch.nn.Parameter(v0)]
    descent = torch.optim.Adam(trained, lr=lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(descent, T_max=max(n_step, 1), eta_min=0)
    chance = torch.Generator()
    chance.manual_seed(1000 + seed)
    for _ in range(n_step):
        gone = torch.stack([torch.bernoulli(torch.full((owner.numel(),), p), generator=chance).bool() for _ in demos])
        descent.zero_grad()
        step_loss(model, trained[0], trained[1], owner, demos, gone).backward()
        total = sum(part.grad.square().sum() for part in trained).sqrt()
        if total > 1:
            for part in trained:
                part.grad /= total
        descent.step()
        falling.step()
    model.zero_grad()
    return trained[0].data, trained[1].data


def answer(model, keys, values, x, options):
    with torch.no_grad():
        n, width, past = len(options), len(x) + max(map(len, options)), keys.size(3)
        batch = torch.zeros((n, width), dtype=torch.long)
        for row, option in enumerate(options):
            batch[row, : len(x) + len(option)] = torch.tensor(x + option)
        place = torch.arange(past, past + width).expand(n, -1)
        chance = model(batch, place, None, keys, values)[0].log_softmax(-1)
        return torch.stack([-torch.stack([chance[row, len(x) + i - 1, token] for i, token in enumerate(option)]).mean()
                            for row, option in enumerate(options)])
