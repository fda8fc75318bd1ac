"""PromptQuine: leave out tokens of the demonstrations (Wang et al., arXiv 2506.17930).

    theta* = KV(the tokens with b* = 1),    b = 1 at the start, which is in-context learning
    b*     = argmin  - 1/n · sum_i log p_phi(y_i | theta(b) without the entries of demo i, x_i)

phi is frozen, and nothing is trained: one bit for each of the P tokens, the instruction's too, says whether it stays.
The tokens that stay keep their order and close ranks. "climb" goes through the context from left to right and drops a
token if the loss does not rise. "genetic" keeps the best of a small population; a child is a parent with some bits
flipped. The loss is CT-KV's (ct_kv.py); the paper's search is larger, on labelled examples beside the demos.

Cost. A loss is a forward of the tokens that stay and of the k pairs behind them, 2·N·(P+T) FLOPs for N weights.

    python -m nanoct.reproduce --methods icl prune
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoct.fewshot import Adapted, Prefix, concatenate
from nanoct.footprint import Footprint, Pass
from nanoct.packing import answer_logits, can_leave_one_out, pack_demos, visible

LABEL, COLOUR = "PromptQuine", "#5f6b3a"  # in tables and figures
SWEEP = dict(n_step=(1, 2), leave_one_out=(True, False))  # values worth trying


@dataclass
class Config:
    n_step: int = 1  # passes over the tokens, or generations
    leave_one_out: bool = True  # hide demo i from pair i
    search: str = "climb"  # or "genetic"
    n_population: int = 8  # of "genetic": those that live on; each has one child
    mutation: float = 0.02  # of "genetic": probability that a child's bit is flipped


@torch.no_grad()
def adapt(model, task, config=Config(), seed=0, progress=None):
    """Choose tokens of task.demos; returns (model, their KV). progress(step, loss) is called every step.

    Raises ValueError without demos, if context and pairs do not fit, or on an impossible setting. With a single demo
    leave-one-out is off, and a warning says so.
    """
    demos, search = task.need_demos(LABEL), dict(climb=climb, genetic=genetic).get(config.search)
    if not search or config.n_step < 0 or config.n_population < 1 or not 0 <= config.mutation <= 1:
        raise ValueError(f'{config}: search is "climb" or "genetic", n_step at least 0, n_population at least 1, and '
                         "mutation from 0 to 1.")
    tokens, owner = concatenate(model, task.instruction, demos, task.separator)
    row = pack_demos(task, model, len(owner))
    leave_one_out, behind = config.leave_one_out and can_leave_one_out(task), row.positions - len(owner)

    def read(bits):
        _, kv = model(tokens[:, bits])
        return Prefix(kv, owner[bits], int(bits.sum()))

    def loss(bits):
        if not bits.any():
            return torch.inf  # no context at all
        theta = read(bits)
        row.positions = behind + theta.next_position
        mask = row.mask(visible(theta.owner, len(demos), leave_one_out))
        return F.cross_entropy(answer_logits(model, row, theta, mask=mask), row.target).item()

    everything = torch.ones_like(owner, dtype=torch.bool)
    bits = search(loss, everything, config, torch.Generator().manual_seed(seed), progress or (lambda *_: None))
    return Adapted(model, prefix=read(bits), n_trained=len(bits))


def climb(loss, bits, config, generator, progress):
    """Drop one token after the other wherever the loss does not rise."""
    bits, lowest = bits.clone(), loss(bits)
    for step in range(config.n_step):
        for i in bits.nonzero().flatten():
            bits[i] = False
            now = loss(bits)
            bits[i] = now > lowest
            lowest = min(now, lowest)
        progress(step, lowest)
    return bits


def genetic(loss, bits, config, generator, progress):
    """The best of parents and children live on; bits (P,) are the first parents."""
    living = [(loss(bits), bits)] * config.n_population
    for step in range(config.n_step):
        for _, parent in living[:]:
            flipped = torch.rand(len(parent), generator=generator) < config.mutation
            child = parent ^ flipped.to(parent.device)
            living.append((loss(child), child))
        living = sorted(living, key=lambda one: one[0])[: config.n_population]  # stable: parents first
        progress(step, living[0][0])
    return living[0][1]


def footprint(model_config, lengths, config):
    """The context and the row of pairs behind it are read for every loss."""
    P, T, n_loss = lengths.context, lengths.row, lengths.context if config.search == "climb" else config.n_population
    loss = [Pass(1, P, P, masked=False, trains=False), Pass(1, T, P + T, lengths.targets, trains=False)]
    return Footprint(config.n_step, loss * n_loss, read=P, prefix=P)
