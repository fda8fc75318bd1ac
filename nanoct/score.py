"""Prediction and metrics: the same for every method, p_phi(y | theta, x) from an Adapted.

All queries and options of a task are packed into as few rows as memory allows (packing.py): one forward
scores dozens of pairs behind one copy of the prefix.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoct.fewshot import check_fits, grow
from nanoct.packing import answer_logits, pack

METRICS = ("accuracy", "macro_f1", "ids", "text")
BATCH = 16  # prompts that are decoded side by side, each with its copy of the context's keys and values
ROOM = 8  # tokens that an answer is decoded beyond the longest that is wanted: what is cut then is wrong anyway


@dataclass
class Result:
    score: float  # in [0, 1]
    per_query: list[bool]  # right or wrong; their mean is the score, but for macro_f1


def evaluate(adapted, task, row_tokens=1024):
    """Result of an Adapted on the queries of a task, by the task's metric.

    row_tokens bounds the tokens of a packed row, so its mask is at most row_tokens·(P + row_tokens) bytes.
    Raises ValueError on a task without queries, an unknown metric, or queries without what the metric needs.
    """
    if not task.queries:
        raise ValueError(f"task {task.name!r} has no queries to score; give at least one.")
    if task.metric == "text":
        right = [text == wanted for text, wanted in text_answers(adapted, task)]
        return Result(sum(right) / len(right), right)
    if task.metric == "ids":
        right = score_pairs(adapted, [(asked(task, q), q.y) for q in task.queries], row_tokens)[1].tolist()
        return Result(sum(right) / len(right), right)
    if task.metric not in METRICS:
        raise ValueError(f"task {task.name!r} has the metric {task.metric!r}; known are {', '.join(METRICS)}.")
    if any(q.options is None for q in task.queries):
        raise ValueError(f"task {task.name!r} is scored by {task.metric} and has a query without options; add them, "
                         "or score by ids or text.")
    loss, _ = score_pairs(adapted, [(asked(task, q), option) for q in task.queries for option in q.options], row_tokens)
    by_query = loss.split([len(q.options) for q in task.queries])
    predicted = [tuple(q.options[losses.argmin()]) for q, losses in zip(task.queries, by_query)]
    gold = [tuple(q.y) for q in task.queries]
    right = [p == g for p, g in zip(predicted, gold)]
    return Result(macro_f1(predicted, gold) if task.metric == "macro_f1" else sum(right) / len(right), right)


def asked(task, query):
    """The tokens of a query's row before its answer."""
    return [*task.separator, *query.x]


@torch.no_grad()
def score_pairs(adapted, pairs, row_tokens=1024):
    """Teacher forcing of pairs [(x, y)]: mean loss per token of y in nats (n,) float32, and whether every
    token of y, the terminator included, is the most likely one (n,) bool, which is to say that greedy
    decoding yields exactly y."""
    prefix = adapted.prefix
    start = prefix.next_position if prefix is not None else 0
    losses, exact = [], []
    for chunk in _chunks(pairs, row_tokens):
        row = pack(chunk, adapted.model, start)
        logits = answer_logits(adapted.model, row, prefix, adapted.adapter)
        pair, n = row.pair[row.where], len(chunk)
        total = lambda values: torch.zeros(n, device=logits.device).index_add_(0, pair, values)
        loss = F.cross_entropy(logits, row.target, reduction="none")
        losses.append(total(loss) / total(torch.ones_like(loss)))
        exact.append(total((logits.argmax(-1) != row.target).float()) == 0)
    return torch.cat(losses).cpu(), torch.cat(exact).cpu()


def _chunks(pairs, row_tokens):
    """Consecutive pairs in groups of at most row_tokens tokens; a longer pair is a group of its own."""
    chunk, n = [], 0
    for x, y in pairs:
        if chunk and n + len(x) + len(y) > row_tokens:
            yield chunk
            chunk, n = [], 0
        chunk.append((x, y))
        n += len(x) + len(y)
    yield chunk


def macro_f1(predicted, gold):
    """Mean F1 over the classes that occur in gold; a class that is never predicted has precision 1, so F1 0."""
    f1 = []
    for c in set(gold):
        hits = sum(p == g == c for p, g in zip(predicted, gold))
        f1.append(2 * hits / (predicted.count(c) + gold.count(c)))
    return sum(f1) / len(f1)


def text_answers(adapted, task):
    """(decoded text, wanted text) of every query, both normalised, the terminator cut off."""
    if task.decode is None:
        raise ValueError(f"task {task.name!r} is scored by text and has no decode; give the tokenizer's.")
    normalise = task.normalise or (lambda text: text)
    stop = task.queries[0].y[-1]
    if any(q.y[-1] != stop for q in task.queries):
        raise ValueError(f"task {task.name!r} is scored by text, so all answers must end with the same terminator.")
    longest = max(len(q.y) for q in task.queries)
    new = decode(adapted, [asked(task, q) for q in task.queries], longest + ROOM, stop)
    text = lambda ids: normalise(task.decode(list(ids[:-1] if ids[-1] == stop else ids)))
    return [(text(ids), text(q.y)) for ids, q in zip(new, task.queries)]


def decode(adapted, prompts, max_new_tokens, stop=None):
    """New ids of each prompt, by `generate`, in batches of prompts of like length.

    Where the model's context ends they are fewer, prompt by prompt: the longest one's room is not the others'.
    """
    start = adapted.prefix.next_position if adapted.prefix is not None else 0
    room = lambda i: max(1, min(max_new_tokens, adapted.model.config.n_position - start - len(prompts[i]) + 1))
    by_length, new = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), [None] * len(prompts)
    for batch in (by_length[i : i + BATCH] for i in range(0, len(prompts), BATCH)):
        for group in [batch] if room(batch[-1]) == max_new_tokens else [[i] for i in batch]:
            for i, ids in zip(group, generate(adapted, [prompts[i] for i in group], room(group[-1]), stop)):
                new[i] = ids
    return new


@torch.no_grad()
def generate(adapted, prompts, max_new_tokens, stop=None):
    """Greedy decoding with the KV cache: prompts, B lists of ids -> B lists of new ids.

    A list ends with `stop` if that came within max_new_tokens. Shorter prompts are padded on the left; the padding is
    hidden from all others and takes no position. Cost: one forward over the prompts, then one over B tokens per new
    id, and B copies of the prefix. Raises ValueError on an empty prompt or a context that is too long.
    """
    model, prefix, B, T = adapted.model, adapted.prefix, len(prompts), max(map(len, prompts))
    if not all(prompts):
        raise ValueError("generate takes prompts of at least one id, got an empty one.")
    P, start = (prefix.kv[0][0].shape[2], prefix.next_position) if prefix is not None else (0, 0)
    check_fits(model, start + T + max_new_tokens - 1, f"decoding {max_new_tokens} tokens")
    tokens = torch.tensor([[0] * (T - len(p)) + list(p) for p in prompts], device=model.device)
    n_pad = torch.tensor([[T - len(p)] for p in prompts], device=model.device)
    at, keys = torch.arange(T, device=model.device), torch.arange(-P, T, device=model.device)
    positions = start + (at - n_pad).clamp(min=0)  # (B, T)
    real = (keys < 0) | (keys >= n_pad)  # (B, P+T): an entry of the prefix, or no padding
    causal, itself = keys <= at[:, None], keys == at[:, None]  # (T, P+T)
    mask = real[:, None] & causal | itself if n_pad.any() else None  # (B, T, P+T); padding needs something to see
    running, new = torch.ones(B, dtype=torch.bool, device=model.device), []
    for _ in range(max_new_tokens):
        hidden, kv = model(tokens, positions=positions, mask=mask, prefix=prefix, adapter=adapted.adapter)
        prefix, positions = grow(prefix, kv), positions[:, -1:] + 1
        mask = None if mask is None else F.pad(mask[:, -1:], (0, 1), value=True)
        tokens = model.logits(hidden[:, -1]).argmax(-1, keepdim=True)  # (B, 1)
        new.append(tokens)
        running &= tokens[:, 0] != stop
        if stop is not None and not running.any():
            break
    new = torch.cat(new, dim=1).tolist()
    return [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in new]
