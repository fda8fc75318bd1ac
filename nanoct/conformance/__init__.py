"""Conformance vectors: small files that say what every method computes, for implementations in any framework.

    nanoct conformance --out vectors/     # seconds

The numbers come from this file alone: a float64 Llama of its own, one pair, one layer and one head at a time, with
nothing packed and nothing padded. LoRA and DoRA are weights that are written out, AdamW is written out, and what is
drawn at random (masks, orders, where LoRA begins) is stored. So the package's own methods can be held against it
(tests/commands/test_conformance.py), and so can others; conformance.md, which is copied beside the files, says how.

Dimensions: k demos, P entries of context, R tokens of a pair's row, V vocab, C n_embd, L layers, H heads, K KV heads,
D head_dim, S steps, n numbers of answer tokens.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import save
from torch.nn.functional import log_softmax, silu

from nanoct import cli
from nanoct.io.files import check_out, replace_file
from nanoct.io.weights import save_model
from nanoct.model import Llama, LlamaConfig

PAGE = Path(__file__).with_name("conformance.md")
CONFIG = LlamaConfig(vocab_size=53, n_layer=3, n_head=6, n_kv_head=2, n_embd=24, head_dim=10, n_ffn=29, n_position=89,
                     rope_theta=1000.0, norm_eps=1e-5, tied=False)  # groups of 3 heads; D is not C/H
LENGTHS = (3, 2), (5, 1), (2, 3), (7, 1), (1, 4)  # of the demos' x and y
N_INSTRUCTION, N_PREFIX, RANK, ALPHA, BATCH, N_STEP, DROPOUT = 2, 7, 3, 5.0, 2, 4, 0.3
LR = dict(ct_kv=0.05, ct_prompt=0.02, prefix_tuning=0.05, prompt_tuning=0.02, lora=0.01, dora=0.01, ttt=0.01)
ADAPTED = "q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"


# --- a Llama, one row at a time ---


def forward(w, x, past, may_see, start=None, count=None, change=None):
    """One row x (R, C) behind past, [(K, V)] per layer of (K, P, D) or None: hidden (R, C) and the new [(K, V)].

    w: {Hugging Face name: tensor}. may_see(t, s): whether new token t sees entry s, which counts the past first.
    start: position of the first new token; default, P. count (P+R,): how many entries each one stands for in the
    softmax; default, 1. change(name, out): what takes the place of the output of o_proj or down_proj.
    """
    c, R, P = CONFIG, len(x), past[0][0].shape[1] if past else 0
    mask = torch.tensor([[may_see(t, s) for s in range(P + R)] for t in range(R)])
    start, change = P if start is None else start, change or (lambda name, out: out)
    new, turn = [], angles(range(start, start + R))
    for l in range(c.n_layer):
        of = lambda name: w[f"model.layers.{l}.{name}.weight"]
        h = norm(x, of("input_layernorm"))
        q, k, v = (h @ of(f"self_attn.{name}_proj").T for name in "qkv")
        heads = lambda y: y.split(c.head_dim, dim=1)  # of (R, D) each
        q, k = ([rope(y, turn) for y in heads(part)] for part in (q, k))
        new.append((torch.stack(k), torch.stack(heads(v))))  # (K, R, D)
        keys, values = (torch.cat([old, now], dim=1) for old, now in zip(past[l], new[l])) if past else new[l]
        out = []
        for head in range(c.n_head):
            group = head // (c.n_head // c.n_kv_head)
            scores = (q[head] @ keys[group].T / math.sqrt(c.head_dim)).masked_fill(~mask, -math.inf)
            if count is not None:
                scores = scores + count.log()
            out.append(scores.softmax(dim=1) @ values[group])
        x = x + change(f"layers.{l}.self_attn.o_proj", torch.cat(out, dim=1) @ of("self_attn.o_proj").T)
        h = norm(x, of("post_attention_layernorm"))
        out = (silu(h @ of("mlp.gate_proj").T) * (h @ of("mlp.up_proj").T)) @ of("mlp.down_proj").T
        x = x + change(f"layers.{l}.mlp.down_proj", out)
    return norm(x, w["model.norm.weight"]), new


def norm(x, weight):
    return x / (x.pow(2).mean(dim=1, keepdim=True) + CONFIG.norm_eps).sqrt() * weight


def angles(positions):
    """Radians (R, D/2): pair d of a head is turned by position / theta^(2d/D)."""
    half = CONFIG.head_dim // 2
    return torch.tensor([[p / CONFIG.rope_theta ** (d / half) for d in range(half)] for p in positions],
                        dtype=torch.float64)


def rope(y, turn):
    """Component d of y (R, D) is turned together with component d + D/2."""
    a, b = y.chunk(2, dim=1)
    return torch.cat([a * turn.cos() - b * turn.sin(), b * turn.cos() + a * turn.sin()], dim=1)


def answer(w, x, y, head=None, past=None, seen=None, **how):
    """Logits (n, V) at the tokens that predict y, of one row: x and y behind embeddings `head` behind the past.

    seen: which of the first entries, the past's and then the head's, are not hidden; default, all. A hidden one is
    hidden from the whole row, but for itself. Positions are 0, 1, 2, … over all entries, hidden or not. how: forward's.
    """
    tokens = w["model.embed_tokens.weight"][[*x, *y[:-1]]]
    row = tokens if head is None else torch.cat([head, tokens])
    P, hidden = past[0][0].shape[1] if past else 0, set() if seen is None else set((~seen).nonzero().flatten().tolist())
    out, _ = forward(w, row, past, lambda t, s: s <= P + t and (s == P + t or s not in hidden), **how)
    return out[-len(y):] @ w["lm_head.weight"].T


def losses(w, x, y, **context):
    """Nats (n,) of every token of y."""
    return -log_softmax(answer(w, x, y, **context), dim=1)[range(len(y)), list(y)]


def read(w, ids, head=None):
    """The cache [(K, V)] of tokens, or of embeddings in their place."""
    return forward(w, w["model.embed_tokens.weight"][ids] if head is None else head, None, lambda t, s: s <= t)[1]


# --- optimisation ---


def optimise(loss, leaves, lr):
    """S steps of AdamW, its gradient clipped at norm 1 over all leaves together, lr · (1 + cos(π s / S)) / 2.

    loss(step) -> scalar; leaves {name: tensor}, of which loss uses what `leaves` holds at the time. Returns what is
    stored: {name}: (S+1, …) before every step and after the last; {name}.grad: (S, …) before clipping.
    """
    record = {name: [leaf.detach().clone()] for name, leaf in leaves.items()} | {f"{name}.grad": [] for name in leaves}
    record |= dict(loss=[], norm=[], lr=[])
    m, v = ({name: torch.zeros_like(leaf) for name, leaf in leaves.items()} for _ in range(2))
    for step in range(N_STEP):
        for name in leaves:
            leaves[name] = leaves[name].detach().requires_grad_()
        now = loss(step)
        gradients = torch.autograd.grad(now, list(leaves.values()))
        total = math.sqrt(sum(g.pow(2).sum().item() for g in gradients))
        rate = lr * (1 + math.cos(math.pi * step / N_STEP)) / 2
        for name, g in zip(list(leaves), gradients):
            record[f"{name}.grad"].append(g)
            g = g / max(total, 1)
            m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.999 * v[name] + 0.001 * g**2
            mean, square = m[name] / (1 - 0.9 ** (step + 1)), v[name] / (1 - 0.999 ** (step + 1))
            leaves[name] = leaves[name].detach() - rate * mean / (square.sqrt() + 1e-8)
            record[name].append(leaves[name])
        for name, value in dict(loss=now.item(), norm=total, lr=rate).items():
            record[name].append(torch.tensor(value, dtype=torch.float64))
    return {name: torch.stack(values) for name, values in record.items()}


def merged(w, leaves, kind):
    """The weights with LoRA or DoRA written into them: W + alpha/rank · B A, and m · V / |V| by rows for that V."""
    w = dict(w)
    for name in [name.removesuffix(".a") for name in leaves if name.endswith(".a")]:
        key = f"model.{name}.weight"
        w[key] = w[key] + ALPHA / RANK * leaves[f"{name}.b"] @ leaves[f"{name}.a"]
        if kind == "dora":  # the norm is a constant of the backward pass
            w[key] = leaves[f"{name}.magnitude"][:, None] * w[key] / w[key].detach().norm(dim=1, keepdim=True)
    return w


# --- the files ---


def vectors(seed=0, more=None):
    """(model, {name of a file: {name: tensor}}), all of them: see conformance.md. more: other methods than METHODS."""
    g = torch.Generator().manual_seed(seed)
    model = Llama(CONFIG).requires_grad_(False)
    for p in model.parameters():  # rounded, so that a model in bfloat16 is the same model
        value = torch.randn(p.shape, generator=g)
        p.copy_((1 + 0.3 * value if p.dim() == 1 else 0.35 * value).bfloat16())
    w = {name: p.double() for name, p in model.state_dict().items()}
    task = Drawn(g)
    files = dict(task=task.tensors(), packing=packing(w, task), leave_one_out=hide(w, task, [task.others()]),
                 dropout=hide(w, task, [task.drop(g) for _ in range(3)]))
    files |= {name: tune(w, task, g) for name, tune in (METHODS | (more or {})).items()}
    return model, files


class Drawn:
    """Demos and queries of random ids: (x, y) each, the instruction, and which demo owns an entry of the context."""

    def __init__(self, g):
        ids = lambda n: torch.randint(CONFIG.vocab_size, (n,), generator=g).tolist()
        self.instruction = ids(N_INSTRUCTION)
        self.demos = [(ids(n), ids(m)) for n, m in LENGTHS]
        self.queries = [(ids(n), [ids(m) for m in (2, 1, 3)]) for n in (4, 2, 6)]
        self.context, self.owner = list(self.instruction), [-1] * N_INSTRUCTION
        for i, (x, y) in enumerate(self.demos):
            self.context += x + y
            self.owner += [i] * len(x + y)

    def others(self):
        """Leave-one-out: pair i sees all but what demo i owns, (k, P) bool."""
        return torch.tensor([[owner != i for owner in self.owner] for i in range(len(self.demos))])

    def drop(self, g):
        """Leave-one-out, and token dropout on top."""
        return self.others() & (torch.rand(len(self.demos), len(self.owner), generator=g) >= DROPOUT)

    def tensors(self):
        pairs = {f"demo.{i}": dict(x=x, y=y) for i, (x, y) in enumerate(self.demos)}
        pairs |= {f"query.{i}": dict(x=x) | {f"option.{j}": o for j, o in enumerate(options)}
                  for i, (x, options) in enumerate(self.queries)}
        found = {f"{name}.{part}": ids for name, parts in pairs.items() for part, ids in parts.items()}
        found |= dict(instruction=self.instruction, context=self.context, owner=self.owner)
        return {name: torch.tensor(ids) for name, ids in found.items()}


def packing(w, task):
    """The row of all pairs; its logits and losses come from one row a pair, as everything does."""
    P, row, where, target = len(task.context), [], [], []
    for i, (x, y) in enumerate(task.demos):
        for j, token in enumerate((x + y)[:-1]):
            if j >= len(x) - 1:
                where.append(len(row))
                target.append((x + y)[j + 1])
            row.append((token, P + j, i))
    tokens, positions, pair = (torch.tensor(part) for part in zip(*row))
    past = read(w, task.context)
    logits = torch.cat([answer(w, x, y, past=past) for x, y in task.demos])
    keys, values = stacked(past)
    return dict(tokens=tokens, positions=positions, pair=pair, where=torch.tensor(where), target=torch.tensor(target),
                keys=keys, values=values, logits=logits, mask=row_mask(task, torch.ones(len(task.demos), P).bool()),
                loss=-log_softmax(logits, dim=1)[range(len(target)), target].mean())


def row_mask(task, seen):
    """The mask (T, P+T) of the row of all pairs, entry by entry."""
    P, at = len(task.context), [(i, j) for i, (x, y) in enumerate(task.demos) for j in range(len(x + y) - 1)]
    return torch.tensor([[bool(seen[i, s]) if s < P else at[s - P][0] == i and at[s - P][1] <= j
                          for s in range(P + len(at))] for i, j in at])


def hide(w, task, masks):
    """Losses (k, each the sum over its answer) and gradients (k, L, 1, K, P, D) of every pair under given masks."""
    found = dict(seen=[], mask=[], loss=[], pair_loss=[])
    found |= {"keys.grad": [], "values.grad": []}
    keys, values = (part.requires_grad_() for part in stacked(read(w, task.context)))
    for seen in masks:
        pairs = [losses(w, x, y, past=layers(keys, values), seen=seen[i]) for i, (x, y) in enumerate(task.demos)]
        gradients = [torch.autograd.grad(pair.sum(), [keys, values], retain_graph=True) for pair in pairs]
        for name, value in dict(seen=seen, mask=row_mask(task, seen), loss=torch.cat(pairs).mean().detach(),
                                pair_loss=torch.stack([pair.sum() for pair in pairs]).detach()).items():
            found[name].append(value)
        for name, part in zip(("keys.grad", "values.grad"), zip(*gradients)):
            found[name].append(torch.stack(part))
    return {name: torch.stack(part) for name, part in found.items()}


def stacked(past):
    """Keys and values, two tensors (L, 1, K, P, D), of [(K, V)] per layer."""
    return [torch.stack(part)[:, None] for part in zip(*past)]


def layers(keys, values):
    """[(K, V)] of (K, P, D) from two tensors (L, 1, K, P, D)."""
    return [(k[0], v[0]) for k, v in zip(keys, values)]


def scored(w, task, before=(), **context):
    """Mean nats per token of every query's options, (queries, options), and the option of the least."""
    nats = torch.stack([torch.stack([losses(w, [*before, *x], y, **context).mean() for y in options])
                        for x, options in task.queries]).detach()
    return dict(scores=nats, chosen=nats.argmin(dim=1))


def ct_kv(w, task, g):
    leaves = dict(zip(("keys", "values"), stacked(read(w, task.context))))
    seen = torch.stack([task.drop(g) for _ in range(N_STEP)])  # (S, k, P)
    past = lambda: layers(leaves["keys"], leaves["values"])
    loss = lambda step: torch.cat([losses(w, x, y, past=past(), seen=seen[step, i])
                                   for i, (x, y) in enumerate(task.demos)]).mean()
    return dict(seen=seen) | optimise(loss, leaves, LR["ct_kv"]) | scored(w, task, past=past())


def ct_prompt(w, task, g):
    leaves = dict(embeds=w["model.embed_tokens.weight"][task.context])
    seen = torch.stack([task.drop(g) for _ in range(N_STEP)])
    loss = lambda step: torch.cat([losses(w, x, y, head=leaves["embeds"], seen=seen[step, i])
                                   for i, (x, y) in enumerate(task.demos)]).mean()
    tuned = optimise(loss, leaves, LR["ct_prompt"])
    return dict(seen=seen) | tuned | scored(w, task, past=read(w, None, leaves["embeds"]))


def prefix_tuning(w, task, g):
    leaves = dict(zip(("keys", "values"), stacked(read(w, range(N_PREFIX)))))
    past = lambda: layers(leaves["keys"], leaves["values"])
    loss = lambda step: torch.cat([losses(w, task.instruction + x, y, past=past()) for x, y in task.demos]).mean()
    return optimise(loss, leaves, LR["prefix_tuning"]) | scored(w, task, task.instruction, past=past())


def prompt_tuning(w, task, g):
    leaves = dict(embeds=w["model.embed_tokens.weight"][:N_PREFIX])
    loss = lambda step: torch.cat([losses(w, task.instruction + x, y, head=leaves["embeds"])
                                   for x, y in task.demos]).mean()
    return optimise(loss, leaves, LR["prompt_tuning"]) | scored(w, task, task.instruction, head=leaves["embeds"])


def low_rank(w, g, kind):
    """The leaves of LoRA or DoRA where they begin: A is drawn, B is 0, m the norms of W's rows."""
    leaves = {}
    for name, weight in w.items():
        if name.split(".")[-2] in ADAPTED:
            short, (n_out, n_in) = name.removeprefix("model.").removesuffix(".weight"), weight.shape
            bound = n_in**-0.5
            leaves[f"{short}.a"] = torch.empty(RANK, n_in).uniform_(-bound, bound, generator=g).double()
            leaves[f"{short}.b"] = torch.zeros(n_out, RANK).double()
            if kind == "dora":
                leaves[f"{short}.magnitude"] = weight.norm(dim=1)
    return leaves


def lora(w, task, g, kind="lora"):
    leaves = low_rank(w, g, kind)

    def loss(step):
        now = merged(w, leaves, kind)
        return torch.cat([losses(now, task.instruction + x, y) for x, y in task.demos]).mean()

    return optimise(loss, leaves, LR[kind]) | scored(merged(w, leaves, kind), task, task.instruction)


def dora(w, task, g):
    return lora(w, task, g, "dora")


def ttt(w, task, g):
    leaves, k = low_rank(w, g, "lora"), len(task.demos)
    orders = torch.stack([torch.stack([torch.randperm(k, generator=g) for _ in range(BATCH)]) for _ in range(N_STEP)])

    def loss(step):
        now, found = merged(w, leaves, "lora"), []
        for order in orders[step].tolist():
            before = list(task.instruction)
            for x, y in (task.demos[i] for i in order):
                found.append(losses(now, before + x, y))
                before += x + y
        return torch.cat(found).mean()

    tuned = optimise(loss, leaves, LR["ttt"])
    now = merged(w, leaves, "lora")
    return dict(orders=orders) | tuned | scored(now, task, past=read(now, task.context))


METHODS = dict(ct_kv=ct_kv, ct_prompt=ct_prompt, ttt=ttt, prompt_tuning=prompt_tuning, prefix_tuning=prefix_tuning,
               lora=lora, dora=dora)


def write(folder, seed=0, more=None):
    """The folder with model/, one safetensors file a subject, and README.md. ValueError if something is there.

    more: {name: function} of other methods than METHODS, such as those of neighbours.py.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file: give a folder that is new or empty.")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"--out {folder} is not empty: give a folder that is new or empty.")
    check_out(folder / "README.md")
    model, files = vectors(seed, more)
    save_model(model, folder / "model")
    for name, tensors in files.items():
        tensors = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
        replace_file(folder / f"{name}.safetensors", save(tensors, {"seed": str(seed)}))
    return replace_file(folder / "README.md", PAGE.read_bytes())


def main(more=None):
    p = cli.Parser(prog="nanoct conformance", description=__doc__)
    p.add_argument("--out", required=True, help="a folder that is new or empty")
    p.add_argument("--seed", type=int, default=0, help="of all that is random")
    args = p.parse_args()
    page = write(args.out, args.seed, more)
    n_file = len(list(page.parent.glob("*.safetensors")))
    size = sum(file.stat().st_size for file in page.parent.rglob("*") if file.is_file())
    print(f"{page.parent}: {n_file} files of vectors and a model, {size / 1e6:.1f} MB; read {page} first")
