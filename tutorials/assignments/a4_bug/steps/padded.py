"""A step of CT-KV and its loop; handout.md says what they compute."""

import torch


def step_loss(model, keys, values, owner, demos, dropped):
    n_pair, n_entry = len(demos), len(owner)
    width = max(len(question) + len(reply) for question, reply in demos)
    batch = torch.zeros(n_pair, width, dtype=torch.int64)
    labels = torch.full((n_pair, width), -1)
    context = torch.ones(n_pair, n_entry, dtype=torch.bool)
    for row, (question, reply) in enumerate(demos):
        end = len(question) + len(reply)
        batch[row, :end] = torch.tensor([*question, *reply])
        labels[row, len(question) : end] = torch.tensor(reply)
        context[row, dropped[row]] = False
        if n_pair > 1:
            context[row, owner == row] = False
    causal = torch.ones(width, width).tril().bool()
    mask = torch.cat([context[:, None, :].expand(-1, width, -1), causal.expand(n_pair, -1, -1)], dim=2)
    places = torch.arange(n_entry, n_entry + width).expand(n_pair, -1)
    copies = [part.expand(-1, n_pair, -1, -1, -1) for part in (keys, values)]
    log_p = model(batch, places, mask, *copies)[0][:, :-1].log_softmax(dim=-1)
    wanted = labels[:, 1:]
    counts = wanted >= 0
    picked = log_p.gather(2, wanted.clamp(min=0)[:, :, None])[:, :, 0]
    return -picked[counts].mean()


def tune(model, keys, values, owner, demos, dropped, lr):
    trained = [torch.nn.Parameter(part.detach().clone()) for part in (keys, values)]
    descent = torch.optim.Adam(trained, lr=lr)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(descent, T_max=max(len(dropped), 1))
    for hidden in dropped:
        model.zero_grad()
        descent.zero_grad()
        step_loss(model, trained[0], trained[1], owner, demos, hidden).backward()
        total = sum(part.grad.pow(2).sum() for part in trained).sqrt()
        for part in trained:
            part.grad.div_(total.clamp(min=1))
        descent.step()
        fall.step()
    return trained[0].data, trained[1].data
