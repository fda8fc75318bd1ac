"""Bytes and FLOPs of a method before it is run, and the peak of what was run.

    python -m nanoct.memory                 # estimated against measured, a random model on the CPU, minutes

With b bytes a number (4 or 2), L layers, H heads, K KV heads, D head_dim, C n_embd, F n_ffn, V vocab; a step runs B rows
of T tokens against S = P + T keys, n of the tokens have logits. Bytes beside the weights:

    theta       4·|leaves| five times: value, gradient, AdamW's two, the last good one; and b·2·L·K·D·P for the context
                they began as (CT-KV)
    saved       what the backward pass keeps: L·B·T·(8·C + b·(2·H·D + 3·F) + 4·H) for the norms' inputs (float32), queries
                and outputs of attention, the MLP's three (GPT-2: 2·b·C for the norms, b·F for the MLP), L·B·S·b·2·K·D for
                keys and values, and b·B·T·S for a mask. An adapter adds, for every linear of its, B·T·(5·in + 4·rank): its
                input, float32, with dropout and the mask of that, and the inner product; DoRA 8·out more.
                With model.checkpoint, b·B·T·C a layer instead, and the above for one layer at a time.
    passing     the larger of 3·4·n·V (logits, their log-softmax, its gradient) and B·T·(3·b·F + 4·C), a block's work;
                where nothing is trained T·(4·b·F + 8·C)
    scoring     b·2·L·K·D·P for the context; T·(4·b·F + 8·C) for T tokens of queries in a row, or b·2·L·K·D·(P + T) for
                each of the queries that are decoded side by side; instead of the three above, after them

FLOPs of a step: 4·N·B·T for N weights in the body (forward and the gradient of the inputs), 12·L·H·D·B·T·S for
attention, 4·V·C·n for logits; the first two half as much again with checkpoint; DoRA with dropout applies every weight
that it adapts twice. FLOPs of scoring: 2·N + 4·L·H·D·S for each of the tokens that queries and options, or decoded
answers, have in all, and 2·V·C for those of answers. What the libraries keep for themselves (on a GPU some hundred MB)
and what the allocator cannot reuse come on top.
"""

from dataclasses import asdict, dataclass, fields, replace
from itertools import accumulate
from types import SimpleNamespace

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from nanoct import cli
from nanoct.adapters import TARGETS
from nanoct.costs.task import random_task
from nanoct.gpt2 import GPT2, GPT2Config
from nanoct.methods import METHODS
from nanoct.model import Llama, LlamaConfig
from nanoct.runs.measure import peak
from nanoct.runs.report import table
from nanoct.weights import pick_device, resolve_dtype

SMALL = LlamaConfig(vocab_size=8000, n_layer=4, n_head=8, n_kv_head=4, n_embd=256, head_dim=32, n_ffn=704, n_position=0)  # of the check


@dataclass
class Lengths:
    """Tokens of a task: of its instruction, of x and y of every demo (separator included), of the longest query with its answer;
    how many queries are decoded side by side; of a row of queries when it is scored by teacher forcing; of all queries, with
    every option anew, and of all answers."""

    instruction: int
    demos: list
    query: int
    n_decoded: int = 0
    n_row: int = 1024
    scored: int = 0
    answers: int = 0

    @property
    def context(self):
        return self.instruction + sum(x + y for x, y in self.demos)


@dataclass
class Estimate:
    """Bytes of each part, and FLOPs of adapting, of one step, and of scoring."""

    weights: float = 0
    theta: float = 0
    saved: float = 0
    passing: float = 0
    scoring: float = 0
    flops: float = 0.0
    flops_step: float = 0.0
    flops_score: float = 0.0

    @property
    def beside(self):
        """Peak of adapting, beside the weights."""
        return self.theta + self.saved + self.passing

    @property
    def total(self):
        return self.weights + max(self.beside, self.scoring)


def shapes(config):
    """{name: (out, in)} of the linears, and the number of weights in all, of a model that is not built."""
    with torch.device("meta"):
        model = (GPT2 if isinstance(config, GPT2Config) else Llama)(config)
    return {name: tuple(layer.weight.shape) for name, layer in model.linears.items()}, sum(p.numel() for p in model.parameters())


def estimate(config, method, settings, lengths, dtype=torch.float32, checkpoint=False):
    """The Estimate of a method (its name) with settings {field: value} on a task of these Lengths; formulas above."""
    c, b, s, is_gpt2 = config, torch.finfo(dtype).bits // 8, SimpleNamespace(**settings), isinstance(config, GPT2Config)
    linears, n_weight = shapes(config)
    adapted = [shape for name, shape in linears.items() if name.split(".")[-1] in TARGETS]
    body = sum(out * n_in for out, n_in in linears.values())
    twice = sum(out * n_in for out, n_in in adapted) if method == "dora" and s.dropout else 0
    kv = 2 * c.n_layer * c.n_kv_head * c.head_dim  # numbers of a token's keys and values
    P, rows = lengths.context, [x + y - 1 for x, y in lengths.demos]
    T, n, k = sum(rows), sum(y for _, y in lengths.demos), len(rows)
    headed = T + k * lengths.instruction  # of the methods without demos in context

    def pass_(B, T, S, masked=True, low_rank=False):
        """(bytes that a forward pass leaves for the backward, bytes at work in a block)"""
        per_token = (2 * b * c.n_embd if is_gpt2 else 8 * c.n_embd) + 4 * c.n_head
        per_token += b * (2 * c.n_head * c.head_dim + (1 if is_gpt2 else 3) * c.n_ffn)
        layer = B * T * per_token + B * S * b * 2 * c.n_kv_head * c.head_dim
        if low_rank:
            per_linear = lambda out, n_in: 5 * n_in + 4 * s.rank + 8 * out * (method == "dora")
            layer += B * T * sum(per_linear(*shape) for shape in adapted) / c.n_layer
        work, common = B * T * (3 * b * c.n_ffn + 4 * c.n_embd), masked * b * B * T * S + 4 * B * T * c.n_embd
        return (c.n_layer * b * B * T * c.n_embd + common, work + layer) if checkpoint else (c.n_layer * layer + common, work)

    def step(B, T, S):
        return (1 + checkpoint / 2) * (4 * (body + twice) * B * T + 12 * c.n_layer * c.n_head * c.head_dim * B * T * S)

    def read(T):
        return 2 * body * T + 2 * c.n_layer * c.n_head * c.head_dim * T * T

    found = Estimate(weights=b * n_weight)
    m = {"zero_shot": 0, "lora": 0, "dora": 0}.get(method, getattr(s, "n_prefix", P))  # tokens of the context that is tuned or read
    forward = lambda T: T * (4 * b * c.n_ffn + 8 * c.n_embd)
    row = max(lengths.n_row, lengths.n_decoded * lengths.query)
    S = m + (lengths.query if lengths.n_decoded else min(lengths.n_row, lengths.scored))
    found.flops_score = lengths.scored * (2 * body + 4 * c.n_layer * c.n_head * c.head_dim * S) + 2 * c.vocab_size * c.n_embd * lengths.answers
    found.scoring = b * kv * (m + lengths.n_decoded * (m + lengths.query)) + forward(row)
    if method in ("zero_shot", "icl"):
        context = max(m, lengths.instruction)
        found.theta, found.passing, found.flops = b * kv * context, forward(context), read(context)
        return found
    low_rank = sum(s.rank * (out + n_in) + out * (method == "dora") for out, n_in in adapted) if hasattr(s, "rank") else 0
    trained, start, before = low_rank, 0, 0  # numbers, numbers, FLOPs before the first step
    if method in ("prompt_tuning", "prefix_tuning"):
        trained, start = (m * c.n_embd, 0) if method == "prompt_tuning" else (m * kv, m * kv)
        found.saved, found.passing = pass_(1, headed, headed + m)
        found.flops_step = step(1, headed, headed + m)
        if method == "prompt_tuning":
            found.saved += pass_(1, m, m, masked=False)[0]
            found.flops_step += step(1, m, m)
    elif method in ("lora", "dora"):
        (found.saved, found.passing), found.flops_step = pass_(1, headed, headed, low_rank=True), step(1, headed, headed)
    elif method == "ttt":
        n, before, found.flops_step = n * s.batch, read(P), step(s.batch, P - 1, P - 1)
        found.saved, found.passing = pass_(s.batch, P - 1, P - 1, masked=False, low_rank=True)
    elif method == "ct_prompt":
        prompts, row = pass_(k, P, P), pass_(1, T, k * P + T)
        trained, before = P * c.n_embd, read(P)
        # the last block's output is not used: it has no backward pass, and what it saved is gone before the row of pairs is run
        found.flops_step = step(k, P, P) * (1 - 1 / (2 * c.n_layer)) + step(1, T, k * P + T)
        used = prompts[0] if checkpoint else prompts[0] * (1 - 1 / c.n_layer)
        found.saved, found.passing = max((prompts, (used + row[0], max(row[1], 3 * 4 * n * c.vocab_size))), key=sum)
    elif method in ("ct_kv", "ttt_ct_kv"):
        trained = start = P * kv
        found.saved, found.passing = pass_(1, T, P + T, low_rank=method == "ttt_ct_kv")
        found.flops_step, before = step(1, T, P + T), read(P)
    found.theta += 5 * 4 * trained + b * start
    found.passing = max(found.passing, 3 * 4 * n * c.vocab_size)
    found.flops_step += 4 * c.vocab_size * c.n_embd * n
    found.flops = before + s.n_step * found.flops_step
    if method == "ttt_ct_kv":
        first = {name: getattr(s, name) for name in ("batch", "rank", "alpha", "dropout")} | dict(n_step=s.ttt_n_step)
        ttt = estimate(c, "ttt", first, lengths, dtype, checkpoint)
        found.theta += 4 * low_rank
        found.flops += ttt.flops
        if ttt.beside > found.beside:
            found.theta, found.saved, found.passing = ttt.theta, ttt.saved, ttt.passing
    return found


def allocated(run, device):
    """The most bytes that run() has allocated at a time, by the allocator of a GPU or the profiler's record of the CPU's."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        with peak(device) as used:
            run()
        return used.bytes - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = sorted((e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return max(accumulate(e.nbytes() for e in events))


def measure(method, model, k=16, context=700, n_step=2, **settings):
    """(estimated, measured) peak bytes beside the weights of adapting by a method to a random task."""
    Config, task = METHODS[method].Config, random_task(k, context, model.config.vocab_size)
    steps = {f.name: n_step for f in fields(Config) if f.name in ("n_step", "ttt_n_step")}
    config = Config(**steps | settings)
    lengths = Lengths(len(task.instruction), [(len(demo.x), len(demo.y)) for demo in task.demos], 1)
    guess = estimate(model.config, method, asdict(config), lengths, model.dtype, model.checkpoint)
    return guess.beside, allocated(lambda: METHODS[method].adapt(model, task, config), model.device)


def main():
    known = [name for name in METHODS if name != "zero_shot"]  # which has nothing to measure
    p = cli.Parser(prog="nanoct.memory", description=__doc__.split("\n")[0])
    p.add_argument("--methods", nargs="+", choices=known, default=known)
    p.add_argument("--context", type=int, default=700, help="tokens of 16 demos")
    p.add_argument("--device")
    p.add_argument("--dtype")
    args = p.parse_args()
    device = pick_device(args.device)
    model = Llama(replace(SMALL, n_position=2 * args.context)).init_weights(torch.Generator().manual_seed(0))
    model.requires_grad_(False).to(device, resolve_dtype(args.dtype, device))
    rows = []
    for method in tqdm(args.methods):
        for model.checkpoint in (False, True) if hasattr(METHODS[method].Config, "n_step") else (False,):
            guess, measured = measure(method, model, context=args.context)
            rows.append([method, "yes" if model.checkpoint else "", f"{guess / 1e6:.1f}", f"{measured / 1e6:.1f}",
                         f"{guess / measured:.2f}"])
    print(table(rows, ["method", "checkpoint", "estimated MB", "measured MB", "ratio"]))
