"""A method of one's own: W_Q trained against the frozen cache of the demos, CT-KV's mirror image (query-only TTT)."""

from dataclasses import dataclass

import torch.nn.functional as F

from nanoct.fewshot import Adapted, encode_context
from nanoct.footprint import Footprint, Pass
from nanoct.optimise import optimise
from nanoct.packing import answer_logits, can_leave_one_out, pack_demos, visible

SWEEP = dict(n_step=(2, 4), lr=(1e-3, 1e-2))


@dataclass
class Config:
    n_step: int = 4
    lr: float = 1e-3


class Weight:
    """A linear map of its own in place of the model's."""

    def __init__(self, weight):
        self.weight, self.scale = weight.float().clone(), 1.0
        self.leaves = [self.weight.requires_grad_()]

    def __call__(self, x, weight):
        return F.linear(x, self.weight.to(x.dtype))

    def state(self):
        return dict(weight=self.weight)

    @staticmethod
    def shapes(weight, seen):
        return dict(weight=weight)

    @classmethod
    def restore(cls, state, scale):
        return cls(state["weight"])


def adapt(model, task, config=Config(), seed=0, progress=None):
    demos, leave_one_out = task.need_demos("mine"), can_leave_one_out(task)
    context = encode_context(model, task.instruction, demos, separator=task.separator)
    row, everything = pack_demos(task, model, context.next_position), visible(context.owner, len(demos), leave_one_out)
    adapter = {name: Weight(layer.weight) for name, layer in model.linears.items() if name.endswith("q_proj")}
    loss = lambda: F.cross_entropy(answer_logits(model, row, context, adapter, row.mask(everything)), row.target)
    optimise(loss, leaves := [part.weight for part in adapter.values()], config, progress)
    return Adapted(model, adapter, context, n_trained=sum(leaf.numel() for leaf in leaves))


def footprint(model_config, lengths, config):
    P, T = lengths.context, lengths.row
    n_trained = model_config.n_layer * model_config.n_embd * model_config.n_head * model_config.head_dim
    return Footprint(config.n_step, [Pass(1, T, P + T, lengths.targets)], trained=n_trained, read=P, prefix=P)
