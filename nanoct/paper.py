"""The paper's experiment on public weights: methods x tasks x seeds of a benchmark -> JSON lines and a table beside the paper's.

    python -m nanoct.reproduce --model HuggingFaceTB/SmolLM2-1.7B-Instruct --benchmark bbh --data data/bbh
    python -m nanoct.reproduce --model meta-llama/Meta-Llama-3-8B-Instruct --benchmark bbh --data data/bbh --device cuda
    python -m nanoct.reproduce --model M --benchmark B --data F --dry-run          # memory and time, before anything is loaded
    torchrun --nproc-per-node 4 -m nanoct.reproduce --model M --benchmark B --data F      # tasks over 4 GPUs, or processes

Settings are the paper's (presets.py); --set changes one. Finished runs are in --out and a second start goes on from
there, with as many processes as it is given: run i of the plan belongs to process i modulo their number, and all append to one file.
"""

import itertools
import os
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from statistics import mean, median

import torch
import torch.distributed as dist
from tqdm import tqdm

from nanoct import cli
from nanoct.benchmarks import arc, bbh, mmlu, nlp_lr
from nanoct.benchmarks.common import Counts, check_names
from nanoct.benchmarks.presets import PUBLISHED, SETTINGS
from nanoct.costs import memory
from nanoct.methods import METHODS
from nanoct.runs.measure import peak
from nanoct.runs.report import settings, table
from nanoct.runs.results import Results, about, clock, key, n_core
from nanoct.score import BATCH, ROOM, evaluate
from nanoct.tokenizer import load_tokenizer
from nanoct.weights import (
    fetch,
    fingerprint,
    load_model,
    pick_device,
    read_config,
    resolve_dtype,
)

RATES = 0.05, 50, 400  # TFLOP/s, in the order of two CPU cores, a consumer's GPU, and a data centre's
BENCHMARKS = {"nlp_lr": nlp_lr, "mmlu": mmlu, "bbh": bbh, "arc": arc}
RANK, N_RANK, LOCAL_RANK = (int(os.environ.get(name, default)) for name, default in  # as torchrun sets them
                            (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))


def parse():
    p = cli.Parser(prog="nanoct.reproduce --benchmark", description=__doc__.split("\n")[0])
    p.add_argument("--benchmark", choices=list(BENCHMARKS), required=True)
    p.add_argument("--model", required=True, help="folder or hub name of a Llama or GPT-2")
    p.add_argument("--data", required=True, help="folder of the public files; `python -m nanoct.benchmarks.fetch` gets them")
    p.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="default: all")
    p.add_argument("--tasks", nargs="+", help="names; default: all in the folder")
    p.add_argument("--seeds", nargs="+", type=int, help="of the demos; default: the paper's")
    p.add_argument("--k", type=int, help="demos a task; default: the paper's")
    p.add_argument("--length", type=int, help="tokens of context and query; default: the paper's, or the model's if that is less")
    p.add_argument("--limit-queries", type=int, metavar="N", help="the first N queries of a task")
    p.add_argument("--set", action="append", default=[], metavar="METHOD.FIELD=V1,V2", help="a setting, or several to compare")
    p.add_argument("--device", help="cuda, mps or cpu; default: the first there is")
    p.add_argument("--dtype", help="of the model; default: bfloat16 on cuda, float32 elsewhere")
    p.add_argument("--checkpoint", action="store_true", help="recompute activations in the backward pass: less memory, a third slower")
    p.add_argument("--tokenizer", help='folder of another tokenizer than the model\'s, or "bytes"')
    p.add_argument("--dry-run", action="store_true", help="estimate memory and time and load no model")
    p.add_argument("--out", help="folder of results.jsonl and table.md; default: results/BENCHMARK")
    args = p.parse_args()
    benchmark = BENCHMARKS[args.benchmark]
    cli.at_least_one(args, "k", "length", "limit_queries")
    args.k = args.k or benchmark.K
    args.seeds = list(dict.fromkeys(args.seeds or benchmark.SEEDS))
    args.methods = list(dict.fromkeys(args.methods))
    there = benchmark.tasks(args.data)
    args.tasks = list(dict.fromkeys(args.tasks or there))
    check_names(args.tasks, there, args.data)
    chosen, overrides = SETTINGS[args.benchmark], cli.overrides(args.set, METHODS)
    args.configs = {method: cli.configs(method, METHODS[method].Config, {f: [value] for f, value in chosen.get(method, {}).items()},
                                        overrides.get(method, {})) for method in args.methods}
    args.device = pick_device(args.device)
    if args.device.type == "cuda" and args.device.index is None:
        args.device = pick_device(f"cuda:{LOCAL_RANK % torch.cuda.device_count()}")
    args.dtype = resolve_dtype(args.dtype, args.device)
    args.out = Path(args.out or f"results/{args.benchmark}")
    return args


def work(model, tokenizer, args, task_name, seed, runs):
    """Do the runs of one task and seed; yields their lines. Raises ValueError where memory does not suffice."""
    make = BENCHMARKS[args.benchmark].make_task
    task, counts = make(args.data, task_name, tokenizer, seed, args.k, args.length, args.limit_queries)
    if not task.queries:
        print(f"{task_name}, seed {seed}: given up, none of its queries fits {args.length} tokens behind the demos.")
        return
    for run in runs:
        method, losses = METHODS[run["method"]], []
        try:
            with peak(model.device) as used:
                start = clock(model.device)
                adapted = method.adapt(model, task, method.Config(**run["config"]), seed, lambda step, loss: losses.append(loss))
                adapted_at = clock(model.device)
                result = evaluate(adapted, task)
                scored_at = clock(model.device)
        except (MemoryError, RuntimeError) as error:
            if not cli.is_out_of_memory(error):
                raise
            raise ValueError(f"out of memory in {run['method']} on {task_name}: use --checkpoint, --dtype bfloat16, a lower --k or "
                             "--length, or leave the method out of --methods; the results so far are kept.") from None
        except ValueError as error:  # of this task alone, such as no room for a pair behind the demos: the others go on
            print(f"{run['method']} on {task_name}, seed {seed}, is left out: {error}")
            continue
        yield dict(run, score=result.score, n_query=len(task.queries), **asdict(counts), n_trained=adapted.n_trained,
                   seconds=round(adapted_at - start, 4), seconds_score=round(scored_at - adapted_at, 4), peak_bytes=used.bytes,
                   loss=[round(losses[0], 4), round(losses[-1], 4)] if losses else None, **about(model.device))


def report(lines, args):
    """Print the table beside the paper's scores and write it to table.md."""
    groups = settings(lines).get(args.benchmark, {})
    rows = []
    for method, among in groups.items():
        for s in among:
            of = lambda name: [line[name] for line in s.lines]
            rows.append([method, f"{len(set(of('task')))}", f"{s.score:.1f} ± {s.error:.1f}", f"{PUBLISHED[args.benchmark][method]}",
                         f"{s.seconds:.1f}", f"{median(of('seconds_score')):.1f}", f"{max(of('peak_bytes')) / 1e9:.2f}",
                         f"{mean(of('n_trained')):,.0f}"])
    first = lines[0]
    head = (f"{args.benchmark}, {args.model}: {len({line['task'] for line in lines})} tasks, k = {first['k'] or 'all'}, "
            f"{len(args.seeds)} seeds, {first['dtype']} on {first['device']}; score % ± s.e. over tasks, seconds a task, "
            "peak memory of adapting and scoring")
    written = head + "\n\n" + table(rows, ["method", "tasks", "score", "paper", "s to adapt", "s to score", "peak GB", "trained"]) + "\n"
    print(f"\n{written}")
    (args.out / "table.md").write_text(written)


def read_all(args, tokenizer):
    """Read every task and seed once and say what was left out, so that a broken file stops the job before it begins."""
    total, n_empty, make = Counts(), 0, BENCHMARKS[args.benchmark].make_task
    for task, seed in tqdm(list(itertools.product(args.tasks, args.seeds)), desc="reading", leave=False, disable=RANK > 0):
        total += (counts := make(args.data, task, tokenizer, seed, args.k, args.length, args.limit_queries)[1])
        n_empty += counts.queries == 0
    if n_empty == len(args.tasks) * len(args.seeds):
        raise ValueError(none_fits(args))
    if RANK == 0:
        print(f"{args.benchmark}, {len(args.tasks)} tasks, {len(args.seeds)} seeds: {total}; {n_empty} without a query that fits "
              f"{args.length} tokens")


def none_fits(args):
    return (f"no task of {args.data} has a query that fits {args.length} tokens: lower --k, raise --length, or take a model with a longer "
            "context.")


def dry_run(args, config, tokenizer):
    """Print memory and time of every method on the longest task, from the files of the model's config and the data alone."""
    make = BENCHMARKS[args.benchmark].make_task
    found = [make(args.data, task, tokenizer, args.seeds[0], args.k, args.length, args.limit_queries)[0]
             for task in tqdm(args.tasks, desc="tasks")]
    found = [task for task in found if task.queries]
    if not found:
        raise ValueError(none_fits(args))
    lengths = list(map(lengths_of, found))
    longest = max(lengths, key=lambda of: of.context)
    rows, n_run, whole = [], len(found) * len(args.seeds), 0
    for method, configs in args.configs.items():
        for settings_ in configs:
            e = memory.estimate(config, method, settings_, longest, args.dtype, args.checkpoint)
            of_task = [memory.estimate(config, method, settings_, of, args.dtype, args.checkpoint) for of in lengths]
            adapting, scoring = (mean(getattr(of, name) for of in of_task) for name in ("flops", "flops_score"))
            whole += n_run * (adapting + scoring)
            rows.append([method, *(f"{part / 1e9:.2f}" for part in (e.weights, e.theta, e.saved, e.passing, e.scoring, e.total)),
                         *(brief(flops / 1e12) for flops in (adapting, scoring, *((adapting + scoring) / rate for rate in RATES)))])
    print(f"\n{args.benchmark}, {args.model}: {len(found)} tasks, contexts of {mean(of.context for of in lengths):.0f} tokens on "
          f"average, {longest.context} at most; gigabytes on the longest, {str(args.dtype).removeprefix('torch.')}; TFLOP to adapt and to "
          "score, the mean of tasks, and seconds of both at so many TFLOP/s (on a GPU decoding is slower: it waits for the weights)\n")
    print(table(rows, ["method", "weights", "theta", "saved", "passing", "scoring", "peak GB", "adapt", "score",
                       *(f"s at {rate}" for rate in RATES)]))
    print(f"\nAll {n_run * len(rows):,} runs, {len(args.seeds)} seeds: "
          + ", ".join(f"{brief(whole / (3.6e15 * rate))} hours at {rate} TFLOP/s" for rate in RATES))


def brief(x):
    return f"{x:,.0f}" if x >= 10 else f"{x:.2g}"


def lengths_of(task):
    """What memory and time of a task depend on."""
    decoded, before = task.metric == "text", len(task.separator)
    asked = [[before + len(q.x), q.options or [q.y]] for q in task.queries]
    most = max(len(option) for _, options in asked for option in options) + ROOM
    answers = [most if decoded else len(option) for _, options in asked for option in options]
    scored = sum((x - 1) * len(options) for x, options in asked) + sum(answers)  # the last token of a row is not read
    return memory.Lengths(len(task.instruction), [(before + len(d.x), len(d.y)) for d in task.demos],
                          max(x + max(map(len, options)) for x, options in asked), BATCH * decoded, scored=scored, answers=sum(answers))


def main():
    args = parse()
    folder = fetch(args.model)
    config, tokenizer = read_config(folder), load_tokenizer(args.tokenizer or folder)
    tokenizer.check_belongs(config.vocab_size)
    args.length = min(args.length or BENCHMARKS[args.benchmark].LENGTH, config.n_position)
    if args.dry_run:
        return dry_run(args, config, tokenizer)
    read_all(args, tokenizer)
    if args.device.type == "cpu" and (N_RANK > 1 or "OMP_NUM_THREADS" not in os.environ):  # torchrun sets it to 1
        torch.set_num_threads(max(1, n_core() // N_RANK))
    model = load_model(folder, args.device, args.dtype)
    model.checkpoint = args.checkpoint
    common = dict(model=fingerprint(model), name=str(args.model), world=args.benchmark, pool="test", k=args.k,
                 dtype=str(args.dtype).removeprefix("torch."), length=args.length, limit_queries=args.limit_queries,
                 tokenizer=args.tokenizer)
    plan = {(task, seed): [common | dict(method=method, config=config, task=task, seed=seed)
                           for method in args.methods for config in args.configs[method]]
            for task, seed in itertools.product(args.tasks, args.seeds)}
    results = in_turn(lambda: Results(args.out / "results.jsonl"))
    mine = list(itertools.islice(plan.items(), RANK, None, N_RANK))
    todo = {at: [run for run in runs if key(run) not in results.keys] for at, runs in mine}
    n_done, n_mine = sum(len(runs) for _, runs in mine) - sum(map(len, todo.values())), sum(len(runs) for _, runs in mine)
    if n_done:
        print(f"{n_done} of {n_mine} runs are in {results.path} already; going on from there.")
    with tqdm(total=n_mine, initial=n_done, desc="runs", smoothing=0, disable=RANK > 0) as bar:
        for (task, seed), runs in todo.items():
            for line in work(model, tokenizer, args, task, seed, runs) if runs else ():
                results.append(line)
                bar.update()
                bar.set_postfix_str(f"{task} {line['method']}")
    finished()
    if RANK == 0:
        wanted = {key(run) for runs in plan.values() for run in runs}
        lines = [line for line in Results(results.path).lines if key(line) in wanted]
        if not lines:
            raise ValueError("no method could do any of the tasks, for the reasons above: take other --methods or a lower --k.")
        report(lines, args)
        print(f"{len(lines)} of {len(wanted)} runs; lines in {results.path}")


def in_turn(do):
    """do() of process 0 first, which may repair a file, then of the others."""
    if N_RANK == 1:
        return do()
    dist.init_process_group("gloo", timeout=timedelta(days=30))
    if RANK == 0:
        done = do()
        dist.barrier()
        return done
    dist.barrier()
    return do()


def finished():
    """Wait for all processes. ValueError if one of them stopped; torchrun then ends the others too."""
    if N_RANK > 1:
        try:
            dist.barrier()
        except RuntimeError:
            raise ValueError("another process stopped, for the reason that it gives; the results so far are kept, and the same command goes "
                             "on from there.") from None
        dist.destroy_process_group()
