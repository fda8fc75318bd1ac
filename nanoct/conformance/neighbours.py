"""The slow definition of the nine neighbours of CT-KV, in the frame of conformance/__init__.py.

One pair, one context and one token at a time. (IA)³ and qTTT are weights that are written out. What is drawn at random
(LARA's changes) is stored.

Dimensions: k demos, P entries of context, S steps, G groups, L layers, K KV heads, D head_dim, C n_embd.
"""

import math

import torch
from torch.nn.functional import log_softmax

from nanoct.conformance import (
    CONFIG,
    N_INSTRUCTION,
    N_STEP,
    answer,
    forward,
    layers,
    losses,
    optimise,
    read,
    scored,
    stacked,
)

LR = dict(anchors=0.1, ia3=0.05, qttt=0.01, cpt=0.05, deep_thinking=0.1, i2cl=0.05)
MOMENTUM, DECAY, EPSILON, FORMAT_EPSILON, SIGMA, VECTOR = 0.6, 0.8, 2.0, 1.0, 0.5, 0.1


def others(w, task, row=None, past=None):
    """CT-KV's loss without dropout: every pair behind the context without its own demo. row: the weights of the row."""
    seen = task.others()
    return torch.cat([losses(row or w, x, y, past=past or read(w, task.context), seen=seen[i])
                      for i, (x, y) in enumerate(task.demos)]).mean()


def owned(task):
    """[(demo, token of the context)], in order: its answers' entries."""
    found, at = [], N_INSTRUCTION
    for i, (x, y) in enumerate(task.demos):
        found += [(i, at + len(x) + j) for j in range(len(y))]
        at += len(x + y)
    return found


def windows(w, task, g):
    """Windows of one demo, plain, and structured: with what they are, scores of both."""
    head, plain, structured = read(w, task.instruction), [], []
    longest = max(len(x + y) for x, y in task.demos)
    embeds = w["model.embed_tokens.weight"]
    causal = lambda t, s: s <= N_INSTRUCTION + t
    for x, y in task.demos:
        start = N_INSTRUCTION + longest - len(x + y)
        plain.append(forward(w, embeds[x + y], head, causal)[1])
        structured.append(forward(w, embeds[x + y], head, causal, start=start)[1])
    found, P, M = {}, len(task.context), len(task.demos)
    for name, parts in dict(plain=plain, structured=structured).items():
        past = [tuple(torch.cat(part, dim=1) for part in zip(*layer)) for layer in zip(head, *parts)]
        found[f"{name}.keys"], found[f"{name}.values"] = stacked(past)
        once = [1] * N_INSTRUCTION + [1 / M if name == "structured" else 1] * (P - N_INSTRUCTION)
        nats = torch.stack([torch.stack([losses(
            w, x, y, past=past, start=N_INSTRUCTION + longest,
            count=torch.tensor(once + [1] * (len(x) + len(y) - 1), dtype=torch.float64)).mean() for y in options])
            for x, options in task.queries])
        found |= {f"{name}.scores": nats, f"{name}.chosen": nats.argmin(dim=1)}
    return found


def anchors(w, task, g):
    keys, values = stacked(read(w, task.context))  # (L, 1, K, P, D)
    leaves = dict(beta=torch.zeros(CONFIG.n_layer, 1, CONFIG.n_kv_head, len(task.demos), dtype=torch.float64))

    def past():
        factor = torch.ones(*values.shape[:-1], 1, dtype=torch.float64)
        for i, at in owned(task):
            factor = factor.index_copy(3, torch.tensor([at]), leaves["beta"][..., i].exp()[..., None, None])
        return layers(keys, values * factor)

    tuned = optimise(lambda step: others(w, task, past=past()), leaves, LR["anchors"])
    return tuned | scored(w, task, past=past())


def ia3(w, task, g):
    leaves = {}
    for l in range(CONFIG.n_layer):
        n = CONFIG.n_kv_head * CONFIG.head_dim
        for name, size in ("self_attn.k_proj.output", n), ("self_attn.v_proj.output", n), ("mlp.down_proj.input",
                                                                                           CONFIG.n_ffn):
            leaves[f"layers.{l}.{name}"] = torch.ones(size, dtype=torch.float64)

    def row():
        changed = dict(w)
        for name, factor in leaves.items():
            layer, _, side = name.rpartition(".")
            changed[f"model.{layer}.weight"] = changed[f"model.{layer}.weight"] * (
                factor[:, None] if side == "output" else factor)
        return changed

    tuned = optimise(lambda step: others(w, task, row()), leaves, LR["ia3"])
    return tuned | scored(row(), task, past=read(w, task.context))


def qttt(w, task, g):
    names = [f"layers.{l}.self_attn.q_proj" for l in range(CONFIG.n_layer)]
    leaves = {f"{name}.weight": w[f"model.{name}.weight"] for name in names}
    row = lambda: w | {f"model.{name}": weight for name, weight in leaves.items()}
    tuned = optimise(lambda step: others(w, task, row()), leaves, LR["qttt"])
    return tuned | scored(row(), task, past=read(w, task.context))


def cpt(w, task, g):
    answers, k = owned(task), len(task.demos)
    free = [at for at in range(len(task.context)) if at not in [place for _, place in answers]]
    epsilon = torch.tensor([FORMAT_EPSILON if at < N_INSTRUCTION else EPSILON for at in free], dtype=torch.float64)
    radius, embeds = epsilon * math.sqrt(CONFIG.n_embd / 2048), w["model.embed_tokens.weight"]
    leaves = dict(offset=torch.zeros(len(free), CONFIG.n_embd, dtype=torch.float64))

    def head():
        """The prompt's embeddings; an offset outside its ball is first put back on it, in the leaf itself."""
        with torch.no_grad():
            for offset, r in zip(leaves["offset"], radius):
                offset *= r / max(offset.norm(), r)
        return embeds[task.context].index_add(0, torch.tensor(free), leaves["offset"])

    def loss(step):
        prompt, total, n = head(), 0.0, 0
        for x, y in task.demos:  # a sequence: the prompt and one pair
            row = torch.cat([prompt, embeds[x + y]])
            logits = log_softmax(forward(w, row, None, lambda t, s: s <= t)[0] @ w["lm_head.weight"].T, dim=1)
            for i, at in answers:
                total = total - DECAY ** (k - i) * logits[at - 1, task.context[at]]
            for j, token in enumerate(y):
                total = total - logits[len(prompt) + len(x) + j - 1, token]
            n += len(answers) + len(y)
        return total / n

    tuned = optimise(loss, leaves, LR["cpt"])
    leaves["offset"] = leaves["offset"].clone()  # what is stored is the last step's, before it is put back
    return tuned | scored(w, task, past=read(w, None, head()))


def deep_thinking(w, task, g):
    P, cache, moves = len(task.context), list(stacked(read(w, task.context))), [0, 0]
    for _ in range(N_STEP):
        _, again = forward(w, w["model.embed_tokens.weight"][task.context], layers(*cache), lambda t, s: s <= P + t,
                           start=0)
        for i, part in enumerate(stacked(again)):
            moves[i] = part - cache[i] + MOMENTUM * moves[i]
            cache[i] = cache[i] + LR["deep_thinking"] * moves[i]
    return dict(keys=cache[0], values=cache[1]) | scored(w, task, past=layers(*cache))


def prune(w, task, g):
    """One pass from left to right: `tried` are the losses, of all tokens and then of the context without each."""
    def loss(kept):
        past = read(w, [task.context[at] for at in kept])
        found = []
        for i, (x, y) in enumerate(task.demos):
            seen = torch.tensor([task.owner[at] != i for at in kept])
            found.append(losses(w, x, y, past=past, seen=seen))
        return torch.cat(found).mean().item()

    kept = list(range(len(task.context)))
    tried = [lowest := loss(kept)]
    for at in range(len(task.context)):
        without = [other for other in kept if other != at]
        tried.append(now := loss(without))
        if now <= lowest:
            kept, lowest = without, now
    bits = torch.tensor([at in kept for at in range(len(task.context))])
    past = read(w, [task.context[at] for at in kept])
    return dict(tried=torch.tensor(tried, dtype=torch.float64), kept=bits) | scored(w, task, past=past)


def lara(w, task, g):
    """Groups of one demo, the first k // 2 of them one half; the changes that are tried are given."""
    k = len(task.demos)
    pasts = [read(w, task.instruction + x + y) for x, y in task.demos]
    halves = list(range(k // 2)), list(range(k // 2, k))
    changes = torch.randn(N_STEP, k, generator=g)

    def loss(weights):
        found = []
        for groups, answered in (halves, halves[::-1]):
            for x, y in (task.demos[i] for i in answered):
                mixed = sum(weights[j] * k / len(groups) * answer(w, x, y, past=pasts[j]) for j in groups)
                found.append(-log_softmax(mixed, dim=1)[range(len(y)), y])
        return torch.cat(found).mean().item()

    best = torch.full((k,), 1 / k, dtype=torch.float64)
    lowest = [loss(best)]
    for step in range(N_STEP):
        change = changes[step].double() * SIGMA / k * 0.1 ** (step / N_STEP)
        for groups in halves:
            change[groups] -= change[groups].mean()
        now = loss(best + change)
        best = best + change if now < lowest[-1] else best
        lowest.append(min(now, lowest[-1]))

    def mean_loss(x, y):
        mixed = sum(weight * answer(w, x, y, past=past) for weight, past in zip(best, pasts))
        return -log_softmax(mixed, dim=1)[range(len(y)), y].mean()

    nats = torch.stack([torch.stack([mean_loss(x, y) for y in options]) for x, options in task.queries])
    return dict(changes=changes, loss=torch.tensor(lowest, dtype=torch.float64), weights=best, scores=nats,
                chosen=nats.argmin(dim=1))


def i2cl(w, task, g):
    total, leaves = {}, {}

    def tap(name, out):
        total[name] = total.get(name, 0) + out[-1] / len(task.demos)
        return out

    for x, y in task.demos:
        forward(w, w["model.embed_tokens.weight"][task.instruction + x + y], None, lambda t, s: s <= t, change=tap)
    for name in total:
        leaves[f"{name}.mix"] = torch.tensor([VECTOR, 1.0], dtype=torch.float64)

    def inject(name, out):
        mix = leaves[f"{name}.mix"]
        return mix[0] * total[name] + mix[1] * out

    loss = lambda step: torch.cat([losses(w, task.instruction + x, y, change=inject) for x, y in task.demos]).mean()
    tuned = optimise(loss, leaves, LR["i2cl"])
    vectors = {f"{name}.vector": vector for name, vector in total.items()}
    return vectors | tuned | scored(w, task, task.instruction, change=inject)


MAP = dict(windows=windows, anchors=anchors, ia3=ia3, qttt=qttt, cpt=cpt, deep_thinking=deep_thinking, prune=prune,
           lara=lara, i2cl=i2cl)
