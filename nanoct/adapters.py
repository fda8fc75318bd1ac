"""What stands in for a linear map of the frozen model: f(x, weight), a plain object that owns its trained leaves.

    adapter = {"layers.0.self_attn.q_proj": LoRA(...), ...};    model(tokens, adapter=adapter)
"""

import math

import torch
import torch.nn.functional as F


class LoRA:
    """x W^T + alpha/rank · drop(x) A^T B^T: a low-rank change of W (Hu et al., arXiv 2106.09685).

    A (rank, in) starts uniform in ±1/sqrt(in), B (out, rank) at zero, so the start is the model itself.
    Both float32: rank·(in + out) trained numbers. Extra cost per token: 2·rank·(in + out) FLOPs forward.
    """

    def __init__(self, weight, rank, alpha, dropout=0.0, generator=None):
        n_out, n_in = weight.shape
        if rank < 1:
            raise ValueError(f"rank = {rank} must be at least 1.")
        new = lambda *shape: torch.zeros(*shape, device=weight.device)
        self.a = new(rank, n_in).uniform_(-1 / math.sqrt(n_in), 1 / math.sqrt(n_in), generator=generator).requires_grad_()
        self.b = new(n_out, rank).requires_grad_()
        self.scale, self.dropout, self.generator = alpha / rank, dropout, generator

    def __call__(self, x, weight):
        low = x.to(self.a.dtype)
        if self.dropout:  # set to 0 once trained
            keep = torch.rand(x.shape, device=x.device, generator=self.generator) >= self.dropout
            low = low * keep / (1 - self.dropout)
        return F.linear(x, weight) + (self.scale * F.linear(F.linear(low, self.a), self.b)).to(x.dtype)


def lora(model, targets, rank, alpha, dropout=0.0, generator=None):
    """A LoRA on every linear of the model whose last name is in targets, such as ("q_proj", "v_proj")."""
    return {name: LoRA(layer.weight, rank, alpha, dropout, generator)
            for name, layer in model.linears.items() if name.split(".")[-1] in targets}
