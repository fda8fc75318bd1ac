"""The coin-flip study: which ways of tuning bring a meta-trained predictor to Bayes on a source (arXiv 2505.17010).

    nanoct coins.study --quick        # one repetition of short runs, minutes on two cores
    nanoct coins.study --cpu          # the reduced preset, an hour on two cores
    nanoct coins.study --full         # the paper's preset, for a GPU or for patience; it prints its cost first
    nanoct coins.study --cpu --report # tables and figures anew, from the lines in --out

A run (experiment.py) is a JSON line in --out, appended when the run ends. The same command continues from there.
report.py makes the tables, figures.py the figures.
"""

import time
from pathlib import Path

from nanoct import cli
from nanoct.coins import report
from nanoct.coins.experiment import NEEDS, PRESETS, flops, key, plan, prepare, work
from nanoct.io.weights import pick_device
from nanoct.runs.parallel import execute
from nanoct.runs.results import Results, n_core


def main():
    p = cli.Parser(prog="nanoct coins.study", description=__doc__)
    group = p.add_mutually_exclusive_group()
    for name, preset in PRESETS.items():
        size = "{0.n_step} steps of {0.batch} sequences, {0.n_repetition} repetitions, {1} runs"
        group.add_argument(f"--{name}", dest="preset", action="store_const", const=name,
                           help=size.format(preset, len(plan(preset))))
    p.add_argument("--report", action="store_true", help="do no runs: tables and figures from the lines in --out")
    p.add_argument("--workers", type=int, help="processes, one thread each; default: one per core, or 1 on a GPU")
    p.add_argument("--device", default="cpu", help="cpu or cuda; default: cpu")
    p.add_argument("--out", help="folder of runs.jsonl, tables and figures; default: results/coins/PRESET")
    args = p.parse_args()
    cli.at_least_one(args, "workers")
    name, device = args.preset or "quick", pick_device(args.device)
    preset, out = PRESETS[name], Path(args.out or f"results/coins/{name}")
    workers = args.workers if args.workers is not None else n_core() if device.type == "cpu" else 1
    runs, results, start = plan(preset), Results(out / "runs.jsonl", key, NEEDS), time.perf_counter()
    if not args.report:
        total = sum(map(flops, runs))
        minutes = total / 4e10 / workers / 60
        print(f"--{name}: {len(runs)} runs, {total / 1e12:,.0f} TFLOP, which is {minutes:,.0f} minutes if a process "
              "does 40 GFLOP/s, as one core of a server may", flush=True)
        execute(runs, results, work, workers, prepare, str(device))
    if n_missing := len(runs) - len(lines := results.of(runs)):
        raise ValueError(f"{results.path} lacks {n_missing} of the {len(runs)} runs of --{name}: the command "
                         "without --report does them, but for those that it leaves out with a reason.")
    report.report(lines, preset, out)
    print(f"{len(runs)} runs, {time.perf_counter() - start:.0f} seconds; lines in {results.path}")


if __name__ == "__main__":
    cli.run(main)
