"""The runs of the coin-flip study: which there are, and how one is done (study.py is the command).

Every run tunes one predictor by one method to one source and is scored on fresh sequences of 200 flips: cumulative
regret in nats at every position. NoTuning and a random prefix are run beside the methods; PreBayes (of the
pretraining source) and TargetBayes (of the target) are exact. Predictors come from weights/coins (predictors.py), one
of each kind and size, so repetitions differ in the sequences and in the start of the tuning and not in the
meta-training; untrained ones have random weights by seed.
"""

import json
import time
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch

from nanoct.coins.coins import Beta, Coins, Markov, regret
from nanoct.coins.predictors import KINDS, Config, Predictor, shipped
from nanoct.coins.tuning import METHODS, PREFIX, Tuned, one_hot, tune
from nanoct.runs.results import about

PRETRAINING = "beta"
TARGETS = {PRETRAINING: Beta(), "single": Coins([0.2]), "mixture": Coins([0.2, 0.8]), "markov": Markov(0.9)}
BASELINES = "NoTuning", "RandomPrefix"
T = 200
BASE = (128, 1, 128)  # width, layers, embedding
KEY = ("target", "kind", "width", "n_layer", "n_embd", "trained", "method", "length", "seed",
       "n_step", "batch", "n_eval", "n_search")


@dataclass(frozen=True)
class Preset:
    n_step: int
    batch: int
    n_repetition: int
    n_eval: int = 2048
    n_search: int = 2048  # sequences of HardPT's search
    methods: tuple = METHODS
    untrained: tuple = ("HardPT", "SoftPT", "FullWT", "LoRAWT")
    lengths: tuple = (1, 2, 4, 12, 25)  # beside 6
    targets: tuple = ("single", "mixture", "markov")
    sizes: tuple = ((128, 1, 4), (256, 2, 128))  # beside BASE
    n_wide: int = 10  # repetitions of the wide ones, if that is less: a run costs up to ten times as much


PRESETS = {
    "quick": Preset(100, 64, 1, 512, 256, methods=("HardPT", "SoftPT", "FullWT", "LoRAWT"), untrained=("SoftPT",),
                    lengths=(), targets=("single", "mixture"), sizes=()),
    "cpu": Preset(300, 64, 3, 1024, 512, n_wide=1),
    "full": Preset(1000, 256, 10, untrained=METHODS, lengths=(1, 2, 3, 4, 8, 10, 15, 20, 25)),
}


def plan(preset):
    """All runs of a preset, repetition by repetition, as dicts of KEY."""
    amounts = preset.n_step, preset.batch, preset.n_eval, preset.n_search

    def cell(seed, target, kind, trained, methods, length=6, size=BASE):
        length_of = lambda method: length if method in (*PREFIX, "RandomPrefix") else 0
        return [dict(zip(KEY, (target, kind, *size, trained, method, length_of(method), seed, *amounts)))
                for method in methods]

    def at_size(seed, kind, size):
        methods = "NoTuning", "SoftPT", "RealPT" if size[2] == 4 else "FullWT"
        runs = cell(seed, PRETRAINING, kind, True, ("NoTuning",), size=size)
        for target in ("single", "mixture"):
            runs += cell(seed, target, kind, True, methods, size=size)
        return runs

    runs, wide = [], [size for size in preset.sizes if size[0] > BASE[0]]
    for seed, kind in product(range(preset.n_repetition), KINDS):
        runs += cell(seed, PRETRAINING, kind, True, ("NoTuning",))
        for target in preset.targets:
            runs += cell(seed, target, kind, True, (*BASELINES, *preset.methods))
            runs += cell(seed, target, kind, False, ("NoTuning", *preset.untrained))
        for target, length in product(("single", "mixture"), preset.lengths):
            runs += cell(seed, target, kind, True, ("HardPT", "SoftPT") if length <= 8 else ("SoftPT",), length)
        for size in preset.sizes:
            runs += at_size(seed, kind, size) if size not in wide else []
    for seed, kind, size in product(range(min(preset.n_repetition, preset.n_wide)), KINDS, wide):  # last: the longest
        runs += at_size(seed, kind, size)
    return runs


def key(line):
    return json.dumps([line[name] for name in KEY])


@cache
def n_weight(kind, *size):
    return sum(p.numel() for p in Predictor(Config(kind, *size)).parameters())


def flops(run):
    """Of a run, for N weights and a prefix of L, attention aside.

    A step takes 4·N a flip, 6·N where all are tuned; HardPT 2·N·2^L·n_search·(50 + L); evaluation 2·N·n_eval·(200 + L).
    """
    N, L = n_weight(run["kind"], run["width"], run["n_layer"], run["n_embd"]), run["length"]
    tuning = run["batch"] * (50 + L) * run["n_step"] * (6 if run["method"] == "FullWT" else 4)
    if run["method"] == "HardPT":
        tuning = 2 * 2**L * run["n_search"] * (50 + L)
    elif run["method"] in BASELINES:
        tuning = 0
    return N * (tuning + 2 * run["n_eval"] * (T + L))


def fresh(target, n, seed):
    """Sequences that nothing was tuned on, and their truth."""
    return TARGETS[target].sample(n, T, torch.Generator().manual_seed(10_000 + seed))


def predictor_of(run, device="cpu"):
    config = Config(run["kind"], run["width"], run["n_layer"], run["n_embd"])
    return (shipped(config) if run["trained"] else Predictor(config, 1000 + run["seed"])).to(device)


def tuned_of(run, device="cpu"):
    """The predictor of a run, Tuned."""
    predictor = predictor_of(run, device)
    if run["method"] == "NoTuning":
        return Tuned(predictor)
    if run["method"] == "RandomPrefix":
        flips = torch.randint(2, (run["length"],), generator=torch.Generator().manual_seed(run["seed"]))
        return Tuned(predictor, prefix=predictor.embed(one_hot(predictor, flips)))
    return tune(predictor, TARGETS[run["target"]], run["method"], run["length"], run["n_step"], run["batch"],
                seed=run["seed"], n_search=run["n_search"])


def prepare(device):
    """In a worker process."""
    global DEVICE
    DEVICE = device


def work(run):
    """Tune, evaluate; the line of a run."""
    start = time.perf_counter()
    tuned = tuned_of(run, DEVICE)
    seconds = time.perf_counter() - start
    x, truth = fresh(run["target"], run["n_eval"], run["seed"])
    curve = regret(tuned.predict(x), x, truth).mean(0)
    ends = [round(loss, 4) for loss in (tuned.losses[:1] + tuned.losses[-1:])]
    return run | dict(regret=[round(value, 4) for value in curve.tolist()], hard=tuned.hard, losses=ends,
                      seconds=round(seconds, 2), **about(torch.device(DEVICE)))
