"""The main job: methods x held-out tasks x seeds -> a table, JSON lines, and accuracy against seconds.

    python -m nanoct.reproduce                     # 24 held-out tasks of the embedded world, minutes on two cores
    python -m nanoct.reproduce --quick             # 6 tasks, under 90 seconds
    python -m nanoct.reproduce --full              # every held-out task
    python -m nanoct.reproduce --pool validation --set ct_kv.lr=3e-3,1e-2,3e-2 --set ct_kv.n_step=32   # a sweep
    python -m nanoct.reproduce --report weights/nano/results/strings.jsonl                             # run nothing

Every method is run at several numbers of steps, each with its own cosine schedule, so that methods are
compared by curves and not by a point. The table shows each method at the setting of PRESETS, which was
chosen on the validation pool. Runs are spread over worker processes of one thread each: small matrices run
faster so. Finished runs are in the results file, and a second start goes on from there.
"""

import itertools
import json
import os
import platform
import signal
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, fields
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import torch
from tqdm import tqdm

from nanoct import cli
from nanoct.benchmarks.nano import FOLDER, WORLDS
from nanoct.methods import METHODS
from nanoct.report import report
from nanoct.results import Results, key, read
from nanoct.score import evaluate
from nanoct.tokenizer import load_tokenizer
from nanoct.weights import fingerprint, load_model, pick_device

N_STEP = {"ct_kv": (4, 8, 16, 32, 64, 128), "ttt": (2, 4, 8, 16, 32, 64)}  # the curves, over like seconds
PRESETS = {  # world -> method -> config, chosen by sweeps on the validation pool (weights/nano/README.md)
    "strings": {
        "ct_kv": dict(lr=3e-2, token_dropout=0.05, n_step=64),
        "ttt": dict(lr=1e-3, rank=8, alpha=16.0, batch=4, n_step=32),
    },
}


def configs(method, world, overrides):
    """Configs of a method: its preset at every number of steps, or the product of what `--set` lists."""
    Config = METHODS[method].Config
    types = {f.name: f.type for f in fields(Config)}
    values = {name: [value] for name, value in PRESETS[world].get(method, {}).items()}
    if method in N_STEP:
        values["n_step"] = N_STEP[method]
    for name, texts in overrides.get(method, {}).items():
        if name not in types:
            raise ValueError(f"{method} has no setting {name!r}; it has {', '.join(types) or 'none'}.")
        values[name] = [_parse(f"{method}.{name}", text, types[name]) for text in texts]
    return [Config(**dict(zip(values, choice))) for choice in itertools.product(*values.values())]


def _parse(name, text, kind):
    if kind is bool and text in ("True", "False"):
        return text == "True"
    try:
        return {int: int, float: float}[kind](text)
    except (KeyError, ValueError):
        raise ValueError(f"{name}={text!r} is no {kind.__name__}.") from None


def plan(args, model_id):
    """All runs asked for, task by task, so that a job that is stopped has all methods on the tasks it did."""
    settings = [(method, config) for method in args.methods for config in configs(method, args.world, args.set)]
    return [dict(model=model_id, world=args.world, pool=args.pool, k=args.k, method=method, config=asdict(config),
                 task=task, seed=seed)
            for task in args.tasks for seed in args.seeds for method, config in settings]


def start_worker(model_name, device, n_thread):
    """One process: the model once, and a first run so that no measured one pays for warming up."""
    global MODEL, TOKENIZER
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()  # it dies: no orphan stays behind
    torch.set_num_threads(n_thread)
    MODEL, TOKENIZER = load_model(model_name, device), load_tokenizer(model_name)
    task = WORLDS["strings"].make_task("reverse", TOKENIZER, seed=0, k=4, n_query=4)
    for method in METHODS.values():
        evaluate(method.adapt(MODEL, task), task)


def work(run):
    """One run: adapt, then score; the line for the results file."""
    task = WORLDS[run["world"]].make_task(run["task"], TOKENIZER, run["seed"], run["k"])
    method = METHODS[run["method"]]
    losses = []
    start = _clock()
    adapted = method.adapt(MODEL, task, method.Config(**run["config"]), run["seed"], lambda step, loss: losses.append(loss))
    adapted_at = _clock()
    result = evaluate(adapted, task)
    return dict(run, score=result.score, n_query=len(task.queries), n_trained=adapted.n_trained,
                seconds=round(adapted_at - start, 4), seconds_score=round(_clock() - adapted_at, 4),
                loss=[round(losses[0], 4), round(losses[-1], 4)] if losses else None,
                device=device_name(MODEL.device), n_thread=torch.get_num_threads(), torch=torch.__version__,
                date=time.strftime("%Y-%m-%d"))


def _clock():
    if MODEL.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def execute(runs, results, args):
    """Do the runs that the file does not have yet, in args.workers processes; every line is saved as it comes."""
    todo = [run for run in runs if key(run) not in results.keys]
    if len(todo) < len(runs):
        print(f"{len(runs) - len(todo)} of {len(runs)} runs are in {results.path} already; going on from there.")
    if not todo:
        return
    n_thread = max(1, n_core() // args.workers)
    with (ProcessPoolExecutor(args.workers, get_context("spawn"), start_worker, (args.model, args.device, n_thread)) as pool,
          tqdm(total=len(runs), initial=len(runs) - len(todo), desc="runs", smoothing=0) as bar):
        futures = [pool.submit(work, run) for run in todo]
        try:
            for future in as_completed(futures):
                results.append(future.result())
                bar.update()
        except BrokenExecutor:
            raise ValueError("a worker process died, perhaps for want of memory: use fewer --workers; the same command "
                             "goes on from what is saved.") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def n_core():
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse():
    p = cli.Parser(prog="nanoct.reproduce", description=__doc__.split("\n")[0])
    p.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="default: all")
    p.add_argument("--world", choices=list(WORLDS), default="strings")
    p.add_argument("--pool", choices=("held_out", "validation", "train"), default="held_out")
    p.add_argument("--tasks", nargs="+", default=["24"], help="how many of the pool, or their names")
    p.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the demos")
    p.add_argument("--k", type=int, help="demos a task; default: the world's")
    p.add_argument("--quick", action="store_true", help="6 tasks")
    p.add_argument("--full", action="store_true", help="every task of the pool")
    p.add_argument("--set", action="append", default=[], metavar="METHOD.FIELD=V1,V2", help="a setting, or several to compare")
    p.add_argument("--model", default=str(FOLDER), help="folder of a model trained on the embedded worlds")
    p.add_argument("--device", help="cuda, mps or cpu; default: cpu for the embedded model, which is too small for more")
    p.add_argument("--workers", type=int, help="processes; default: one per core, or 1 on a GPU")
    p.add_argument("--out", default="results", help="folder of results.jsonl, table and figure")
    p.add_argument("--report", metavar="FILE", help="redraw table and figure from a results file and run nothing")
    args = p.parse_args()
    if args.report:
        return args
    world = WORLDS[args.world]
    args.k = world.K if args.k is None else args.k
    args.device = str(pick_device(args.device or "cpu"))
    if args.workers is None:
        args.workers = n_core() if args.device == "cpu" else 1
    if args.k < 1 or args.workers < 1:
        raise ValueError(f"--k {args.k} and --workers {args.workers} must both be at least 1.")
    pool = world.pools()[args.pool]
    count = int(args.tasks[0]) if len(args.tasks) == 1 and args.tasks[0].isdigit() else None
    n = 6 if args.quick else len(pool) if args.full else count
    if n is not None and not 1 <= n <= len(pool):
        raise ValueError(f"--tasks {n}: the {args.pool} pool of {args.world} has {len(pool)} tasks.")
    args.tasks = pool[:n] if n is not None else args.tasks
    if unknown := [task for task in args.tasks if task not in pool]:
        raise ValueError(f"--tasks: {unknown[0]!r} is not in the {args.pool} pool of {args.world}; `python -m "
                         f"nanoct.benchmarks.nano --pool {args.pool}` lists it.")
    overrides = {}
    for text in args.set:
        method, dot, rest = text.partition(".")
        name, equals, values = rest.partition("=")
        if not (dot and equals and values) or method not in METHODS:
            raise ValueError(f"--set {text!r}: write METHOD.FIELD=VALUE, the method one of {', '.join(METHODS)}.")
        overrides.setdefault(method, {})[name] = values.split(",")
    args.set = overrides
    args.methods, args.tasks, args.seeds = (list(dict.fromkeys(asked)) for asked in (args.methods, args.tasks, args.seeds))
    return args


def main():
    args = parse()
    if args.report:
        lines = read(args.report)
        if not lines:
            raise ValueError(f"--report {args.report}: there is no result in it yet.")
        report(lines, PRESETS.get(lines[0]["world"], {}), Path(args.report).parent)
        return
    runs = plan(args, fingerprint(load_model(args.model, "cpu", "float32")))
    results = Results(Path(args.out) / "results.jsonl")
    start = time.perf_counter()
    execute(runs, results, args)
    lines = {key(line): line for line in results.lines}
    report([lines[key(run)] for run in runs], PRESETS[args.world], args.out)
    print(f"{len(runs)} runs, {time.perf_counter() - start:.0f} seconds; lines in {results.path}")


if __name__ == "__main__":
    cli.run(main)
