"""The benchmark: seconds of one CT-KV step, against transformers on the same weights, pairs and masks.

    python -m nanoct.speed                          # 24M body, vocabularies of 32,000 and 128,000
    python -m nanoct.speed --model meta-llama/Llama-3.2-1B --context 1400
"""

import json
import math
import platform
import resource
import tempfile
import time
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from nanoct import cli
from nanoct.adapters import lora
from nanoct.fewshot import Demo, Prefix, Task, answer_logits, encode_context, pack, visible
from nanoct.methods import ct_kv, ttt
from nanoct.model import Llama, LlamaConfig
from nanoct.results import table
from nanoct.weights import fetch, load_model, pick_device, resolve_dtype, save_model

SIZES = {  # by the parameters of the body, which is all but the embedding (the head is tied to it)
    "24m": dict(n_layer=8, n_head=8, n_kv_head=4, n_embd=512, head_dim=64, n_ffn=1440),
    "tiny": dict(n_layer=2, n_head=4, n_kv_head=2, n_embd=32, head_dim=8, n_ffn=48),
}
SPREAD = 0.38  # of the pairs' lengths, std / mean: the mean over 13 tasks of NLP-LR with k = 16


def random_task(k, context, vocab, seed=0):
    """k pairs of random ids, `context` tokens in all: lengths at the quantiles of a log-normal, answers of 1 to 4.

    Raises ValueError unless there is room for the pairs.
    """
    if k < 2 or context < 8 * k:
        raise ValueError(f"k = {k} and context = {context}: it takes two pairs or more, and 8 tokens or more for each.")
    generator = torch.Generator().manual_seed(seed)
    quantile = (torch.randperm(k, generator=generator) + 0.5) / k
    length = torch.exp(math.sqrt(math.log1p(SPREAD**2)) * torch.special.ndtri(quantile))
    ids = lambda n: torch.randint(vocab, (n,), generator=generator).tolist()
    demos = []
    for n in (context * length / length.sum()).round().long().tolist():
        n_answer = 1 + len(demos) % min(4, n - 1)
        demos.append(Demo(ids(n - n_answer), ids(n_answer)))
    return Task(f"random {k}x{context // k}", demos, queries=[])


class Step:
    """One contestant: calling it makes a full optimiser step on its own leaves and returns the loss.

    loss() draws the step's masks and computes the loss; n_token run through the model, each against n_key
    keys, and n_logit of them through the head.
    """

    def __init__(self, loss, leaves, lr, n_token, n_key, n_logit):
        self.loss, self.leaves, self.n_token, self.n_key, self.n_logit = loss, leaves, n_token, n_key, n_logit
        self.optimizer = torch.optim.AdamW(leaves, lr=lr, betas=(0.9, 0.999), weight_decay=0.0)

    def __call__(self):
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward(inputs=self.leaves)
        torch.nn.utils.clip_grad_norm_(self.leaves, 1.0)
        self.optimizer.step()
        return loss.detach()

    def flops(self, c, n_body):
        """4·N·T + 12·L·H·D·T·S + 4·V·C·n: forward and the gradient of the inputs; every score counts, masked or not."""
        return (4 * n_body * self.n_token + 12 * c.n_layer * c.n_head * c.head_dim * self.n_token * self.n_key
                + 4 * c.vocab_size * c.n_embd * self.n_logit)


def packed(model, task, context, seed=0):
    """nanoct's CT-KV step, as in methods/ct_kv.py: all pairs in one row."""
    config, generator = ct_kv.Config(), torch.Generator().manual_seed(seed)
    row = pack([(demo.x, demo.y) for demo in task.demos], model, start=context.next_position)
    keys, values = leaves = _leaves(context)

    def loss():
        theta = Prefix(list(zip(keys.unbind(), values.unbind())), context.owner, context.next_position)
        mask = row.mask(visible(context, len(task.demos), True, config.token_dropout, generator))
        return F.cross_entropy(answer_logits(model, row, theta, mask=mask), row.target)

    T = row.tokens.shape[1]
    return Step(loss, leaves, config.lr, T, len(context.owner) + T, len(row.where))


def padded(theirs, task, context, seed=0, labels_only=False):
    """The same step as released: a right-padded batch of k rows behind k copies of the prefix, logits of every token.

    labels_only: the head runs on the tokens that predict an answer and on no other.
    """
    from transformers import DynamicCache
    config, generator = ct_kv.Config(), torch.Generator().manual_seed(seed)
    device, k, P = theirs.device, len(task.demos), len(context.owner)
    pad = lambda rows, value: pad_sequence([torch.tensor(row) for row in rows], True, value).to(device)
    tokens = pad([[*demo.x, *demo.y] for demo in task.demos], 0)  # (k, T)
    labels = pad([[-100] * len(demo.x) + list(demo.y) for demo in task.demos], -100)  # (k, T)
    real = pad([[True] * len(demo.x + demo.y) for demo in task.demos], False)  # (k, T)
    T, is_answer = tokens.shape[1], labels[:, 1:] != -100
    positions = torch.arange(P, P + T, device=device).expand(k, T)
    keys, values = leaves = _leaves(context)

    def loss():
        seen = visible(context, k, True, config.token_dropout, generator)
        cache = DynamicCache()
        for layer, kv in enumerate(zip(keys, values)):
            cache.update(*(part.to(theirs.dtype).expand(k, -1, -1, -1) for part in kv), layer)
        inputs = dict(input_ids=tokens, attention_mask=torch.cat([seen, real], dim=1).long(),  # (k, P+T)
                      position_ids=positions, past_key_values=cache)
        if not labels_only:
            return theirs(**inputs, labels=labels).loss
        hidden = theirs.model(**inputs).last_hidden_state[:, :-1][is_answer]  # (n, C)
        return F.cross_entropy(theirs.lm_head(hidden).float(), labels[:, 1:][is_answer])

    return Step(loss, leaves, config.lr, k * T, P + T, int(is_answer.sum()) if labels_only else k * T)


def sequence(model, task, seed=0):
    """nanoct's TTT step, as in methods/ttt.py, on one order of the demos."""
    config, generator = ttt.Config(), torch.Generator().manual_seed(seed)
    adapter = lora(model, ttt.TARGETS, config.rank, config.alpha, config.dropout,
                   torch.Generator(model.device).manual_seed(seed))
    n_answer = sum(len(demo.y) for demo in task.demos)
    T = sum(len(demo.x) for demo in task.demos) + n_answer - 1

    def loss():
        order = torch.randperm(len(task.demos), generator=generator).tolist()
        tokens, is_answer = ttt.concatenate(model, task.instruction, [[task.demos[i] for i in order]])
        hidden, _ = model(tokens[:, :-1], adapter=adapter)
        return F.cross_entropy(model.logits(hidden[is_answer[:, 1:]]), tokens[:, 1:][is_answer[:, 1:]])

    return Step(loss, [leaf for part in adapter.values() for leaf in (part.a, part.b)], config.lr, T, T, n_answer)


def _leaves(context):
    """Keys and values of a context as the two float32 leaves (L, 1, K, P, D) that a step trains."""
    return [torch.stack(part).float().requires_grad_() for part in zip(*context.kv)]


def agree(steps, tolerance):
    """The loss of all steps before any training, or ValueError if losses or gradients differ relative to the first."""
    first = None
    for name, step in steps.items():
        loss = step.loss()
        gradients = torch.autograd.grad(loss, step.leaves)
        first = first or (loss.detach(), gradients)
        errors = [((new - old).norm() / old.norm()).item() for new, old in zip((loss.detach(), *gradients), (first[0], *first[1]))]
        if not max(errors) <= tolerance:
            raise ValueError(f"{name} differs from {next(iter(steps))} by {max(errors):.1e} of loss or gradient, more than "
                             f"{tolerance:.0e}: they do not compute the same step, so no time is reported.")
    return first[0].item()


def seconds(step, device):
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start


def peak_memory(step, device):
    """Bytes at the peak of one step, model included: allocated on cuda, resident on the CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
    except OSError:
        pass  # no Linux: the peak of the process so far
    step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak


def measure(model, theirs, task, repeat, seed=0):
    """One line per contestant: median seconds over `repeat` interleaved rounds, ratios to nanoct's step, FLOPs, memory.

    theirs: the same weights in transformers, or None. Raises ValueError if two contestants do not agree.
    """
    device, c = model.device, model.config
    context = encode_context(model, task.instruction, task.demos)
    steps = {"nanoct": packed(model, task, context, seed)}
    if theirs is not None:
        steps["transformers"] = padded(theirs, task, context, seed)
        steps["transformers, labels only"] = padded(theirs, task, context, seed, labels_only=True)
    loss = agree(steps, 1e-4 if model.dtype == torch.float32 else 5e-2)
    steps["nanoct TTT, one order"] = sequence(model, task, seed)
    peak = {name: peak_memory(step, device) for name, step in steps.items()}  # the warm-up as well
    times = {name: [] for name in steps}
    for _ in range(repeat):
        for name, step in steps.items():
            times[name].append(seconds(step, device))
    n_body = sum(p.numel() for p in model.model.layers.parameters())
    lines = []
    for name, step in steps.items():
        ratios = sorted(own / ours for own, ours in zip(times[name], times["nanoct"]))
        flops, middle = step.flops(c, n_body), median(times[name])
        lines.append(dict(name=name, seconds=middle, ratio=median(ratios), ratio_min=ratios[0], ratio_max=ratios[-1],
                          peak_bytes=peak[name], flops=flops, flops_per_second=flops / middle, n_token=step.n_token,
                          n_logit=step.n_logit, k=len(task.demos), context=len(context.owner), repeat=repeat, seed=seed,
                          loss=loss, n_body=n_body, dtype=str(model.dtype).removeprefix("torch."), **asdict(c)))
    return lines


def load(name, vocab, context, device, dtype):
    """The model, random for a name of SIZES, and the same weights in transformers (sdpa), or None without transformers."""
    with tempfile.TemporaryDirectory() as folder:
        if name in SIZES:
            model = Llama(LlamaConfig(vocab_size=vocab, n_position=2 * context, **SIZES[name]))
            model.init_weights(torch.Generator().manual_seed(0)).requires_grad_(False).eval().to(device, dtype)
            save_model(model, folder)
        else:
            folder = fetch(name)
            model = load_model(folder, device, dtype)
        try:
            import transformers
        except ImportError:
            return model, None
        transformers.utils.logging.disable_progress_bar()
        theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    return model, theirs.requires_grad_(False).eval().to(device)


def machine(device):
    """What a time depends on beside the code: device, threads, versions, date."""
    cpu = Path("/proc/cpuinfo")
    cpu = next((line for line in cpu.read_text().splitlines() if "model name" in line), "") if cpu.is_file() else ""
    version = lambda package: metadata.version(package) if find_spec(package) else None
    return dict(device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu.split(": ")[-1] or platform.machine(),
                threads=torch.get_num_threads(), torch=torch.__version__, transformers=version("transformers"),
                date=datetime.now(timezone.utc).isoformat(timespec="seconds"))


def report(lines):
    """The table of one vocabulary, and what a pass over all demos costs."""
    ours, ttt_line, first = lines[0], lines[-1], lines[0]
    print(f"{first['n_body'] / 1e6:.1f}M body, vocabulary {first['vocab_size']:,}, k = {first['k']}, {first['context']} tokens of "
          f"context, {first['dtype']}, {first['device']}, {first['threads']} threads; loss {first['loss']:.4f} for all")
    rows = [[line["name"], f"{line['n_token']:,}", f"{line['n_logit']:,}", f"{line['seconds']:.3f}",
             f"{line['ratio']:.2f} ({line['ratio_min']:.2f}-{line['ratio_max']:.2f})", f"{line['peak_bytes'] / 2**20:,.0f}",
             f"{line['flops'] / 1e9:,.0f}", f"{line['flops_per_second'] / 1e9:,.0f}"] for line in lines]
    print(table(rows, ["step", "tokens", "logits", "seconds", "times nanoct's", "peak MiB", "GFLOP", "GFLOP/s"]))
    k, order = ours["k"], ttt_line["seconds"]
    print(f"A pass, every demo a target once behind the others: CT-KV {ours['seconds']:.2f} s (one step), "
          f"TTT {k * order:.2f} s ({k} orders), {k * ttt_line['ratio']:.1f} times CT-KV's.\n")


def main():
    p = cli.Parser(prog="nanoct.speed", description=__doc__.split("\n")[0])
    p.add_argument("--model", default="24m", help=f"a random Llama ({', '.join(SIZES)}), a folder, or a hub name; default: 24m")
    p.add_argument("--vocab", nargs="+", type=int, help="of the random Llama; default: 32000 128000")
    p.add_argument("--k", type=int, default=16, help="demos")
    p.add_argument("--context", type=int, default=700, help="tokens of all demos together")
    p.add_argument("--device", help="default: the first there is of cuda, mps, cpu")
    p.add_argument("--dtype", help="default: bfloat16 on cuda, else float32")
    p.add_argument("--repeat", type=int, default=5, help="rounds, after one of warm-up")
    p.add_argument("--out", default="results/speed.jsonl", help="lines are appended")
    args = p.parse_args()
    device = pick_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    if args.repeat < 1:
        raise ValueError(f"--repeat {args.repeat} must be at least 1.")
    if args.vocab and (args.model not in SIZES or min(args.vocab) < 2):
        raise ValueError(f"--vocab {args.vocab[0]} of --model {args.model}: a vocabulary of 2 or more, for a random Llama only.")
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.open("a").close()
    for vocab in args.vocab or ([32000, 128000] if args.model in SIZES else [None]):
        model, theirs = load(args.model, vocab, args.context, device, dtype)
        if theirs is None:
            print("transformers is not installed, so only nanoct is timed: pip install -e '.[test]'")
        task = random_task(args.k, args.context, model.config.vocab_size)
        lines = [line | machine(device) for line in measure(model, theirs, task, args.repeat)]
        report(lines)
        with out.open("a") as f:
            f.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    cli.run(main)
