"""What a tuned cache bears: most of its entries cut away, or another task's cache beside it.

    python -m nanoct.reproduce --cuts       # the study, cuts.py

Theta is the KV cache that CT-KV trains (methods/ct_kv.py). With n_step = 0 it is ICL's, which is cut the same way.

**Cut.** Each layer and KV head keeps the entries that get the most attention from the packed row of all pairs, each of
which is hidden from what its own demo owns, as in training. Keys stay as they are, so positions do too. Then the values
that are kept are fitted again, so that what the row reads from the cache comes back as closely as it can:

    V' = V + pinv(A') (Y - Y')        A' (G·T, n) attention to what is kept, Y and Y' (G·T, D) outputs before and after

This is the solution of least squares that changes V least; singular values of A' below CUTOFF of the largest count as
zero. With all entries Y' = Y, and V' = V. Cost: one forward over the row, and a pseudo-inverse for each KV head.

**Beside.** One context stands behind the other, as if it had been read and tuned there: its keys, which are stored
after RoPE, are turned on by the positions of the first. So distances within a context stay, no position is taken twice,
and the question is as far from the last context as it was; the first is farther away than in training. The line says
how many answers are those that the other context alone gives, and wrong.

The module looks like a method. On one Task a cache is tuned once, so the seconds of a line are those of the rest.
Sources: attention as the measure, SnapKV (arXiv 2404.14469); values by least squares, Attention Matching (2602.16284),
which fits a log-weight of each entry too.

Dimensions: k demos, P entries, n of them kept, T tokens of the row, K KV heads, G query heads for each, D head_dim.
"""

from dataclasses import dataclass, fields, replace

import torch

from nanoct.adapters import Tap
from nanoct.fewshot import Adapted, Prefix
from nanoct.methods import ct_kv
from nanoct.model import Llama, rotate
from nanoct.packing import pack_demos, visible
from nanoct.runs.results import VARIANTS
from nanoct.score import ROOM, asked, generate, score_pairs

NAME = "ct_kv_cut"  # the method's name in lines of results
BESIDE = ("", "before", "behind", "alone")
CUTOFF = 0.01  # of the largest singular value; from .1 to .001 the scores of validation tasks hardly differ


@dataclass
class Config(ct_kv.Config):
    keep: float = 1.0  # share of the entries that each layer and KV head keeps
    choose: str = "attention"  # which: those that get the most of it, or "random" ones
    refit: bool = True  # fit the values again
    beside: str = ""  # where the context of task.others, another task's demos, stands: "before", "behind", "alone"


VARIANTS[NAME], footprint, GRAPH = Config, ct_kv.footprint, ct_kv.GRAPH  # nearly the same work and memory


def adapt(model, task, config=Config(), seed=0, progress=None):
    """Tune as ct_kv.adapt does, then cut the cache or put another beside it; returns (model, theta).

    Raises ValueError on impossible settings, a model that is no Llama, and what ct_kv.adapt raises.
    """
    if not 0 < config.keep <= 1 or config.choose not in ("attention", "random"):
        raise ValueError(f"keep = {config.keep} must be above 0 and at most 1, and choose = {config.choose!r} one of "
                         "attention, random.")
    if config.beside not in BESIDE or config.beside and not getattr(task, "others", ()):
        raise ValueError(f"beside = {config.beside!r} must be empty or, with task.others, before, behind or alone.")
    if not isinstance(model, Llama):
        raise ValueError("Only a Llama's cache can be cut or moved: GPT-2 adds positions to its embeddings.")
    own = tuned(model, task, config, seed, progress)
    theta = own.prefix
    if config.keep < 1:
        generator = torch.Generator().manual_seed(seed + 1)  # token dropout draws from `seed`
        theta = cut(model, task, theta, config, None if config.choose == "attention" else generator)
    if config.beside:
        other = tuned(model, task, config, seed, progress, of_other=True).prefix
        before = dict(before=(other, theta), behind=(theta, other))
        theta = other if config.beside == "alone" else joined(model, *before[config.beside])
    return Adapted(model, prefix=theta, n_trained=own.n_trained)


def tuned(model, task, config, seed, progress=None, of_other=False):
    """What ct_kv.adapt makes of the task, or of task.others, kept on the Task for the cuts that follow."""
    config = ct_kv.Config(**{f.name: getattr(config, f.name) for f in fields(ct_kv.Config)})
    kept, key = vars(task).setdefault("tuned", {}), (id(model), repr(config), seed, of_other)
    if key not in kept:
        read = replace(task, demos=task.others) if of_other else task
        kept[key] = ct_kv.adapt(model, read, config, seed, progress)
    return kept[key]


@torch.no_grad()
def looks(model, row, theta, mask):
    """What the row sees in each layer: [(scores (K, G, T, P+T), -inf where hidden, values (K, P+T, D))], float64."""
    taps = {name: Tap() for name in model.linears if name.endswith("q_proj")}
    _, own = model(row.tokens, positions=row.positions, mask=mask, prefix=theta, adapter=taps)
    _, turn = model.place(model.embed(row.tokens), row.positions)
    found = []
    for block, past, new in zip(model.blocks, theta.kv, own):
        part = block.self_attn
        q = taps[part.q_proj.name].seen
        q = part.heads(q if part.q_proj.bias is None else q + part.q_proj.bias, part.q_norm)  # (1, H, T, D)
        q = (rotate(q, *turn) if part.has_rope else q)[0].double()
        keys, values = (torch.cat(parts, dim=2)[0].double() for parts in zip(past, new))  # (K, P+T, D)
        q = q.unflatten(0, (len(keys), -1))  # (K, G, T, D)
        scores = q @ keys[:, None].mT / q.shape[-1] ** 0.5
        found.append((scores.masked_fill(~mask, -torch.inf), values))
    return found


@torch.no_grad()
def cut(model, task, theta, config, generator=None):
    """theta with a share config.keep of its entries in each layer and KV head, as above; with a generator, random ones.

    An entry then comes from another demo in every head, so none has an owner.
    """
    k, P = len(task.demos), len(theta.owner)
    row, n, kv = pack_demos(task, model, theta.next_position), max(1, round(config.keep * P)), []
    mask = row.mask(visible(theta.owner, k, config.leave_one_out and k > 1))
    for (scores, values), (keys, _) in zip(looks(model, row, theta, mask), theta.kv):
        weight = scores.softmax(-1)  # (K, G, T, P+T)
        mass = weight[..., :P].mean(dim=(1, 2))  # (K, P)
        if generator is not None:
            mass = torch.rand(mass.shape, generator=generator).to(mass.device)
        kept = mass.topk(n).indices.sort().values  # (K, n)
        beside = torch.arange(P, P + len(row.pair), device=kept.device).expand(len(kept), -1)  # the row itself
        seen = torch.cat([kept, beside], dim=1)  # (K, n+T)
        rest = scores.gather(-1, seen[:, None, None].expand(*scores.shape[:3], -1)).softmax(-1)  # (K, G, T, n+T)
        at = lambda part, entries: part.gather(1, entries[..., None].expand(-1, -1, part.shape[-1]))
        new = at(values, kept)  # (K, n, D)
        if config.refit:
            lacking = weight @ values[:, None] - rest @ at(values, seen)[:, None]  # (K, G, T, D)
            new = new + torch.linalg.pinv(rest[..., :n].flatten(1, 2), rtol=CUTOFF) @ lacking.flatten(1, 2)
        kv.append((at(keys[0], kept)[None], new.to(keys.dtype)[None]))
    return Prefix(kv, torch.full((n,), -1, device=model.device), theta.next_position)


def joined(model, first, second):
    """A context of both, the second turned on by the positions of the first. Its entries have no owner."""
    _, turn = model.place(second.kv[0][0], torch.tensor([[first.next_position]], device=model.device))
    kv = []
    for block, before, (keys, values) in zip(model.blocks, first.kv, second.kv):
        moved = rotate(keys, *turn) if block.self_attn.has_rope else keys
        kv.append(tuple(torch.cat(parts, dim=2) for parts in zip(before, (moved, values))))
    owner = torch.full_like(torch.cat([first.owner, second.owner]), -1)
    return Prefix(kv, owner, first.next_position + second.next_position)


def also(model, task, config, seed, adapted):
    """More fields of a line. as_other: the share of queries answered as the other context alone answers, and wrong."""
    if not config.beside or task.metric != "ids":
        return {}
    other = Adapted(model, prefix=tuned(model, task, config, seed, of_other=True).prefix)
    longest, end = max(len(q.y) for q in task.queries), task.queries[0].y[-1]
    said = generate(other, [asked(task, q) for q in task.queries], longest + ROOM, end)
    wrong = [(asked(task, q), y) for q, y in zip(task.queries, said) if y != list(q.y)]
    return dict(as_other=sum(score_pairs(adapted, wrong)[1].tolist()) / len(said) if wrong else 0.0)
