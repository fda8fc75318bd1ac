"""Seconds of one CT-KV step against transformers on the same weights, pairs and masks; then all methods beside their peers.

    python -m nanoct.speed                        # a random Llama, 24M + vocabularies of 32,000 and 128,000
    python -m nanoct.speed --model llama-3.2-1b --device cuda         # true size, random weights, bfloat16
    python -m nanoct.speed --model llama-3-8b --device cuda --checkpoint --k 10 --context 1900
    python -m nanoct.speed --model meta-llama/Llama-3.2-1B --context 1400

Time does not depend on what the weights are. The second table is costs.py's: every method, seconds, memory, share of the
matrix rate.

A step is forward, loss on the answers, backward to keys and values, clipping, AdamW. Three do the same one:
    nanoct                     the packed row of methods/ct_kv.py, logits of the answers
    transformers               as released: k right-padded rows of t tokens, sdpa, k copies of the prefix in a
                               DynamicCache, a 2-D attention mask, logits of all k·t tokens, labels of -100
    transformers, labels only  the same batch, the head on the tokens before an answer alone
They take turns, round after round, and only if loss and gradients agree. Beside them a TTT step on one order
of the demos: CT-KV makes every demo a target in one step, TTT, each behind all others, in k orders.

FLOPs with N weights in the body: 4·N·T + 12·L·H·D·T·S + 4·V·C·n for T tokens against S keys, n of them with
logits: forward and the gradient of the inputs. Masked scores count, LoRA's own matrices do not.

Measured on two cores of an EPYC, 2 threads, float32, k = 16, 701 tokens of context, medians of two runs (5 and 6
rounds): transformers takes 3.3 and 2.6 times as long with a vocabulary of 32,000, 7.2 and 4.8 times with 128,000;
with logits at the labels only 1.8 and 1.8, 1.9 and 1.7 times. Half its tokens are padding; where all pairs have
one length (--spread 0, 32,000), what is left is 1.55 (1.4-2.0) and 1.11 (1.0-1.3). nanoct's step takes 1.0 s.
"""

import json
import math
import tempfile
import time
from dataclasses import asdict
from importlib import util
from inspect import signature
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from nanoct import adapters, cli
from nanoct.fewshot import Demo, Task, encode_context
from nanoct.methods import METHODS, ct_kv, ttt
from nanoct.model import Llama, LlamaConfig
from nanoct.packing import answer_logits, pack, visible
from nanoct.runs.measure import peak
from nanoct.runs.report import table
from nanoct.runs.results import machine
from nanoct.weights import (
    fetch,
    load_model,
    pick_device,
    read_config,
    resolve_dtype,
    save_model,
)

SIZES = {  # by the weights of the body: all but the embedding, which is the head as well
    "24m": dict(n_layer=8, n_head=8, n_kv_head=4, n_embd=512, head_dim=64, n_ffn=1440),
    "llama-3.2-1b": dict(n_layer=16, n_head=32, n_kv_head=8, n_embd=2048, head_dim=64, n_ffn=8192, vocab_size=128256),
    "llama-3.2-3b": dict(n_layer=28, n_head=24, n_kv_head=8, n_embd=3072, head_dim=128, n_ffn=8192, vocab_size=128256),
    "llama-3-8b": dict(n_layer=32, n_head=32, n_kv_head=8, n_embd=4096, head_dim=128, n_ffn=14336, vocab_size=128256, tied=False),
    "tiny": dict(n_layer=2, n_head=4, n_kv_head=2, n_embd=32, head_dim=8, n_ffn=48),
}
KNOWN = [method for method in METHODS if method != "zero_shot"]  # which costs nothing
SPREAD = 0.38  # std / mean of the lengths of 16 pairs: the mean over 13 tasks of NLP-LR, in words
DROPOUT = ct_kv.Config.token_dropout


def random_task(k, context, vocab_size, spread=SPREAD, seed=0):
    """k pairs of random ids, about `context` tokens in all: lengths at the quantiles of a log-normal, answers of 1 to 4.

    spread: std / mean of the log-normal; 0 makes all pairs of one length. Raises ValueError without room for the pairs.
    """
    if k < 2 or context < 8 * k:
        raise ValueError(f"k = {k} and context = {context}: it takes 2 pairs or more, and 8 tokens or more for each.")
    generator = torch.Generator().manual_seed(seed)
    quantile = (torch.randperm(k, generator=generator) + 0.5) / k
    length = torch.exp(math.sqrt(math.log1p(spread**2)) * torch.special.ndtri(quantile))
    ids = lambda n: torch.randint(vocab_size, (n,), generator=generator).tolist()
    demos = []
    for n in (context * length / length.sum()).round().long().clamp(min=2).tolist():
        n_answer = 1 + len(demos) % min(4, n - 1)
        demos.append(Demo(ids(n - n_answer), ids(n_answer)))
    return Task("random", demos, queries=[])


class Step:
    """A contestant: loss() draws the masks and runs forward; calling the step trains its own leaves once."""

    def __init__(self, loss, leaves, lr, n_token, n_key, n_logit):
        self.loss, self.leaves, self.n_token, self.n_key, self.n_logit = loss, leaves, n_token, n_key, n_logit
        self.optimizer = torch.optim.AdamW(leaves, lr=lr, betas=(0.9, 0.999), weight_decay=0.0)

    def __call__(self):
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward(inputs=self.leaves)
        torch.nn.utils.clip_grad_norm_(self.leaves, 1.0)
        self.optimizer.step()
        return loss.item()

    def flops(self, c, n_body):
        return (4 * n_body * self.n_token + 12 * c.n_layer * c.n_head * c.head_dim * self.n_token * self.n_key
                + 4 * c.vocab_size * c.n_embd * self.n_logit)


def packed(model, task, context, seed=0):
    """The step of methods/ct_kv.py: all pairs in one row, one prefix."""
    generator = torch.Generator().manual_seed(seed)
    row = pack([(demo.x, demo.y) for demo in task.demos], model, start=context.next_position)
    keys, values = leaves = trainable(context)

    def loss():
        mask = row.mask(visible(context.owner, len(task.demos), True, DROPOUT, generator))
        return F.cross_entropy(answer_logits(model, row, context.of(keys, values), mask=mask), row.target)

    T = row.tokens.shape[1]
    return Step(loss, leaves, ct_kv.Config.lr, T, len(context.owner) + T, len(row.where))


def padded(theirs, task, context, seed=0, labels_only=False, hide=True):
    """The same step in transformers: k padded rows, k copies of the prefix; logits of every token unless labels_only.

    hide = False leaves out leave-one-out and token dropout: a step of prefix tuning.
    """
    from transformers import DynamicCache  # of the test extra
    generator, k, P = torch.Generator().manual_seed(seed), len(task.demos), len(context.owner)
    pad = lambda rows, value: pad_sequence([torch.tensor(row) for row in rows], True, value).to(theirs.device)
    tokens = pad([[*demo.x, *demo.y] for demo in task.demos], 0)  # (k, T)
    labels = pad([[-100] * len(demo.x) + [*demo.y] for demo in task.demos], -100)  # (k, T)
    real = pad([[1] * (len(demo.x) + len(demo.y)) for demo in task.demos], 0)  # (k, T)
    T, is_answer = tokens.shape[1], labels[:, 1:] != -100
    positions = torch.arange(P, P + T, device=theirs.device).expand(k, T)
    keys, values = leaves = trainable(context)
    cache_name = "cache" if "cache" in signature(theirs.forward).parameters else "past_key_values"  # of older transformers

    def loss():
        seen = visible(context.owner, k, hide, DROPOUT * hide, generator)
        cache = DynamicCache()
        for layer, kv in enumerate(zip(keys, values)):
            cache.update(*(part.to(theirs.dtype).expand(k, -1, -1, -1) for part in kv), layer)
        inputs = {"input_ids": tokens, "attention_mask": torch.cat([seen, real], dim=1), "position_ids": positions,
                  cache_name: cache}
        if not labels_only:
            return theirs(**inputs, labels=labels).loss
        hidden = theirs.model(**inputs).last_hidden_state[:, :-1][is_answer]  # (n, C)
        return F.cross_entropy(theirs.lm_head(hidden).float(), labels[:, 1:][is_answer])

    return Step(loss, leaves, ct_kv.Config.lr, k * T, P + T, int(is_answer.sum()) if labels_only else k * T)


def trainable(context):
    """Keys and values of a context as the two float32 leaves (L, 1, K, P, D) that a step trains."""
    return [part.float().requires_grad_() for part in context.stack()]


def one_order(model, task, seed=0):
    """The step of methods/ttt.py on one random order of the demos."""
    c, generator = ttt.Config(), torch.Generator().manual_seed(seed)
    adapter = adapters.attach(adapters.LoRA, model, c.rank, c.alpha, c.dropout, torch.Generator(model.device).manual_seed(seed))

    def loss():
        order = torch.randperm(len(task.demos), generator=generator).tolist()
        tokens, is_answer = ttt.sequences(model, task.instruction, [[task.demos[i] for i in order]])
        hidden, _ = model(tokens[:, :-1], adapter=adapter)
        return F.cross_entropy(model.logits(hidden[is_answer[:, 1:]]), tokens[:, 1:][is_answer[:, 1:]])

    T = sum(len(demo.x) + len(demo.y) for demo in task.demos) - 1
    return Step(loss, adapters.leaves(adapter), c.lr, T, T,
                sum(len(demo.y) for demo in task.demos))


def agree(steps, tolerance):
    """The loss that all steps start from. Raises ValueError if a loss or gradient differs from the first step's."""
    results = {}
    for name, step in steps.items():
        loss = step.loss()
        results[name] = (loss.detach(), *torch.autograd.grad(loss, step.leaves))
        first = next(iter(results.values()))
        error = max(((mine - other).norm() / other.norm()).item() for mine, other in zip(results[name], first))
        if not error <= tolerance:
            raise ValueError(f"{name} differs from {next(iter(results))} by {error:.1e} in loss or gradient, more than "
                             f"{tolerance:.0e}: this is not the same step, so no time is reported.")
    return first[0].item()


def seconds(step, device):
    start = time.perf_counter()
    step()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def peak_of(step, device):
    """Bytes at the peak of a step: allocated on cuda; else resident, the process with all contestants in it."""
    with peak(device) as used:
        step()
    return used.bytes


def measure(model, theirs, task, repeat, seed=0):
    """One line per contestant: median seconds of `repeat` rounds, the ratio to nanoct in each round, FLOPs, memory.

    theirs: the same weights in transformers, or None.
    """
    context = encode_context(model, task.instruction, task.demos)
    steps = {"nanoct": packed(model, task, context, seed)}
    if theirs is not None:
        steps["transformers"] = padded(theirs, task, context, seed)
        steps["transformers, labels only"] = padded(theirs, task, context, seed, labels_only=True)
    loss = agree(steps, 1e-4 if model.dtype == torch.float32 else 5e-2)
    steps["nanoct TTT, one order"] = one_order(model, task, seed)
    peaks = {name: peak_of(step, model.device) for name, step in steps.items()}  # and the warm-up
    rounds = [{name: seconds(step, model.device) for name, step in steps.items()} for _ in range(repeat)]
    n_body, lines = sum(p.numel() for p in model.model.layers.parameters()), []
    for name, step in steps.items():
        ratio = sorted(times[name] / times["nanoct"] for times in rounds)
        middle, flops = median(times[name] for times in rounds), step.flops(model.config, n_body)
        lines.append(dict(name=name, seconds=middle, ratio=median(ratio), ratio_min=ratio[0], ratio_max=ratio[-1],
                          peak_bytes=peaks[name], flops=flops, flops_per_second=flops / middle, n_token=step.n_token,
                          n_logit=step.n_logit, k=len(task.demos), context=len(context.owner), repeat=repeat, seed=seed,
                          loss=loss, n_body=n_body, dtype=str(model.dtype).removeprefix("torch."), **asdict(model.config)))
    return lines


def load(name, vocab_size, context, device, dtype, alone=False):
    """The model, random for a name of SIZES, and the same weights in transformers, or None without transformers or if alone."""
    with tempfile.TemporaryDirectory() as folder:
        if name in SIZES:
            sizes = SIZES[name] if vocab_size is None else SIZES[name] | dict(vocab_size=vocab_size)
            with torch.device(device):
                model = Llama(LlamaConfig(n_position=2 * context, **dict(vocab_size=32000) | sizes)).requires_grad_(False).eval().to(dtype)
            model.init_weights(torch.Generator(device).manual_seed(0))
            if not alone:
                save_model(model, folder)
        else:
            folder = fetch(name)
            if not isinstance(read_config(folder), LlamaConfig):
                raise ValueError(f"--model {name} is no Llama, and the peers here are: give a Llama, or a name of a random one.")
            model = load_model(folder, device, dtype)
        if alone or not util.find_spec("transformers"):
            return model, None
        import transformers
        transformers.utils.logging.disable_progress_bar()
        theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    return model, theirs.requires_grad_(False).eval().to(device)


def report(lines):
    """Print the table of one model, and what a pass over all demos costs."""
    ours, order = lines[0], lines[-1]
    print("{:.1f}M body, vocabulary {vocab_size:,}, k = {k}, {context} tokens of context, {dtype}, {device}, {threads} "
          "threads; loss {loss:.4f}".format(ours["n_body"] / 1e6, **ours))
    row = "{name}|{n_token:,}|{n_logit:,}|{seconds:.3f}|{ratio:.2f} ({ratio_min:.2f}-{ratio_max:.2f})|{:,.0f}|{:,.0f}|{:,.0f}"
    rows = [row.format(x["peak_bytes"] / 2**20, x["flops"] / 1e9, x["flops_per_second"] / 1e9, **x).split("|") for x in lines]
    print(table(rows, ["step", "tokens", "logits", "seconds", "ratio (min-max)", "peak MiB", "GFLOP", "GFLOP/s"]))
    print("A pass with every demo a target behind all others: CT-KV {:.2f} s in one step, TTT {:.2f} s in {} orders, "
          "{:.1f} times as long.\n".format(ours["seconds"], ours["k"] * order["seconds"], ours["k"], ours["k"] * order["ratio"]))


def main():
    p = cli.Parser(prog="nanoct.speed", description=__doc__.split("\n")[0])
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
    p.add_argument("--checkpoint", action="store_true", help="recompute activations in the backward pass, here and in the peers")
    p.add_argument("--alone", action="store_true", help="without the peers")
    p.add_argument("--out", default="results/speed.jsonl", help="file that lines are appended to; those of the second table go to costs.jsonl "
                   "beside it")
    args = p.parse_args()
    device, out = pick_device(args.device), Path(args.out)
    if args.repeat < 1:
        raise ValueError(f"--repeat {args.repeat} must be at least 1.")
    if args.vocab and (args.model not in SIZES or min(args.vocab) < 2):
        raise ValueError(f"--vocab {min(args.vocab)} with --model {args.model}: it sizes a random Llama, and is 2 or more.")
    out.parent.mkdir(parents=True, exist_ok=True)
    vocabularies = args.vocab or ([None] if args.model not in SIZES or "vocab_size" in SIZES[args.model] else [32000, 128000])
    for vocab_size in vocabularies:
        model, theirs = load(args.model, vocab_size, args.context, device, resolve_dtype(args.dtype, device), args.alone)
        model.checkpoint = args.checkpoint
        if theirs is not None and args.checkpoint:
            theirs.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
        if theirs is None and not args.alone:
            print("transformers is not installed, so nanoct runs alone; for the comparison: pip install -e '.[test]'")
        task = random_task(args.k, args.context, model.config.vocab_size, args.spread)
        about = dict(model_name=args.model, spread=args.spread) | machine(device)
        lines = [line | about for line in measure(model, theirs, task, args.repeat)]
        report(lines)
        with open(out, "a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        if args.methods and vocab_size == vocabularies[0]:
            from nanoct.costs import peers as costs  # which imports this file

            about |= dict(k=args.k, context=args.context)
            costs.compare(model, theirs, args.methods, task, args.repeat, about, out.with_name("costs.jsonl"))
