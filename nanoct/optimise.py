"""The optimiser that all tuned methods share: AdamW, a cosine to 0, gradients clipped at norm 1."""

import math
from warnings import warn

import torch

from nanoct.fewshot import check_dropout


class Stopped(UserWarning):
    """Warns that training ended before its last step, as its loss or gradient was not finite."""


def optimise(loss, leaves, config, progress=None):
    """Update the leaves config.n_step times along the gradient of loss() -> scalar; the rate falls from config.lr to 0.

    AdamW with betas (.9, .999), no weight decay and no warm-up. The norm is over the leaves alone, and nothing but the
    leaves changes. progress(step, loss) is called every step. If the loss or its gradient is not finite, the run stops
    with a warning, and the leaves go back to their last values with both finite.
    Cost: a gradient, two moments and that copy of each leaf. Raises ValueError on negative steps, a rate that is not
    positive and finite, or a token_dropout that is no probability below 1.
    """
    check(config)
    optimizer = torch.optim.AdamW(leaves, lr=config.lr, betas=(0.9, 0.999), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(config.n_step, 1))
    finite = [leaf.detach().clone() for leaf in leaves]
    for step in range(config.n_step):
        now = loss()
        optimizer.zero_grad()
        now.backward(inputs=leaves)
        norm = torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        if not (now + norm).isfinite():
            warn(f"the loss is {now.item()} and its gradient {norm.item()} at step {step}: stopped, with the values of "
                 f"{f'step {step - 1}' if step else 'the start'}; a smaller lr than {config.lr} may help.", Stopped)
            with torch.no_grad():
                for leaf, value in zip(leaves, finite):
                    leaf.copy_(value)
            break
        for leaf, value in zip(leaves, finite):
            value.copy_(leaf.detach())
        optimizer.step()
        schedule.step()
        if progress:
            progress(step, now.item())
    for leaf in leaves:
        leaf.requires_grad_(False)
        leaf.grad = None


def check(config):
    """Raise ValueError on impossible steps or rates, or a token_dropout that is no probability below 1."""
    if config.n_step < 0 or not 0 < config.lr < math.inf:
        raise ValueError(f"n_step = {config.n_step} must be at least 0, and lr = {config.lr} positive and finite.")
    check_dropout("token_dropout", getattr(config, "token_dropout", 0))
