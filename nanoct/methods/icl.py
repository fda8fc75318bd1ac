"""In-context learning: read the demonstrations, change nothing (Brown et al., arXiv 2005.14165).

    theta = KV(x_1 y_1 … x_k y_k),    p_phi(y | theta, x)    phi frozen

It trains nothing and costs one forward over the P context tokens, 2·N·P FLOPs for N weights. CT-KV starts here.

    python -m nanoct.reproduce --methods icl
"""

from dataclasses import dataclass

from nanoct.fewshot import Adapted, encode_context
from nanoct.footprint import Footprint

LABEL, COLOUR = "ICL", "#4d4d4d"  # in tables and figures


@dataclass
class Config:
    pass


def adapt(model, task, config=Config(), seed=0, progress=None):
    """theta = KV cache of instruction and demos. Raises ValueError without demos, or if they do not fit."""
    demos = task.need_demos("ICL")
    return Adapted(model, prefix=encode_context(model, task.instruction, demos, separator=task.separator))


def footprint(model_config, lengths, config):
    """The context is read."""
    return Footprint(read=lengths.context, prefix=lengths.context)
