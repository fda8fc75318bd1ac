"""A task to measure costs on: time and memory depend on the lengths of its pairs, not on what the tokens say."""

import math

import torch

from nanoct.fewshot import Demo, Task

SPREAD = 0.38  # std / mean of the lengths of 16 pairs: the mean over 13 tasks of NLP-LR, in words


def random_task(k, context, vocab_size, spread=SPREAD, seed=0):
    """Make a task of k pairs of random ids, about `context` tokens in all, with answers of 1 to 4 tokens.

    The lengths are quantiles of a log-normal. spread: its std / mean; with 0 all pairs have one length. Raises
    ValueError without room for the pairs.
    """
    if k < 2 or context < 8 * k:
        raise ValueError(f"k = {k} and context = {context}: it takes 2 pairs or more, and 8 tokens or more for each.")
    generator = torch.Generator().manual_seed(seed)
    quantile = (torch.randperm(k, generator=generator) + 0.5) / k
    length = torch.exp(math.sqrt(math.log1p(spread**2)) * torch.special.ndtri(quantile))
    ids = lambda n: torch.randint(vocab_size, (n,), generator=generator).tolist()
    demos = []
    for n in (context * length / length.sum()).round().long().clamp(min=2).tolist():
        n_answer = 1 + len(demos) % min(4, n - 1)
        demos.append(Demo(ids(n - n_answer), ids(n_answer)))
    return Task("random", demos, queries=[])
