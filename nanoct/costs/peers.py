"""What every method costs on one task: seconds a step and a task, peak memory, share of the matrix rate, beside the peers.

The second table of `python -m nanoct.speed`. The task is k pairs of random ids. Peers do the same work in the usual way, k right-padded rows, logits of every token, labels of -100:
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
from statistics import median

import torch
from tqdm import tqdm

from nanoct import adapters
from nanoct.benchmarks.presets import SETTINGS
from nanoct.costs import memory, speed
from nanoct.fewshot import encode_context, first_tokens
from nanoct.methods import METHODS, ttt
from nanoct.packing import visible
from nanoct.runs.report import table

PRESET = "bbh"


def ours(model, method, config, task, repeat):
    """(seconds of a step, of the rest with the first step, which warms up, first loss): the median of `repeat` steps."""
    times, losses = [], []

    def progress(step, loss):
        times.append(time.perf_counter())  # after the loss has come to the CPU
        losses.append(loss)

    n = {"n_step": repeat + 1} if hasattr(config, "n_step") else {}
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
    two = replace(config, **{name: 2 for name in ("n_step", "ttt_n_step") if hasattr(config, name)})  # AdamW has its moments then
    common = dict(method=method, n_step=getattr(config, "n_step", 0), flops_step=guess.flops_step, estimated_bytes=guess.beside)
    lines = []

    def add(who, run):
        try:
            step, other, loss, peak = run()
            share = guess.flops_step / step / rate if step else None
            lines.append(common | dict(who=who, seconds_step=step, seconds_task=other + max(0, common["n_step"] - 1) * step,
                                       peak_bytes=peak, loss=loss, share=share))
        except torch.OutOfMemoryError:
            lines.append(common | dict(who=who, seconds_step=None, seconds_task=None, peak_bytes=None, loss=None, share=None))

    def run_ours():
        peak = memory.allocated(lambda: METHODS[method].adapt(model, task, two), model.device)  # and the warm-up
        return *ours(model, method, config, task, repeat), peak

    def run_theirs():
        losses = []
        peak = memory.allocated(lambda: losses.extend(step() for _ in range(2 if common["n_step"] else 1)), model.device)
        times = [speed.seconds(step, model.device) for _ in range(repeat + 1)][1:]
        if not isinstance(losses[0], float):  # reads and trains nothing
            return 0.0, median(times), None, peak
        return median(times), median(times), losses[0], peak

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


def compare(model, theirs, methods, task, repeat, about, file):
    """Measure the methods one after another, appending lines to a file as they come, and print the table."""
    rate, lines = matrix_rate(model.device, model.dtype), []
    about = about | dict(rate=rate, checkpoint=model.checkpoint, dtype=str(model.dtype).removeprefix("torch."), config=asdict(model.config))
    for method in tqdm(methods, desc="methods"):
        new = measure(model, theirs, method, task, repeat, rate)
        lines += new
        with open(file, "a") as f:
            f.writelines(json.dumps(line | about) + "\n" for line in new)
    report(lines, rate)
