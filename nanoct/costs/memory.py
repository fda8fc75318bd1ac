"""Estimate the bytes and FLOPs of a method before it runs, and measure the peak of a run.

    nanoct memory                 # estimated against measured, a random model on the CPU, minutes

A method's `footprint` says what it stores and which passes it makes (nanoct/footprint.py); this file adds that up.
There are b bytes a number (4 or 2), L layers, H heads, K KV heads, D head_dim, C n_embd, F n_ffn, V vocab, P prefix
entries. A pass runs B rows of T tokens against S keys; n of the tokens have logits. Bytes beside the weights:

    theta       4·|leaves| five times: value, gradient, AdamW's two moments, the last good value; and b·2·L·K·D·P for
                the context that the leaves (trained tensors) began as (CT-KV)
    saved       what the backward pass keeps: L·B·T·(8·C + b·(2·H·D + 3·F) + 4·H) for the norms' inputs (float32),
                queries and outputs of attention, three tensors of the MLP (GPT-2: 2·b·C for the norms, b·F for the
                MLP; where queries and keys are normed, 4·(H + K)·D more); L·B·S·b·2·K·D for keys and values (H
                instead of K in masked passes in float32 on CUDA; in 16 bits too on a GPU before the H100, which is not
                counted); b·B·T·S for a mask. LoRA adds B·T·(5·in + 4·rank) for each linear layer that it adapts: the
                input in float32, the mask of its dropout, and the inner product. DoRA adds 8·out more.
                model.checkpoint keeps b·B·T·C a layer instead, and the above for one layer at a time.
    passing     what a pass needs for a moment: the larger of 3·4·n·V (logits, their log-softmax, its gradient; in
                bfloat16 also 4·C·16,384, a part of the head) and B·T·(3·b·F + 4·C), the work of a block. Where nothing
                is trained it is T·(4·b·F + 8·C), and beside it there are the context and 4·|numbers that change|.
    scoring     b·2·L·K·D·P for the context; T·(4·b·F + 8·C) for the T tokens of queries that run at once; and, for each
                of the queries that are decoded side by side, b·2·L·K·D·(P + its tokens). Scoring comes after the three
                above, which are then free.

FLOPs of a step: 4·N·B·T for N weights in the body (forward and the gradient of the inputs), 12·L·H·D·B·T·S for
attention, 4·V·C·n for logits. With checkpoint the first two are half as much again. DoRA with dropout applies every
weight that it adapts twice. A pass without a gradient takes half, and a third for attention. FLOPs of scoring:
2·N + 4·L·H·D·S for each token of queries and options, or of decoded answers, and 2·V·C for each token of an answer. Not
counted is what the libraries keep for themselves (on a GPU some hundred MB) and what the allocator cannot reuse.
"""

import re
from dataclasses import asdict, dataclass, fields, replace
from itertools import accumulate, product
from math import inf
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from nanoct import cli
from nanoct.adapters import TARGETS
from nanoct.costs.task import random_task
from nanoct.footprint import Lengths, entry
from nanoct.gpt2 import GPT2, GPT2Config
from nanoct.io.weights import pick_device, resolve_dtype
from nanoct.methods import KNOWN, METHODS, expand
from nanoct.model import HEAD, Llama, LlamaConfig
from nanoct.runs.measure import peak
from nanoct.runs.table import table

SMALL = LlamaConfig(  # the model of the command
    vocab_size=8000, n_layer=4, n_head=8, n_kv_head=4, n_embd=256, head_dim=32, n_ffn=704, n_position=0)
ROOT = Path("/")
CGROUPS = (("sys/fs/cgroup", "memory.max", "memory.current"),  # folder, most, used: of version 2, and of version 1
           ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))


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
        """Peak bytes of adapting, beside the weights."""
        return self.theta + self.saved + self.passing

    @property
    def total(self):
        return self.weights + max(self.beside, self.scoring)


def shapes(config):
    """{name: (out, in)} of a model's linear layers, and its number of weights, without building it."""
    with torch.device("meta"):
        model = (GPT2 if isinstance(config, GPT2Config) else Llama)(config)
    linears = {name: tuple(layer.weight.shape) for name, layer in model.linears.items()}
    return linears, sum(p.numel() for p in model.parameters())


def estimate(config, method, settings, lengths, dtype=torch.float32, checkpoint=False, cuda=False, module=None):
    """The Estimate of a method (its name) with settings {field: value} on a task of these Lengths; see the formulas.

    cuda: whether it runs on a GPU. module: that of the method, if KNOWN lacks it. ValueError: it has no footprint.
    """
    module = module or KNOWN[method]
    if not hasattr(module, "footprint"):
        raise ValueError(f"{method} has no footprint, so its cost is not known: add one to its module, or leave "
                         "it out of --methods.")
    says = module.footprint(config, lengths, module.Config(**settings))
    return add_up(config, says, lengths, dtype, checkpoint, cuda)


def estimate_on(model, method, config, task):
    """The Estimate of adapting a model to the demos of a task. Raises what estimate raises."""
    lengths = Lengths(len(task.instruction), [(len(demo.x), len(demo.y)) for demo in task.demos], 1)
    return estimate(model.config, method, asdict(config), lengths, model.dtype, model.checkpoint,
                    model.device.type == "cuda")


def check_room(model, method, config, task):
    """Raise ValueError if adapting to a task will need more memory beside the weights than is free.

    Not if either is unknown.
    """
    try:
        needs = estimate_on(model, method, config, task)
    except ValueError:  # the method does not say what it stores
        return
    if said := lacking(needs, model.device):
        raise ValueError(f"{method} on {task.name} {said}: take a smaller model, or fewer or shorter demos.")


def lacking(needs, device):
    """How much memory beside the weights an Estimate needs, in words, if it is more than is free; else None."""
    need, there = needs.total - needs.weights, free(device)
    if need > there:
        return f"needs {need / 1e9:.2f} GB beside the weights and {there / 1e9:.2f} GB are free"


def add_up(config, says, lengths, dtype, checkpoint, cuda):
    """The Estimate of a Footprint."""
    linears, n_weight = shapes(config)
    size = dtype.itemsize
    body = sum(out * n_in for out, n_in in linears.values())
    kv, attention = size * entry(config), config.n_layer * config.n_head * config.head_dim

    n_row = max(lengths.n_row, lengths.n_decoded * lengths.query)
    n_key = says.prefix + (lengths.query if lengths.n_decoded else min(lengths.n_row, lengths.scored))
    n_entry = says.prefix + lengths.n_decoded * (says.prefix + lengths.query)
    found = Estimate(
        weights=size * n_weight, scoring=kv * n_entry + reading(config, n_row, size),
        flops=2 * body * says.read + 2 * attention * says.read**2,
        flops_score=lengths.scored * (2 * body + 4 * attention * n_key)
        + 2 * config.vocab_size * config.n_embd * lengths.answers)
    if not any(p.trains for p in says.passes):
        n_read = max([says.read, *(p.n_row * p.n_token for p in says.passes)])
        found.theta = kv * max(says.read, lengths.instruction) + 4 * says.trained
        found.passing = reading(config, n_read, size)
        found.flops_step = step_flops(config, says.passes, body, attention, checkpoint)
        found.flops += says.n_step * found.flops_step
        return found

    n_number, adapter_bytes, twice = added(says.low_rank, linears)
    found.saved, found.passing = adapting_bytes(config, says.passes, adapter_bytes, size, checkpoint, cuda)
    found.flops_step = step_flops(config, says.passes, body + twice, attention, checkpoint)
    found.flops += says.n_step * found.flops_step
    copies = 5 if says.low_rank and says.low_rank.trained else 1
    found.theta = 4 * (5 * says.trained + copies * n_number) + size * says.start
    if says.first:
        first = add_up(config, says.first, lengths, dtype, checkpoint, cuda)
        found.flops += first.flops
        if first.beside > found.beside:
            found.theta, found.saved, found.passing = first.theta, first.saved, first.passing
    return found


def reading(c, n_token, size):
    """Bytes of the work of a forward pass."""
    return n_token * (4 * size * c.n_ffn + 8 * c.n_embd)


def added(low_rank, linears):
    """(numbers, bytes that a token saves, weights that are applied twice) of a LowRank, or None, in all layers."""
    n_number = token_bytes = twice = 0
    for name, (out, n_in) in linears.items():
        if low_rank and name.split(".")[-1] in TARGETS:
            n_number += low_rank.kind.n_trained(out, n_in, low_rank.rank)
            token_bytes += low_rank.kind.saved_bytes(out, n_in, low_rank.rank)
            twice += out * n_in if low_rank.kind.runs_twice and low_rank.dropout else 0
    return n_number, token_bytes, twice


def saved_by_token(c, size):
    """Bytes that a token saves in a layer for the backward pass, keys and values apart."""
    is_gpt2 = isinstance(c, GPT2Config)
    norms = (2 * size if is_gpt2 else 8) * c.n_embd
    if getattr(c, "qk_norm", None):
        norms += 4 * (c.n_head + c.n_kv_head) * c.head_dim
    mlp = size * (1 if is_gpt2 else 3) * c.n_ffn
    return norms + mlp + size * 2 * c.n_head * c.head_dim + 4 * c.n_head


def adapting_bytes(c, passes, adapter_bytes, size, checkpoint, cuda):
    """(saved, passing) bytes of a step at its peak: what a pass saves stays while the next ones run."""
    peak_bytes, stays = (0, 0), 0
    for p in passes:
        n = p.n_row * p.n_token
        repeated = c.n_head / c.n_kv_head if cuda and p.masked and size > 2 else 1  # see model.alike
        kv = size * entry(c) / c.n_layer * repeated
        layer = n * (saved_by_token(c, size) + adapter_bytes / c.n_layer) + p.n_row * p.n_key * kv
        saved = p.masked * size * n * p.n_key + 4 * n * c.n_embd
        saved += c.n_layer * (size * n * c.n_embd if checkpoint else layer)
        block = n * (3 * size * c.n_ffn + 4 * c.n_embd) + layer * checkpoint
        logits = 3 * 4 * p.n_logit * c.vocab_size
        if size < 4:  # a part of the head as float32
            logits += 4 * c.n_embd * min(c.vocab_size, HEAD)
        peak_bytes = max(peak_bytes, (stays + saved, max(block, logits)), key=sum)
        stays += saved if checkpoint else saved * (1 - p.kv_only / c.n_layer)  # the last block's share is not used
    return peak_bytes


def step_flops(c, passes, n_applied, attention, checkpoint):
    """FLOPs of a step, with n_applied weights in the body."""
    total = 0.0
    for p in passes:
        n = p.n_row * p.n_token
        if not p.trains:  # forward alone
            total += 2 * n_applied * n + 4 * attention * n * p.n_key + 2 * c.vocab_size * c.n_embd * p.n_logit
            continue
        body = (1 + checkpoint / 2) * (4 * n_applied * n + 12 * attention * n * p.n_key)
        total += body * (1 - p.kv_only / c.n_layer / 2)  # the last block has no backward pass then
        total += 4 * c.vocab_size * c.n_embd * p.n_logit
    return total


def free(device):
    """Bytes that this process can still get: of a GPU, or of a machine with /proc and of the cgroup; else inf."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu" or not (ROOT / "proc/meminfo").exists():
        return inf
    with peak(device):  # which first gives back what this process no longer uses
        found = [1024 * int(re.search(r"MemAvailable:\s*(\d+)", (ROOT / "proc/meminfo").read_text())[1])]
    paths = re.findall(r"^\d+:(?:memory)?:/(.*)", (ROOT / "proc/self/cgroup").read_text(), re.M)
    for (at, most, used), path in product(CGROUPS, paths):
        for folder in (ROOT / at / path, *(ROOT / at / path).parents):  # a limit of any of them is one
            if (folder / most).exists() and (limit := (folder / most).read_text().strip()) != "max":
                cache = re.findall(r"^(?:in)?active_file (\d+)", (folder / "memory.stat").read_text(), re.M)
                found.append(int(limit) - int((folder / used).read_text()) + sum(map(int, cache)))  # cache can go
    return max(0, min(found))


def allocated(run, device):
    """The most bytes that run() had allocated at once, from the GPU's allocator or from the profiler of the CPU."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        with peak(device) as used:
            run()
        return used.bytes - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def measure(method, model, k=16, context=700, n_step=2, **settings):
    """(estimated, measured) peak bytes, beside the weights, of adapting to a random task by a method."""
    Config, task = KNOWN[method].Config, random_task(k, context, model.config.vocab_size)
    steps = {f.name: n_step for f in fields(Config) if f.name in ("n_step", "ttt_n_step")}
    config = Config(**steps | settings)
    guess = estimate_on(model, method, config, task)
    return guess.beside, allocated(lambda: KNOWN[method].adapt(model, task, config), model.device)


def main():
    known = [name for name in METHODS if name != "zero_shot"]  # which has nothing to measure
    p = cli.Parser(prog="nanoct memory", description=__doc__)
    p.add_argument("--methods", nargs="+", choices=[*KNOWN, "map"], default=known, help="map: the nine of MAP")
    p.add_argument("--context", type=int, default=700, help="tokens of 16 demos")
    p.add_argument("--device")
    p.add_argument("--dtype")
    args = p.parse_args()
    device = pick_device(args.device)
    model = Llama(replace(SMALL, n_position=2 * args.context)).init_weights(torch.Generator().manual_seed(0))
    model.requires_grad_(False).to(device, resolve_dtype(args.dtype, device))
    rows = []
    for method in tqdm(expand(args.methods)):
        for model.checkpoint in (False, True) if hasattr(KNOWN[method].Config, "n_step") else (False,):
            guess, measured = measure(method, model, context=args.context)
            rows.append([method, "yes" if model.checkpoint else "", f"{guess / 1e6:.1f}", f"{measured / 1e6:.1f}",
                         f"{guess / measured:.2f}"])
    print(table(rows, ["method", "checkpoint", "estimated MB", "measured MB", "ratio"]))


if __name__ == "__main__":
    cli.run(main)
