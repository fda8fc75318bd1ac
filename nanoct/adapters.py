"""Adapters: what takes the place of linear maps of the frozen model.

    adapter = {"layers.0.self_attn.q_proj": LoRA(...), ...};    model(tokens, adapter=adapter)

The contract. An adapter maps names of linears to objects of one kind, its parts. Each owns its trained tensors:

    part(x, weight)            replaces the linear of that weight (out, in): its result for x (…, in), in x's dtype
    part.leaves                the tensors that are trained, float32
    part.state()               {name: tensor}, and
    part.scale                 a number; with the state, all that it takes to compute the same again
    Kind.shapes(weight, seen)  {name: shape} of the state for a weight of that shape; seen: the shapes in a saved file
    Kind.restore(state, scale) the part with a saved state
    part.generator             the torch.Generator of a part whose call draws numbers, as dropout does. model.checkpoint
                               computes a block twice and resets the generator, so that both draws are the same

The model needs only the call, training needs the leaves, and saving to a file (runs/contexts.py) needs the rest.
"""

import math

import torch
import torch.nn.functional as F

from nanoct.fewshot import check_dropout

TARGETS = ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",  # the paper's: all linears but keys
           "c_attn", "c_proj", "c_fc")  # of GPT-2: all linears


class Part:
    """What kinds of parts share: leaves that are its attributes, called `names`. A kind adds the call and `shapes`."""

    names, scale, generator = (), 1.0, None

    def __init__(self, **tensors):
        """The leaves start as float32 copies of the tensors."""
        for name, tensor in tensors.items():
            setattr(self, name, tensor.detach().float().clone().requires_grad_())
        self.names = tuple(tensors)

    @property
    def leaves(self):
        return [getattr(self, name) for name in self.names]

    def state(self):
        return {name: getattr(self, name) for name in self.names}

    @classmethod
    def restore(cls, state, scale):
        part = cls.__new__(cls)  # __init__ would copy, or draw random numbers
        vars(part).update(state, names=tuple(state), scale=scale)
        return part


class Tap:
    """The linear map itself, which keeps what it returned last as `seen`, without a bias. It trains nothing."""

    def __call__(self, x, weight):
        self.seen = F.linear(x, weight)
        return self.seen


class LoRA(Part):
    """x W^T + alpha/rank · drop(x) A^T B^T: a low-rank change of W (Hu et al., arXiv 2106.09685).

    A (rank, in) starts uniform in ±1/sqrt(in), B (out, rank) at zero, so training starts at the model itself.
    Both float32: rank·(in + out) trained numbers. Extra cost per token: 2·rank·(in + out) FLOPs forward.
    """

    runs_twice = False  # whether dropout makes the linear run twice
    names, dropout = ("a", "b"), 0.0

    def __init__(self, weight, rank, alpha, dropout=0.0, generator=None):
        n_out, n_in = weight.shape
        if rank < 1:
            raise ValueError(f"rank = {rank} must be at least 1.")
        check_dropout("dropout", dropout)
        new = lambda *shape: torch.zeros(*shape, device=weight.device)
        bound = 1 / math.sqrt(n_in)
        self.a = new(rank, n_in).uniform_(-bound, bound, generator=generator).requires_grad_()
        self.b = new(n_out, rank).requires_grad_()
        self.scale, self.dropout, self.generator = alpha / rank, dropout, generator

    @staticmethod
    def shapes(weight, seen):
        (n_out, n_in), (rank, *_) = weight, seen.get("a") or (0,)
        return dict(a=(max(1, rank), n_in), b=(n_out, max(1, rank)))  # an empty tensor fits nothing

    @staticmethod
    def n_trained(n_out, n_in, rank):
        return rank * (n_in + n_out)

    @staticmethod
    def saved_bytes(n_out, n_in, rank):
        """Bytes that the backward pass keeps per token: the float32 input, its dropout mask, and x A^T."""
        return 5 * n_in + 4 * rank

    def drop(self, x):
        """x with random entries set to 0 and the others scaled up; x itself if dropout is 0."""
        if not self.dropout:
            return x
        keep = torch.rand(x.shape, device=x.device, generator=self.generator) >= self.dropout
        return x * keep / (1 - self.dropout)

    def change(self, x):
        """alpha/rank · x A^T B^T, float32."""
        return self.scale * F.linear(F.linear(x, self.a), self.b)

    def __call__(self, x, weight):
        return F.linear(x, weight) + self.change(self.drop(x.to(self.a.dtype))).to(x.dtype)


class DoRA(LoRA):
    """LoRA, and a trained magnitude m of every row (arXiv 2402.09353): m · V / |V|, V = W + alpha/rank · B A.

    m (out,) starts at the row norms of W. The backward pass takes |V| as constant (their section 4.3). Dropout acts
    only on the input of the change of W, as in peft: x W^T + drop(x) (m/|V| · V - W)^T. A row of norm 0 gives 0.
    rank·(in + out) + out trained numbers. Extra cost per call: 2·rank·in·out FLOPs for |V|.
    """

    runs_twice = True
    names = *LoRA.names, "magnitude"

    def __init__(self, weight, *args, **options):
        super().__init__(weight, *args, **options)
        self.magnitude = weight.detach().float().norm(dim=1).requires_grad_()

    @staticmethod
    def shapes(weight, seen):
        return LoRA.shapes(weight, seen) | dict(magnitude=(weight[0],))

    @staticmethod
    def n_trained(n_out, n_in, rank):
        return LoRA.n_trained(n_out, n_in, rank) + n_out

    @staticmethod
    def saved_bytes(n_out, n_in, rank):
        return LoRA.saved_bytes(n_out, n_in, rank) + 8 * n_out

    def __call__(self, x, weight):
        with torch.no_grad():
            norm = torch.addmm(weight.float(), self.b, self.a, alpha=self.scale).norm(dim=1)
        stretch = torch.where(norm > 0, self.magnitude / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0)  # no 0/0
        y, dropped = F.linear(x, weight), self.drop(x.to(self.a.dtype))
        plain = F.linear(dropped.to(x.dtype), weight) if self.dropout else y
        return y + ((stretch - 1) * plain + stretch * self.change(dropped)).to(x.dtype)


def attach(kind, model, rank, alpha, dropout=0.0, generator=None, targets=TARGETS):
    """A new LoRA or DoRA (kind) for every linear of the model whose last name is in targets: {name: part}."""
    return {name: kind(layer.weight, rank, alpha, dropout, generator)
            for name, layer in model.linears.items() if name.split(".")[-1] in targets}


def leaves(adapter):
    """All trained tensors of an adapter."""
    return [leaf for part in adapter.values() for leaf in part.leaves]


def trained(adapter):
    """The adapter, its dropout off, for predictions."""
    for part in adapter.values():
        part.dropout = 0.0
    return adapter
