"""Prediction and metrics, the same for every method: p_phi(y | theta, x) from an Adapted.

All queries of a task, each with its options as branches, are packed into rows of bounded length (packing.py): one
forward pass scores dozens of options behind one copy of the prefix.
"""

from collections import Counter
from dataclasses import dataclass
from warnings import warn

import torch
import torch.nn.functional as F

from nanoct.fewshot import check_fits, grow
from nanoct.packing import answer_logits, pack_questions

METRICS = ("accuracy", "macro_f1", "ids", "text")
BATCH = 16  # prompts that are decoded side by side, each with its copy of the context's keys and values
ROOM = 8  # tokens decoded beyond the longest expected answer: an answer that is cut there is wrong anyway


@dataclass
class Result:
    score: float  # in [0, 1]
    per_query: list[bool | float]  # right or wrong, or a share if options tie; the mean is the score, but of macro_f1
    tied: int = 0  # queries where different options have exactly the lowest loss
    valid: float | None = None  # of "text": the share of decoded answers that are a possible answer, right or wrong


def evaluate(adapted, task, row_tokens=1024):
    """Score an Adapted on the queries of a task, by the task's metric.

    row_tokens bounds the tokens of a packed row, so its mask is at most row_tokens·(P + row_tokens) bytes.
    If n options tie for the lowest loss, each counts 1/n, which is what guessing scores; macro_f1 takes the first.
    Raises ValueError on a task without queries, an unknown metric, or queries without what the metric needs.
    """
    if not task.queries:
        raise ValueError(f"task {task.name!r} has no queries to score; give at least one.")
    if task.metric == "text":
        said, wanted = zip(*text_answers(adapted, task))
        possible = set(task.answers) or {*wanted, *(answer_text(task, demo.y) for demo in task.demos)}
        right = [text == gold for text, gold in zip(said, wanted)]
        return Result(sum(right) / len(right), right, valid=sum(text in possible for text in said) / len(said))
    if task.metric == "ids":
        right = score_pairs(adapted, [(asked(task, q), q.y) for q in task.queries], row_tokens)[1].tolist()
        return Result(sum(right) / len(right), right)
    if task.metric not in METRICS:
        raise ValueError(f"task {task.name!r} has the metric {task.metric!r}; known are {', '.join(METRICS)}.")
    if any(q.options is None for q in task.queries):
        raise ValueError(f"task {task.name!r} is scored by {task.metric} and has a query without options; add them, "
                         "or score by ids or text.")
    loss, _ = score_questions(adapted, [(asked(task, q), q.options) for q in task.queries], row_tokens)
    best, gold = [], [tuple(q.y) for q in task.queries]  # best: the options with the lowest loss, of each query
    for q, losses in zip(task.queries, loss.split([len(q.options) for q in task.queries])):
        best.append([tuple(option) for option, is_best in zip(q.options, losses == losses.min()) if is_best])
    right = [of[0] == y if len(of) == 1 else of.count(y) / len(of) for of, y in zip(best, gold)]
    tied = sum(len(set(of)) > 1 for of in best)
    single = sum(len(set(map(tuple, q.options))) == 1 for q in task.queries)
    if tied or single:
        how = "takes the first" if task.metric == "macro_f1" else "counts the share that is right"
        warn(f"task {task.name!r}: of {len(right)} queries {tied} have several options of exactly the lowest loss, of "
             f"which {task.metric} {how}, and {single} have only one option, or one twice, so they count as right.")
    score = macro_f1([of[0] for of in best], gold) if task.metric == "macro_f1" else sum(right) / len(right)
    return Result(score, right, tied)


def asked(task, query):
    """The tokens of a query's row before its answer."""
    return [*task.separator, *query.x]


def score_pairs(adapted, pairs, row_tokens=1024):
    """Score n pairs [(x, y)] as `score_questions` does, each by itself: losses (n,) and exact (n,)."""
    return score_questions(adapted, [(x, [y]) for x, y in pairs], row_tokens)


@torch.no_grad()
def score_questions(adapted, questions, row_tokens=1024):
    """Score the n answers y of questions [(x, [y, …])]: each token of y is predicted behind the true ones before it.

    Returns the mean loss per token of y in nats (n,) float64, and whether every token of y, with its terminator, is
    the most likely one (n,) bool: then greedy decoding yields y. Raises ValueError if a loss is not finite.
    """
    prefix = adapted.prefix
    start = prefix.next_position if prefix is not None else 0
    losses, exact = [], []
    for chunk in _chunks(questions, row_tokens):
        row = pack_questions(chunk, adapted.model, start)
        logits = answer_logits(adapted.model, row, prefix, adapted.adapter)
        loss = F.cross_entropy(logits, row.target, reduction="none")
        check_finite(loss)
        answer = row.answer.cpu()
        n_token = answer.bincount()
        # in float64, which some devices lack, so that equal losses of tokens have exactly that mean, however many
        total = lambda values: torch.zeros(len(n_token)).double().index_add_(0, answer, values.cpu().double())
        losses.append(total(loss) / n_token)
        exact.append(total(logits.argmax(-1) != row.target) == 0)
    return torch.cat(losses), torch.cat(exact)


def _chunks(questions, row_tokens):
    """Consecutive questions in groups of at most row_tokens tokens; a longer one is cut, each option with x alone."""
    chunk, n = [], 0
    for x, ys in questions:
        fits = len(x) + sum(map(len, ys)) <= row_tokens
        for part in [ys] if fits else [[y] for y in ys]:
            size = len(x) + sum(map(len, part))
            if chunk and n + size > row_tokens:
                yield chunk
                chunk, n = [], 0
            chunk.append((x, part))
            n += size
    yield chunk


def macro_f1(predicted, gold):
    """Mean F1 over the classes that occur in gold; a class that is never predicted has precision 1, so F1 0."""
    f1 = []
    for c in set(gold):
        hits = sum(p == g == c for p, g in zip(predicted, gold))
        f1.append(2 * hits / (predicted.count(c) + gold.count(c)))
    return sum(f1) / len(f1)


def constants(task):
    """Scores of giving every query the same answer: that of the best answer, and the mean over all answers.

    With options an answer is an option's number, and the mean accuracy is that of guessing. Without, it is a query's y.
    """
    gold = [tuple(q.y) for q in task.queries]
    if any(q.options is None for q in task.queries):
        counts = Counter(gold)
        return max(counts.values()) / len(gold), 1 / len(counts)
    options = [list(map(tuple, q.options)) for q in task.queries]
    alike = [[of[i % len(of)] for of in options] for i in range(max(map(len, options)))]
    if task.metric == "macro_f1":
        scores = [macro_f1(predicted, gold) for predicted in alike]
        return max(scores), sum(scores) / len(scores)
    best = max(sum(map(tuple.__eq__, predicted, gold)) for predicted in alike)
    return best / len(gold), sum(1 / len(of) for of in options) / len(gold)


def text_answers(adapted, task):
    """(decoded text, expected text) of every query, both normalised and without a terminator."""
    if task.decode is None or not task.terminator:
        raise ValueError(f"task {task.name!r} is scored by text, which takes the tokenizer's decode and a terminator.")
    longest = max(len(q.y) for q in task.queries)
    prompts = [asked(task, q) for q in task.queries]
    said = decode(adapted, prompts, longest + ROOM, task.decode, task.terminator, task.ends)
    normalise = task.normalise or (lambda text: text)
    return [(normalise(text), answer_text(task, q.y)) for text, q in zip(said, task.queries)]


def answer_text(task, y):
    """The text of an answer's ids, normalised and without a terminator."""
    text = before(task.terminator, task.decode(list(y)))
    return task.normalise(text) if task.normalise else text


def decode(adapted, prompts, max_new_tokens, to_text, terminator, ends=()):
    """Decode the text that follows each prompt, up to the terminator in the text or a token of `ends`.

    A tokenizer may merge the terminator with the text before it, so it is looked for in the text. `generate` runs
    on batches of prompts of similar length. Near the end of the model's context it makes fewer tokens.
    """
    start = adapted.prefix.next_position if adapted.prefix is not None else 0
    room = lambda i: max(1, min(max_new_tokens, adapted.model.config.n_position - start - len(prompts[i]) + 1))
    stop = lambda ids: ids[-1] in ends or terminator in to_text(ids)
    by_length, texts = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), [None] * len(prompts)
    for batch in (by_length[i : i + BATCH] for i in range(0, len(prompts), BATCH)):
        alike = room(batch[-1]) == max_new_tokens  # or the longest prompt would cut the others short
        for group in [batch] if alike else [[i] for i in batch]:
            for i, ids in zip(group, generate(adapted, [prompts[i] for i in group], room(group[-1]), stop)):
                texts[i] = before(terminator, to_text(ids[:-1] if ids[-1] in ends else ids))
    return texts


def before(terminator, text):
    """The text before the terminator, or all of it without one."""
    return text.split(terminator)[0]


@torch.no_grad()
def generate(adapted, prompts, max_new_tokens, stop=None):
    """Decode greedily with the KV cache: prompts, B lists of ids -> B lists of new ids, at most max_new_tokens each.

    stop: an id, or a function of the new ids so far; a list ends with the token that fulfils it. Shorter prompts are
    padded on the left; the padding is hidden from all other tokens and takes no position. Cost: one forward over the
    prompts, then one over B tokens per new id, and B copies of the prefix. Raises ValueError on an empty prompt,
    max_new_tokens below 1, a context that is too long, or logits that are not finite.
    """
    model, prefix, B, T = adapted.model, adapted.prefix, len(prompts), max(map(len, prompts))
    if not all(prompts) or max_new_tokens < 1:
        raise ValueError(f"generate takes prompts of at least one id and makes one or more, got one of "
                         f"{min(map(len, prompts))} ids and max_new_tokens = {max_new_tokens}.")
    P, start = (prefix.kv[0][0].shape[2], prefix.next_position) if prefix is not None else (0, 0)
    check_fits(model, start + T + max_new_tokens - 1, f"decoding {max_new_tokens} tokens")
    is_end = stop if callable(stop) else lambda ids: ids[-1] == stop
    tokens = torch.tensor([[0] * (T - len(p)) + list(p) for p in prompts], device=model.device)  # (B, T)
    n_pad = torch.tensor([[T - len(p)] for p in prompts], device=model.device)  # (B, 1)
    at, key = torch.arange(T, device=model.device), torch.arange(-P, T, device=model.device)  # places in the row
    positions, mask = start + (at - n_pad).clamp(min=0), None  # (B, T)
    if n_pad.any():
        real = (key < 0) | (key >= n_pad)  # (B, P+T): of the prefix or of a prompt
        causal, itself = key <= at[:, None], key == at[:, None]  # (T, P+T)
        mask = real[:, None] & causal | itself  # (B, T, P+T): padding sees itself, as it must see something
    new, running = [[] for _ in prompts], list(range(B))
    for _ in range(max_new_tokens):
        hidden, kv = model(tokens, positions=positions, mask=mask, prefix=prefix, adapter=adapted.adapter)
        prefix, positions = grow(prefix, kv), positions[:, -1:] + 1
        mask = None if mask is None else F.pad(mask[:, -1:], (0, 1), value=True)
        logits = model.logits(hidden[:, -1])
        check_finite(logits[running])
        tokens = logits.argmax(-1, keepdim=True)  # (B, 1)
        ids = tokens[:, 0].tolist()  # all at once: every read from a GPU waits for it
        for i in running:
            new[i].append(ids[i])
        running = [i for i in running if not is_end(new[i])]
        if not running:
            break
    return new


class NotFinite(ValueError):
    """Outputs of the model are NaN or infinite."""


def check_finite(numbers):
    """Raise NotFinite if a logit or a loss is NaN or infinite: the first answer would count as the most likely."""
    if not numbers.isfinite().all():
        raise NotFinite("the model's outputs are not finite (NaN or infinite), so nothing can be scored: weights or "
                        "context hold such numbers, or the dtype is too small for them.")
