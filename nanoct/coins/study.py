"""The coin-flip study: which tuning brings a meta-trained predictor to Bayes on which source (arXiv 2505.17010).

    python -m nanoct.coins.study --quick        # one repetition of short runs, minutes on two cores
    python -m nanoct.coins.study --cpu          # the reduced preset, an hour or so on two cores
    python -m nanoct.coins.study --full         # the paper's preset, for a GPU or a patient machine; its cost is printed first

Every run tunes one predictor by one method to one source and is scored on 2,048 fresh sequences of 200 flips: cumulative
regret in nats at every position. A run is a JSON line in --out, appended as it ends; a second start goes on from there.
NoTuning and a random prefix are run beside the methods, PreBayes (of the pretraining source) and TargetBayes (of the
target) are exact. Predictors come from weights/coins (predictors.py); untrained ones have random weights by seed.
"""

import itertools
import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from tqdm import tqdm

from nanoct import cli
from nanoct.coins.coins import Beta, Coins, Markov, after, regret
from nanoct.coins.predictors import FOLDER, KINDS, Config, Predictor, load
from nanoct.coins.tuning import METHODS, PREFIX, Tuned, rank, tune
from nanoct.report import standard_error, table
from nanoct.results import n_core

TARGETS = {"single": Coins([0.2]), "mixture": Coins([0.2, 0.8]), "markov": Markov(0.9)}
BASELINES = "NoTuning", "RandomPrefix"
BAYES = "PreBayes", "TargetBayes"
T = 200


@dataclass(frozen=True)
class Preset:
    n_step: int
    batch: int
    n_repetition: int
    n_eval: int = 2048
    methods: tuple = METHODS
    untrained: tuple = ("SoftPT", "RealPT", "HardPT", "FullWT", "LoRAWT")
    lengths: tuple = (1, 2, 4, 10, 25)  # beside 6
    targets: tuple = tuple(TARGETS)
    wide: bool = True  # also predictors of 256x2, and of embedding width 4


PRESETS = {
    "quick": Preset(40, 64, 1, 512, ("HardPT", "SoftPT", "FullWT", "LoRAWT"), ("SoftPT",), (), ("single", "mixture"), False),
    "cpu": Preset(300, 64, 3),
    "full": Preset(1000, 256, 10, untrained=METHODS, lengths=(1, 2, 3, 4, 8, 10, 15, 20, 25)),
}


def plan(preset):
    """All runs of a preset, as dicts: what they depend on."""
    def cell(target, config, trained, methods, length=6):
        return [dict(target=target, kind=config.kind, width=config.width, n_layer=config.n_layer, n_embd=config.n_embd, trained=trained,
                     method=method, length=length if method in (*PREFIX, "RandomPrefix") else 0, seed=seed)
                for method in methods for seed in range(1 if method == "NoTuning" and trained else preset.n_repetition)]

    runs = []
    for target, kind in itertools.product(preset.targets, KINDS):
        runs += cell(target, Config(kind), True, (*BASELINES, *preset.methods))
        runs += cell(target, Config(kind), False, ("NoTuning", *preset.untrained))
        if target != "markov":
            for length in preset.lengths:
                runs += cell(target, Config(kind), True, ("HardPT", "SoftPT") if length <= 8 else ("SoftPT",), length)
            if preset.wide:
                runs += cell(target, Config(kind, n_embd=4), True, ("NoTuning", "SoftPT", "RealPT"))
                runs += cell(target, Config(kind, 256, 2), True, ("NoTuning", "SoftPT", "FullWT"))
    return [run | dict(n_step=preset.n_step, batch=preset.batch, n_eval=preset.n_eval) for run in runs]


def key(line):
    names = ("target", "kind", "width", "n_layer", "n_embd", "trained", "method", "length", "seed", "n_step", "batch", "n_eval")
    return json.dumps([line[name] for name in names])


def fresh(target, n, seed):
    """Sequences that nothing was tuned on, and their truth."""
    return TARGETS[target].sample(n, T, torch.Generator().manual_seed(10_000 + seed))


def work(run):
    """Tune, evaluate; the line of a run."""
    torch.set_num_threads(1)
    config = Config(run["kind"], run["width"], run["n_layer"], run["n_embd"])
    predictor = load(FOLDER / f"{config.name}.safetensors") if run["trained"] else Predictor(config, 1000 + run["seed"])
    start = time.perf_counter()
    if run["method"] == "NoTuning":
        tuned = Tuned(predictor)
    elif run["method"] == "RandomPrefix":
        flips = torch.randint(2, (run["length"],), generator=torch.Generator().manual_seed(run["seed"]))
        tuned = Tuned(predictor, prefix=predictor.embed(F.one_hot(flips, 2).float()))
    else:
        tuned = tune(predictor, TARGETS[run["target"]], run["method"], run["length"], run["n_step"], run["batch"], seed=run["seed"])
    seconds = time.perf_counter() - start
    x, truth = fresh(run["target"], run["n_eval"], run["seed"])
    curve = regret(tuned.predict(x), x, truth).mean(0)
    return run | dict(regret=[round(value, 4) for value in curve.tolist()], hard=tuned.hard, seconds=round(seconds, 2),
                      losses=[round(value, 4) for value in (tuned.losses[:1] + tuned.losses[-1:])], torch=torch.__version__)


def execute(runs, file, n_worker):
    """Do the runs that the file does not have; returns the lines of all."""
    lines = {key(line): line for line in map(json.loads, file.read_text().splitlines())} if file.exists() else {}
    todo = [run for run in runs if key(run) not in lines]
    if len(todo) < len(runs):
        print(f"{len(runs) - len(todo)} of {len(runs)} runs are in {file} already; going on from there.")
    with ProcessPoolExecutor(n_worker, get_context("spawn")) as pool, tqdm(total=len(runs), initial=len(runs) - len(todo), desc="runs") as bar:
        try:
            for future in as_completed([pool.submit(work, run) for run in todo]):
                line = future.result()
                with open(file, "a") as f:
                    f.write(json.dumps(line) + "\n")
                lines[key(line)] = line
                bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return [lines[key(run)] for run in runs]


def bayes_lines(target, n):
    """{name: mean regret at every position} of the exact predictors."""
    x, truth = fresh(target, n, 0)
    return {"PreBayes": regret(Beta().bayes(x), x, truth).mean(0).tolist(),
            "TargetBayes": regret(TARGETS[target].bayes(x), x, truth).mean(0).tolist()}


def cell_of(lines, at, **wanted):
    """(mean, s.e. or nan) of regret at a position over the repetitions of the lines that are as wanted; None without any."""
    values = [line["regret"][at - 1] for line in lines if all(line[name] == value for name, value in wanted.items())]
    return (mean(values), standard_error(values)) if values else None


def text(found):
    return "" if found is None else f"{found[0]:.2f}" if found[1] != found[1] else f"{found[0]:.2f} ± {found[1]:.2f}"


def ranking(kind, target, n_sequence=2048):
    """(Spearman's rank correlation, best by search, best in closed form) of the 2^6 prefixes: of a predictor and of PreBayes."""
    found = rank(load(FOLDER / f"{Config(kind).name}.safetensors"), TARGETS[target], 6, n_sequence)
    x, _ = TARGETS[target].sample(n_sequence, 50, torch.Generator().manual_seed(0))
    exact = {prefix: regret(after(Beta(), prefix, x), x, torch.full(x.shape, 0.5))[:, -1].mean().item() for prefix in found}
    # prefixes with as many ones are one and the same to PreBayes: ties get the mean of their ranks
    a = torch.tensor([sum(f < found[p] for f in found.values()) + 0.0 for p in found])
    b = torch.tensor([sum(e < exact[p] - 1e-9 for e in exact.values()) + (sum(abs(e - exact[p]) < 1e-9 for e in exact.values()) - 1) / 2
                      for p in found])
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item(), next(iter(found)), min(exact, key=exact.get)


def report(lines, preset, out):
    """Print the tables, write them to study.md, and draw the figures."""
    base = dict(width=128, n_layer=1, n_embd=128)
    parts = []
    for target in preset.targets:
        exact = bayes_lines(target, preset.n_eval)
        rows = [[name, *(f"{exact[name][t - 1]:.2f}" for t in (50, 200)), *[""] * 6] for name in BAYES]
        for method in (*BASELINES, *METHODS):
            cells = [text(cell_of(lines, at, target=target, kind=kind, trained=trained, method=method,
                                  length=6 if method in (*PREFIX, "RandomPrefix") else 0, **base))
                     for kind in KINDS for trained in (True, False) for at in (50, 200)]
            if any(cells):
                rows.append([method, *cells])
        rows = [row + [""] * (9 - len(row)) for row in rows]
        parts += [f"{target}: cumulative regret in nats at 50 and at 200 flips, mean ± s.e. over {preset.n_repetition} repetitions; exact "
                  "predictors in the first columns", table(rows, ["method", *(f"{kind}{'' if trained else ', untrained'}, {at}"
                                                                   for kind in KINDS for trained in (True, False) for at in (50, 200))])]
    lengths = sorted({line["length"] for line in lines if line["method"] in ("SoftPT", "HardPT")})
    if len(lengths) > 1:
        rows = [[target, kind, method, *(text(cell_of(lines, 50, target=target, kind=kind, trained=True, method=method, length=length, **base))
                                         for length in lengths)]
                for target in preset.targets for kind in KINDS for method in ("HardPT", "SoftPT") if target != "markov"]
        parts += ["Regret at 50 against the length of the prefix", table(rows, ["target", "kind", "method", *map(str, lengths)])]
    if preset.wide:
        rows = [[target, kind, size, *(text(cell_of(lines, 50, target=target, kind=kind, trained=True, method=method, width=width, n_layer=n_layer,
                                                    n_embd=n_embd, length=6 if method in PREFIX else 0))
                                       for method in ("NoTuning", "SoftPT", "RealPT", "FullWT"))]
                for target in preset.targets if target != "markov" for kind in KINDS
                for size, width, n_layer, n_embd in (("128x1", 128, 1, 128), ("128x1, embedding 4", 128, 1, 4), ("256x2", 256, 2, 128))]
        parts += ["Regret at 50 of other sizes", table(rows, ["target", "kind", "size", "NoTuning", "SoftPT", "RealPT", "FullWT"])]
    rows = []
    for kind, target in itertools.product(KINDS, preset.targets[:2]):
        correlation, found, exact = ranking(kind, target, preset.n_eval)
        rows.append([kind, target, f"{correlation:.2f}", "".join(map(str, found)), "".join(map(str, exact))])
    parts += ["The 64 hard prefixes ranked by the predictor and by PreBayes in closed form: Spearman's correlation, and the best of each",
              table(rows, ["kind", "target", "correlation", "best", "best of PreBayes"])]
    written = "\n\n".join(parts) + "\n"
    print(f"\n{written}")
    (out / "study.md").write_text(written)
    from nanoct import plots  # matplotlib is slow to import

    plots.coins(lines, {target: bayes_lines(target, preset.n_eval) for target in preset.targets}, out)
    print(f"wrote study.md, regret.png and bars.png in {out}")


def main():
    p = cli.Parser(prog="nanoct.coins.study", description=__doc__.split("\n")[0])
    group = p.add_mutually_exclusive_group()
    for name, preset in PRESETS.items():
        group.add_argument(f"--{name}", dest="preset", action="store_const", const=name,
                           help=f"{preset.n_step} steps of {preset.batch} sequences, {preset.n_repetition} repetitions, {len(plan(preset))} runs")
    p.add_argument("--workers", type=int, default=n_core(), help="processes, one thread each; default: one per core")
    p.add_argument("--out", type=Path, help="folder of runs.jsonl, table and figures; default: results/coins/PRESET")
    args = p.parse_args()
    name = args.preset or "quick"
    preset, out = PRESETS[name], args.out or Path(f"results/coins/{name}")
    if args.workers < 1:
        raise ValueError(f"--workers {args.workers} must be at least 1.")
    out.mkdir(parents=True, exist_ok=True)
    runs = plan(preset)
    flops = sum(6 * 2e5 * run["batch"] * 56 * run["n_step"] for run in runs)
    print(f"{len(runs)} runs, about {flops / 1e12:.0f} TFLOP of tuning, {flops / 3e10 / args.workers / 60:.0f} minutes at 30 GFLOP/s a process")
    start = time.perf_counter()
    lines = execute(runs, out / "runs.jsonl", args.workers)
    report(lines, preset, out)
    print(f"{len(runs)} runs, {time.perf_counter() - start:.0f} seconds; lines in {out / 'runs.jsonl'}")


if __name__ == "__main__":
    cli.run(main)
