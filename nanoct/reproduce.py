"""The main job: methods x held-out tasks x seeds of four worlds, compared with the committed runs of the same.

    python -m nanoct.reproduce                          # 2 held-out tasks of each embedded world, minutes on two cores
    python -m nanoct.reproduce --quick                  # 1 task of each
    python -m nanoct.reproduce --full                   # every held-out task, 3 seeds of demos
    python -m nanoct.reproduce --world lexicon facts    # two of the worlds
    python -m nanoct.reproduce --sweep                  # choose the settings, on validation tasks (runs/sweep.py)
    python -m nanoct.reproduce --ablations              # CT-KV without its parts, and with wrong labels
    python -m nanoct.reproduce --scaling                # accuracy and seconds against k (runs/scaling.py)
    python -m nanoct.reproduce --pool validation --set ct_kv.lr=3e-3,1e-2 ct_kv.n_step=32          # compare your own
    python -m nanoct.reproduce --report weights/nano/results/full.jsonl                               # run nothing

Every run's score is compared with the committed score of the same run. Table and figures show all committed runs, with
the live ones in their place. With other settings, methods, pools or models they show the live runs alone. Settings
whose committed runs took over ten seconds are left to --full, or to whoever asks for methods, tasks or seeds. CT-KV and
TTT run at several numbers of steps, each with its own cosine schedule, so that curves are compared and not points. The
Bayes ceilings (benchmarks/nano/bayes.py) stand beside the methods. Runs are spread over processes of one thread, in
which small matrices run faster. A second start goes on from the results file.
"""

import argparse
import itertools
import math
import time
from collections import ChainMap
from dataclasses import asdict, fields
from functools import cache, lru_cache
from pathlib import Path

import torch

from nanoct import cli
from nanoct.benchmarks.nano import FOLDER, WORLDS, bayes, encode, make_task, read_settings
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import fingerprint, load_model, pick_device, read_config
from nanoct.methods import METHODS
from nanoct.runs import ablations, scaling, sweep
from nanoct.runs.measure import check_finite, finite, measure
from nanoct.runs.parallel import execute
from nanoct.runs.report import CEILINGS, against_committed, report
from nanoct.runs.results import Results, about, distinct, n_core, read
from nanoct.runs.stats import settings
from nanoct.score import evaluate

N_STEP = {"ct_kv": (4, 16, 64), "ttt": (2, 8, 32)}  # the curves; TTT takes about twice the seconds
N_TASK = 2  # tasks of the held-out pool of each world
COMMITTED = FOLDER / "results" / "full.jsonl"  # the lines behind the README's table
LONG = 10  # seconds of a run; the main job leaves settings that take longer to --full
MODULES = ChainMap(METHODS, {ablations.NAME: ablations})


def configs(method, chosen, overrides):
    """Configs of a method: the chosen settings at every number of steps of its curve; --set replaces values."""
    if method in CEILINGS:
        return [{}]
    values = {name: [value] for name, value in chosen.items()}
    if method in N_STEP:
        values["n_step"] = sorted({*N_STEP[method], *values.get("n_step", ())})
    return distinct(cli.configs(method, METHODS[method].Config, values, overrides.get(method, {})))


def variants(args):
    """What to run on every task: {world: [(method, config, k, share of wrong labels)]}."""
    presets, study = read_settings(), ablations if args.ablations else scaling if args.scaling else None

    def of(world):
        k, chosen = args.k or WORLDS[world].k, lambda method: presets.get(world, {}).get(method, {})
        if study:
            return study.variants(k, lambda method: asdict(METHODS[method].Config(**chosen(method))))
        return [(method, config, k, 0.0) for method in args.methods
                for config in configs(method, chosen(method), args.set)]

    return {world: of(world) for world in args.world}


def committed_lines():
    """The committed lines, or none where the weights came without them."""
    return read(COMMITTED) if COMMITTED.exists() else []


def brief(of_world, model_ids):
    """The variants without those whose committed runs took more than LONG seconds; says which these are."""
    lines = [line for line in committed_lines() if line["model"] in model_ids.values()]
    slow = {world: [(s.method, s.config) for among in methods.values() for s in among if s.seconds > LONG]
            for world, methods in settings(lines).items() if world in of_world}
    if named := [f"{method} in {world}" for world, found in slow.items() for method, _ in found]:
        print(f"Runs of over {LONG} seconds are left to --full: {', '.join(named)}.")
    return {world: [v for v in found if v[:2] not in slow.get(world, ())] for world, found in of_world.items()}


def plan(args, model_ids, of_world):
    """All runs of the variants, task by task: a stopped job has all methods and worlds on the tasks it finished."""
    in_turn = itertools.zip_longest(*([(world, task) for task in args.tasks[world]] for world in of_world))
    runs = [dict(model=model_ids[world], world=world, pool=args.pool, k=k, method=method, config=config, task=task,
                 seed=seed, wrong=wrong)
            for worlds in in_turn for world, task in filter(None, worlds) for seed in args.seeds[world]
            for method, config, k, wrong in of_world[world]]
    within = lambda run: fits(args.model, run["world"], run["task"], run["seed"], run["k"])
    return list(filter(within, runs)) if args.scaling else runs


@cache
def reader(model, world):
    """Tokenizer and longest context of a world's model."""
    folder = folder_of(model, world)
    return load_tokenizer(folder), read_config(folder).n_position


@cache
def fits(model, world, name, seed, k):
    """Whether a task has k demos that fit the model's context together with one more like the longest."""
    tokenizer, n_position = reader(model, world)
    try:
        task = make_task(world, name, tokenizer, seed, k, n_query=1)
    except ValueError:  # the world has fewer examples
        return False
    lengths = [len(demo.x) + len(demo.y) for demo in task.demos]
    return len(task.instruction) + sum(lengths) + max(lengths) <= n_position


def folder_of(model, world):
    """The folder of a world's model: a subfolder named after the world, where there is one."""
    return Path(model) / world if (Path(model) / world).is_dir() else model


def prepare(model, device):
    """Set up a worker process, which keeps each model that it has loaded."""
    global MODEL, DEVICE
    MODEL, DEVICE = model, device
    load.cache_clear()
    torch.set_num_threads(1)


@cache
def load(world):
    """Model and tokenizer of a world."""
    folder = folder_of(MODEL, world)
    return load_model(folder, DEVICE), load_tokenizer(folder)


@cache
def warm_up(world, name):
    """Run a method once, so that no measured run pays for warming up."""
    (model, tokenizer), method = load(world), MODULES[name]
    task = make_task(world, WORLDS[world].pools()["train"][0], tokenizer, seed=0, k=4, n_query=2)
    few = {f.name: 2 for f in fields(method.Config) if f.name in ("n_step", "ttt_n_step")}
    evaluate(method.adapt(model, task, method.Config(**few)), task)


@lru_cache(maxsize=8)
def ceiling(world, name, seed, k, which):
    """The queries of a task as text, and the exact Bayes prediction for each."""
    demos, queries = WORLDS[world].examples(name, seed, k, WORLDS[world].n_query)
    return queries, bayes.predictives(WORLDS[world], demos, queries, which)


def work(run, progress=None):
    """Do one run: adapt, then score. Returns the line for the results file."""
    world, name, method = WORLDS[run["world"]], run["world"], run["method"]
    of_task = run["task"], run["seed"], run["k"]
    if method in CEILINGS:
        start = time.perf_counter()
        queries, predicted = ceiling(name, *of_task, CEILINGS[method])
        return dict(run, score=bayes.evaluate(world, predicted, queries).score, n_query=len(queries), n_trained=0,
                    seconds=round(time.perf_counter() - start, 4), kl=None, **about(torch.device("cpu")))
    model, tokenizer = load(name)
    with finite(method, run["task"]):
        warm_up(name, method)
    task = make_task(name, run["task"], tokenizer, run["seed"], run["k"], wrong=run["wrong"])
    if run["config"].get("start") == "others":
        pool = world.pools()[run["pool"]]
        task.others = make_task(name, pool[pool.index(run["task"]) - 1], tokenizer, run["seed"], run["k"]).demos
    measured, adapted = measure(model, task, method, run["config"], run["seed"], progress, MODULES[method])
    queries, predicted = ceiling(name, *of_task, "all")
    with finite(method, run["task"]):
        kl = bayes.divergence(adapted, predicted, [{y: encode(tokenizer, x, y, world.delimiter) for y in p}
                                                   for (x, _, _), p in zip(queries, predicted)])
    check_finite(method, task, [kl])
    return dict(run, kl=round(kl, 4), **measured)


class Moved(argparse.Action):
    """An option that has moved to another command."""

    def __call__(self, parser, namespace, value, option):
        parser.error(f"{option} is now a command of its own: python -m nanoct.paper {option} {value or 'BENCHMARK'} …")


def parse():
    rows = [*METHODS, *CEILINGS]
    p = cli.Parser(prog="nanoct reproduce", description=__doc__)
    p.add_argument("--methods", nargs="+", choices=rows, default=rows, help="default: all, and the ceilings")
    p.add_argument("--world", nargs="+", choices=list(WORLDS), default=list(WORLDS), help="default: all")
    p.add_argument("--pool", choices=("held_out", "validation", "train"), default="held_out")
    p.add_argument("--tasks", nargs="+", help=f"how many of each pool, or names of one world's; default: {N_TASK}, "
                   f"--sweep {sweep.N_TASK}, --full all")
    p.add_argument("--seeds", nargs="+", type=int, help="of the demos; default: 0, --full 0 1 2, more in "
                   "a sweep of few tasks")
    p.add_argument("--k", type=int, help="demos a task; default: the world's")
    p.add_argument("--quick", action="store_true", help="1 task of each world")
    p.add_argument("--full", action="store_true", help="every task of the pool, seeds 0 1 2")
    p.add_argument("--sweep", action="store_true", help=f"choose settings on {sweep.N_TASK} validation tasks of "
                   "each world (runs/sweep.py); writes sweep.jsonl, sweep.md and settings.json")
    p.add_argument("--ablations", action="store_true", help="CT-KV without its parts, from other starts, with wrong "
                   "labels; writes ablations.jsonl")
    p.add_argument("--scaling", action="store_true", help="accuracy and seconds against k; writes scaling.jsonl")
    p.add_argument("--set", action="extend", nargs="+", default=[], metavar="METHOD.FIELD=V1,V2",
                   help="settings; several values are compared")
    p.add_argument("--model", default=str(FOLDER), help="folder of a model trained on the worlds, or of one for each")
    p.add_argument("--device", help="cuda, mps or cpu; default: cpu, as the embedded models are too small for more")
    p.add_argument("--workers", type=int, help="processes beside this one; default: one per core, or 0 on a GPU")
    p.add_argument("--out", default="results", help="folder of results.jsonl, table and figures")
    p.add_argument("--report", metavar="FILE", help="redraw table and figures beside a results file, and run nothing")
    p.add_argument("--benchmark", nargs="?", action=Moved, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.report:
        return args
    if args.sweep + args.ablations + args.scaling > 1:
        raise ValueError("--sweep, --ablations and --scaling are three jobs: choose one.")
    changed = args.full, args.sweep, args.ablations, args.scaling, args.tasks, args.seeds, args.k, args.set
    args.brief = not any(changed) and args.methods is rows and args.pool == "held_out"
    if args.sweep:
        args.pool = "validation"
        args.methods = [method for method in args.methods if method not in CEILINGS]
    args.device = str(pick_device(args.device or "cpu"))
    if args.workers is None:
        args.workers = n_core() if args.device == "cpu" else 0
    cli.at_least_one(args, "k")
    if args.workers < 0:
        raise ValueError(f"--workers {args.workers} must be 0 or more.")
    args.methods, args.world = map(list, map(dict.fromkeys, (args.methods, args.world)))
    args.tasks = {world: pick(world, WORLDS[world].pools()[args.pool], args) for world in args.world}
    args.seeds = {world: seeds(world, args) for world in args.world}
    args.set = cli.overrides(args.set, [method for method in args.methods if method in METHODS])
    if (args.ablations or args.scaling) and (args.set or args.methods != rows):
        raise ValueError("--ablations and --scaling have methods and settings of their own: no --methods and no --set.")
    return args


def pick(world, pool, args):
    """The tasks of a world that the options name. Raises ValueError on a number or a name that its pool lacks."""
    if args.tasks and not (len(args.tasks) == 1 and args.tasks[0].isdecimal()):
        if unknown := [task for task in args.tasks if task not in pool]:
            raise ValueError(f"--tasks: {unknown[0]!r} is not in the {args.pool} pool of {world}; `python -m "
                             f"nanoct.benchmarks.nano --world {world} --pool {args.pool}` lists it.")
        return list(dict.fromkeys(args.tasks))
    default = len(pool) if args.full else 1 if args.quick else sweep.N_TASK if args.sweep else N_TASK
    n = int(args.tasks[0]) if args.tasks else min(default, len(pool))
    if not 1 <= n <= len(pool):
        raise ValueError(f"--tasks {n}: the {args.pool} pool of {world} has {len(pool)} tasks.")
    return pool[:n]


def seeds(world, args):
    """The seeds of a world's demos. Where the sweep's pool is small, more seeds make as many runs of each setting."""
    n_task, pool = len(args.tasks[world]), WORLDS[world].pools()[args.pool]
    n = 3 if args.full else math.ceil(sweep.N_TASK / n_task) if args.sweep and n_task == len(pool) else 1
    if args.sweep and n > 1 and not (args.seeds or args.full):
        print(f"{world}: the validation pool has {n_task} tasks, fewer than {sweep.N_TASK}: each gets {n} seeds.")
    return list(dict.fromkeys(args.seeds or range(n)))


def main():
    args = parse()
    if args.report:
        lines = read(args.report)
        if not lines:
            raise ValueError(f"--report {args.report}: there is no result in it yet.")
        return report(lines, read_settings(), Path(args.report).parent)
    models = {world: load_model(folder_of(args.model, world), "cpu", "float32") for world in args.world}
    for world, model in models.items():
        if args.k and args.k > model.config.n_position:
            raise ValueError(f"--k {args.k}: so many demos do not fit the {model.config.n_position} tokens of {world}'s"
                             " model: take fewer.")
    ids = {world: fingerprint(model) for world, model in models.items()}
    job = next((job for job in ("sweep", "ablations", "scaling") if getattr(args, job)), "results")
    results = Results(Path(args.out) / f"{job}.jsonl")
    start, runs = time.perf_counter(), []

    def do(of_world):
        runs.extend(new := plan(args, ids, of_world))
        return execute(new, results, work, args.workers, prepare, args.model, args.device)

    if args.sweep:
        lines, tried = sweep.search(args.world, args.methods, args.set, read_settings(), lambda todo: do(
            {world: [(method, config, args.k or WORLDS[world].k, 0.0) for (of, method), configs in todo.items()
                     for config in configs if of == world] for world in args.world}))
    else:
        lines = do(brief(variants(args), ids) if args.brief else variants(args))
    if not lines:
        pass  # the end of main says so
    elif args.sweep:
        sweep.report(lines, tried, args.out)
    elif args.ablations and len(lines) < len(runs):
        raise ValueError(f"{len(runs) - len(lines)} of {len(runs)} runs came to no result, for the reasons above, and "
                         "without them there is nothing to compare with: see whether the weights are all finite.")
    elif args.ablations:
        ablations.report(lines, args.out)
    elif args.scaling:
        embedded = load_model(folder_of(args.model, "strings"), args.device)
        scaling.report(lines, scaling.passes(embedded, Path(args.out)), args.out)
    else:
        against_committed(lines, committed_lines(), COMMITTED, read_settings(), args.out)
    print(f"{len(lines)} of {len(runs)} runs, {time.perf_counter() - start:.0f} seconds; lines in {results.path}")
    of_model = lambda among: {run["world"] for run in among if run["method"] not in CEILINGS}
    if nothing := of_model(runs) - of_model(lines):
        raise ValueError(f"no run of {args.model} on {', '.join(sorted(nothing))} came to a result, for the reasons "
                         "above: see whether its weights are all finite, or try smaller rates.")


if __name__ == "__main__":
    cli.run(main)
