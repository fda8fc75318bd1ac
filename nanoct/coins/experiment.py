"""The runs of the coin-flip study: which ones there are, and how one is done (study.py is the command).

A run tunes one predictor to one source by one method. It is scored on fresh sequences of 200 flips, by the cumulative
regret in nats at every position. There are two baselines: NoTuning and a random prefix. Predictors come from
weights/coins (predictors.py); untrained ones have random weights by seed. Three predictors are exact (kind "exact"):
PreBayes knows the pretraining source, PreBayesPT is PreBayes behind its best hard prefix (the bound of HardPT), and
TargetBayes knows the target. A line holds what tables and figures need: the regret, the losses of all hard prefixes,
and, in the first repetition, the tuned prefix.
"""

import json
import time
from dataclasses import dataclass, field
from functools import cache
from itertools import product

import torch

from nanoct.coins.coins import Beta, Coins, Markov, after, regret
from nanoct.coins.predictors import KINDS, Config, Predictor, shipped
from nanoct.coins.tuning import METHODS, PREFIX, Tuned, best, embedded, search, tune
from nanoct.runs.measure import check_finite
from nanoct.runs.results import about

PRETRAINING = "beta"
TARGETS = {PRETRAINING: Beta(), "single": Coins([0.2]), "mixture": Coins([0.2, 0.8]), "markov": Markov(0.9)}
VARIED = "single", "mixture"  # targets of the runs with other lengths and sizes
BASELINES = "NoTuning", "RandomPrefix"
BAYES = "PreBayes", "PreBayesPT", "TargetBayes"
BEHIND = *PREFIX, "RandomPrefix", "PreBayesPT"  # methods that have a prefix
T = 200
LENGTH = 6
BASE = (128, 1, 128)  # width, layers, embedding
KEY = ("target", "kind", "width", "n_layer", "n_embd", "network", "trained", "method", "length", "seed",
       "n_step", "batch", "n_eval", "n_search")
NEEDS = dict(regret=T, seconds=None)  # what the tables need of a line


@dataclass(frozen=True)
class Preset:
    n_step: int
    batch: int
    n_repetition: int
    n_eval: int = 2048
    n_search: int = 2048  # sequences of HardPT's search
    methods: tuple = METHODS
    untrained: tuple = ("HardPT", "SoftPT", "FullWT", "LoRAWT")
    lengths: tuple = (1, 2, 4, 12, 25)  # of a prefix, beside 6
    targets: tuple = ("single", "mixture", "markov")
    sizes: tuple = ((128, 1, 4), (256, 2, 128))  # beside BASE
    n_wide: int = 10  # at most so many repetitions of wide sizes, as a run costs up to ten times as much


PRESETS = {
    "quick": Preset(100, 64, 1, 512, 256, methods=("HardPT", "SoftPT", "FullWT", "LoRAWT"), untrained=("SoftPT",),
                    lengths=(), targets=("single", "mixture"), sizes=()),
    "cpu": Preset(300, 64, 3, 1024, 512, n_wide=1),
    "full": Preset(1000, 256, 10, untrained=METHODS, lengths=(1, 2, 3, 4, 8, 10, 15, 20, 25)),
}


def plan(preset):
    """All runs of a preset, repetition by repetition, as dicts with the fields KEY."""
    runs, amounts = [], (preset.n_step, preset.batch, preset.n_eval, preset.n_search)

    def add(seed, target, kind, methods, trained=True, length=LENGTH, size=BASE):
        network = 0 if trained else 1000 + seed
        for method in methods:
            rows = length if method in BEHIND else 0
            runs.append(dict(zip(KEY, (target, kind, *size, network, trained, method, rows, seed, *amounts))))

    def add_size(seed, kind, size):
        add(seed, PRETRAINING, kind, ("NoTuning",), size=size)
        for target in VARIED:
            add(seed, target, kind, ("NoTuning", "SoftPT", "RealPT" if size[2] == 4 else "FullWT"), size=size)

    for seed in range(preset.n_repetition):
        for target in TARGETS:
            add(seed, target, "exact", BAYES if target != PRETRAINING else ("PreBayes",))
        for kind in KINDS:
            add(seed, PRETRAINING, kind, ("NoTuning",))
            for target in preset.targets:
                add(seed, target, kind, (*BASELINES, *preset.methods))
                add(seed, target, kind, ("NoTuning", *preset.untrained), trained=False)
            for target, length in product(VARIED, preset.lengths):
                add(seed, target, kind, ("HardPT", "SoftPT") if length <= 8 else ("SoftPT",), length=length)
            for size in preset.sizes:
                if size[0] <= BASE[0]:
                    add_size(seed, kind, size)
    for seed, kind, size in product(range(min(preset.n_repetition, preset.n_wide)), KINDS, preset.sizes):
        if size[0] > BASE[0]:  # the longest go last
            add_size(seed, kind, size)
    return runs


def key(line):
    return json.dumps([line[name] for name in KEY])


@cache
def n_weight(config):
    return sum(p.numel() for p in Predictor(config).parameters())


def flops(run):
    """FLOPs of a run with N weights and a prefix of L rows, without attention.

    The forward pass takes 2·N a flip. The backward pass takes 2·N if a gradient goes through the body, and 2·N more for
    the gradient of all weights. An LSTM's kernel always computes the latter, and LoRA needs it too. HardPT only
    has forward passes: 2^L, over n_search sequences.
    """
    if run["kind"] == "exact":
        return 0
    method, L = run["method"], run["length"]
    each = 6 if run["kind"] == "lstm" or method in ("FullWT", "LoRAWT") else 4
    tuning = run["batch"] * (50 + L) * run["n_step"] * (2 if method == "UnembedWT" else each)
    if method == "HardPT":
        tuning = 2 * 2**L * run["n_search"] * (50 + L)
    elif method in BASELINES:
        tuning = 0
    return n_weight(config_of(run)) * (tuning + 2 * run["n_eval"] * (T + L))


def fresh(target, n, seed):
    """Sequences that no method was tuned on, and their truth."""
    return TARGETS[target].sample(n, T, torch.Generator().manual_seed(10_000 + seed))


def config_of(run):
    return Config(run["kind"], run["width"], run["n_layer"], run["n_embd"], run["network"])


def predictor_of(run, device="cpu"):
    return (shipped if run["trained"] else Predictor)(config_of(run)).to(device)


@dataclass
class Exact:
    """Bayes of a source, behind a hard prefix if any; used like a Tuned."""

    source: object
    searched: dict = field(default_factory=dict)
    prefix, losses = None, ()

    def predict(self, x):
        return after(self.source, best(self.searched), x) if self.searched else self.source.bayes(x)


def tuned_of(run, device="cpu"):
    """The predictor of a run, Tuned or Exact."""
    target, pre, method = TARGETS[run["target"]], TARGETS[PRETRAINING], run["method"]
    amounts = dict(seed=run["seed"], n_search=run["n_search"])
    if method == "PreBayesPT":
        return Exact(pre, search(lambda flips, x: after(pre, flips, x), target, run["length"], **amounts))
    if run["kind"] == "exact":
        return Exact(target if method == "TargetBayes" else pre)
    predictor = predictor_of(run, device)
    if method == "NoTuning":
        return Tuned(predictor)
    if method == "RandomPrefix":
        flips = torch.randint(2, (run["length"],), generator=torch.Generator().manual_seed(run["seed"]))
        return Tuned(predictor, prefix=embedded(predictor, flips))
    return tune(predictor, target, method, run["length"], run["n_step"], run["batch"], **amounts)


def prepare(device):
    """Set a worker's DEVICE."""
    global DEVICE
    DEVICE = device


def work(run):
    """Tune and evaluate: the line of a run."""
    start = time.perf_counter()
    tuned = tuned_of(run, DEVICE)
    seconds = time.perf_counter() - start
    x, truth = fresh(run["target"], run["n_eval"], run["seed"])
    curve = regret(tuned.predict(x), x, truth).mean(0)
    check_finite(run["method"], run["target"], [*curve.tolist(), *tuned.losses, *tuned.searched.values()])
    rounded = lambda values: [round(value, 4) for value in values]
    prefix = [] if run["seed"] or tuned.prefix is None else list(map(rounded, tuned.prefix.tolist()))
    return run | dict(regret=rounded(curve.tolist()), searched=rounded(tuned.searched.values()), prefix=prefix,
                      losses=rounded([*tuned.losses[:1], *tuned.losses[-1:]]), seconds=round(seconds, 2),
                      **about(torch.device(DEVICE)))
