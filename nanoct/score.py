"""Prediction and metrics, the same for every method: p_phi(y | theta, x) from an Adapted.

All queries of a task, each with its options as branches, are packed into rows of bounded length (packing.py): one
forward pass scores dozens of options behind one copy of the prefix.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import chain
from warnings import warn

import torch
import torch.nn.functional as F

from nanoct.fewshot import check_fits, check_ids, contexts, grow
from nanoct.packing import answer_logits, pack_demos, pack_questions, visible

METRICS = ("accuracy", "macro_f1", "ids", "text")
BATCH = 16  # prompts that are decoded side by side, each with its copy of the context's keys and values
ROOM = 8  # tokens decoded beyond the longest expected answer: an answer that is cut there is wrong anyway


@dataclass
class Result:
    score: float  # in [0, 1]
    per_query: list[bool | float]  # right or wrong, or a share if options tie; the mean is the score, but of macro_f1
    tied: int = 0  # queries where different options have exactly the lowest loss
    valid: float | None = None  # of "text": the share of decoded answers that are a possible answer, right or wrong
    answers: list | None = None  # the option (a tuple of ids) or the text of each query; None for "ids": see evaluate


def evaluate(adapted, task, row_tokens=1024):
    """Score an Adapted on the queries of a task, by the task's metric.

    row_tokens bounds the tokens of a packed row, so its mask is at most row_tokens·(P + row_tokens) bytes.
    If n options tie for the lowest loss, each counts 1/n, which is what guessing scores; macro_f1 takes the first.
    With "ids" a query is right or not, and what a wrong answer would be is not known: it is not decoded.
    Raises ValueError on a task without queries, an unknown metric, or queries without what the metric needs.
    """
    if not task.queries:
        raise ValueError(f"task {task.name!r} has no queries to score; give at least one.")
    if task.metric == "text":
        said, gold = zip(*text_answers(adapted, task))
        result = judge([[text] for text in said], gold)
        possible = set(task.text.answers) or {*gold, *(task.text.answer(demo.y) for demo in task.demos)}
        result.valid = sum(text in possible for text in said) / len(said)
        return result
    if task.metric == "ids":
        right = score_pairs(adapted, [(asked(task, q), q.y) for q in task.queries], row_tokens)[1].tolist()
        return Result(sum(right) / len(right), right)
    if task.metric not in METRICS:
        raise ValueError(f"task {task.name!r} has the metric {task.metric!r}; known are {', '.join(METRICS)}.")
    if any(q.options is None for q in task.queries):
        raise ValueError(f"task {task.name!r} is scored by {task.metric} and has a query without options; add them, "
                         "or score by ids or text.")
    questions = [(asked(task, q), [tuple(option) for option in q.options]) for q in task.queries]
    losses = option_losses(adapted, questions, row_tokens)
    best = [lowest(options, of_options) for (_, options), of_options in zip(questions, losses)]
    result = judge(best, [tuple(q.y) for q in task.queries], task.metric)
    single = sum(len(set(options)) == 1 for _, options in questions)
    if result.tied or single:
        how = "takes the first" if task.metric == "macro_f1" else "counts the share that is right"
        warn(f"task {task.name!r}: of {len(best)} queries {result.tied} have several options of exactly the lowest "
             f"loss, of which {task.metric} {how}, and {single} have only one option, or one twice, so they count as "
             "right.")
    return result


def judge(best, gold, metric="accuracy"):
    """The Result of n answers, ids or text. best: a list for each query, of the answers that tie; gold: the right one.

    A query whose answers tie counts the share of them that is right; macro_f1 takes the first of them.
    """
    right = []
    for tied, answer in zip(best, gold):
        right.append(tied[0] == answer if len(tied) == 1 else tied.count(answer) / len(tied))
    answers = [tied[0] for tied in best]
    score = macro_f1(answers, gold) if metric == "macro_f1" else sum(right) / len(right)
    return Result(score, right, sum(len(set(tied)) > 1 for tied in best), answers=answers)


def option_losses(adapted, questions, row_tokens=1024):
    """Mean loss per token, in nats, of the options of each question [(x, [y, …])]: a list of numbers for each."""
    if not questions:
        return []
    losses, _ = score_questions(adapted, questions, row_tokens)
    return [part.tolist() for part in losses.split([len(options) for _, options in questions])]


def lowest(options, losses):
    """The options with exactly the lowest loss: one, or those that tie."""
    return [option for option, loss in zip(options, losses) if loss == min(losses)]


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
    losses, exact = [], []
    for chunk in _chunks(questions, row_tokens):
        logits = None
        for weight, prefix in contexts(adapted.prefix):
            row = pack_questions(chunk, adapted.model, prefix.next_position if prefix is not None else 0)
            part = answer_logits(adapted.model, row, prefix, adapted.adapter).mul_(weight)
            logits = part if logits is None else logits.add_(part)
        loss = F.cross_entropy(logits, row.target, reduction="none")
        check_finite(loss)
        answer = row.answer.cpu()
        n_token = answer.bincount()
        # in float64, which some devices lack, so that equal losses of tokens have exactly that mean, however many
        total = lambda values: torch.zeros(len(n_token)).double().index_add_(0, answer, values.cpu().double())
        losses.append(total(loss) / n_token)
        exact.append(total(logits.argmax(-1) != row.target) == 0)
    return torch.cat(losses), torch.cat(exact)


@torch.no_grad()
def demo_loss(adapted, task, leave_one_out=True):
    """Mean loss per answer token, in nats, of the demos of a task, asked as training asks them but without dropout.

    leave_one_out: hide from each demo what it owns of the context, unless it is the only one. For CT-Prompt that is the
    loss of `one_pass`; TTT, which trains on random orders, is asked behind the order that it reads at the end.
    Raises ValueError if no demo fits behind the context.
    """
    k, logits = len(task.demos), 0
    for weight, prefix in contexts(adapted.prefix):
        row = pack_demos(task, adapted.model, prefix.next_position if prefix is not None else 0)
        owner = prefix.owner if prefix is not None else row.pair[:0]  # without a context there is nothing to hide
        seen = visible(owner, k, leave_one_out and k > 1)
        logits = logits + weight * answer_logits(adapted.model, row, prefix, adapted.adapter, row.mask(seen))
    return F.cross_entropy(logits, row.target).item()


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
    scores = []
    for i in range(max(len(q.options) for q in task.queries)):
        alike = [[tuple(q.options[i % len(q.options)])] for q in task.queries]
        scores.append(judge(alike, gold, task.metric).score)
    if task.metric == "macro_f1":
        return max(scores), sum(scores) / len(scores)
    return max(scores), sum(1 / len(q.options) for q in task.queries) / len(gold)


def text_answers(adapted, task):
    """(decoded text, expected text) of every query, both normalised and without a terminator."""
    if task.text is None or not task.text.terminator:
        raise ValueError(f"task {task.name!r} is scored by text, which takes the tokenizer's decode and a terminator.")
    longest = max(len(q.y) for q in task.queries)
    said = decode(adapted, [asked(task, q) for q in task.queries], longest + ROOM, task.text)
    return [(answer, task.text.answer(q.y)) for answer, q in zip(said, task.queries)]


def decode(adapted, prompts, max_new_tokens, text):
    """Decode the answer that follows each prompt: a string, up to its end and normalised, as the Text says.

    `generate` runs on batches of prompts of similar length. Near the end of the model's context it makes fewer tokens.
    """
    start = adapted.prefix.next_position if adapted.prefix is not None else 0
    room = []  # how many tokens to make behind each prompt; the last of them is not read
    for prompt in prompts:
        left = adapted.model.config.n_position - start - len(prompt) + 1
        room.append(max(1, min(max_new_tokens, left)))
    by_length, groups = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), []
    for first in range(0, len(prompts), BATCH):
        batch = by_length[first : first + BATCH]
        is_short = room[batch[-1]] == max_new_tokens  # or the longest prompt would cut the others short
        groups += [batch] if is_short else [[i] for i in batch]
    answers = [None] * len(prompts)
    for group in groups:
        new = generate(adapted, [prompts[i] for i in group], room[group[-1]], text.is_over)
        for i, ids in zip(group, new):
            answers[i] = text.answer(ids)
    return answers


@torch.no_grad()
def generate(adapted, prompts, max_new_tokens, stop=None):
    """Decode greedily with the KV cache: prompts, B lists of ids -> B lists of new ids, at most max_new_tokens each.

    stop: an id, or a function of the new ids so far; a list ends with the token that fulfils it. Shorter prompts are
    padded on the left; the padding is hidden from all other tokens and takes no position. Cost: one forward over the
    prompts, then one over B tokens per new id, and B copies of the prefix; all that for every part of a
    Mixture. Raises ValueError on an empty prompt, max_new_tokens below 1, a context that is too long, or logits that
    are not finite.
    """
    model, B, T = adapted.model, len(prompts), max(map(len, prompts))
    if not all(prompts) or max_new_tokens < 1:
        raise ValueError(f"generate takes prompts of at least one id and makes one or more, got one of "
                         f"{min(map(len, prompts))} ids and max_new_tokens = {max_new_tokens}.")
    check_ids(model, chain(*prompts))
    is_end = stop if callable(stop) else lambda ids: ids[-1] == stop
    tokens = torch.tensor([[0] * (T - len(p)) + list(p) for p in prompts], device=model.device)  # (B, T)
    n_pad = torch.tensor([[T - len(p)] for p in prompts], device=model.device)  # (B, 1)
    states = []  # of each context: its weight, itself, and positions and mask of the tokens that come next
    for weight, prefix in contexts(adapted.prefix):
        P, start = (prefix.kv[0][0].shape[2], prefix.next_position) if prefix is not None else (0, 0)
        check_fits(model, start + T + max_new_tokens - 1, f"decoding {max_new_tokens} tokens")
        at, key = torch.arange(T, device=model.device), torch.arange(-P, T, device=model.device)  # places in the row
        positions, mask = start + (at - n_pad).clamp(min=0), None  # (B, T)
        if n_pad.any():
            real = (key < 0) | (key >= n_pad)  # (B, P+T): of the prefix or of a prompt
            causal, itself = key <= at[:, None], key == at[:, None]  # (T, P+T)
            mask = real[:, None] & causal | itself  # (B, T, P+T): padding sees itself, as it must see something
        states.append((weight, prefix, positions, mask))
    new, running = [[] for _ in prompts], list(range(B))
    for _ in range(max_new_tokens):
        logits, following = 0, []
        for weight, prefix, positions, mask in states:
            hidden, kv = model(tokens, positions=positions, mask=mask, prefix=prefix, adapter=adapted.adapter)
            logits = logits + weight * model.logits(hidden[:, -1])
            mask = None if mask is None else F.pad(mask[:, -1:], (0, 1), value=True)
            following.append((weight, grow(prefix, kv), positions[:, -1:] + 1, mask))
        states = following
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
