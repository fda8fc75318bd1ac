"""Zero-shot: ask without demonstrations.

    p_phi(y | theta, x)    phi frozen, theta = KV(instruction)

The score shows what the model knows without a demo: the floor under every other method. It trains nothing and costs
one forward over the instruction.

    python -m nanoct.reproduce --methods zero_shot
"""

from dataclasses import dataclass

from nanoct.fewshot import Adapted, encode_context
from nanoct.footprint import Footprint

LABEL, COLOUR = "zero-shot", "#9a9a9a"  # in tables and figures


@dataclass
class Config:
    pass


def adapt(model, task, config=Config(), seed=0, progress=None):
    """theta = KV of the instruction, or None without one. An instruction at the head of every row gives the same."""
    return Adapted(model, prefix=encode_context(model, task.instruction))


def footprint(model_config, lengths, config):
    """The instruction is read."""
    return Footprint(read=lengths.instruction)
