"""The package passes its own course: its functions under the names of A3, and its call of a model on the given one."""

from types import SimpleNamespace

import torch

from nanoct import packing
from nanoct.fewshot import Adapted, Demo, Prefix, Task, encode_context
from nanoct.methods import ct_kv
from nanoct.score import score_pairs


class AsNanoct:
    """The given model, called as the package calls a model: what is hidden there are the logits here."""

    device, graphs = torch.device("cpu"), None

    def __init__(self, model):
        self.model, self.dtype = model, model.dtype
        self.config = SimpleNamespace(n_position=len(model.place), vocab_size=len(model.token))

    def __call__(self, tokens, positions=None, mask=None, prefix=None, adapter=None):
        positions = torch.arange(tokens.shape[1])[None] if positions is None else positions
        logits, keys, values = self.model(tokens, positions, mask, *(prefix.stack() if prefix else ()))
        return logits, list(zip(keys, values))

    def logits(self, hidden):
        return hidden.float()


def of(keys, values, owner):
    return Prefix(list(zip(keys, values)), owner, len(owner))


def task_of(instruction, demos):
    return Task("a3", [Demo(*demo) for demo in demos], [], instruction)


def start(model, instruction, demos):
    prefix = encode_context(AsNanoct(model), instruction, task_of(instruction, demos).demos)
    keys, values = prefix.stack()
    return keys.float(), values.float(), prefix.owner


def step_loss(model, keys, values, owner, demos, dropped):
    task = task_of([], demos)
    row = packing.pack_demos(task, AsNanoct(model), len(owner))
    seen = packing.visible(owner, len(demos), packing.can_leave_one_out(task)) & ~dropped
    logits = packing.answer_logits(AsNanoct(model), row, of(keys, values, owner), mask=row.mask(seen))
    return torch.nn.functional.cross_entropy(logits, row.target)


def adapt(model, instruction, demos, n_step, lr, p, seed):
    config = ct_kv.Config(n_step, lr, token_dropout=p)
    return ct_kv.adapt(AsNanoct(model), task_of(instruction, demos), config, seed).prefix.stack()


def answer(model, keys, values, x, options):
    prefix = of(keys, values, torch.full(keys.shape[3:4], -1))
    return score_pairs(Adapted(AsNanoct(model), prefix=prefix), [(x, option) for option in options])[0]
