"""One step of CT-KV and the same step in transformers, on the same weights and pairs: the first table of speed.py.

A step is forward, loss on the answers, backward to keys and values, clipping, AdamW. Three contestants do the same:
    nanoct                     methods/ct_kv.py itself: the packed row, logits of the answers
    transformers               as released: k right-padded rows of t tokens, sdpa, k copies of the prefix in a
                               DynamicCache, a 2-D attention mask, logits of all k·t tokens, labels of -100
    transformers, labels only  the same batch, the head on the tokens before an answer alone
They take turns, round after round, and only if their first losses and gradients agree. A step of methods/ttt.py on one
order of the demos (solved examples) is timed beside them. CT-KV makes every demo a target behind all others in one
step; TTT needs k orders for that. In its turn a method of nanoct adapts in two steps: the first warms up, the second is
timed.

FLOPs with N weights in the body: 4·N·T + 12·L·H·D·T·S + 4·V·C·n for T tokens against S keys, n of them with logits.
This is forward and the gradient of the inputs. Masked scores count, LoRA's own matrices do not.

Measured on two cores of an EPYC, 2 threads, float32, k = 16, 701 tokens of context, medians of two runs (5 and 6
rounds). transformers takes 3.3 and 2.6 times as long as nanoct with a vocabulary of 32,000, and 7.2 and 4.8 times with
128,000. With logits at the labels only it takes 1.8 and 1.8 times, and 1.9 and 1.7 times. Half of its tokens are
padding. Where all pairs have one length (--spread 0, 32,000), 1.55 (1.4-2.0) and 1.11 (1.0-1.3) times remain. nanoct's
step takes 1.0 s.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nanoct.costs import peers
from nanoct.fewshot import encode_context
from nanoct.methods import METHODS, ct_kv, ttt
from nanoct.runs.measure import clock, peak
from nanoct.runs.table import table


def adapting(model, method, config, task, seed=0):
    """Adapt and time it: (seconds of each step but the first, seconds of all else, the first loss or None).

    The first step warms up. Only the last config.n_step steps count; TTT's in TTT+CT-KV are in all else.
    """
    stamps, losses = [], []

    def progress(step, loss):
        stamps.append(clock(model.device))
        losses.append(loss)

    start = clock(model.device)
    METHODS[method].adapt(model, task, config, seed, progress)
    total = clock(model.device) - start
    steps = [after - before for before, after in pairwise(stamps[-getattr(config, "n_step", 0) :])]
    return steps, total - sum(steps), losses[0] if losses else None


def seconds(step, device):
    """(what a step returns, its seconds)"""
    start = clock(device)
    result = step()
    return result, clock(device) - start


def peak_of(run, device):
    """Bytes at the peak of a run: allocated on cuda, else resident in the process, which holds all contestants."""
    with peak(device) as used:
        run()
    return used.bytes


@dataclass
class Contestant:
    """turn() -> (the loss of its first step, seconds of a step); and the numbers that FLOPs depend on."""

    turn: Callable
    n_token: int
    n_key: int
    n_logit: int

    def flops(self, c, n_body):
        attention = 12 * c.n_layer * c.n_head * c.head_dim * self.n_token * self.n_key
        return 4 * n_body * self.n_token + attention + 4 * c.vocab_size * c.n_embd * self.n_logit


def contestants(model, theirs, task, seed=0):
    """{name: Contestant}: all that do the same step, and TTT. theirs: the same weights in transformers, or None."""
    n_answer, P = sum(len(d.y) for d in task.demos), sum(len(d.x) + len(d.y) for d in task.demos)
    T, context = P - len(task.demos), encode_context(model, (), task.demos)
    found = {"nanoct": Contestant(own(model, "ct_kv", ct_kv.Config(), task, seed), T, P + T, n_answer)}
    if theirs is not None:
        for name, labels_only in (("transformers", False), ("transformers, labels only", True)):
            step = peers.padded(theirs, task, context, seed, labels_only)
            found[name] = Contestant(partial(seconds, step, model.device), *step.size)
    one_order = own(model, "ttt", ttt.Config(batch=1), task, seed)
    return found | {"nanoct TTT, one order": Contestant(one_order, P - 1, P - 1, n_answer)}


def own(model, method, config, task, seed=0):
    """A turn of a nanoct method: it adapts in two steps, and the first warms up."""

    def turn():
        steps, _, loss = adapting(model, method, replace(config, n_step=2), task, seed)
        if not steps:
            raise ValueError(f"{method} was stopped before its second step, as the warning says: no time is reported.")
        return loss, steps[0]

    return turn


def agree(contest, tolerance):
    """The first loss, the same for all but TTT. Raises ValueError if a loss or gradient is not the first one's."""
    first, *others, _ = contest
    expected = first_step(contest[first].turn)
    for name in others:
        parts = first_step(contest[name].turn)
        error = max(((ours - other).norm() / other.norm()).item() for ours, other in zip(parts, expected, strict=True))
        if not error <= tolerance:
            raise ValueError(f"{name} differs from {first} by {error:.1e} in loss or gradient, more than "
                             f"{tolerance:.0e}: this is not the same step, so no time is reported.")
    return expected[0].item()


def first_step(turn):
    """[loss, gradient of each leaf] of the first step of a turn. The gradients are those that AdamW gets, clipped."""
    gradients = []

    def look(optimizer, *_):
        if not gradients:
            gradients.extend(p.grad.clone() for group in optimizer.param_groups for p in group["params"])

    hook = register_optimizer_step_pre_hook(look)
    try:
        loss, _ = turn()
    finally:
        hook.remove()
    return [torch.tensor(loss), *gradients]


def measure(model, theirs, task, repeat, seed=0):
    """One line per contestant: median seconds of `repeat` rounds, the ratio to nanoct in each round, FLOPs, memory."""
    contest = contestants(model, theirs, task, seed)
    loss = agree(contest, 1e-4 if model.dtype == torch.float32 else 5e-2)
    peaks = {name: peak_of(contestant.turn, model.device) for name, contestant in contest.items()}  # and the warm-up
    rounds = [{name: contestant.turn()[1] for name, contestant in contest.items()} for _ in range(repeat)]
    n_body, lines = sum(p.numel() for p in model.model.layers.parameters()), []
    common = dict(k=len(task.demos), context=sum(len(d.x) + len(d.y) for d in task.demos), repeat=repeat, seed=seed,
                  loss=loss, n_body=n_body, dtype=str(model.dtype).removeprefix("torch."), **asdict(model.config))
    for name, contestant in contest.items():
        ratio = sorted(times[name] / times["nanoct"] for times in rounds)
        middle, flops = median(times[name] for times in rounds), contestant.flops(model.config, n_body)
        lines.append(dict(name=name, seconds=middle, ratio=median(ratio), ratio_min=ratio[0], ratio_max=ratio[-1],
                          peak_bytes=peaks[name], flops=flops, flops_per_second=flops / middle,
                          n_token=contestant.n_token, n_logit=contestant.n_logit, **common))
    return lines


def report(lines):
    """Print the first table of one model, and what a pass over all demos costs."""
    ours, order = lines[0], lines[-1]
    print("{:.1f}M body, vocabulary {vocab_size:,}, k = {k}, {context} tokens of context, {dtype}, {device}, {threads} "
          "threads; loss {loss:.4f}".format(ours["n_body"] / 1e6, **ours))
    rows = [[x["name"], f"{x['n_token']:,}", f"{x['n_logit']:,}", f"{x['seconds']:.3f}",
             "{ratio:.2f} ({ratio_min:.2f}-{ratio_max:.2f})".format(**x), f"{x['peak_bytes'] / 2**20:,.0f}",
             f"{x['flops'] / 1e9:,.0f}", f"{x['flops_per_second'] / 1e9:,.0f}"] for x in lines]
    print(table(rows, ["step", "tokens", "logits", "seconds", "ratio (min-max)", "peak MiB", "GFLOP", "GFLOP/s"]))
    print(f"A pass with every demo a target behind all others: CT-KV {ours['seconds']:.2f} s in one step, "
          f"TTT {ours['k'] * order['seconds']:.2f} s in {ours['k']} orders, {ours['k'] * order['ratio']:.1f} times as "
          "long.\n")
