"""A3: CT-KV, the part that trains. handout.md says what each function does."""

import torch

Pair = tuple[list[int], list[int]]  # ids of a question x and of its answer y


def start(model, instruction: list[int], demos: list[Pair]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The context as the model reads it: keys and values (L, 1, K, P, D), and the owner (P,) of every entry."""
    raise NotImplementedError("start")


def step_loss(model, keys: torch.Tensor, values: torch.Tensor, owner: torch.Tensor, demos: list[Pair],
              dropped: torch.Tensor) -> torch.Tensor:
    """The loss of one step, a scalar that gradients go through; dropped (k, P) bool is what token dropout hides."""
    raise NotImplementedError("step_loss")


def adapt(model, instruction: list[int], demos: list[Pair], n_step: int, lr: float, p: float,
          seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tuned keys and values (L, 1, K, P, D) after n_step steps with token dropout p."""
    raise NotImplementedError("adapt")


def answer(model, keys: torch.Tensor, values: torch.Tensor, x: list[int], options: list[list[int]]) -> torch.Tensor:
    """The mean loss per token of every option (n,) as an answer to x behind the prefix; the least is the answer."""
    raise NotImplementedError("answer")
