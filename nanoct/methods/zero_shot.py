"""Zero-shot: ask without demonstrations.

    p_phi(y | theta, x)    phi frozen, theta empty but for the instruction

What the model knows of the format alone; the floor under every other method. Trains nothing; costs one
forward over the instruction.

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
    """theta = KV of the instruction (None without one): the same as the instruction at the head of every row."""
    return Adapted(model, prefix=encode_context(model, task.instruction))


def footprint(config, lengths, settings):
    """The instruction is read."""
    return Footprint(read=lengths.instruction)
