"""Assignment 1: attention behind a prefix. Write the three functions; the handout says what they do.

Dimensions: B rows, T new tokens, P entries of the past, H heads, K KV heads, D head_dim, C width of the model.
"""

import torch


def rope(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Turn every vector of x (B, H, T, D) to its position, positions (B, T) int64. Returns (B, H, T, D)."""
    raise NotImplementedError("rope")


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, past: tuple[torch.Tensor, torch.Tensor] | None,
           mask: torch.Tensor | None) -> torch.Tensor:
    """Attention of new queries to past and new keys and values. Nothing is turned in here.

    q     (B, H, T, D)
    k, v  (B, K, T, D) of the new tokens; H is a multiple of K
    past  (keys, values), each (1 or B, K, P, D), which stand before the new ones; or None
    mask  (B, T, P+T) bool, True: may look; None: all of the past, and the new ones up to the token itself
    Returns (B, H, T, D).
    """
    raise NotImplementedError("attend")


def read(weights: dict, tokens: torch.Tensor, past: tuple[torch.Tensor, torch.Tensor] | None,
         positions: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Run tokens (B, T) int64 at positions (B, T) int64 through one Llama block, behind a past or None.

    weights: tensors embed (V, C), norm_1 (C,), q_proj (H·D, C), k_proj and v_proj (K·D, C), o_proj (C, H·D),
    norm_2 (C,), gate_proj and up_proj (F, C), down_proj (C, F); and the numbers head_dim, theta, eps.
    Returns hidden (B, T, C), and (keys, values) of the new tokens alone, each (B, K, T, D), fit to be a later past.
    """
    raise NotImplementedError("read")
