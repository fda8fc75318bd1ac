"""The paper's protocol on public models and data: methods x tasks x seeds of a benchmark -> JSON lines and a table.

    python -m nanoct.paper --model weights/smollm2 --benchmark words        # the lists come with the package
    python -m nanoct.paper --model weights/smollm2 --benchmark words --sweep        # settings, on its validation pool
    python -m nanoct.paper --model weights/smollm2 --benchmark words --ablations    # CT-KV without its parts
    python -m nanoct.paper --model HuggingFaceTB/SmolLM2-1.7B-Instruct --benchmark bbh --data data/bbh
    python -m nanoct.paper --model meta-llama/Meta-Llama-3-8B-Instruct --benchmark bbh --data data/bbh --device cuda
    python -m nanoct.paper --model M --benchmark B --data F --dry-run       # memory and time, before anything is loaded
    torchrun --nproc-per-node 4 -m nanoct.paper --model M --benchmark B --data F    # tasks over 4 GPUs, or processes

The table has the paper's scores too, and the scores of answering every query alike. Settings are the paper's
(benchmarks/presets.py); --set changes one. Finished runs are kept in --out. A second start goes on from there, with any
number of processes; all append to one file.
"""

import itertools
import os
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from statistics import mean

import torch
from tqdm import tqdm

from nanoct import cli
from nanoct.benchmarks import arc, bbh, mmlu, nlp_lr, words
from nanoct.benchmarks.common import Counts, check_names
from nanoct.benchmarks.presets import SETTINGS, SWEEPS
from nanoct.costs import memory
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import fetch, fingerprint, load_model, pick_device, read_config, resolve_dtype
from nanoct.methods import METHODS
from nanoct.runs import ablations, sweep
from nanoct.runs.measure import measure
from nanoct.runs.parallel import NoRoom, execute, join
from nanoct.runs.report import report_public
from nanoct.runs.results import data_id, distinct, n_core
from nanoct.runs.results import read as read_lines
from nanoct.runs.table import table
from nanoct.score import BATCH, ROOM, constants

RATES = 0.05, 50, 400  # TFLOP/s, in the order of two CPU cores, a consumer's GPU, and a data centre's
BENCHMARKS = {"nlp_lr": nlp_lr, "mmlu": mmlu, "bbh": bbh, "arc": arc, "words": words}
HELPS = "use --checkpoint, --dtype bfloat16, or a lower --k or --length."  # where memory is short


def parse():
    p = cli.Parser(prog="nanoct paper", description=__doc__)
    p.add_argument("--benchmark", choices=list(BENCHMARKS), required=True)
    p.add_argument("--model", required=True, help="folder or hub name of a Llama or GPT-2")
    p.add_argument("--data", help="folder of its files; `nanoct benchmarks.fetch` gets them; default for "
                   "words: the lists of the package")
    p.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="default: all")
    p.add_argument("--tasks", nargs="+", help="names; default: all of the pool")
    p.add_argument("--pool", choices=("validation", "test"), help="of words; default: that of the --tasks, else test")
    p.add_argument("--seeds", nargs="+", type=int, help="of the demos; default: the paper's, the first of them with "
                   "--sweep and --ablations")
    p.add_argument("--k", type=int, help="demos a task; default: the paper's")
    p.add_argument("--length", type=int, help="tokens of context and query; default: the paper's, at most the model's")
    p.add_argument("--limit-queries", type=int, metavar="N", help="the first N queries of a task")
    p.add_argument("--skip-queries", type=int, metavar="N", help="leave out the first N queries of a task, so that "
                   "settings can be chosen on others than those that are reported")
    p.add_argument("--set", action="extend", nargs="+", default=[], metavar="METHOD.FIELD=V1,V2",
                   help="settings; several values are compared")
    p.add_argument("--sweep", action="store_true", help="each method at all settings of SWEEPS (benchmarks/presets.py) "
                   "on the validation pool, or on the --tasks of a benchmark without one; writes sweep.jsonl, sweep.md")
    p.add_argument("--ablations", action="store_true", help="CT-KV without its parts and from other starts, as in "
                   "runs/ablations.py; writes ablations.jsonl, ablations.md")
    p.add_argument("--seconds", metavar="FILE", help="lines of a run on a quiet machine, for the seconds and memory "
                   "of the table")
    p.add_argument("--no-form", action="store_true", help="bbh without the sentence on how to answer")
    p.add_argument("--device", help="cuda, mps or cpu; default: the first there is")
    p.add_argument("--dtype", help="of the model; default: bfloat16 on cuda, float32 elsewhere")
    p.add_argument("--checkpoint", action="store_true",
                   help="recompute activations in the backward pass: less memory, a third slower")
    p.add_argument("--tokenizer", help='folder of another tokenizer than the model\'s, or "bytes"')
    p.add_argument("--dry-run", action="store_true", help="estimate memory and time and load no model")
    p.add_argument("--out", help="folder of results.jsonl and table.md; default: results/BENCHMARK")
    args = p.parse_args()
    benchmark = BENCHMARKS[args.benchmark]
    cli.at_least_one(args, "k", "length", "limit_queries", "skip_queries")
    args.k = args.k or benchmark.K
    args.seeds = list(dict.fromkeys(args.seeds or benchmark.SEEDS[: 1 if args.sweep or args.ablations else None]))
    args.methods = list(dict.fromkeys(args.methods))
    if args.no_form and args.benchmark != "bbh":
        raise ValueError(f"--no-form: {args.benchmark} has no sentence on how to answer; bbh has.")
    args.data = args.data or getattr(benchmark, "PACKAGED", None)
    if args.data is None:
        raise ValueError(f"--data is missing: give the folder of {args.benchmark}'s files, which `python -m "
                         "nanoct.benchmarks.fetch` gets.")
    args.pool, args.tasks = pick(args, benchmark)
    overrides = cli.overrides(args.set, args.methods)
    args.configs = {method: distinct(cli.configs(method, METHODS[method].Config, values(method, args),
                                                 overrides.get(method, {}))) for method in args.methods}
    if args.ablations:
        if args.sweep or args.set or args.dry_run or args.methods != list(METHODS):
            raise ValueError("--ablations has methods and settings of its own: no --sweep, --methods, --set and "
                             "--dry-run.")
        args.rows = ablations.rows(SETTINGS[args.benchmark]["ct_kv"])
        args.configs = {"icl": [{}], ablations.NAME: list(args.rows.values())}
    args.timed = read_lines(args.seconds) if args.seconds else ()
    args.rank, args.n_process, local = cli.ranks()
    args.device = pick_device(args.device)
    if args.device.type == "cuda" and args.device.index is None:
        args.device = pick_device(f"cuda:{local % torch.cuda.device_count()}")
    args.dtype = resolve_dtype(args.dtype, args.device)
    args.out = Path(args.out or f"results/{args.benchmark}")
    return args


def pick(args, benchmark):
    """The pool and tasks that the options ask for. Raises ValueError if there are none, or they are of two pools.

    Settings are chosen on a validation pool, where there is one, and never on the tasks that are reported.
    """
    pools = benchmark.pools(args.data) if hasattr(benchmark, "pools") else {"test": benchmark.tasks(args.data)}
    pool_of = {name: pool for pool, names in pools.items() for name in names}
    names, has_own = list(dict.fromkeys(args.tasks or ())), bool(pools.get("validation"))
    check_names(names, list(pool_of), args.data)
    if args.sweep and not names and not has_own:
        raise ValueError(f"--sweep: {args.benchmark} in {args.data} has no validation pool: name the --tasks to choose "
                         "on.")
    pool = args.pool or (pool_of[names[0]] if names else "validation" if args.sweep else "test")
    if args.sweep and has_own and pool != "validation":
        raise ValueError(f"--sweep chooses on the validation pool, and {names[0] if names else '--pool test'} is of "
                         "the pool that is reported: leave it out.")
    if others := [name for name in names if pool_of[name] != pool]:
        raise ValueError(f"--tasks: {others[0]!r} is of the {pool_of[others[0]]} pool and not of the {pool} pool: give "
                         "the tasks of one pool.")
    if not pools.get(pool):
        raise ValueError(f"--pool {pool}: {args.benchmark} in {args.data} has no such pool.")
    return pool, names or pools[pool]


def values(method, args):
    """{field: values} of a method: its preset, or the values to try with --sweep."""
    found = {name: [value] for name, value in SETTINGS[args.benchmark].get(method, {}).items()}
    if not args.sweep:
        return found
    tried = SWEEPS.get(args.benchmark, SWEEPS["words"]).get(method, {})
    if fields(METHODS[method].Config) and not tried:
        print(f"{method} is not in SWEEPS, the settings worth trying: it runs at its defaults.")
    return found | tried


def read(args, tokenizer, name, seed):
    """Return the Task, and Counts of what was left out of it."""
    make, more = BENCHMARKS[args.benchmark].make_task, {"form": False} if args.no_form else {}
    skip = args.skip_queries or 0
    limit = args.limit_queries and skip + args.limit_queries
    task, counts = make(args.data, name, tokenizer, seed, args.k, args.length, limit, **more)
    task.queries = task.queries[skip:]
    counts.queries = len(task.queries)
    return task, counts


def worker(args, model, tokenizer):
    """Make work(run, progress) -> line, or None and a message if the run is impossible. NoRoom: out of memory."""

    @lru_cache(1)
    def task_of(name, seed):
        task, counts = read(args, tokenizer, name, seed)
        if args.ablations:  # one ablation starts from the demos of another task
            task.others = read(args, tokenizer, args.tasks[args.tasks.index(name) - 1], seed)[0].demos
        if not task.queries:
            tqdm.write(f"{name}, seed {seed}: given up, no query fits {args.length} tokens behind the demos.")
        return task, asdict(counts), lengths_of(task) if task.queries else None

    def work(run, progress):
        method, name, seed = run["method"], run["task"], run["seed"]
        task, counts, lengths = task_of(name, seed)
        if not task.queries:
            return
        module = ablations if method == ablations.NAME else METHODS[method]
        check_room(args, model, run, lengths, module)
        try:
            return dict(run, **counts, **measure(model, task, method, run["config"], seed, progress, module)[0])
        except (MemoryError, RuntimeError) as error:
            if not cli.is_out_of_memory(error):
                raise
            raise NoRoom(f"out of memory in {method} on {name}, seed {seed}: {HELPS}") from None
        except ValueError as error:  # of this task alone, such as no room for a pair behind the demos
            tqdm.write(f"{method} on {name}, seed {seed}, is left out: {error}")

    return work


def check_room(args, model, run, lengths, module):
    """Raise NoRoom if a run will need more memory beside the weights than is free; not if either is unknown."""
    try:
        e = memory.estimate(model.config, run["method"], run["config"], lengths, args.dtype, args.checkpoint,
                            args.device.type == "cuda", module)
    except ValueError:  # the method does not say what it costs
        return
    need, free = e.total - e.weights, memory.free(args.device)
    if need > free:
        raise NoRoom(f"{run['method']} on {run['task']}, seed {run['seed']}, needs {need / 1e9:.2f} GB beside the "
                     f"weights and {free / 1e9:.2f} GB are free: {HELPS}")


def read_all(args, tokenizer):
    """Read every task and seed once and print what was left out. A broken file stops the job before it begins.

    Returns {(task, seed): scores of constant answers}, and {(task, seed): id of the data}.
    """
    total, found, ids, tasks = Counts(), {}, {}, list(itertools.product(args.tasks, args.seeds))
    is_first = args.rank == 0
    for name, seed in tqdm(tasks, desc="reading", leave=False, disable=not is_first):
        task, counts = read(args, tokenizer, name, seed)
        total, ids[name, seed] = total + counts, data_id(task)
        if task.queries:
            found[name, seed] = constants(task)
    n_empty = len(tasks) - len(found)
    if n_empty == len(tasks):
        raise ValueError(none_fits(args))
    if is_first:
        print(f"{args.benchmark}, {len(args.tasks)} tasks, {len(args.seeds)} seeds: {total}; {n_empty} without a query "
              f"that fits {args.length} tokens")
    return found, ids


def with_data(args, runs, ids, results):
    """Give each run the id of its data, but where the results have a line without one, of the package's own lists.

    Other lines without one may be of any data: says how many there are, as their runs are done again.
    """
    is_packaged = args.benchmark == "words" and words.pools(args.data) is words.POOLS
    before, found, n_unknown = dict(zip(args.tasks, [args.tasks[-1], *args.tasks])), [], 0
    for run in runs:
        more = [before[run["task"]]] if run["config"].get("start") == "others" else []  # whose demos an ablation takes
        known = run | dict(data="+".join(ids[name, run["seed"]] for name in [run["task"], *more]))
        is_old = results.key(run) in results.keys and results.key(known) not in results.keys
        found.append(run if is_old and is_packaged else known)
        n_unknown += is_old and not is_packaged
    if n_unknown and args.rank == 0:
        print(f"{n_unknown} lines of {results.path} do not say which data they are of; their runs are done again.")
    return found


def none_fits(args):
    return (f"no task of {args.data} has a query that fits {args.length} tokens: lower --k, raise --length, or take a "
            "model with a longer context.")


def dry_run(args, config, tokenizer):
    """Print memory and time of every method on the longest task, from the model's config and the data alone."""
    found = [read(args, tokenizer, name, args.seeds[0])[0] for name in tqdm(args.tasks, desc="tasks")]
    lengths = [lengths_of(task) for task in found if task.queries]
    if not lengths:
        raise ValueError(none_fits(args))
    longest, rows, whole = max(lengths, key=lambda of: of.context), [], 0
    n_run = len(lengths) * len(args.seeds)
    for method, setting in ((method, setting) for method, configs in args.configs.items() for setting in configs):
        estimate = lambda of: memory.estimate(config, method, setting, of, args.dtype, args.checkpoint,
                                              args.device.type == "cuda")
        try:
            e, of_task = estimate(longest), list(map(estimate, lengths))
        except ValueError as error:  # the method does not say what it costs
            print(error)
            continue
        adapting, scoring = mean(of.flops for of in of_task), mean(of.flops_score for of in of_task)
        both = adapting + scoring
        whole += n_run * both
        parts = e.weights, e.theta, e.saved, e.passing, e.scoring, e.total
        rows.append([method, *(f"{part / 1e9:.2f}" for part in parts),
                     *(brief(flops / 1e12) for flops in (adapting, scoring, *(both / rate for rate in RATES)))])
    if not rows:
        raise ValueError("there is no estimate of any of these --methods.")
    average, dtype = mean(of.context for of in lengths), str(args.dtype).removeprefix("torch.")
    print(f"\n{args.benchmark}, {args.model}: {len(lengths)} tasks, contexts of {average:.0f} tokens on average, "
          f"{longest.context} at most; gigabytes on the longest, {dtype}; TFLOP to adapt and to score, the mean of "
          "tasks, and seconds of both at so many TFLOP/s (on a GPU decoding is slower: it waits for the weights)\n")
    print(table(rows, ["method", "weights", "theta", "saved", "passing", "scoring", "peak GB", "adapt", "score",
                       *(f"s at {rate}" for rate in RATES)]))
    print(f"\nAll {n_run * len(rows):,} runs, {len(args.seeds)} seeds: "
          + ", ".join(f"{brief(whole / (3.6e15 * rate))} hours at {rate} TFLOP/s" for rate in RATES))


def brief(x):
    return f"{x:,.0f}" if x >= 10 else f"{x:.2g}"


def lengths_of(task):
    """The Lengths of a task, for memory and time."""
    decoded, before = task.metric == "text", len(task.separator)
    asked = [[before + len(q.x), q.options or [q.y]] for q in task.queries]
    most = max(len(option) for _, options in asked for option in options) + ROOM
    answers = [most if decoded else len(option) for _, options in asked for option in options]
    scored = sum(x for x, _ in asked) + sum(answers) - len(answers)  # the last token of an answer is not read
    longest = max(x + max(map(len, options)) for x, options in asked)
    return memory.Lengths(len(task.instruction), [(before + len(d.x), len(d.y)) for d in task.demos], longest,
                          BATCH * decoded, scored=scored, answers=sum(answers))


def main():
    args = parse()
    folder = fetch(args.model, weights=False)
    config, tokenizer = read_config(folder), load_tokenizer(args.tokenizer or folder)
    tokenizer.check_belongs(config.vocab_size)
    args.length = min(args.length or BENCHMARKS[args.benchmark].LENGTH, config.n_position)
    if args.dry_run:
        return dry_run(args, config, tokenizer)
    alike, ids = read_all(args, tokenizer)
    # torchrun sets OMP_NUM_THREADS to 1
    if args.device.type == "cpu" and (args.n_process > 1 or "OMP_NUM_THREADS" not in os.environ):
        torch.set_num_threads(max(1, n_core() // args.n_process))
    model = load_model(args.model, args.device, args.dtype)
    model.checkpoint = args.checkpoint
    common = dict(model=fingerprint(model), name=str(args.model), world=args.benchmark, pool=args.pool, k=args.k,
                  dtype=str(args.dtype).removeprefix("torch."), length=args.length, limit_queries=args.limit_queries,
                  tokenizer=args.tokenizer)
    if args.skip_queries:
        common["skip_queries"] = args.skip_queries
    if args.benchmark == "bbh":
        common["form"] = not args.no_form
    runs = [common | dict(method=method, config=config, task=task, seed=seed)
            for task, seed in itertools.product(args.tasks, args.seeds)
            for method, configs in args.configs.items() for config in configs]
    job = "sweep" if args.sweep else "ablations" if args.ablations else "results"
    results = join(args.out / f"{job}.jsonl", args.n_process)
    runs = with_data(args, runs, ids, results)
    lines = execute(runs, results, worker(args, model, tokenizer))
    if lines is None:
        return  # the first process reports
    if not lines:
        raise ValueError("no method could do any task, for the reasons above: take other --methods or a lower --k.")
    if args.ablations and len(lines) < len(runs):
        raise ValueError(f"{len(runs) - len(lines)} of {len(runs)} runs came to no result, for the reasons above, and "
                         "without them there is nothing to compare with.")
    if args.ablations:
        ablations.report(lines, args.out, args.model)
    elif args.sweep:
        sweep.report_public(lines, args.model, len(args.tasks) * len(args.seeds), args.out)
    else:
        report_public(lines, args.model, len(args.tasks) * len(args.seeds), args.out, alike, args.timed)
    print(f"{len(lines)} of {len(runs)} runs; lines in {results.path}")


if __name__ == "__main__":
    cli.run(main)
