"""DoRA: LoRA that also trains the magnitude of every row of a weight (Liu et al., arXiv 2402.09353).

    W' = m · (W + alpha/rank · B A) / |W + alpha/rank · B A|

m and the norms have one number per row, and the backward pass takes the norms as constant. All else is as in lora.py:
single pairs, no demos in context, the same weights. Each weight has rank·(in + out) + out trained numbers, float32.

Cost. That of LoRA. For each weight, the norms take 2·rank·in·out FLOPs and in·out float32 numbers more at every step.
With dropout each of these linears runs twice.

    python -m nanoct.reproduce --methods icl lora dora
"""

from nanoct import adapters
from nanoct.methods import lora
from nanoct.methods.lora import SWEEP, Config  # noqa: F401, the same as LoRA's

LABEL, COLOUR = "DoRA", "#4fa3a5"  # in tables and figures


def adapt(model, task, config=Config(), seed=0, progress=None):
    """lora.adapt with DoRA in place of LoRA."""
    return lora.adapt(model, task, config, seed, progress, adapters.DoRA)


def footprint(model_config, lengths, config):
    """lora.footprint with DoRA in place of LoRA."""
    return lora.footprint(model_config, lengths, config, adapters.DoRA)
