"""Assignment 5: predict, then measure. Write the three functions; the handout says what they do.

c is nanoct's LlamaConfig: n_layer (L), n_head (H), n_kv_head (K), head_dim (D), n_embd (C), n_ffn (F), vocab_size (V).
A step runs T tokens in one row behind P trained entries, and has a loss at n of the T. The model is frozen.
"""

from nanoct.model import LlamaConfig


def flops_step(c: LlamaConfig, P: int, T: int, n: int) -> float:
    """FLOPs of one step, forward and backward; a product and a sum are 2."""
    raise NotImplementedError("flops_step")


def peak_bytes(c: LlamaConfig, P: int, T: int, n: int) -> float:
    """The most bytes that steps with AdamW hold at a time beside the weights; all numbers are float32."""
    raise NotImplementedError("peak_bytes")


def fit(k: list[int], seconds: list[float]) -> tuple[float, float]:
    """(a, b) so that a·k + b·k² is near the seconds: the sum of squares of the relative errors is least.

    Raises ValueError with fewer than two different k, or where k or seconds are not positive.
    """
    raise NotImplementedError("fit")
