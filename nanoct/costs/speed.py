"""Time a CT-KV step and the same in transformers (one_step.py), then every method and its peer in another library.

    nanoct speed                        # a random Llama, 24M + vocabularies of 32,000 and 128,000
    nanoct speed --model llama-3.2-1b --device cuda         # true size, random weights, bfloat16
    nanoct speed --model llama-3-8b --device cuda --checkpoint --k 10 --context 1900
    nanoct speed --model meta-llama/Llama-3.2-1B --context 1400

Time does not depend on the values of the weights. peers.py holds what nanoct is compared with.

The first table is one_step.py's. The second is about every method and its peer, with the paper's settings for BBH
(presets.py): seconds a step and a task, the peak of memory beside the weights, and memory.py's estimate. The matrix
rate is the speed of one large product in the same dtype and run. Where both start from the same numbers, their first
losses must agree, or no time is reported.
"""

import json
from dataclasses import asdict, replace
from importlib import util
from pathlib import Path
from statistics import median
from warnings import warn

import torch
from tqdm import tqdm

from nanoct import cli
from nanoct.benchmarks.presets import SETTINGS
from nanoct.costs import memory, one_step, peers
from nanoct.costs.one_step import adapting, seconds
from nanoct.costs.task import SPREAD, random_task
from nanoct.io.weights import fetch, load_model, pick_device, read_config, resolve_dtype
from nanoct.methods import METHODS
from nanoct.model import Llama, LlamaConfig
from nanoct.runs.results import machine
from nanoct.runs.table import table

SIZES = {  # named after the weights of the body: all but the embedding, which is also the head
    "24m": dict(n_layer=8, n_head=8, n_kv_head=4, n_embd=512, head_dim=64, n_ffn=1440),
    "llama-3.2-1b": dict(n_layer=16, n_head=32, n_kv_head=8, n_embd=2048, head_dim=64, n_ffn=8192, vocab_size=128256),
    "llama-3.2-3b": dict(n_layer=28, n_head=24, n_kv_head=8, n_embd=3072, head_dim=128, n_ffn=8192, vocab_size=128256),
    "llama-3-8b": dict(n_layer=32, n_head=32, n_kv_head=8, n_embd=4096, head_dim=128, n_ffn=14336, vocab_size=128256,
                       tied=False),
    "tiny": dict(n_layer=2, n_head=4, n_kv_head=2, n_embd=32, head_dim=8, n_ffn=48),
}
KNOWN = [method for method in METHODS if method != "zero_shot"]  # which costs nothing
PRESET = "bbh"
SAME_START = "prompt_tuning", "prefix_tuning", "lora", "dora"  # no random number shows in their first loss


def matrix_rate(device, dtype):
    """FLOPs a second of one large matrix product, the best of ten."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 / min(seconds(lambda: a @ a, device)[1] for _ in range(10))


def estimate(model, method, config, task):
    """memory.py's Estimate, or None for a method that does not say what it stores and computes."""
    lengths = memory.Lengths(0, [(len(d.x), len(d.y)) for d in task.demos], 1)
    try:
        return memory.estimate(model.config, method, asdict(config), lengths, model.dtype, model.checkpoint,
                               model.device.type == "cuda")
    except ValueError as error:
        warn(str(error))
        return None


def whole(model, theirs, method, task, repeat, rate):
    """Measure a method and its peer: a line each. Raises ValueError if their first losses differ."""
    config = METHODS[method].Config(**SETTINGS[PRESET].get(method, {}))
    says, n_step, lines = estimate(model, method, config, task), getattr(config, "n_step", 0), []
    common = dict(method=method, n_step=n_step, flops_step=says and says.flops_step,
                  estimated_bytes=says and says.beside)

    def add(who, run):
        line = dict(who=who, seconds_step=None, seconds_task=None, peak_bytes=None, loss=None, share=None)
        try:
            peak_bytes, step, others, loss = run()
            line |= dict(seconds_step=step, seconds_task=others + max(0, n_step - 1) * step, peak_bytes=peak_bytes,
                         loss=loss, share=says.flops_step / step / rate if says and step else None)
        except torch.OutOfMemoryError:
            pass
        lines.append(common | line)

    def ours():
        changed = lambda n, *names: replace(config, **{name: n for name in names if hasattr(config, name)})
        few = changed(2, "n_step", "ttt_n_step")  # AdamW has its moments from the second step on
        peak_bytes = memory.allocated(lambda: METHODS[method].adapt(model, task, few), model.device)  # and the warm-up
        steps, others, loss = adapting(model, method, changed(repeat + 1, "n_step"), task)
        return peak_bytes, median(steps) if steps else 0.0, others, loss

    def of_peer(step):
        losses = []
        n = 2 if n_step else 1
        peak_bytes = memory.allocated(lambda: losses.extend(step() for _ in range(n)), model.device)
        time = median([seconds(step, model.device)[1] for _ in range(repeat + 1)][1:])
        return peak_bytes, time if n_step else 0.0, time, losses[0]

    add("nanoct", ours)
    if theirs is not None and (found := peers.peer(model, theirs, method, config, task)):
        who, step = found
        add(who, lambda: of_peer(step))
        step.undo()
        mine, other = (line["loss"] for line in lines)
        tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
        if method in SAME_START and None not in (mine, other) and abs(mine - other) > tolerance * abs(mine):
            raise ValueError(f"{method}: the first loss is {mine:.4f} in nanoct and {other:.4f} in {who}; this is not "
                             "the same step, so no time is reported.")
    return lines


def number(value, form):
    """A measured value as text; what ran out of memory has None."""
    return "out of memory" if value is None else form.format(value)


def report_whole(lines, rate):
    """Print the second table."""
    rows = []
    for line in lines:
        mine = next(other for other in lines if other["method"] == line["method"] and other["who"] == "nanoct")
        steps, is_mine = line["n_step"] > 0, line is mine
        what = "seconds_step" if steps else "seconds_task"
        times = [number(line["seconds_step"], "{:.3f}") if steps else "", number(line["seconds_task"], "{:.2f}"),
                 f"{line[what] / mine[what]:.2f}" if line[what] and mine[what] else ""]
        sizes = [number(line["peak_bytes"] and line["peak_bytes"] / 1e6, "{:,.0f}"),
                 f"{line['estimated_bytes'] / 1e6:,.0f}" if is_mine and line["estimated_bytes"] else "",
                 f"{line['flops_step'] / 1e9:,.0f}" if steps and line["flops_step"] else "",
                 f"{line['share']:.0%}" if line["share"] else ""]
        rows.append([line["method"], line["who"], *times, *sizes])
    header = "method", "who", "s a step", "s a task", "ratio", "peak MB", "estimated", "GFLOP a step", "of matrix rate"
    print(table(rows, header))
    print(f"matrix rate {rate / 1e12:.3f} TFLOP/s; peak beside the weights; a task at the steps of {PRESET}'s preset")


def compare(model, theirs, methods, task, repeat, about, file):
    """Measure the methods one after another, appending lines to a file as they come, and print the table."""
    rate, lines = matrix_rate(model.device, model.dtype), []
    about = about | dict(rate=rate, checkpoint=model.checkpoint, dtype=str(model.dtype).removeprefix("torch."),
                         config=asdict(model.config))
    for method in tqdm(methods, desc="methods"):
        new = whole(model, theirs, method, task, repeat, rate)
        lines += new
        append(file, [line | about for line in new])
    report_whole(lines, rate)


# --- the command ---


def append(file, lines):
    """Add lines to a file of JSON lines. Raises OSError with a sentence if that cannot be."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a") as f:
            f.writelines(json.dumps(line) + "\n" for line in lines)
    except OSError as error:
        raise OSError(f"cannot write {file} ({error.strerror}): give another file with --out.") from None


def load(name, vocab_size, context, device, dtype, alone=False):
    """The model (random for a name of SIZES), and the same in transformers, None if alone or without transformers."""
    alone = alone or not util.find_spec("transformers")
    if name in SIZES:
        sizes = dict(vocab_size=32000) | SIZES[name] | ({} if vocab_size is None else dict(vocab_size=vocab_size))
        with torch.device(device):
            model = Llama(LlamaConfig(n_position=2 * context, **sizes)).requires_grad_(False).eval().to(dtype)
        model.init_weights(torch.Generator(device).manual_seed(0))
        return model, None if alone else peers.twin(model)
    if not isinstance(read_config(fetch(name, weights=False)), LlamaConfig):
        raise ValueError(f"--model {name} is no Llama, but the peers are: give a Llama, or the name of a random one.")
    folder = fetch(name)
    return load_model(folder, device, dtype), None if alone else peers.load(folder, dtype, device)


def main():
    p = cli.Parser(prog="nanoct speed", description=__doc__)
    p.add_argument("--model", default="24m", help=f"random: {', '.join(SIZES)}; or a folder or hub name; default: 24m")
    p.add_argument("--vocab", nargs="+", type=int, help="vocabularies of the random Llama; default: 32000 128000")
    p.add_argument("--k", type=int, default=16, help="demos")
    p.add_argument("--context", type=int, default=700, help="tokens of all demos together")
    p.add_argument("--spread", type=float, default=SPREAD, help="std / mean of the pairs' lengths; 0: nothing to pad")
    p.add_argument("--device", help="cuda or cpu; default: cuda if there is one")
    p.add_argument("--dtype", help="default: bfloat16 on cuda, float32 elsewhere")
    p.add_argument("--repeat", type=int, default=5, help="rounds, after one of warm-up")
    p.add_argument("--methods", nargs="*", choices=KNOWN, default=KNOWN,
                   help="of the second table; default: all; none: no second table")
    p.add_argument("--checkpoint", action="store_true",
                   help="recompute activations in the backward pass, here and in the peers")
    p.add_argument("--alone", action="store_true", help="without the peers")
    p.add_argument("--out", default="results/speed.jsonl",
                   help="file that lines are appended to; those of the second table go to costs.jsonl beside it")
    args = p.parse_args()
    device, out, is_random = pick_device(args.device), Path(args.out), args.model in SIZES
    if args.repeat < 1:
        raise ValueError(f"--repeat {args.repeat} must be at least 1.")
    if args.vocab and (not is_random or min(args.vocab) < 2):
        raise ValueError(f"--vocab {min(args.vocab)} with --model {args.model}: it sizes a random Llama, and is 2 or "
                         "more.")
    append(out, [])  # is there a place for the lines?
    has_its_own = not is_random or "vocab_size" in SIZES[args.model]
    vocabularies = args.vocab or ([None] if has_its_own else [32000, 128000])
    for vocab_size in vocabularies:
        dtype = resolve_dtype(args.dtype, device)
        model, theirs = load(args.model, vocab_size, args.context, device, dtype, args.alone)
        model.checkpoint = args.checkpoint
        if theirs is not None and args.checkpoint:
            theirs.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
        if theirs is None and not args.alone:
            print("transformers is not installed, so nanoct runs alone; for the comparison: pip install -e '.[test]'")
        task = random_task(args.k, args.context, model.config.vocab_size, args.spread)
        about = dict(model_name=args.model, spread=args.spread) | machine(device)
        lines = [line | about for line in one_step.measure(model, theirs, task, args.repeat)]
        one_step.report(lines)
        append(out, lines)
        if args.methods and vocab_size == vocabularies[0]:
            about |= dict(k=args.k, context=args.context)
            compare(model, theirs, args.methods, task, args.repeat, about, out.with_name("costs.jsonl"))


if __name__ == "__main__":
    cli.run(main)
