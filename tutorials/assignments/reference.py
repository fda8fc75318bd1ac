"""The specification, slow: float64, one pair, one head, one key at a time. No packing, nothing from nanoct.

It is here to be right and to be read. Autograd goes through it. An implementation need not look like it.
"""

import math

import torch


def rope(x, position, theta):
    """One vector x (D,) turned to a position: component d makes a pair with d + D/2."""
    D = len(x)
    out = [None] * D
    for d in range(D // 2):
        angle = torch.as_tensor(float(position) * theta ** (-2 * d / D), dtype=x.dtype)
        out[d] = x[d] * angle.cos() - x[d + D // 2] * angle.sin()
        out[d + D // 2] = x[d + D // 2] * angle.cos() + x[d] * angle.sin()
    return torch.stack(out)


def attend_one(q, keys, values, seen):
    """One query q (D,) of one head over the keys [(D,)] that are seen [bool]: the weighted mean of values (D,)."""
    pairs = [(key, value) for key, value, is_seen in zip(keys, values, seen, strict=True) if is_seen]
    scores = [(q * key).sum() / math.sqrt(len(q)) for key, _ in pairs]
    top = max(score.item() for score in scores)
    weights = [(score - top).exp() for score in scores]
    return sum(weight * value for weight, (_, value) in zip(weights, pairs)) / sum(weights)


def norm(x, weight, eps):
    """RMSNorm of one vector (C,)."""
    return weight * x / (x.pow(2).mean() + eps).sqrt()


def cross_entropy(logits, target):
    """-log p(target) of one vector of logits (V,)."""
    return logits.logsumexp(0) - logits[target]


def read(weights, tokens, past, positions):
    """One block over tokens [id] behind a past (keys, values), each (K, P, D), or None: token by token, head by head.

    weights as in assignment 1. Returns hidden (T, C), and the new keys and values, each (K, T, D).
    """
    w, D = weights, weights["head_dim"]
    n_head, n_kv = len(w["q_proj"]) // D, len(w["k_proj"]) // D
    heads = lambda y: list(y.view(-1, D))
    keys = [[] if past is None else list(past[0][j]) for j in range(n_kv)]
    values = [[] if past is None else list(past[1][j]) for j in range(n_kv)]
    hidden = []
    for token, position in zip(tokens, positions, strict=True):
        x = w["embed"][token]
        y = norm(x, w["norm_1"], w["eps"])
        for j, (key, value) in enumerate(zip(heads(w["k_proj"] @ y), heads(w["v_proj"] @ y))):
            keys[j].append(rope(key, position, w["theta"]))
            values[j].append(value)
        parts = []
        for h, q in enumerate(heads(w["q_proj"] @ y)):
            j = h * n_kv // n_head  # neighbours share a KV head
            parts.append(attend_one(rope(q, position, w["theta"]), keys[j], values[j], [True] * len(keys[j])))
        x = x + w["o_proj"] @ torch.cat(parts)
        y = norm(x, w["norm_2"], w["eps"])
        gate = w["gate_proj"] @ y
        hidden.append(x + w["down_proj"] @ (gate * gate.sigmoid() * (w["up_proj"] @ y)))
    new = lambda entries: torch.stack([torch.stack(entry[-len(tokens):]) for entry in entries])
    return torch.stack(hidden), (new(keys), new(values))


def pair_loss(model, prefix, seen, x, y, start):
    """Sum of -log p over the answer tokens y of one pair, read alone behind the entries of a prefix that are seen.

    model: embed (V, D), theta: one layer of one head whose keys, queries and values are the embeddings.
    prefix: (keys, values), each [(D,)]; seen [bool]; start: the position of the first token of x.
    """
    embed, loss, ids = model["embed"], 0.0, [*x, *y]
    keys, values = list(prefix[0]), list(prefix[1])
    for t, token in enumerate(ids[:-1]):  # the last token has nothing to predict
        turned = rope(embed[token], start + t, model["theta"])
        keys.append(turned)
        values.append(embed[token])
        if t + 1 >= len(x):  # the token that comes next is of the answer
            mixed = attend_one(turned, keys, values, [*seen, *[True] * (t + 1)])
            loss = loss + cross_entropy(embed @ (mixed + embed[token]), ids[t + 1])
    return loss


def pairs_loss(model, prefix, seen, pairs, start):
    """The mean over all answer tokens of k pairs, a pair at a time; None is a pair that is left out."""
    there = [(pair, line) for pair, line in zip(pairs, seen, strict=True) if pair is not None]
    total = sum(pair_loss(model, prefix, line, x, y, start) for (x, y), line in there)
    return total / sum(len(y) for (_, y), _ in there)


# CT-KV behind the model of given.py: A3 and A4 ---------------------------------------------------------------------

def read_sentence(model, tokens, positions, keys=None, values=None, seen=()):
    """One sentence behind a prefix, one token and one head at a time: logits [(V,)], keys and values (L, 1, K, T, D).

    keys, values (L, 1, K, P, D) or None; seen: P truth values, one an entry.
    """
    w = {name: weight.detach().double() * model.stretch for name, weight in model.named_parameters()}
    K, D = model.K, model.D
    seen = torch.tensor([bool(s) for s in seen], dtype=torch.bool)
    one = lambda x: norm(x, 1.0, 1e-5)
    past = lambda part, l, h: [] if part is None else list(part[l, 0, h][seen].double())
    lists = {(l, h): (past(keys, l, h), past(values, l, h)) for l in range(model.L) for h in range(K)}
    n_past, logits = int(seen.sum()), []
    for token, position in zip(tokens, positions, strict=True):
        x = w["token"][token] + w["place"][position]
        for l in range(model.L):
            n, heads = one(x), []
            for h in range(K):
                part = slice(h * D, (h + 1) * D)
                own_keys, own_values = lists[l, h]
                own_keys.append(w["k"][l][part] @ n)
                own_values.append(w["v"][l][part] @ n)
                share = (torch.stack(own_keys) @ (w["q"][l][part] @ n) / math.sqrt(D)).softmax(0)
                heads.append(share @ torch.stack(own_values))
            x = x + w["o"][l] @ torch.cat(heads)
            x = x + w["down"][l] @ torch.tanh(w["up"][l] @ one(x))
        logits.append(w["head"] @ one(x))
    new = lambda part: torch.stack([torch.stack([torch.stack(lists[l, h][part][n_past:]) for h in range(K)])[None]
                                    for l in range(model.L)])
    return logits, new(0), new(1)


def start(model, instruction, demos):
    """The context read as one sentence: keys, values (L, 1, K, P, D), owner [P]."""
    tokens, owner = list(instruction), [-1] * len(instruction)
    for i, (x, y) in enumerate(demos):
        tokens += [*x, *y]
        owner += [i] * (len(x) + len(y))
    _, keys, values = read_sentence(model, tokens, range(len(tokens)))
    return keys, values, owner


def losses_of(model, keys, values, x, y, first, seen):
    """-log p of every token of x and y but the first, behind the entries that are seen, from position `first` on."""
    ids = [*x, *y]
    logits, _, _ = read_sentence(model, ids[:-1], range(first, first + len(ids) - 1), keys, values, seen)
    return [cross_entropy(line, target) for line, target in zip(logits, ids[1:], strict=True)]


def may_see(owner, k, dropped):
    """[k][P]: pair i may see entry e unless demo i owns it or it is dropped; a single demo is not left out."""
    return [[(k == 1 or owner[e] != i) and not dropped[i][e] for e in range(len(owner))] for i in range(k)]


def step_loss(model, keys, values, owner, demos, dropped):
    """The mean over the answer tokens of all pairs."""
    seen, P, losses = may_see(owner, len(demos), dropped), len(owner), []
    for i, (x, y) in enumerate(demos):
        losses += losses_of(model, keys, values, x, y, P, seen[i])[len(x) - 1 :]
    return sum(losses) / len(losses)


def cosine(lr, n_step):
    """The rates of n_step steps: from lr along half a cosine towards 0."""
    return [lr * (1 + math.cos(math.pi * t / n_step)) / 2 for t in range(n_step)]


def descend(loss, leaves, rates, clip=1.0, decay=0.0, betas=(0.9, 0.999), eps=1e-8, apart=False):
    """AdamW by hand: loss(leaves, step) -> scalar, float64 leaves, one rate a step. Returns the leaves.

    apart: every leaf is clipped by a norm of its own, which is not the specification.
    """
    first, second = [torch.zeros_like(leaf) for leaf in leaves], [torch.zeros_like(leaf) for leaf in leaves]
    for t, rate in enumerate(rates):
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        gradients = torch.autograd.grad(loss(leaves, t), leaves)
        for j, g in enumerate(gradients):
            length = math.sqrt(sum(float(part.pow(2).sum()) for part in ([g] if apart else gradients)))
            g = g * min(1.0, clip / (length + 1e-6))
            first[j] = betas[0] * first[j] + (1 - betas[0]) * g
            second[j] = betas[1] * second[j] + (1 - betas[1]) * g * g
            m, v = first[j] / (1 - betas[0] ** (t + 1)), second[j] / (1 - betas[1] ** (t + 1))
            leaves[j] = leaves[j].detach() * (1 - rate * decay) - rate * m / (v.sqrt() + eps)
    return [leaf.detach() for leaf in leaves]


def adapt(model, instruction, demos, n_step, lr):
    """CT-KV without token dropout: the tuned keys and values."""
    keys, values, owner = start(model, instruction, demos)
    nothing = [[False] * len(owner)] * len(demos)
    loss = lambda leaves, t: step_loss(model, *leaves, owner, demos, nothing)
    return descend(loss, [keys, values], cosine(lr, n_step))


def answer(model, keys, values, x, options):
    """Mean loss per token of every option behind the whole prefix."""
    P = keys.shape[3]
    every = [losses_of(model, keys, values, x, option, P, [True] * P)[len(x) - 1 :] for option in options]
    return torch.stack([sum(losses) / len(losses) for losses in every])
