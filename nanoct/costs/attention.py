"""Masked attention with fewer KV heads: which kernel does it, how fast, and what it stores. See model.attend.

    python -m nanoct.costs.attention                  # on the GPU if there is one
    python -m nanoct.costs.attention --dtype float32

A CT-KV step is one row of T tokens behind a prefix of P entries, with a mask of T x S, S = P + T. Llama has H query
heads and K < H heads of keys and values, each of width D. Three calls of torch's scaled_dot_product_attention do this:

    grouped     K heads as they are, enable_gqa=True
    repeated    every KV head repeated H/K times
    folded      the H/K query heads of a KV head as further rows, with the mask repeated for them

One forward and backward pass is 14·H·D·T·S FLOPs (4 forward, 10 backward; masked scores count). A line has the median
of seconds, the peak of memory beside the inputs, the kernels, and the relative error against float64.

Measured on an H100: in bfloat16 cuDNN's kernel does all three and stores no scores. Grouped is the fastest, by 1.1 to
2.4 times over repeated. In float32 grouped falls back on plain matrix products, which store all H·T·S scores: 4.3 GB
where repeated takes 0.4. There repeated is as fast or faster than both others but for 60 tokens, where folded is.
"""

import math
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from nanoct import cli
from nanoct.costs import memory
from nanoct.costs.one_step import seconds
from nanoct.costs.speed import append, number
from nanoct.model import alike
from nanoct.runs.report import table
from nanoct.runs.results import machine
from nanoct.weights import pick_device, resolve_dtype

SHAPES = {  # heads, KV heads, width of a head, tokens of the row, entries of the prefix: steps of CT-KV
    "SmolLM2-135M on words": (9, 3, 64, 60, 70),
    "SmolLM2-135M on BBH": (9, 3, 64, 620, 716),
    "Llama-3-8B on BBH": (32, 8, 128, 620, 716),
    "Llama-3-8B, long": (32, 8, 128, 2000, 2048),
}


def grouped(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def repeated(q, k, v, mask):
    H = q.shape[1]
    return F.scaled_dot_product_attention(q, alike(k, H), alike(v, H), attn_mask=mask)


def folded(q, k, v, mask):
    (B, H, T, D), K = q.shape, k.shape[1]
    n = H // K
    rows = q.reshape(B, K, n * T, D)  # a group's heads one after another
    return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask.repeat(1, 1, n, 1)).reshape(B, H, T, D)


WAYS = dict(grouped=grouped, repeated=repeated, folded=folded)


def inputs(shape, device, dtype, seed=0):
    """Random q (1, H, T, D), k, v (1, K, P+T, D) and an additive mask (1, 1, T, P+T), a third of the prefix hidden."""
    H, K, D, T, P = shape
    generator = torch.Generator(device).manual_seed(seed)
    draw = lambda n_head, n: torch.randn(1, n_head, n, D, generator=generator, device=device).to(dtype)
    hidden = torch.rand(T, P + T, generator=generator, device=device) < 1 / 3
    hidden[:, P:] = ~torch.ones(T, T, dtype=torch.bool, device=device).tril()
    mask = torch.zeros(1, 1, T, P + T, dtype=dtype, device=device).masked_fill_(hidden, -math.inf)
    return [part.requires_grad_() for part in (draw(H, T), draw(K, P + T), draw(K, P + T))], mask


def both(way, parts, mask, out):
    """One forward and backward pass: the output and the gradients of q, k, v."""
    y = way(*parts, mask)
    return [y.detach(), *torch.autograd.grad(y, parts, out)]


def kernels(run, device):
    """Names of the three kernels (on the CPU operators) that took longest."""
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiled:
        run()
    time = lambda event: event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
    return [event.key[:90] for event in sorted(profiled.key_averages(), key=time, reverse=True)[:3]]


def measure(name, device, dtype, repeat):
    """A line for each of the WAYS on one of the SHAPES. A way that runs out of memory has no numbers."""
    parts, mask = inputs(SHAPES[name], device, dtype)
    H, K, D, T, P = SHAPES[name]
    out = torch.randn_like(parts[0])
    double = [part.detach().double().requires_grad_() for part in parts]
    exact, lines = both(repeated, double, mask.double(), out.double()), []
    for way, function in WAYS.items():
        run = lambda: both(function, parts, mask, out)
        line = dict(shape=name, way=way, H=H, K=K, D=D, T=T, P=P, dtype=str(dtype).removeprefix("torch."),
                    seconds=None, flops_per_second=None, peak_bytes=None, error=None, kernels=[])
        try:
            error = max(((a - b).norm() / b.norm()).item() for a, b in zip(run(), exact))
            peak_bytes = memory.allocated(run, device)
            times = [seconds(run, device)[1] for _ in range(repeat)]
            flops = 14 * H * D * T * (P + T)
            line |= dict(seconds=median(times), flops_per_second=flops / median(times), peak_bytes=peak_bytes,
                         error=error, kernels=kernels(run, device))
        except torch.OutOfMemoryError:
            pass
        lines.append(line)
    return lines


def report(lines):
    """Print a table of the lines."""
    rows = [[x["shape"], x["way"], number(x["seconds"] and 1e3 * x["seconds"], "{:.3f}"),
             number(x["peak_bytes"] and x["peak_bytes"] / 1e6, "{:,.1f}"), number(x["error"], "{:.0e}"),
             number(x["flops_per_second"] and x["flops_per_second"] / 1e12, "{:.2f}"),
             x["kernels"][0][:50] if x["kernels"] else ""] for x in lines]
    print(table(rows, ["shape", "way", "ms", "peak MB", "error", "TFLOP/s", "kernel"]))


def main():
    p = cli.Parser(prog="nanoct.costs.attention", description=__doc__)
    p.add_argument("--device", help="cuda or cpu; default: cuda if there is one")
    p.add_argument("--dtype", help="default: bfloat16 on cuda, float32 elsewhere")
    p.add_argument("--repeat", type=int, default=30, help="passes, of which the median is taken")
    p.add_argument("--out", default="results/attention.jsonl", help="file that lines are appended to")
    args = p.parse_args()
    cli.at_least_one(args, "repeat")
    device, out = pick_device(args.device), Path(args.out)
    dtype, lines = resolve_dtype(args.dtype, device), []
    append(out, [])  # is there a place for the lines?
    for name in tqdm(SHAPES, desc="shapes"):
        new = [line | machine(device) for line in measure(name, device, dtype, args.repeat)]
        lines += new
        append(out, new)
    print(f"{lines[0]['device']}, {lines[0]['dtype']}")
    report(lines)


if __name__ == "__main__":
    cli.run(main)
