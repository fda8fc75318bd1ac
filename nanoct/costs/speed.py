"""Time a step of CT-KV and the same in transformers, then every method and its baseline in another library (peers.py).

    nanoct speed                        # a random Llama, 24M + vocabularies of 32,000 and 128,000
    nanoct speed --model llama-3.2-1b --device cuda         # true size, random weights, bfloat16
    nanoct speed --model llama-3-8b --device cuda --checkpoint --k 10 --context 1900
    nanoct speed --model meta-llama/Llama-3.2-1B --context 1400

Time does not depend on the values of the weights.

The first table is about one step: forward, loss on the answers, backward to keys and values, clipping, AdamW. Three
contestants do the same, on the same weights and pairs:
    nanoct                     methods/ct_kv.py itself: the packed row, logits of the answers
    transformers               as released: k right-padded rows of t tokens, sdpa, k copies of the prefix in a
                               DynamicCache, a 2-D attention mask, logits of all k·t tokens, labels of -100
    transformers, labels only  the same batch, the head on the tokens before an answer alone
They take turns, round after round, and only if their first losses and gradients agree. A step of methods/ttt.py on one
order of the demos (solved examples) is timed beside them. CT-KV makes every demo a target behind all others in one
step; TTT needs k orders for that. In its turn a method of nanoct adapts in two steps: the first warms up, the second is
timed. FLOPs with N weights in the body: 4·N·T + 12·L·H·D·T·S + 4·V·C·n for T tokens against S keys, n of them with
logits. This is forward and the gradient of the inputs. Masked scores count, LoRA's own matrices do not.

The second table is about every method and its baseline, with the paper's settings for BBH (presets.py): seconds a step
and a task, the peak of memory beside the weights, and memory.py's estimate. Peak matmul throughput is the speed of one
large matrix product in the same dtype and run. Where both start from the same numbers, their first losses must agree,
or no time is reported.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import util
from pathlib import Path
from statistics import median
from warnings import warn

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from tqdm import tqdm

from nanoct import cli
from nanoct.benchmarks.presets import SETTINGS
from nanoct.costs import memory, peers
from nanoct.costs.task import SPREAD, random_task
from nanoct.fewshot import encode_context
from nanoct.io.files import append_lines
from nanoct.io.weights import fetch, load_model, pick_device, read_config, resolve_dtype
from nanoct.methods import KNOWN, METHODS, ct_kv, expand, ttt
from nanoct.model import Llama, LlamaConfig
from nanoct.runs.measure import clock, peak
from nanoct.runs.results import machine
from nanoct.runs.scaling import adapting
from nanoct.runs.table import table

SIZES = {  # named after the weights of the body: all but the embedding, which is also the head
    "24m": dict(n_layer=8, n_head=8, n_kv_head=4, n_embd=512, head_dim=64, n_ffn=1440),
    "llama-3.2-1b": dict(n_layer=16, n_head=32, n_kv_head=8, n_embd=2048, head_dim=64, n_ffn=8192, vocab_size=128256),
    "llama-3.2-3b": dict(n_layer=28, n_head=24, n_kv_head=8, n_embd=3072, head_dim=128, n_ffn=8192, vocab_size=128256),
    "llama-3-8b": dict(n_layer=32, n_head=32, n_kv_head=8, n_embd=4096, head_dim=128, n_ffn=14336, vocab_size=128256,
                       tied=False),
    "tiny": dict(n_layer=2, n_head=4, n_kv_head=2, n_embd=32, head_dim=8, n_ffn=48),
}
MEASURED = [method for method in METHODS if method != "zero_shot"]  # which costs nothing
PRESET = "bbh"
SAME_START = "prompt_tuning", "prefix_tuning", "lora", "dora"  # no random number shows in their first loss


def seconds(step, device):
    """(what a step returns, its seconds)"""
    start = clock(device)
    result = step()
    return result, clock(device) - start


# --- the first table: one step of CT-KV ---


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


def own(model, method, config, task, seed=0, graphs=None):
    """A turn of a nanoct method: it adapts in two steps, and the first warms up. graphs: model.graphs in that time."""

    def turn():
        model.graphs = graphs
        try:
            steps, _, loss = adapting(model, method, replace(config, n_step=2), task, seed)
        finally:
            model.graphs = None
        if not steps:
            raise ValueError(f"{method} was stopped before its second step, as the warning says: no time is reported.")
        return loss, steps[0]

    return turn


def as_graph(model, usual, loss, tolerance, task, seed=0):
    """The usual contestant, its step as a CUDA graph that is recorded here. ValueError if its first loss differs."""
    turn = own(model, "ct_kv", ct_kv.Config(), task, seed, graphs={})
    for _ in range(2):  # four steps: three that warm up, and the recording
        found, _ = turn()
        if not abs(found - loss) <= tolerance * abs(loss):
            raise ValueError(f"the first loss is {found:.4f} in a CUDA graph and {loss:.4f} without: this is not the "
                             "same step, so no time is reported.")
    return replace(usual, turn=turn)


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


def one_step(model, theirs, task, repeat, seed=0, graph=False):
    """One line per contestant: median seconds of `repeat` rounds, the ratio to nanoct in each round, FLOPs, memory.

    graph: nanoct's step as a CUDA graph is a contestant too. Its FLOPs are counted without its padding.
    """
    contest, peaks = contestants(model, theirs, task, seed), {}
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    loss = agree(contest, tolerance)
    if graph:
        added = as_graph(model, contest["nanoct"], loss, tolerance, task, seed)
        contest = {"nanoct": contest["nanoct"], "nanoct, CUDA graph": added} | contest
    for name, contestant in contest.items():  # this is the warm-up too
        with peak(model.device) as used:  # on a CPU that of the process, which holds all contestants
            contestant.turn()
        peaks[name] = used.bytes
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


def report_one_step(lines):
    """Print the first table of one model, and what a pass over all demos costs."""
    ours, order = lines[0], lines[-1]
    print("{:.1f}M body, vocabulary {vocab_size:,}, k = {k}, {context} tokens of context, {dtype}, {device}, {threads} "
          "threads; loss {loss:.4f}".format(ours["n_body"] / 1e6, **ours))
    rows = [[line["name"], f"{line['n_token']:,}", f"{line['n_logit']:,}", f"{line['seconds']:.3f}",
             "{ratio:.2f} ({ratio_min:.2f}-{ratio_max:.2f})".format(**line),
             f"{line['peak_bytes'] / 2**20:,.0f}" if line["peak_bytes"] else "",
             f"{line['flops'] / 1e9:,.0f}", f"{line['flops_per_second'] / 1e9:,.0f}"] for line in lines]
    print(table(rows, ["step", "tokens", "logits", "seconds", "ratio (min-max)", "peak MiB", "GFLOP", "GFLOP/s"]))
    print(f"A pass with every demo a target behind all others: CT-KV {ours['seconds']:.2f} s in one step, "
          f"TTT {ours['k'] * order['seconds']:.2f} s in {ours['k']} orders, {ours['k'] * order['ratio']:.1f} times as "
          "long.\n")


# --- the second table: every method and its baseline ---


def matrix_rate(device, dtype):
    """FLOPs a second of one large matrix product, the best of ten."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 / min(seconds(lambda: a @ a, device)[1] for _ in range(10))


def of_nanoct(model, method, config, task, repeat):
    """(bytes at the peak, seconds of a step, seconds of all else, the first loss) of a method of nanoct."""
    steps_of = {name: 2 for name in ("n_step", "ttt_n_step") if hasattr(config, name)}
    few = replace(config, **steps_of)  # AdamW has its moments from the second step on
    peak_bytes = memory.allocated(lambda: KNOWN[method].adapt(model, task, few), model.device)  # and the warm-up
    timed = replace(config, n_step=repeat + 1) if steps_of else config
    steps, rest, loss = adapting(model, method, timed, task)
    return peak_bytes, median(steps) if steps else 0.0, rest, loss


def of_peer(step, trains, repeat, device):
    """The same for the Step of a baseline."""
    losses = []
    peak_bytes = memory.allocated(lambda: losses.extend(step() for _ in range(2 if trains else 1)), device)
    time = median([seconds(step, device)[1] for _ in range(repeat + 1)][1:])
    return peak_bytes, time if trains else 0.0, time, losses[0]


def whole(model, theirs, method, task, repeat, rate):
    """Measure a method and its baseline: a line each. Raises ValueError if their first losses differ."""
    config = KNOWN[method].Config(**SETTINGS[PRESET].get(method, {}))
    n_step = getattr(config, "n_step", 0)
    try:
        says = memory.estimate_on(model, method, config, task)
    except ValueError as error:  # the method does not say what it stores and computes
        warn(str(error))
        says = None

    def line(who, run):
        """What run() measures; None in all fields if it runs out of memory."""
        measured = dict(seconds_step=None, seconds_task=None, peak_bytes=None, loss=None, share=None)
        try:
            peak_bytes, step, rest, loss = run()
            share = says.flops_step / step / rate if says and step else None
            measured = dict(seconds_step=step, seconds_task=rest + max(0, n_step - 1) * step, peak_bytes=peak_bytes,
                            loss=loss, share=share)
        except torch.OutOfMemoryError:
            pass
        return dict(method=method, n_step=n_step, flops_step=says and says.flops_step,
                    estimated_bytes=says and says.beside, who=who, **measured)

    mine = line("nanoct", lambda: of_nanoct(model, method, config, task, repeat))
    found = peers.peer(model, theirs, method, config, task) if theirs is not None else None
    if found is None:
        return [mine]
    who, step = found
    other = line(who, lambda: of_peer(step, n_step > 0, repeat, model.device))
    step.undo()
    tolerance, losses = 1e-3 if model.dtype == torch.float32 else 5e-2, (mine["loss"], other["loss"])
    if method in SAME_START and None not in losses and abs(losses[0] - losses[1]) > tolerance * abs(losses[0]):
        raise ValueError(f"{method}: the first loss is {losses[0]:.4f} in nanoct and {losses[1]:.4f} in {who}; this is "
                         "not the same step, so no time is reported.")
    return [mine, other]


def number(value, form):
    """A measured value as text; None means that the run ran out of memory."""
    return "out of memory" if value is None else form.format(value)


def report_whole(lines, rate):
    """Print the second table."""
    seconds_of = {}  # nanoct's seconds of a method, to which ratios refer
    rows = []
    for line in lines:
        trains, is_ours = line["n_step"] > 0, line["who"] == "nanoct"
        compared = line["seconds_step" if trains else "seconds_task"]
        if is_ours:
            seconds_of[line["method"]] = compared
        reference, peak_bytes = seconds_of[line["method"]], line["peak_bytes"]
        rows.append([
            line["method"], line["who"],
            number(line["seconds_step"], "{:.3f}") if trains else "",
            number(line["seconds_task"], "{:.2f}"),
            f"{compared / reference:.2f}" if compared and reference else "",
            number(peak_bytes and peak_bytes / 1e6, "{:,.0f}"),
            f"{line['estimated_bytes'] / 1e6:,.0f}" if is_ours and line["estimated_bytes"] else "",
            f"{line['flops_step'] / 1e9:,.0f}" if trains and line["flops_step"] else "",
            f"{line['share']:.0%}" if line["share"] else "",
        ])
    header = "method", "who", "s a step", "s a task", "ratio", "peak MB", "estimated", "GFLOP a step", "of peak"
    print(table(rows, header))
    print(f"peak matmul throughput {rate / 1e12:.3f} TFLOP/s; MB beside the weights; a task with {PRESET}'s preset")


def compare(model, theirs, methods, task, repeat, about, file):
    """Measure the methods one after another, appending lines to a file as they come, and print the table."""
    rate, lines = matrix_rate(model.device, model.dtype), []
    about = about | dict(rate=rate, checkpoint=model.checkpoint, dtype=str(model.dtype).removeprefix("torch."),
                         config=asdict(model.config))
    for method in tqdm(methods, desc="methods"):
        new = whole(model, theirs, method, task, repeat, rate)
        lines += new
        append_lines(file, [line | about for line in new])
    report_whole(lines, rate)


# --- the command ---


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
        raise ValueError(f"--model {name} is not a Llama, as the baselines are: give one, or the name of a random one.")
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
    p.add_argument("--methods", nargs="*", choices=[*KNOWN, "map"], default=MEASURED,
                   help="of the second table; default: the paper's; map: the nine of MAP; none: no second table")
    p.add_argument("--checkpoint", action="store_true",
                   help="recompute activations in the backward pass, here and in the baselines")
    p.add_argument("--graph", action="store_true",
                   help="a row of the first table for CT-KV's step as a CUDA graph, which has never run on a GPU")
    p.add_argument("--alone", action="store_true", help="without the baselines")
    p.add_argument("--out", default="results/speed.jsonl",
                   help="file that lines are appended to; those of the second table go to costs.jsonl beside it")
    args = p.parse_args()
    device, out, is_random = pick_device(args.device), Path(args.out), args.model in SIZES
    if args.repeat < 1:
        raise ValueError(f"--repeat {args.repeat} must be at least 1.")
    if args.vocab and (not is_random or min(args.vocab) < 2):
        raise ValueError(f"--vocab {min(args.vocab)} with --model {args.model}: it sizes a random Llama, and is 2 or "
                         "more.")
    if args.graph:
        cli.need_gpu("--graph", device)
    append_lines(out, [])  # is there a place for the lines?
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
        lines = [line | about for line in one_step(model, theirs, task, args.repeat, graph=args.graph)]
        report_one_step(lines)
        append_lines(out, lines)
        if args.methods and vocab_size == vocabularies[0]:
            about |= dict(k=args.k, context=args.context)
            compare(model, theirs, expand(args.methods), task, args.repeat, about, out.with_name("costs.jsonl"))


if __name__ == "__main__":
    cli.run(main)
