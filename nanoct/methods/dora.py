"""DoRA: LoRA with the magnitude of every row of a weight as a number of its own (Liu et al., arXiv 2402.09353).

    W' = m · (W + alpha/rank · B A) / |W + alpha/rank · B A|

Norms and m are by row; the norm is constant in the backward pass. All else is lora.py: single pairs, no demos in
context, the same weights. Trained are rank·(in + out) + out numbers for each of them, float32.

Cost. LoRA's, and at every step 2·rank·in·out FLOPs and in·out float32 numbers for the norms of each of these weights;
with dropout a linear runs twice.

    python -m nanoct.reproduce --methods icl lora dora
"""

from nanoct import adapters
from nanoct.methods import lora
from nanoct.methods.lora import SWEEP, Config  # noqa: F401, as LoRA's

LABEL, COLOUR = "DoRA", "#4fa3a5"  # in tables and figures


def adapt(model, task, config=Config(), seed=0, progress=None):
    """lora.adapt with DoRA in its place."""
    return lora.adapt(model, task, config, seed, progress, adapters.DoRA)


def footprint(config, lengths, settings):
    """lora.footprint with DoRA in its place."""
    return lora.footprint(config, lengths, settings, adapters.DoRA)
