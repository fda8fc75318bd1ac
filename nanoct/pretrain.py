"""Meta-train the built-in model of a world: it learns to learn a task from the examples in its context.

    python -m nanoct.pretrain                       # strings, into results/nano/strings; started again, it continues
    python -m nanoct.pretrain --world grids --init weights/nano/strings     # from another world's weights
    python -m nanoct.pretrain --world lexicon --row 91 --n-token 2912 --lr 1e-3 --n-warmup 100 --n-step 3000 --decay .1
    python -m nanoct.reproduce --model results/nano
    python -m nanoct.pretrain --world arc --data data/arc --init meta-llama/Llama-3.2-1B-Instruct \\
        --lr 1e-5 --n-step 8000 --row 4096 --n-token 16384 --out results/arc-1b    # the model of the paper's ARC column

A row is `<s> x = y ; x = y ; …`, without "=" in lexicon: one episode of the world's training pool with as many
examples as fit. The loss is the mean cross-entropy of all answer tokens. Answer number i is a k-shot prediction with
k = i, so one row trains every k at once (MetaICL, arXiv 2110.15943). Nothing of the held-out pool is ever drawn.
All worlds share one vocabulary, so weights of one can start another. Tokens that the other model lacks keep random
embeddings. With --world arc a row is an augmented training task of ARC-AGI-1 (benchmarks/arc.py), in the format of the
benchmark. It trains a public model with its own tokenizer. The settings above are ours, as the paper gives none.

The optimiser is AdamW with linear warm-up, a constant rate, and linear decay over the last quarter. So training can be
stopped at any point and given another --n-step; only the decay is lost. Weights, moments and saved state are float32,
and the model is written in bfloat16. Autocast to bfloat16 is on where the device multiplies it natively. Elsewhere all
is float32: a CPU would emulate bfloat16, many times slower.
Cost: 6·N FLOPs a token for N weights, and 12·L·H·D·T/2 for causal attention over rows of T.

Batch number `step` depends on (seed, step) alone, and the state holds the optimiser's moments and the settings. So a
run that was killed at any moment and is started again sees the same batches and ends in the same place. Log, state and
model are written in this order, each whole; a run that goes on writes its model first, from the state. A run goes on
with the settings of its state; only --n-step and --every may change. A loss that is not finite ends the run: the state
saved last stays.
"""

import json
import math
import random
import time
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from multiprocessing import get_all_start_methods
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from nanoct import cli
from nanoct.benchmarks import arc, nano
from nanoct.benchmarks.common import bos
from nanoct.io.files import lock, read_json_lines, reading, replace_file, writing
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.training import load_state, read_state, save_state
from nanoct.io.weights import fetch, fingerprint, lasting, load_model, pick_device, read_config, save_model
from nanoct.model import Llama, LlamaConfig
from nanoct.runs import plots

ARCHITECTURE = dict(n_layer=6, n_head=4, n_kv_head=2, n_embd=128, head_dim=32, n_ffn=256, n_position=512)
FREE = "n_step", "every"  # settings that may change when a run goes on


@dataclass
class Config:
    n_step: int = 7000
    lr: float = 2e-3
    n_warmup: int = 200
    decay: float = 0.25  # share of the steps in which the rate falls to 0
    weight_decay: float = 0.1
    n_token: int = 3072  # per step
    row: int = 256  # tokens a row; every eighth step has rows twice as long
    seed: int = 0
    every: int = 250  # steps between two evaluations, and between two saved states


class Rows(Dataset):
    """rows[step] is a batch: tokens (B, T) and, for every token, the number of its answer or -1 (B, T), int64."""

    def __init__(self, world, tokenizer, config, pool="train"):
        self.world, self.tokenizer, self.config, self.pool = world, tokenizer, config, pool
        self.encode = getattr(world, "encode", None) or partial(nano.encode, delimiter=world.delimiter)

    def __len__(self):
        return self.config.n_step

    def __getitem__(self, step):
        c = self.config
        T = 2 * c.row if step % 8 == 7 else c.row
        rng = random.Random(f"{c.seed}/{self.pool}/{step}")
        rows = [self.row(rng, T) for _ in range(c.n_token // T)]
        pad = lambda part, padding: pad_sequence([torch.tensor(row) for row in part], True, padding)
        return tuple(map(pad, zip(*rows), (0, -1)))

    def row(self, rng, T):
        tokens = bos(self.tokenizer)
        answer = [-1] * len(tokens)
        for n, (x, y) in enumerate(self.world.episode(rng, self.pool)):
            x, y = self.encode(self.tokenizer, x, y)
            tokens += x + y
            answer += [-1] * len(x) + [n] * len(y)
            if len(tokens) >= T:
                break
        return tokens[:T], answer[:T]


def answer_logits(model, tokens, answer):
    """Logits (N, V) for the N answer tokens of a batch, and their ids (N,)."""
    hidden, _ = model(tokens)
    is_answer = answer[:, 1:] >= 0
    return model.logits(hidden[:, :-1][is_answer]), tokens[:, 1:][is_answer]


@torch.no_grad()
def exact_by_k(model, rows, n_batch=4):
    """{k: share of answers right in every token, by teacher forcing}, for k = 0, half of the world's k, and its k.

    The share is None if no row holds so many answers.
    """
    right, total = {}, {}
    for step in range(n_batch):
        tokens, answer = (t.to(model.device) for t in rows[step])
        logits, target = answer_logits(model, tokens, answer)
        wrong = torch.zeros(answer.shape[0], max(answer.max(), rows.world.k) + 1, dtype=torch.long, device=model.device)
        row, column = torch.where(answer[:, 1:] >= 0)
        wrong.index_put_((row, answer[:, 1:][row, column]), (logits.argmax(-1) != target).long(), accumulate=True)
        for k in (0, rows.world.k // 2, rows.world.k):
            complete = answer.max(1).values > k  # the last answer of a row may be cut off
            right[k] = right.get(k, 0) + (wrong[complete, k] == 0).sum().item()
            total[k] = total.get(k, 0) + complete.sum().item()
    return {k: right[k] / total[k] if total[k] else None for k in total}


def rate(step, c):
    """Learning rate at a step: linear up, constant, linear down to 0."""
    return c.lr * min((step + 1) / c.n_warmup, 1, (c.n_step - step) / (c.decay * c.n_step))


def has_fast_bf16(device):
    """Whether the device multiplies bfloat16 natively; other CPUs are many times slower in it."""
    if device.type != "cpu":
        return device.type == "cuda"
    can = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16") or can.get("bf16"))


@torch.no_grad()
def start_from(model, folder, vocabulary):
    """Copy the weights in `folder` to the model. An embedding goes to the token of the same name, if there is one.

    Raises what load_model raises, and ValueError on a model of another architecture.
    """
    old = load_model(folder, model.device, torch.float32)
    here, there = asdict(replace(model.config, vocab_size=old.config.vocab_size)), asdict(old.config)
    differ = [f"{key} is {there[key]} there and {here[key]} here" for key in here if here[key] != there[key]]
    if differ:
        raise ValueError(f"{folder} has another architecture: {', '.join(differ)}; start from a model that "
                         "nanoct.pretrain made, or without --init.")
    tokens, embedding = load_tokenizer(folder), "model.embed_tokens.weight"
    tokens.check_belongs(old.config.vocab_size)
    state = old.state_dict() | {embedding: model.state_dict()[embedding].clone()}
    for i in range(tokens.vocab_size):
        if (token := tokens.decode([i])) in vocabulary:
            state[embedding][vocabulary.index(token)] = old.state_dict()[embedding][i]
    model.load_state_dict(state)


def check(config):
    """Raise ValueError on impossible settings."""
    cli.at_least_one(config, "n_step", "n_warmup", "row", "every")
    if not 0 < config.decay <= 1:
        raise ValueError(f"--decay {config.decay}: the share of steps with a falling rate is above 0 and at most 1.")
    if not 0 < config.lr < math.inf or not 0 <= config.weight_decay < math.inf:
        raise ValueError(f"--lr {config.lr} must be positive, and --weight-decay {config.weight_decay} not negative.")
    if 2 * config.row > config.n_token:
        raise ValueError(f"--row {config.row}: a row is at times twice as long, and a step has --n-token "
                         f"{config.n_token}: raise that, or lower this.")


def embedded(config, name, init, device):
    """(model, world, {name: tokenizer file}) of a built-in world; init: a folder whose weights the model starts from.

    Raises what start_from raises.
    """
    model = Llama(LlamaConfig(vocab_size=len(nano.VOCABULARY), **ARCHITECTURE))
    model.init_weights(torch.Generator().manual_seed(config.seed)).to(device)
    if init:
        start_from(model, init, nano.VOCABULARY)
    return model, nano.WORLDS[name], {"vocab.json": json.dumps(nano.VOCABULARY).encode() + b"\n"}


def public(init, device, data):
    """(model, ARC's training tasks, {name: tokenizer file}) of a public model. Raises what the loaders raise."""
    folder, world = fetch(init, weights=False), arc.Training(data)
    load_tokenizer(folder).check_belongs(read_config(folder).vocab_size)
    model = load_model(init, device, torch.float32).requires_grad_(True)
    model.checkpoint = True
    parts = "tokenizer", "vocab", "merges", "special_tokens"
    return model, world, {file.name: file.read_bytes() for file in folder.glob("*") if file.name.startswith(parts)}


def train(config, out, world="strings", init=None, device=None, data=None):
    """Train to config.n_step, from the state in `out` if there is one; write model, tokenizer, state and log there.

    init: a model whose weights a new run starts from; not read if a run of a built-in world goes on. data: folder of
    the files of --world arc. Raises ValueError or OSError with a sentence; what is saved stays.
    """
    check(config)
    if (world == "arc") != (data is not None):
        raise ValueError("--data is the folder of ARC-AGI-1, for --world arc, which needs it.")
    if world == "arc" and not init:
        raise ValueError("--world arc fine-tunes a public model: name it, or its folder, with --init.")
    out = Path(out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with lock(out):
        return _train(config, out, world, init, pick_device(device), data)


def _train(config, out, name, init, device, data):
    state, log = out / "state.safetensors", out / "log.jsonl"
    goes_on = state.exists()
    theirs = [file.name for file in out.iterdir() if file.name == "config.json" or file.suffix == ".safetensors"]
    if theirs and not goes_on:
        raise ValueError(f"{out} holds {theirs[0]} and no state to go on from: give another --out.")
    if name == "arc":
        model, world, files = public(init, device, data)
        mark = fingerprint(model)
    else:
        model, world, files = embedded(config, name, None if goes_on else init, device)
        mark = None
    if 2 * config.row > model.config.n_position:
        raise ValueError(f"--row {config.row}: a row is at times twice as long, and the model takes "
                         f"{model.config.n_position} tokens.")
    optimizer = optimizer_of(model, config)
    fixed = {name: value for name, value in asdict(config).items() if name not in FREE}
    settings = dict(world=name, init=mark, **lasting(model.config), **fixed)
    first, lines = 0, []
    if goes_on:
        first = read_state(state, model, settings, config.n_step)
        lines = read_log(log, first)
        load_state(state, model, optimizer)
    for file, content in files.items():
        replace_file(out / file, content)
    tokenizer = load_tokenizer(out)

    def save(step):
        about = {name: str(value) for name, value in asdict(config).items()}
        save_model(model, out, torch.bfloat16, metadata={"step": str(step), **about})

    if first:  # the run before may have ended behind its state and before its model
        save(first)
    rows = Rows(world, tokenizer, config)
    # other processes make the batches, or a GPU would wait for Python
    forks = device.type == "cuda" and "fork" in get_all_start_methods()  # not on Windows
    ahead = dict(num_workers=8, multiprocessing_context="fork") if forks else {}
    batches = DataLoader(Subset(rows, range(first, config.n_step)), batch_size=None, **ahead)
    losses, start = [], time.perf_counter()
    with tqdm(batches, initial=first, total=config.n_step, desc="pretrain", mininterval=5) as bar:
        for step, batch in enumerate(bar, start=first):
            tokens, answer = (t.to(device) for t in batch)
            for group in optimizer.param_groups:
                group["lr"] = rate(step, config)
            with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
                logits, target = answer_logits(model, tokens, answer)
            if not len(target):
                raise ValueError(f"--row {config.row}: no answer fits into rows as short as that.")
            loss = F.cross_entropy(logits.float(), target)
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            need_finite(step, out, loss, norm)
            optimizer.step()
            losses.append(loss.detach())
            if (step + 1) % config.every == 0 or step + 1 == config.n_step:
                need_finite(step, out, *model.parameters())
                line = dict(step=step + 1, loss=torch.stack(losses).mean().item(), seconds=time.perf_counter() - start)
                for pool in ("train", "validation"):
                    line[pool] = exact_by_k(model, Rows(world, tokenizer, config, pool))
                lines.append(line)
                replace_file(log, "".join(json.dumps(line) + "\n" for line in lines).encode())
                save_state(state, model, optimizer, step + 1, settings)
                save(step + 1)
                bar.set_postfix(loss=line["loss"], train=line["train"][world.k], unseen=line["validation"][world.k])
                losses, start = [], time.perf_counter()
    if lines:
        plots.pretraining(read_log(log, config.n_step), out / "curve.png")
    return model


def optimizer_of(model, config):
    """AdamW, with weight decay for matrices alone."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    gains = [p for p in model.parameters() if p.dim() == 1]
    groups = [dict(params=matrices, weight_decay=config.weight_decay), dict(params=gains, weight_decay=0.0)]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)


def read_log(path, step):
    """The lines of a log up to a step; later steps are done again."""
    lines = read_json_lines(path) if path.exists() else []
    with reading(path, "the log of a training", "delete the broken line"):
        return [line for _, line in lines if line["step"] <= step]


def need_finite(step, out, *tensors):
    """Raise ValueError unless all values are finite."""
    if not torch.stack([t.isfinite().all() for t in tensors]).all():
        raise ValueError(f"the loss, its gradient or the weights are not finite at step {step + 1}: stopped, and {out} "
                         "is as it was saved last; take a lower --lr and another --out.")


def main():
    parser = cli.Parser(prog="nanoct pretrain", description=__doc__)
    for f in fields(Config):
        parser.add_argument("--" + f.name.replace("_", "-"), type=f.type, default=f.default)
    parser.add_argument("--world", choices=[*nano.WORLDS, "arc"], default="strings")
    parser.add_argument("--init", help="folder of a model of the same architecture for a new run to start from; with "
                        "--world arc a public model")
    parser.add_argument("--data", help="folder of ARC-AGI-1, with --world arc")
    parser.add_argument("--out", help="folder of the model, its state and its log; default: results/nano/WORLD")
    parser.add_argument("--device", default=None)
    args = vars(parser.parse_args())
    world, init, device, data = (args.pop(name) for name in ("world", "init", "device", "data"))
    out = args.pop("out") or f"results/nano/{world}"
    train(Config(**args), out, world, init, device, data)


if __name__ == "__main__":
    cli.run(main)
