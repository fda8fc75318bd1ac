"""Nine ways to tune a predictor to a source: four of a prefix, five of weights (arXiv 2505.17010).

    HardPT       the best of all 2^L sequences of flips, by log loss on 2,048 sequences: no gradient
    SimplexPT    L rows of probabilities of a flip, a softmax of what is trained
    RealPT       L free rows in the space of one-hot flips
    SoftPT       L free rows in the space of embeddings
    FullWT       all weights;  EmbedWT, UnembedWT, Un+EmbedWT: the weights of these layers
    LoRAWT       a product of rank 4 added to every matrix of the body

All methods but HardPT share one loop: Adam, 1,000 steps of 256 sequences of 50 flips, lr 5e-3, clip 1. A method trains
a dict of leaves and makes tensors of them. The predictor is called with these tensors in place of its own, and never
changes. So the optimiser and clipping see only what is tuned, and all else stays as it was, bit by bit.
SoftPT starts as in the public code: every row is a random unit vector of the embedding space. RealPT and SimplexPT
start at flips, SimplexPT a softmax away (.73 and .27). In the public code these flips are random, and their number of
ones decides as much as the method does. So here one half of them are ones, in random order. weights/coins/README.md
says what else differs.

Cost of a step: that of a step of meta-training (predictors.py), without the gradient of weights that are not trained.
"""

from dataclasses import dataclass, field
from itertools import product

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call

from nanoct.coins.coins import log_loss
from nanoct.coins.predictors import lecun_normal, loss_of, probability

RANK = 4
PREFIX = "HardPT", "SimplexPT", "RealPT", "SoftPT"
WEIGHTS = "FullWT", "EmbedWT", "UnembedWT", "Un+EmbedWT", "LoRAWT"
METHODS = PREFIX + WEIGHTS


@dataclass
class Tuned:
    """A predictor with what was tuned; predict(x) works as its own does."""

    predictor: nn.Module
    weights: dict = field(default_factory=dict)  # by name, instead of the predictor's own
    prefix: torch.Tensor | None = None  # (L, n_embd)
    losses: list = field(default_factory=list)  # one a step
    searched: dict = field(default_factory=dict)  # {flips: log loss} of HardPT

    @torch.no_grad()
    def __call__(self, x, **options):
        """As the predictor's forward."""
        return functional_call(self.predictor, self.weights, (x, self.prefix), options)

    def predict(self, x):
        """P(x_t = 1 | what was tuned, x_<t) (B, T), float64, on the CPU."""
        return probability(self, x)


def start(predictor, method, length, generator):
    """Return a method's leaves {name: tensor to train}, and make(leaves) -> (weights, prefix)."""
    own, embed = dict(predictor.named_parameters()), predictor.embed
    balanced = lambda: one_hot(predictor, torch.randperm(length, generator=generator) % 2)  # (L, 2)
    if method == "SimplexPT":
        return dict(rows=balanced()), lambda leaves: ({}, embed(leaves["rows"].softmax(-1)))
    if method == "RealPT":
        return dict(rows=balanced()), lambda leaves: ({}, embed(leaves["rows"]))
    if method == "SoftPT":
        n_embd = embed.out_features
        rows = F.one_hot(torch.randint(n_embd, (length,), generator=generator), n_embd).float()
        return dict(rows=rows), lambda leaves: ({}, leaves["rows"])
    if method == "LoRAWT":
        leaves = {}
        for name, p in own.items():
            if name.startswith("body.") and p.dim() == 2:
                leaves[f"{name}.a"] = lecun_normal(torch.empty(RANK, p.shape[1]), generator)
                leaves[f"{name}.b"] = torch.zeros(p.shape[0], RANK)
        names = [name.removesuffix(".a") for name in leaves if name.endswith(".a")]
        return leaves, lambda leaves: ({n: own[n] + leaves[f"{n}.b"] @ leaves[f"{n}.a"] for n in names}, None)
    layers = {"FullWT": ("",), "EmbedWT": ("embed.",), "UnembedWT": ("unembed.",), "Un+EmbedWT": ("embed.", "unembed.")}
    if method not in layers:
        raise ValueError(f"there is no method {method!r}; there are {', '.join(METHODS)}.")
    leaves = {name: p.detach().clone() for name, p in own.items() if name.startswith(layers[method])}
    return leaves, lambda leaves: (leaves, None)


def one_hot(predictor, flips):
    """Flips (L,) as one-hot rows (L, 2), which a predictor embeds."""
    return F.one_hot(torch.as_tensor(flips), 2).float().to(predictor.device)


def embedded(predictor, flips):
    """Flips (L,) as a prefix (L, n_embd)."""
    return predictor.embed(one_hot(predictor, flips)).detach()


def tune(predictor, source, method, length=6, n_step=1000, batch=256, T=50, lr=5e-3, seed=0, n_search=2048,
         progress=None):
    """Tune a predictor to a source by one of METHODS; return a Tuned.

    length: rows of a prefix. n_search: sequences of HardPT's search. progress(step, loss of a flip) is called every
    step. Raises ValueError on an unknown method, or a length that HardPT cannot search.
    """
    if method == "HardPT":
        behind = lambda flips, x: predictor.predict(x, embedded(predictor, flips))
        searched = search(behind, source, length, n_search, T, seed)
        return Tuned(predictor, prefix=embedded(predictor, best(searched)), searched=searched)
    generator = torch.Generator().manual_seed(seed)
    leaves, make = start(predictor, method, length, generator)
    leaves = {name: leaf.to(predictor.device).requires_grad_() for name, leaf in leaves.items()}
    optimizer, losses = torch.optim.Adam(leaves.values(), lr=lr), []
    for step in range(n_step):
        x, _ = source.sample(batch, T, generator)
        weights, prefix = make(leaves)
        loss = loss_of(functional_call(predictor, weights, (x, prefix)), x)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(leaves.values(), 1.0)
        optimizer.step()
        losses.append(loss.item() / T)
        if progress:
            progress(step, losses[-1])
    with torch.no_grad():
        weights, prefix = make({name: leaf.detach() for name, leaf in leaves.items()})
    return Tuned(predictor, weights, prefix, losses)


@torch.no_grad()
def search(behind, source, length=6, n_search=2048, T=50, seed=0):
    """{hard prefix (L flips): mean log loss of a sequence in nats} of all 2^L prefixes, on the same sequences.

    behind(flips, x) is P(x_t = 1 | flips, x_<t) (n, T). Raises ValueError if the length is not 1 to 12.
    """
    if not 1 <= length <= 12:
        raise ValueError(f"HardPT tries all 2^{length} prefixes: a length from 1 to 12 can be searched.")
    x, _ = source.sample(n_search, T, torch.Generator().manual_seed(seed))
    return {flips: log_loss(behind(flips, x), x).sum(1).mean().item() for flips in product((0, 1), repeat=length)}


def best(searched):
    """The hard prefix with the lowest loss."""
    return min(searched, key=searched.get)
