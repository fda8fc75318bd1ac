"""An LSTM and a Transformer that predict the next flip, and their meta-training (arXiv 2505.17010).

    python -m nanoct.coins.predictors                                     # both kinds, meta-trained, into weights/coins
    python -m nanoct.coins.predictors --n-embd 4                          # a narrow embedding
    python -m nanoct.coins.predictors --width 256 --n-layer 2 --batch 64  # larger

A flip is one-hot, embedded by a dense layer; a zero vector stands at the beginning, then the rows of a prefix, if there
is one, then the flips. Sizes: width x layers, the Transformer with 4 heads, an MLP of 4 x width, sinusoidal positions
counted from the beginning, norms before the blocks. Where the embedding is narrower than the Transformer a dense layer
widens it.

Meta-training on sequences of one Beta(1, 1) coin each makes a predictor near the Bayes-optimal one: 1,000 Adam steps of
256 sequences of 100 flips, lr 1e-3, global-norm clip 1, the paper's preset. Cost: 6 · parameters · flips FLOPs a step
(LSTM and Transformer alike, attention aside), 31 GFLOP for the 0.2M of a 128x1 Transformer. A file that is there is not
made again.
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
from nanoct.files import read_json, replace_file
from nanoct.runs.report import standard_error
from nanoct.runs.results import machine

FOLDER = Path(__file__).parents[2] / "weights" / "coins"
KINDS = "transformer", "lstm"


@dataclass(frozen=True)
class Config:
    kind: str = "transformer"
    width: int = 128
    n_layer: int = 1
    n_embd: int = 128  # of the embedding, where SoftPT's prefix lives

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"a predictor is one of {', '.join(KINDS)}, not {self.kind!r}.")
        if self.width < 4 or self.width % 4 or min(self.n_layer, self.n_embd) < 1:
            raise ValueError(f"width = {self.width} must be a multiple of 4 (heads), n_layer = {self.n_layer} and "
                             f"n_embd = {self.n_embd} at least 1.")

    @property
    def name(self):
        return f"{self.kind}-{self.width}x{self.n_layer}" + (f"-e{self.n_embd}" if self.n_embd != 128 else "")


class Predictor(nn.Module):
    def __init__(self, config, seed=0):
        """Random weights, torch's own initialisation, by seed."""
        super().__init__()
        self.config, c = config, config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = nn.Linear(2, c.n_embd)
            if c.kind == "lstm":
                self.body = nn.LSTM(c.n_embd, c.width, c.n_layer, batch_first=True)
            else:
                self.widen = nn.Linear(c.n_embd, c.width) if c.n_embd != c.width else nn.Identity()
                block = nn.TransformerEncoderLayer(c.width, 4, 4 * c.width, dropout=0.0, activation=F.gelu,
                                                   batch_first=True, norm_first=True)
                self.body = nn.TransformerEncoder(block, c.n_layer, nn.LayerNorm(c.width), enable_nested_tensor=False)
            self.unembed = nn.Linear(c.width, 2)
        self.requires_grad_(False)

    @property
    def device(self):
        return self.unembed.weight.device

    def forward(self, x, prefix=None, states=False):
        """Log-probabilities (B, T, 2) of every flip of x (B, T), each given those before it and a prefix (L, n_embd).

        states: instead, what is unembedded (B, L+T, width): at the beginning, after every row of the prefix, and after
        every flip but the last.
        """
        x = x.to(self.device)
        rows = [torch.zeros(len(x), 1, self.config.n_embd, device=self.device)]
        if prefix is not None:
            rows.append(prefix.expand(len(x), -1, -1))
        rows = torch.cat([*rows, self.embed(F.one_hot(x[:, :-1], 2).float())], 1)
        if self.config.kind == "lstm":
            rows = self.body(rows)[0]
        else:
            T = rows.shape[1]
            mask = nn.Transformer.generate_square_subsequent_mask(T, self.device)
            placed = self.widen(rows) + positions(T, self.config.width).to(self.device)
            rows = self.body(placed, mask=mask, is_causal=True)
        return rows if states else self.unembed(rows)[:, -x.shape[1] :].log_softmax(-1)

    def predict(self, x, prefix=None):
        """P(x_t = 1 | prefix, x_<t) (B, T), float64, on the CPU: what coins.regret takes."""
        return probability(lambda part: self(part, prefix), x)


@torch.no_grad()
def probability(log_p, x):
    """P(x_t = 1) (B, T), float64, on the CPU, of log_p: flips -> log-probabilities; 256 sequences at a time."""
    return torch.cat([log_p(part)[..., 1].double().exp().cpu() for part in x.split(256)])


def positions(T, width):
    """Sinusoids (T, width)."""
    angle = torch.arange(T)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


def loss_of(log_p, x):
    """Mean log loss in nats a flip of log-probabilities (B, T, 2)."""
    return F.nll_loss(log_p.flatten(0, 1), x.flatten().to(log_p.device))


def meta_train(predictor, source, n_step=1000, batch=256, T=100, lr=1e-3, seed=0):
    """Train all weights of a predictor, in place, on sequences of a source; returns the losses of the steps."""
    generator = torch.Generator().manual_seed(seed)
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
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
    predictor.requires_grad_(False)
    return losses


def save(predictor, file, **about):
    """Weights and config as one safetensors file, with what is said about them."""
    metadata = {"config": json.dumps(asdict(predictor.config)), **{name: str(value) for name, value in about.items()}}
    replace_file(file, serialise(predictor.state_dict(), metadata))


def load(file):
    """A predictor from a file of `save`. Raises FileNotFoundError or ValueError with a sentence."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no predictor {file}: `python -m nanoct.coins.predictors` makes it.")
    try:
        with safe_open(file, "pt") as opened:
            predictor = Predictor(Config(**read_json(opened.metadata()["config"].encode(), file, dict)))
            predictor.load_state_dict({name: opened.get_tensor(name) for name in opened.keys()})
    except (SafetensorError, TypeError, KeyError, ValueError, RuntimeError):
        raise ValueError(f"{file} is no predictor that nanoct.coins wrote, or broken: make it again.") from None
    return predictor


def shipped(config):
    """The meta-trained predictor of a Config in weights/coins."""
    return load(FOLDER / f"{config.name}.safetensors")


def main():
    p = cli.Parser(prog="nanoct.coins.predictors", description=__doc__)
    p.add_argument("--kind", nargs="+", choices=KINDS, default=KINDS)
    numbers = {"width": 128, "n-layer": 1, "n-embd": 128, "n-step": 1000, "batch": 256, "seed": 0}
    for name, default in numbers.items():
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--out", default=str(FOLDER))
    args = p.parse_args()
    about = dict(n_step=args.n_step, batch=args.batch, seed=args.seed)
    cli.at_least_one(args, "n_step", "batch")
    for kind in args.kind:
        predictor = Predictor(Config(kind, args.width, args.n_layer, args.n_embd), args.seed)
        name = predictor.config.name
        file = Path(args.out) / f"{name}.safetensors"
        if file.exists():
            print(f"{file} is there; delete it to train it anew.")
            continue
        start = time.perf_counter()
        losses = meta_train(predictor, Beta(), **about)
        seconds = time.perf_counter() - start
        x, truth = Beta().sample(8192, 100, torch.Generator().manual_seed(1))
        above = (regret(predictor.predict(x), x, truth) - regret(Beta().bayes(x), x, truth))[:, -1]
        found = dict(name=name, loss=round(mean(losses[-50:]), 4), above_bayes=round(above.mean().item(), 4),
                     above_bayes_se=round(standard_error(above.tolist()), 4), seconds=round(seconds))
        line = about | found | machine(torch.device("cpu"))
        save(predictor, file, **about)
        with open(Path(args.out) / "log.jsonl", "a") as f:
            f.write(json.dumps(line) + "\n")
        print("{name}: loss {loss}; cumulative regret after 100 flips {above_bayes} ± {above_bayes_se} nats above "
              "Bayes".format(**line))


if __name__ == "__main__":
    cli.run(main)
