"""Meta-train an embedded model, one for each world: learn to learn a task from the examples in context.

    python -m nanoct.pretrain                       # strings, into results/nano/strings; started again, it goes on
    python -m nanoct.pretrain --world grids --init weights/nano/strings     # from another world's weights
    python -m nanoct.reproduce --model results/nano
    python -m nanoct.pretrain --world arc --data data/arc --init meta-llama/Llama-3.2-1B-Instruct \\
        --lr 1e-5 --n-step 8000 --row 4096 --n-token 16384 --out results/arc-1b       # the model of the paper's ARC column

A row is `<s> x = y ; x = y ; …`, one episode of the world's training pool with as many examples as fit. The
loss is the mean cross-entropy of every answer token, so answer number i is a k-shot prediction with k = i:
one row trains every k at once (MetaICL, arXiv 2110.15943). Nothing of the held-out pool is ever drawn. All
worlds share one vocabulary, so weights of one can start another; tokens that are new keep random embeddings.
With --world arc a row is an augmented training task of ARC-AGI-1 (benchmarks/arc.py), in the format of the benchmark, and
what is trained is a public model with its own tokenizer; the settings above are ours, as the paper gives none.

AdamW, linear warm-up, constant rate, linear decay over the last quarter: training can be stopped at any
point and given another --n-step, only the decay is lost. Weights, moments and saved state are float32; the
model is written in bfloat16. Autocast to bfloat16 is on where the device multiplies it natively, else all is
float32: a CPU without it would emulate it, many times slower.
Cost: 6·N FLOPs a token for N weights, and 12·L·H·D·T/2 for causal attention over rows of T.

Batch number `step` depends on (seed, step) alone and the state holds the optimiser's moments: a run that
was killed and started again sees the same batches and ends in the same place.
"""

import json
import random
import shutil
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from nanoct import cli
from nanoct.benchmarks import arc, nano
from nanoct.benchmarks.common import bos
from nanoct.model import Llama, LlamaConfig
from nanoct.runs import plots
from nanoct.tokenizer import load_tokenizer
from nanoct.weights import fetch, load_model, pick_device, save_model

ARCHITECTURE = dict(n_layer=6, n_head=4, n_kv_head=2, n_embd=128, head_dim=32, n_ffn=256, n_position=512)


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
    """Batch number `step`: tokens (B, T) and, for every token, the number of its answer or -1 (B, T), int64."""

    def __init__(self, world, tokenizer, config, pool="train"):
        self.world, self.tokenizer, self.config, self.pool = world, tokenizer, config, pool
        self.encode = getattr(world, "encode", nano.encode)

    def __len__(self):
        return self.config.n_step

    def __getitem__(self, step):
        c = self.config
        T = 2 * c.row if step % 8 == 7 else c.row
        rng = random.Random(f"{c.seed}/{self.pool}/{step}")
        rows = [self.row(rng, T) for _ in range(c.n_token // T)]
        return tuple(pad_sequence([torch.tensor(row) for row in part], True, padding) for part, padding in zip(zip(*rows), (0, -1)))

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
    """Share of answers that are right in every token, by teacher forcing, at k = 0, half of the world's k, and k:
    {k: share}, nan where no row holds that many."""
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
    return {k: right[k] / total[k] if total[k] else float("nan") for k in total}


def rate(step, c):
    """Learning rate at a step: linear up, constant, linear down to 0."""
    return c.lr * min((step + 1) / c.n_warmup, 1, (c.n_step - step) / (c.decay * c.n_step))


def has_fast_bf16(device):
    """Whether the device multiplies bfloat16 natively; a CPU that does not is many times slower in it than in float32."""
    if device.type != "cpu":
        return device.type == "cuda"
    can = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16") or can.get("bf16"))


def save_state(path, model, optimizer, step):
    """Weights, both moments of AdamW and the step, in one safetensors file."""
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        tensors |= {f"{name}.{key}": optimizer.state[p][key] for key in ("exp_avg", "exp_avg_sq", "step")}
    save_file(tensors, path.with_suffix(".tmp"), metadata={"step": str(step)})
    path.with_suffix(".tmp").replace(path)


@torch.no_grad()
def load_state(path, model, optimizer):
    """Put a saved state back; returns the step to go on with."""
    with safe_open(path, "pt", device=str(model.device)) as f:
        for name, p in model.named_parameters():
            p.copy_(f.get_tensor(name))
            optimizer.state[p] = {key: f.get_tensor(f"{name}.{key}") for key in ("exp_avg", "exp_avg_sq", "step")}
        return int(f.metadata()["step"])


@torch.no_grad()
def start_from(model, folder, vocabulary):
    """Copy the weights in `folder`; an embedding goes to the token of the same name, where there is one.

    Raises what load_model raises, and ValueError on a model of another architecture.
    """
    old = load_model(folder, model.device, torch.float32)
    here, there = asdict(replace(model.config, vocab_size=old.config.vocab_size)), asdict(old.config)
    if differ := ", ".join(f"{key} is {there[key]} there and {here[key]} here" for key in here if here[key] != there[key]):
        raise ValueError(f"{folder} has another architecture: {differ}; start from a model that nanoct.pretrain made, "
                         "or without --init.")
    tokens, embedding = json.loads((Path(folder) / "vocab.json").read_text()), "model.embed_tokens.weight"
    state = old.state_dict() | {embedding: model.state_dict()[embedding].clone()}
    for i, token in enumerate(tokens):
        if token in vocabulary:
            state[embedding][vocabulary.index(token)] = old.state_dict()[embedding][i]
    model.load_state_dict(state)


def begin(config, out, world, init, data, device):
    """(model, tokenizer, world) of a new run, and its tokenizer's files in `out`. ValueError on options that do not go together."""
    if (world == "arc") != (data is not None):
        raise ValueError("--data is the folder of ARC-AGI-1, for --world arc, which needs it.")
    if world != "arc":
        (out / "vocab.json").write_text(json.dumps(nano.VOCABULARY) + "\n")
        model = Llama(LlamaConfig(vocab_size=len(nano.VOCABULARY), **ARCHITECTURE))
        model.init_weights(torch.Generator().manual_seed(config.seed)).to(device)
        if init and not (out / "state.safetensors").exists():
            start_from(model, init, nano.VOCABULARY)
        return model, load_tokenizer(out), nano.WORLDS[world]
    if not init:
        raise ValueError("--world arc fine-tunes a public model: name it, or its folder, with --init.")
    folder, world = fetch(init), arc.Training(data)
    model = load_model(folder, device, torch.float32).requires_grad_(True)
    if not 1 <= 2 * config.row <= min(model.config.n_position, config.n_token):
        raise ValueError(f"--row {config.row}: a row is at times twice as long, and {init} takes {model.config.n_position} tokens, "
                         f"a step --n-token {config.n_token}.")
    model.checkpoint, tokenizer = True, load_tokenizer(folder)
    tokenizer.check_belongs(model.config.vocab_size)
    for file in folder.glob("*"):
        if file.name.startswith(("tokenizer", "vocab", "merges", "special_tokens")):
            shutil.copy(file, out)
    return model, tokenizer, world


def train(config, out, world="strings", init=None, device=None, data=None):
    """Train to config.n_step, or go on from the state in `out`; writes model, tokenizer, state and log there.

    init: a folder whose weights a new run starts from; a run of the embedded worlds that goes on does not look at it.
    data: of --world arc, the folder of its files.
    """
    out, device = Path(out), pick_device(device)
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer, world = begin(config, out, world, init, data, device)
    state, log = out / "state.safetensors", out / "log.jsonl"
    matrices = [p for p in model.parameters() if p.dim() == 2]
    gains = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [dict(params=matrices, weight_decay=config.weight_decay), dict(params=gains, weight_decay=0.0)],
        lr=config.lr, betas=(0.9, 0.98), fused=True)
    first = load_state(state, model, optimizer) if state.exists() else 0
    lines = log.read_text().splitlines() if log.exists() else []
    lines = [line for line in lines if json.loads(line)["step"] <= first]  # what came after the state is done again
    rows = Rows(world, tokenizer, config)
    ahead = dict(num_workers=8, multiprocessing_context="fork") if device.type == "cuda" else {}  # a GPU would wait for Python
    batches = DataLoader(Subset(rows, range(first, config.n_step)), batch_size=None, **ahead)
    losses, start = [], time.perf_counter()
    bar = tqdm(batches, initial=first, total=config.n_step, desc="pretrain", mininterval=5)
    for step, batch in enumerate(bar, start=first):
        tokens, answer = (t.to(device) for t in batch)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, config)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            logits, target = answer_logits(model, tokens, answer)
        loss = F.cross_entropy(logits.float(), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        if (step + 1) % config.every == 0 or step + 1 == config.n_step:
            line = dict(step=step + 1, loss=torch.stack(losses).mean().item(), seconds=time.perf_counter() - start)
            for pool in ("train", "validation"):
                line[pool] = exact_by_k(model, Rows(world, tokenizer, config, pool))
            lines.append(json.dumps(line))
            log.write_text("\n".join(lines) + "\n")
            bar.set_postfix(loss=f"{line['loss']:.3f}", train=f"{line['train'][world.k]:.2f}", unseen=f"{line['validation'][world.k]:.2f}")
            losses, start = [], time.perf_counter()
            save_state(state, model, optimizer, step + 1)
            save_model(model, out, torch.bfloat16, metadata={"step": str(step + 1), **{k: str(v) for k, v in asdict(config).items()}})
    plots.pretraining([json.loads(line) for line in lines], out / "curve.png")
    return model


def main():
    parser = cli.Parser(prog="nanoct.pretrain", description=__doc__.split("\n")[0])
    for f in fields(Config):
        parser.add_argument("--" + f.name.replace("_", "-"), type=f.type, default=f.default)
    parser.add_argument("--world", choices=[*nano.WORLDS, "arc"], default="strings")
    parser.add_argument("--init", help="folder of a model of the same architecture for a new run to start from; with --world arc a "
                        "public model")
    parser.add_argument("--data", help="folder of ARC-AGI-1, with --world arc")
    parser.add_argument("--out", help="folder of the model, its state and its log; default: results/nano/WORLD")
    parser.add_argument("--device", default=None)
    args = vars(parser.parse_args())
    world, init, device, data = (args.pop(name) for name in ("world", "init", "device", "data"))
    out = args.pop("out") or f"results/nano/{world}"
    train(Config(**args), out, world, init, device, data)


if __name__ == "__main__":
    cli.run(main)
