"""What every method costs on one task: seconds a step and a task, peak memory, share of the matrix rate, beside the peers.

    python -m nanoct.costs                                                # a random Llama, 24M and a vocabulary of 32,000
    python -m nanoct.costs --model llama-3.2-1b --device cuda             # true sizes, random weights, bfloat16
    python -m nanoct.costs --model llama-3-8b --device cuda --checkpoint --k 10 --context 1900

Time does not depend on what the weights are. The task is speed.py's: k pairs of random ids. Peers do the same work in the
usual way, k right-padded rows, logits of every token, labels of -100:
    ICL                    transformers reads the demos into its cache
    prompt, prefix tuning  transformers, k copies of the trained embeddings or of the trained cache
    LoRA, DoRA, TTT        peft, TTT on batch orders of all demos
    CT-Prompt              transformers, k copies of the demos' trained embeddings, each with its mask, the pair behind
    CT-KV                  as in speed.py
Where both start from the same numbers their first losses must agree, or no time is reported. A step's FLOPs and the
memory beside the weights are memory.py's; the matrix rate is that of one large product in the same dtype and run. A task
takes the paper's number of steps for BBH (presets.py).
"""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from nanoct import adapters, cli, memory, speed
from nanoct.fewshot import encode_context, first_tokens, visible
from nanoct.methods import METHODS, ttt
from nanoct.presets import SETTINGS
from nanoct.report import table
from nanoct.weights import pick_device, resolve_dtype

PRESET = "bbh"


def ours(model, method, config, task, repeat):
    """(seconds of a step, seconds of all but the steps, first loss) of a method: medians of `repeat` steps after one of warm-up."""
    times, losses = [], []

    def progress(step, loss):
        times.append(time.perf_counter())  # after the loss has come to the CPU
        losses.append(loss)

    n = {name: 1 for name in ("ttt_n_step",) if hasattr(config, name)} | ({"n_step": repeat + 1} if hasattr(config, "n_step") else {})
    start = time.perf_counter()
    METHODS[method].adapt(model, task, replace(config, **n), 0, progress)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    total = time.perf_counter() - start
    if not times:
        return 0.0, total, None
    steps = [after - before for before, after in zip(times[-repeat - 1 :], times[-repeat:])]
    return median(steps), total - sum(steps), losses[0]


def rows(task, device):
    """The k pairs right-padded, as transformers takes them: ids, labels, attention mask, each (k, T)."""
    pad = lambda parts, value: torch.nn.utils.rnn.pad_sequence([torch.tensor(part) for part in parts], True, value).to(device)
    return (pad([[*d.x, *d.y] for d in task.demos], 0), pad([[-100] * len(d.x) + [*d.y] for d in task.demos], -100),
            pad([[1] * (len(d.x) + len(d.y)) for d in task.demos], 0))


def peer(model, theirs, method, config, task):
    """(name, a step() of the peer, undo()), or None where there is no peer."""
    k, device = len(task.demos), model.device
    tokens, labels, real = rows(task, device)
    nothing, ids = (lambda: None), torch.tensor([[i for d in task.demos for i in (*d.x, *d.y)]], device=device)
    if method == "icl":
        return "transformers", lambda: theirs(input_ids=ids, use_cache=True, logits_to_keep=1), nothing
    if method == "ct_kv":
        return "transformers", speed.padded(theirs, task, encode_context(model, (), task.demos)), nothing
    if method == "prefix_tuning":
        start = encode_context(model, first_tokens(model, config.n_prefix), [])
        return "transformers", speed.padded(theirs, task, start, hide=False), nothing
    if method in ("prompt_tuning", "ct_prompt"):
        prompt = torch.tensor([first_tokens(model, config.n_prefix)], device=device) if method == "prompt_tuning" else ids
        owner = [i for i, d in enumerate(task.demos) for _ in (*d.x, *d.y)]
        owner = [-1] * config.n_prefix if method == "prompt_tuning" else owner
        owner, generator = torch.tensor(owner, device=device), torch.Generator().manual_seed(0)
        embeds = model.embed(prompt).detach().float().requires_grad_()  # (1, P, C)
        P, T = embeds.shape[1], tokens.shape[1]
        pairs = model.embed(tokens)
        no_label = torch.full((k, P), -100, device=device)
        positions = torch.arange(P + T, device=device).expand(k, -1)

        def loss():
            dropout = getattr(config, "token_dropout", 0.0)
            seen = visible(owner, k, method == "ct_prompt", dropout, generator)
            return theirs(inputs_embeds=torch.cat([embeds.to(pairs.dtype).expand(k, -1, -1), pairs], 1), position_ids=positions,
                          attention_mask=torch.cat([seen.to(real.dtype), real], 1), labels=torch.cat([no_label, labels], 1),
                          use_cache=False).loss

        return "transformers", speed.Step(loss, [embeds], config.lr, 0, 0, 0), nothing
    if method in ("lora", "dora", "ttt"):
        from peft import LoraConfig, get_peft_model

        targets = [name for name in adapters.TARGETS if name not in ("c_attn", "c_proj", "c_fc")]  # GPT-2's
        wrapped = get_peft_model(theirs, LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout,
                                                    use_dora=method == "dora", target_modules=targets)).train()
        leaves = [p for p in wrapped.parameters() if p.requires_grad]
        generator = torch.Generator().manual_seed(0)

        def batch():
            if method != "ttt":
                return tokens, labels, real
            orders = [torch.randperm(k, generator=generator).tolist() for _ in range(config.batch)]
            ids, is_answer = ttt.sequences(model, (), [[task.demos[i] for i in order] for order in orders])
            return ids, ids.masked_fill(~is_answer, -100), torch.ones_like(ids)

        def loss():
            ids, labels, mask = batch()
            return wrapped(input_ids=ids, labels=labels, attention_mask=mask, use_cache=False).loss

        def undo():
            wrapped.unload()
            theirs.requires_grad_(False).eval()

        return "peft", speed.Step(loss, leaves, config.lr, 0, 0, 0), undo
    return None


def matrix_rate(device, dtype):
    """FLOPs a second of one large matrix product, the best of ten."""
    n = 8192 if device.type == "cuda" else 1024
    a, times = torch.randn(n, n, device=device).to(dtype), []
    for _ in range(10):
        times.append(speed.seconds(lambda: a @ a, device))
    return 2 * n**3 / min(times)


def measure(model, theirs, method, task, repeat, rate):
    """The lines of a method and of its peer. Raises ValueError where their first losses differ."""
    chosen = SETTINGS[PRESET].get(method, {})
    config = METHODS[method].Config(**chosen)
    lengths = memory.Lengths(0, [(len(d.x), len(d.y)) for d in task.demos], 1)
    guess = memory.estimate(model.config, method, asdict(config), lengths, model.dtype, model.checkpoint)
    one = replace(config, **{name: 1 for name in ("n_step", "ttt_n_step") if hasattr(config, name)})
    common = dict(method=method, n_step=getattr(config, "n_step", 0), flops_step=guess.flops_step, estimated_bytes=guess.beside)
    lines = []

    def add(who, run):
        try:
            step, other, loss, peak = run()
            share = guess.flops_step / step / rate if step else None
            lines.append(common | dict(who=who, seconds_step=step, seconds_task=other + common["n_step"] * step, peak_bytes=peak,
                                       loss=loss, share=share))
        except torch.OutOfMemoryError:
            lines.append(common | dict(who=who, seconds_step=None, seconds_task=None, peak_bytes=None, loss=None, share=None))

    def run_ours():
        peak = memory.allocated(lambda: METHODS[method].adapt(model, task, one), model.device)  # and the warm-up
        return *ours(model, method, config, task, repeat), peak

    def run_theirs():
        losses = []
        peak = memory.allocated(lambda: losses.append(step()), model.device)
        times = [speed.seconds(step, model.device) for _ in range(repeat + 1)][1:]
        if not isinstance(losses[0], float):  # reads and trains nothing
            return 0.0, median(times), None, peak
        return median(times), 0.0, losses[0], peak

    add("nanoct", run_ours)
    if theirs is not None and (found := peer(model, theirs, method, config, task)):
        who, step, undo = found
        with torch.set_grad_enabled(method != "icl"):
            add(who, run_theirs)
        undo()
        a, b = (line["loss"] for line in lines)
        same_start = method in ("prompt_tuning", "prefix_tuning", "lora", "dora")  # nothing drawn that shows in the first loss
        tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
        if same_start and a is not None and b is not None and abs(a - b) > tolerance * abs(a):
            raise ValueError(f"{method}: the first loss is {a:.4f} in nanoct and {b:.4f} in {who}; this is not the same step, so no "
                             "time is reported.")
    return lines


def report(lines, rate):
    """Print the table."""
    rows = []
    for line in lines:
        mine = next(other for other in lines if other["method"] == line["method"] and other["who"] == "nanoct")
        number = lambda value, form: "out of memory" if value is None else form.format(value)
        what = "seconds_step" if line["n_step"] else "seconds_task"
        ratio = line[what] / mine[what] if line[what] and mine[what] else None
        rows.append([line["method"], line["who"], number(line["seconds_step"], "{:.3f}") if line["n_step"] else "",
                     number(line["seconds_task"], "{:.2f}"), f"{ratio:.2f}" if ratio else "",
                     number(line["peak_bytes"] and line["peak_bytes"] / 1e6, "{:,.0f}"),
                     f"{line['estimated_bytes'] / 1e6:,.0f}" if line["who"] == "nanoct" else "",
                     f"{line['flops_step'] / 1e9:,.0f}" if line["n_step"] else "", f"{line['share']:.0%}" if line["share"] else ""])
    print(table(rows, ["method", "who", "s a step", "s a task", "ratio", "peak MB", "estimated", "GFLOP a step", "of matrix rate"]))
    print(f"matrix rate {rate / 1e12:.3f} TFLOP/s; peak beside the weights; a task at the steps of {PRESET}'s preset")


def main():
    p = cli.Parser(prog="nanoct.costs", description=__doc__.split("\n")[0])
    p.add_argument("--model", default="24m", help=f"random: {', '.join(speed.SIZES)}; or a folder or hub name; default: 24m")
    known = [method for method in METHODS if method != "zero_shot"]  # which costs nothing
    p.add_argument("--methods", nargs="+", choices=known, default=known)
    p.add_argument("--k", type=int, default=16, help="demos")
    p.add_argument("--context", type=int, default=700, help="tokens of all demos together")
    p.add_argument("--device", help="cuda or cpu; default: cuda if there is one")
    p.add_argument("--dtype", help="default: bfloat16 on cuda, float32 elsewhere")
    p.add_argument("--repeat", type=int, default=3, help="steps that are timed, after one of warm-up")
    p.add_argument("--checkpoint", action="store_true", help="recompute activations in the backward pass, here and in the peers")
    p.add_argument("--alone", action="store_true", help="without the peers")
    p.add_argument("--out", default="results/costs.jsonl", help="file that lines are appended to")
    args = p.parse_args()
    device = pick_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    if args.repeat < 1:
        raise ValueError(f"--repeat {args.repeat} must be at least 1.")
    model, theirs = speed.load(args.model, None, args.context, device, dtype, args.alone)
    model.checkpoint = args.checkpoint
    if theirs is not None and args.checkpoint:
        theirs.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
    task, rate, lines = speed.random_task(args.k, args.context, model.config.vocab_size), matrix_rate(device, dtype), []
    about = dict(model=args.model, k=args.k, context=args.context, checkpoint=args.checkpoint, rate=rate,
                 dtype=str(dtype).removeprefix("torch."), config=asdict(model.config)) | speed.machine(device)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    for method in tqdm(args.methods, desc="methods"):
        new = measure(model, theirs, method, task, args.repeat, rate)
        lines += new
        with open(args.out, "a") as file:
            file.writelines(json.dumps(line | about) + "\n" for line in new)
    report(lines, rate)


if __name__ == "__main__":
    cli.run(main)
