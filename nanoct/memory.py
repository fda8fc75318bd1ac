"""Bytes and FLOPs of a method before it is run, and the peak of what was run.

    python -m nanoct.memory                 # estimated against measured, a random model on the CPU, minutes

With b bytes a number (4 or 2), L layers, H heads, K KV heads, D head_dim, C n_embd, F n_ffn, V vocab; a step runs B rows
of T tokens against S = P + T keys, n of the tokens have logits. Bytes beside the weights:

    theta       4·|leaves| five times: value, gradient, AdamW's two, the last good one; and b·2·L·K·D·P for the context they
                began as (CT-KV)
    saved       what the backward pass keeps: L·B·T·(8·C + b·(2·H·D + 3·F) + 4·H) for the norms' inputs (float32), queries and outputs of
                attention, the MLP's three (GPT-2: 2·b·C for the norms, b·F for the MLP), L·B·S·b·2·K·D for keys and values,
                and b·B·T·S for the mask. An adapter adds, for every linear of its, B·T·(5·in + 4·rank) (its input with dropout
                and the mask of that, and the inner product; in bfloat16 4·in more), DoRA 8·out more.
                With model.checkpoint, b·B·T·C a layer, and one layer of the above.
    logits      4·n·V three times: logits, their log-softmax, its gradient
    passing     b·B·T·4·F: what the MLP's backward pass has at a time

FLOPs of a step: 4·N·B·T for N weights in the body (forward and the gradient of the inputs), 12·L·H·D·B·T·S for attention,
4·V·C·n for logits; a third of the first two more with checkpoint.
"""

import ctypes
import gc
import os
import platform
import resource
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import torch

from nanoct import cli
from nanoct.adapters import TARGETS
from nanoct.gpt2 import GPT2, GPT2Config
from nanoct.model import Llama, LlamaConfig
from nanoct.weights import pick_device, resolve_dtype


@dataclass
class Lengths:
    """Tokens of a task: of its instruction, of x and y of every demo (separator included), of the longest query with its answer."""

    instruction: int
    demos: list
    query: int
    n_row: int = 1024  # of a packed row when it is scored

    @property
    def context(self):
        return self.instruction + sum(x + y for x, y in self.demos)


@dataclass
class Estimate:
    """Bytes of each part, and FLOPs of adapting and of one step."""

    weights: int = 0
    theta: int = 0
    saved: int = 0
    logits: int = 0
    passing: int = 0
    flops: float = 0.0
    flops_step: float = 0.0

    @property
    def beside(self):
        """Peak beside the weights."""
        return self.theta + self.saved + self.logits + self.passing

    @property
    def total(self):
        return self.weights + self.beside


def shapes(config):
    """{name: (out, in)} of the linears, and the number of weights in all, of a model that is not built."""
    with torch.device("meta"):
        model = (GPT2 if isinstance(config, GPT2Config) else Llama)(config)
    return {name: tuple(layer.weight.shape) for name, layer in model.linears.items()}, sum(p.numel() for p in model.parameters())


def estimate(config, method, settings, lengths, dtype=torch.float32, checkpoint=False):
    """The Estimate of a method (its name) with settings {field: value} on a task of these Lengths; formulas above."""
    c, b, s = config, torch.finfo(dtype).bits // 8, SimpleNamespace(**settings)
    linears, n_weight = shapes(config)
    body = sum(out * n_in for out, n_in in linears.values())
    kv = 2 * c.n_layer * c.n_kv_head * c.head_dim  # numbers of a token's keys and values
    P, rows = lengths.context, [x + y - 1 for x, y in lengths.demos]
    T, n, k = sum(rows), sum(y for _, y in lengths.demos), len(rows)
    headed = T + k * lengths.instruction

    def saved(B, T, S, low_rank=False):
        per_token = (2 * b * c.n_embd if isinstance(c, GPT2Config) else 8 * c.n_embd) + 4 * c.n_head
        per_token += b * (2 * c.n_head * c.head_dim + (1 if isinstance(c, GPT2Config) else 3) * c.n_ffn)
        layers = c.n_layer * (B * T * per_token + B * S * b * 2 * c.n_kv_head * c.head_dim)
        if low_rank:
            per_linear = lambda out, n_in: (5 + 4 * (b == 2)) * n_in + 4 * s.rank + 8 * out * (method == "dora")
            layers += B * T * sum(per_linear(*shape) for name, shape in linears.items() if name.split(".")[-1] in TARGETS)
        if checkpoint:
            layers = layers / c.n_layer + c.n_layer * b * B * T * c.n_embd
        return layers + b * B * T * S + 4 * B * T * c.n_embd

    def step(B, T, S):
        return (1 + checkpoint / 2) * (4 * body * B * T + 12 * c.n_layer * c.n_head * c.head_dim * B * T * S)

    low_rank = sum(s.rank * sum(shape) + shape[0] * (method == "dora") for name, shape in linears.items()
                   if name.split(".")[-1] in TARGETS) if hasattr(s, "rank") else 0
    found = Estimate(weights=b * n_weight)
    trained, start = 0, 0  # numbers
    read = lambda T: 2 * body * T + 4 * c.n_layer * c.n_head * c.head_dim * T * T / 2
    before = 0
    if method in ("zero_shot", "icl"):
        context = lengths.instruction if method == "zero_shot" else P
        found.theta, found.passing, found.flops = b * kv * context, b * max(context, lengths.n_row) * 4 * c.n_ffn, read(context)
        return found
    if method == "prompt_tuning":
        trained, B, M, S = s.n_prefix * c.n_embd, 1, headed + s.n_prefix, headed + 2 * s.n_prefix
        found.saved = saved(1, headed, headed + s.n_prefix) + saved(1, s.n_prefix, s.n_prefix)
        found.flops_step = step(1, headed, headed + s.n_prefix) + step(1, s.n_prefix, s.n_prefix)
    elif method == "prefix_tuning":
        trained, start = s.n_prefix * kv, s.n_prefix * kv
        found.saved, found.flops_step, B, M = saved(1, headed, headed + s.n_prefix), step(1, headed, headed + s.n_prefix), 1, headed
    elif method in ("lora", "dora"):
        trained, B, M = low_rank, 1, headed
        found.saved, found.flops_step = saved(1, headed, headed, True), step(1, headed, headed)
    elif method == "ttt":
        trained, B, M, n = low_rank, s.batch, P - 1, n * s.batch
        found.saved, found.flops_step = saved(s.batch, P - 1, P - 1, True), step(s.batch, P - 1, P - 1)
        before = read(P)
    elif method == "ct_prompt":
        trained, B, M = P * c.n_embd, k, P
        found.saved = saved(k, P, P) + saved(1, T, k * P + T) + c.n_layer * b * k * P * 2 * c.n_kv_head * c.head_dim
        found.flops_step = step(k, P, P) + step(1, T, k * P + T)
        before = read(P)
    elif method == "ct_kv":
        trained, start, B, M = P * kv, P * kv, 1, T
        found.saved, found.flops_step, before = saved(1, T, P + T), step(1, T, P + T), read(P)
    elif method == "ttt_ct_kv":
        first = {f: getattr(s, f) for f in ("batch", "rank", "alpha", "dropout")} | dict(n_step=s.ttt_n_step)
        ttt = estimate(c, "ttt", first, lengths, dtype, checkpoint)
        trained, start, B, M = P * kv, P * kv, 1, T
        found.saved, found.flops_step, before = saved(1, T, P + T, True), step(1, T, P + T), ttt.flops + read(P)
        found.theta = 4 * low_rank
    found.theta += 5 * 4 * trained + b * start
    found.logits, found.passing = 3 * 4 * n * c.vocab_size, b * B * M * 4 * c.n_ffn
    found.flops_step += 4 * c.vocab_size * c.n_embd * n
    found.flops = before + s.n_step * found.flops_step
    if method == "ttt_ct_kv" and ttt.beside > found.beside:
        found.theta, found.saved, found.logits, found.passing = ttt.theta, ttt.saved, ttt.logits, ttt.passing
    return found


@contextmanager
def peak(device):
    """with peak(device) as used: …; used.bytes is then the peak: allocated on a GPU, resident in all on the CPU (0 if unknown)."""
    used = SimpleNamespace(bytes=0)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _reset_resident_peak()
    yield used
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        used.bytes = torch.cuda.max_memory_allocated(device)
    else:
        used.bytes = resident_peak()


def _reset_resident_peak():
    if os.access("/proc/self/clear_refs", os.W_OK):  # Linux can start the peak anew; elsewhere it is the peak so far
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, or it would hide what follows
        Path("/proc/self/clear_refs").write_text("5")


def resident_peak():
    """Peak of the resident bytes of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def measure(method, model, k=16, context=700, n_step=2):
    """(estimated, measured) peak bytes beside the weights of a method on a random task."""
    from nanoct.methods import METHODS  # here, since methods know nothing of their price
    from nanoct.speed import random_task

    task = random_task(k, context, model.config.vocab_size)
    settings = {f.name: f.default for f in fields(METHODS[method].Config)} | {
        name: n_step for name in ("n_step", "ttt_n_step") if name in METHODS[method].Config.__dataclass_fields__}
    lengths = Lengths(len(task.instruction), [(len(demo.x), len(demo.y)) for demo in task.demos], 1)
    guess = estimate(model.config, method, settings, lengths, model.dtype, model.checkpoint)
    with peak(model.device):  # starts the count
        pass
    before = resident_peak() if model.device.type == "cpu" else torch.cuda.memory_allocated(model.device)
    with peak(model.device) as used:
        METHODS[method].adapt(model, task, METHODS[method].Config(**settings))
    return guess.beside, used.bytes - before


def main():
    from nanoct.methods import METHODS
    from nanoct.report import table

    p = cli.Parser(prog="nanoct.memory", description=__doc__.split("\n")[0])
    known = [name for name in METHODS if name != "zero_shot"]  # which has nothing to measure
    p.add_argument("--methods", nargs="+", choices=known, default=known)
    p.add_argument("--context", type=int, default=700, help="tokens of 16 demos")
    p.add_argument("--device")
    p.add_argument("--dtype")
    args = p.parse_args()
    device = pick_device(args.device)
    if device.type == "cpu":  # large blocks come from and go back to the system one by one
        getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)(-3, 2**20)
    config = LlamaConfig(vocab_size=32000, n_layer=8, n_head=8, n_kv_head=4, n_embd=512, head_dim=64, n_ffn=1440, n_position=2 * args.context)
    model = Llama(config).init_weights(torch.Generator().manual_seed(0)).requires_grad_(False).to(device, resolve_dtype(args.dtype, device))
    METHODS["lora"].adapt(model, random_first(config), METHODS["lora"].Config(n_step=1))  # libraries' own memory
    rows = []
    for method in args.methods:
        for model.checkpoint in (False, True) if hasattr(METHODS[method].Config, "n_step") else (False,):
            guess, measured = measure(method, model, context=args.context)
            rows.append([method, "yes" if model.checkpoint else "", f"{guess / 1e6:.0f}", f"{measured / 1e6:.0f}", f"{guess / measured:.2f}"])
            print(f"{method}{', checkpoint' * model.checkpoint}: estimated {guess / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB", flush=True)
    print("\n" + table(rows, ["method", "checkpoint", "estimated MB", "measured MB", "ratio"]))


def random_first(config):
    from nanoct.speed import random_task

    return random_task(4, 64, config.vocab_size)


if __name__ == "__main__":
    cli.run(main)
