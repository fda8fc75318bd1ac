"""An LSTM and a Transformer that predict the next flip, and their meta-training (arXiv 2505.17010).

    nanoct coins.predictors                                     # both kinds, meta-trained, into weights/coins
    nanoct coins.predictors --n-embd 4                          # a narrow embedding
    nanoct coins.predictors --width 256 --n-layer 2 --batch 64  # larger

A flip is one-hot and embedded by a dense layer. A token of zeros stands at the beginning; its embedding is the layer's
bias. Then come the rows of a prefix, if there is one, then the flips. Sizes are width x layers, as in the public code:
the width is that of an LSTM's state. A Transformer is as wide as its embedding, and its MLP has 4 x width. It has 4
heads, norms before attention, before the MLP and after each layer, normalised queries and keys, and sinusoidal
positions counted from the beginning. Networks are initialised as in flax.

Meta-training is on sequences of flips, each of a new Beta(1, 1) coin. It makes a predictor near the Bayes-optimal one.
The paper's preset is 1,000 Adam steps of 256 sequences of 100 flips, lr 1e-3, global-norm clip 1. A step costs
6 · parameters · flips FLOPs (LSTM and Transformer alike, without attention), 31 GFLOP for the 0.2M of a 128x1
Transformer. A file that exists is not made again.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from tqdm import tqdm

from nanoct import cli
from nanoct.coins.coins import Beta, regret
from nanoct.io.files import append_lines, check_out, read_json, replace_file
from nanoct.runs.measure import check_finite
from nanoct.runs.results import machine
from nanoct.runs.stats import standard_error

ROOT = Path(__file__).parents[2]  # of a clone; an installed package has no weights beside it
FOLDER = (ROOT if (ROOT / "weights").is_dir() else Path()) / "weights" / "coins"
KINDS = "transformer", "lstm"


@dataclass(frozen=True)
class Config:
    kind: str = "transformer"
    width: int = 128
    n_layer: int = 1
    n_embd: int = 128  # width of the embedding, in which SoftPT's prefix lives
    seed: int = 0  # of the initial weights and of meta-training; it tells networks apart

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"a predictor is one of {', '.join(KINDS)}, not {self.kind!r}.")
        if self.n_embd < 4 or self.n_embd % 4 or min(self.width, self.n_layer) < 1:
            raise ValueError(f"n_embd = {self.n_embd} must be a multiple of 4 (heads), width = {self.width} and "
                             f"n_layer = {self.n_layer} at least 1.")

    @property
    def name(self):
        more = (f"-e{self.n_embd}" if self.n_embd != 128 else "") + (f"-s{self.seed}" if self.seed else "")
        return f"{self.kind}-{self.width}x{self.n_layer}{more}"


class Block(nn.Module):
    """A layer of the Transformer, C wide: causal attention and an MLP of n_hidden; only norms may have biases."""

    def __init__(self, C, n_hidden):
        super().__init__()
        self.attention_norm, self.mlp_norm, self.norm = (nn.LayerNorm(C, eps=1e-6) for _ in range(3))
        self.q_norm, self.k_norm = (nn.LayerNorm(C, eps=1e-6, bias=False) for _ in range(2))  # over all heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(C, C, bias=False) for _ in range(4))
        self.up_proj, self.down_proj = nn.Linear(C, n_hidden, bias=False), nn.Linear(n_hidden, C, bias=False)

    def forward(self, x):
        heads = lambda rows: rows.unflatten(-1, (4, -1)).transpose(1, 2)  # (B, 4, T, C/4)
        y = self.attention_norm(x)
        q, k, v = self.q_norm(self.q_proj(y)), self.k_norm(self.k_proj(y)), self.v_proj(y)
        y = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), is_causal=True)
        x = x + self.o_proj(y.transpose(1, 2).flatten(2))
        return self.norm(x + self.down_proj(F.gelu(self.up_proj(self.mlp_norm(x)))))


class Predictor(nn.Module):
    def __init__(self, config):
        """Initialise the weights as flax does, by the config's seed."""
        super().__init__()
        self.config, c = config, config
        self.embed = nn.Linear(2, c.n_embd)
        if c.kind == "lstm":
            self.body = nn.LSTM(c.n_embd, c.width, c.n_layer, batch_first=True)
        else:
            self.body = nn.Sequential(*(Block(c.n_embd, 4 * c.width) for _ in range(c.n_layer)))
        self.unembed = nn.Linear(c.width if c.kind == "lstm" else c.n_embd, 2)
        self.requires_grad_(False)
        as_flax(self, torch.Generator().manual_seed(c.seed))

    @property
    def device(self):
        return self.unembed.weight.device

    def forward(self, x, prefix=None, states=False):
        """Log-probabilities (B, T, 2) of every flip of x (B, T), each given those before it and a prefix (L, n_embd).

        states: return the states before unembedding (B, L+T, C) instead: at the beginning, after every row of the
        prefix, and after every flip but the last.
        """
        x = x.to(self.device)
        rows = self.embed(F.pad(F.one_hot(x[:, :-1], 2).float(), (0, 0, 1, 0)))  # (B, T, n_embd), zeros first
        if prefix is not None:
            rows = torch.cat([rows[:, :1], prefix.expand(len(x), -1, -1), rows[:, 1:]], 1)
        if self.config.kind == "lstm":
            rows = self.body(rows)[0]
        else:
            rows = self.body(rows + positions(*rows.shape[1:]).to(self.device))
        return rows if states else self.unembed(rows)[:, -x.shape[1] :].log_softmax(-1)

    def predict(self, x, prefix=None):
        """P(x_t = 1 | prefix, x_<t) (B, T), float64, on the CPU: what coins.regret takes."""
        return probability(lambda part: self(part, prefix), x)


@torch.no_grad()
def probability(log_p, x):
    """P(x_t = 1) (B, T), float64, on the CPU. log_p(flips): log-probabilities, of 256 sequences at a time."""
    return torch.cat([log_p(part)[..., 1].double().exp().cpu() for part in x.split(256)])


def as_flax(predictor, generator):
    """Initialise in place: kernels lecun-normal, recurrent ones orthogonal gate by gate, biases zero."""
    for name, p in predictor.named_parameters():
        if "weight_hh" in name:
            for gate in p.chunk(4):
                nn.init.orthogonal_(gate, generator=generator)
        elif p.dim() == 2:
            lecun_normal(p, generator)
        elif "bias" in name:
            nn.init.zeros_(p)


def lecun_normal(p, generator):
    """Fill p (outputs, inputs) from a normal of variance 1 / inputs, truncated at two of its deviations."""
    std = p.shape[1] ** -0.5 / 0.87962566  # truncation shrinks the deviation by this factor
    return nn.init.trunc_normal_(p, std=std, a=-2 * std, b=2 * std, generator=generator)


def positions(T, width):
    """Sinusoids (T, width)."""
    angle = torch.arange(T)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


def loss_of(log_p, x):
    """Mean over sequences of their log loss in nats, the sum over flips. log_p: log-probabilities (B, T, 2)."""
    return F.nll_loss(log_p.flatten(0, 1), x.flatten().to(log_p.device), reduction="sum") / len(x)


def meta_train(predictor, source, n_step=1000, batch=256, T=100, lr=1e-3):
    """Train all weights of a predictor, in place, on sequences of a source; return the loss a flip of every step."""
    generator = torch.Generator().manual_seed(predictor.config.seed)
    leaves = list(predictor.requires_grad_(True).parameters())
    optimizer, losses = torch.optim.Adam(leaves, lr=lr), []
    bar = tqdm(range(n_step), desc=f"meta-train {predictor.config.name}", mininterval=2)
    for _ in bar:
        x, _ = source.sample(batch, T, generator)
        loss = loss_of(predictor(x), x)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        losses.append(loss.item() / T)
        bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
    predictor.requires_grad_(False)
    return losses


def save(predictor, file, **about):
    """Save weights and config as one safetensors file, with `about` in its metadata."""
    metadata = {"config": json.dumps(asdict(predictor.config)), **{name: str(value) for name, value in about.items()}}
    replace_file(file, serialise(predictor.state_dict(), metadata))


def load(file):
    """Load a predictor that `save` wrote. Raises FileNotFoundError, or ValueError if it is broken."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no predictor {file}: `nanoct coins.predictors` makes it.")
    try:
        with safe_open(file, "pt") as opened:
            predictor = Predictor(Config(**read_json(opened.metadata()["config"].encode(), file, dict)))
            predictor.load_state_dict({name: opened.get_tensor(name) for name in opened.keys()})
        if not all(p.isfinite().all() for p in predictor.parameters()):
            raise ValueError
    except (SafetensorError, TypeError, KeyError, ValueError, RuntimeError):
        raise ValueError(f"{file} is no predictor that nanoct.coins wrote, or broken: make it again.") from None
    return predictor


def shipped(config):
    """The meta-trained predictor of a Config in weights/coins."""
    return load(FOLDER / f"{config.name}.safetensors")


def main():
    p = cli.Parser(prog="nanoct coins.predictors", description=__doc__)
    p.add_argument("--kind", nargs="+", choices=KINDS, default=KINDS)
    numbers = {"width": 128, "n-layer": 1, "n-embd": 128, "n-step": 1000, "batch": 256, "seed": 0}
    for name, default in numbers.items():
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--out", default=str(FOLDER))
    args = p.parse_args()
    about = dict(n_step=args.n_step, batch=args.batch)
    cli.at_least_one(args, "n_step", "batch")
    for kind in args.kind:
        predictor = Predictor(Config(kind, args.width, args.n_layer, args.n_embd, args.seed))
        name = predictor.config.name
        file = Path(args.out) / f"{name}.safetensors"
        if file.exists():
            print(f"{file} is there; delete it to train it anew.")
            continue
        check_out(file)
        append_lines(Path(args.out) / "log.jsonl", [])
        start = time.perf_counter()
        losses = meta_train(predictor, Beta(), **about)
        seconds = time.perf_counter() - start
        x, truth = Beta().sample(8192, 100, torch.Generator().manual_seed(1))
        above = (regret(predictor.predict(x), x, truth) - regret(Beta().bayes(x), x, truth))[:, -1]
        found = dict(name=name, loss=round(mean(losses[-50:]), 4), above_bayes=round(above.mean().item(), 4),
                     above_bayes_se=round(standard_error(above.tolist()), 4), seconds=round(seconds))
        check_finite("meta-training", name, [*losses, found["above_bayes"]])
        line = about | dict(seed=args.seed) | found | machine(torch.device("cpu"))
        save(predictor, file, **about)
        append_lines(Path(args.out) / "log.jsonl", [line])
        print("{name}: loss {loss}; cumulative regret after 100 flips {above_bayes} ± {above_bayes_se} nats above "
              "Bayes".format(**line))


if __name__ == "__main__":
    cli.run(main)
