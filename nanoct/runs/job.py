"""The one driver of jobs: plan the runs of methods on tasks, do those that the results lack, return their lines.

`reproduce` and `paper` are two sets of defaults over it; worlds.py and public.py are what differs. A benchmark is a
module or an object with K, SEEDS, pools(data) and make_task(data, name, tokenizer, seed, k, length, limit_queries, …),
which returns a Task, and Counts of what was left out of it. A built-in world has no Counts, but the exact Bayes
answer: two more functions, ceiling and divergence.

What is run on every task is a list of variants (method, config, k, share of wrong labels), for each benchmark. The
share is None where a benchmark has no wrong labels to give. Sweep, ablations and scaling are such lists.
"""

import itertools
from collections import ChainMap
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cache, lru_cache
from pathlib import Path

import torch
from tqdm import tqdm

from nanoct import cli
from nanoct.benchmarks import arc, bbh, mmlu, nano, nlp_lr, words
from nanoct.benchmarks.common import n_repeat
from nanoct.benchmarks.nano.benchmark import Benchmark
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import fetch, fingerprint, load_model
from nanoct.methods import KNOWN
from nanoct.runs import ablations, caches, cuts
from nanoct.runs.measure import check_finite, finite, measure
from nanoct.runs.parallel import NoRoom, execute
from nanoct.runs.report import CEILINGS
from nanoct.runs.results import about
from nanoct.score import evaluate

PUBLIC = {"nlp_lr": nlp_lr, "mmlu": mmlu, "bbh": bbh, "arc": arc, "words": words}
BENCHMARKS = PUBLIC | {world: Benchmark(world) for world in nano.WORLDS}
MODULES = ChainMap(KNOWN, {ablations.NAME: ablations, caches.NAME: caches})
JOB = None  # the one that this process works on
HELPS = "use --checkpoint, --dtype bfloat16, or a lower --k or --length."  # where memory is short


@dataclass
class Job:
    """The options of both commands, and what follows from them. Each command has some of its own besides."""

    model: str | None = None  # folder or hub name; of worlds also a folder that has a folder for each
    methods: list | None = None
    pool: str | None = None
    tasks: list | dict | None = None  # names, then {benchmark: names}
    seeds: list | dict | None = None  # of the demos, then {benchmark: seeds}
    k: int | None = None  # demos a task
    set: list | dict = field(default_factory=list)  # METHOD.FIELD=V1,V2, then {method: {field: [texts]}}
    sweep: bool = False
    ablations: bool = False
    cuts: bool = False
    scaling: bool = False  # worlds
    device: str | torch.device | None = None
    workers: int | None = 0  # processes beside this one
    out: str | Path | None = None
    data: str | None = None  # this and the next are of public benchmarks: a folder
    length: int | None = None  # the most tokens of context and query
    limit_queries: int | None = None
    skip_queries: int | None = None
    dtype: str | torch.dtype | None = None
    checkpoint: bool = False
    graph: bool = False
    tokenizer: str | None = None  # folder of another tokenizer than the model's
    # what follows
    benchmarks: list | None = None
    neighbours: dict = field(default_factory=dict)  # {benchmark: tasks}: an ablation starts from the one before
    make: dict = field(default_factory=dict)  # more arguments of make_task
    more: dict = field(default_factory=dict)  # more fields of every line
    check_room: Callable | None = None  # check_room(job, model, run, task, module) raises NoRoom before a run begins

    @property
    def kind(self):
        """What the file of results is called after."""
        return next((kind for kind in ("sweep", "ablations", "cuts", "scaling") if getattr(self, kind)), "results")

    @property
    def study(self):
        """The module that says what --ablations or --cuts run, and reports it; None for other jobs."""
        return ablations if self.ablations else cuts if self.cuts else None


def add_options(p, rows, pools, **helps):
    """The options that both commands have. rows: the methods to choose from; helps: what --help says of the others."""
    p.add_argument("--methods", nargs="+", choices=[*rows, "map"], help=f"map: the nine of MAP; {helps['methods']}")
    p.add_argument("--pool", choices=pools, help=helps["pool"])
    p.add_argument("--tasks", nargs="+", help=helps["tasks"])
    p.add_argument("--seeds", nargs="+", type=int, help=f"of the demos; default: {helps['seeds']}")
    p.add_argument("--k", type=int, help="demos a task; default: the benchmark's")
    p.add_argument("--set", action="extend", nargs="+", metavar="METHOD.FIELD=V1,V2",
                   help="settings; several values are compared")
    p.add_argument("--sweep", action="store_true", help=helps["sweep"])
    p.add_argument("--ablations", action="store_true", help="CT-KV without its parts and from other starts, as in "
                   "runs/ablations.py; writes ablations.jsonl, ablations.md")
    p.add_argument("--cuts", action="store_true", help="CT-KV's cache with its first entry frozen, cut to fewer "
                   "entries, and beside another task's, as in runs/cuts.py; writes cuts.jsonl, cuts.md")
    p.add_argument("--device", help=f"cuda, mps or cpu; default: {helps['device']}")
    p.add_argument("--out", help=f"folder of results.jsonl, table and figures; default: {helps['out']}")


# --- plan ---


def plan(job, ids, variants):
    """All runs, a task of each benchmark in turn: a stopped job has all methods on the tasks that it finished.

    ids: {benchmark: its model's fingerprint}. variants: {benchmark: [(method, config, k, share of wrong labels)]}.
    """
    runs = []
    for in_turn in itertools.zip_longest(*(job.tasks[benchmark] for benchmark in variants)):
        for benchmark, task in zip(variants, in_turn):
            if task is None:  # the others have more tasks
                continue
            for seed, (method, config, k, wrong) in itertools.product(job.seeds[benchmark], variants[benchmark]):
                run = dict(model=ids[benchmark], world=benchmark, pool=job.pool, k=k, **job.more, method=method,
                           config=config, task=task, seed=seed)
                runs.append(run if wrong is None else run | dict(wrong=wrong))
    return runs


def read_task(job, run, tokenizer, name=None):
    """The Task of a run, or another one of its benchmark with the same seed, and Counts of what was left out of it."""
    make = job.make | (dict(wrong=run["wrong"]) if run.get("wrong") else {})
    skip = job.skip_queries or 0
    limit = job.limit_queries and skip + job.limit_queries
    task, counts = BENCHMARKS[run["world"]].make_task(job.data, name or run["task"], tokenizer, run["seed"], run["k"],
                                                      job.length, limit, **make)
    if counts:
        task.queries = task.queries[skip:]
        counts.queries, counts.repeats = len(task.queries), n_repeat(task)
    return task, counts


def neighbour(job, run):
    """The task before a run's, in a circle: an ablation starts from its demos."""
    names = job.neighbours[run["world"]]
    return names[names.index(run["task"]) - 1]


# --- work: in each process, which keeps what it has loaded ---


def prepare(job):
    """Set up a process that works on a job; it drops what it has loaded for another."""
    global JOB
    if JOB is not job:
        JOB = job
        for kept in (load, warm_up, task_of):
            kept.cache_clear()


def folder_of(model, benchmark):
    """The folder of a world's model: a subfolder named after the world, where there is one."""
    return Path(model) / benchmark if benchmark in nano.WORLDS and (Path(model) / benchmark).is_dir() else model


@cache
def load(benchmark):
    """Model and tokenizer of a benchmark."""
    folder = folder_of(JOB.model, benchmark)
    model = load_model(folder, JOB.device, JOB.dtype)
    model.checkpoint, model.graphs = JOB.checkpoint, {} if JOB.graph else None
    tokenizer = load_tokenizer(JOB.tokenizer or fetch(folder, weights=False))
    tokenizer.check_belongs(model.config.vocab_size)  # which also tells it what pads the model's vocabulary
    return model, tokenizer


def identify(job):
    """Load every benchmark's model in this process: {benchmark: fingerprint}."""
    prepare(job)
    return {benchmark: fingerprint(load(benchmark)[0]) for benchmark in job.benchmarks}


@cache
def warm_up(world, name):
    """Run a method once on a task of a world, so that no measured run pays for warming up."""
    (model, tokenizer), method = load(world), MODULES[name]
    task = nano.make_task(world, nano.WORLDS[world].pools()["train"][0], tokenizer, seed=0, k=4, n_query=2)
    few = {f.name: 2 for f in fields(method.Config) if f.name in ("n_step", "ttt_n_step")}
    evaluate(method.adapt(model, task, method.Config(**few)), task)


@lru_cache(1)
def task_of(benchmark, name, seed, k, wrong):
    """Task and Counts, kept for the methods that take turns on it."""
    run = dict(world=benchmark, task=name, seed=seed, k=k, wrong=wrong)
    _, tokenizer = load(benchmark)
    task, counts = read_task(JOB, run, tokenizer)
    if JOB.study:
        task.others = read_task(JOB, run | dict(wrong=None), tokenizer, neighbour(JOB, run))[0].demos
    if not task.queries:
        tqdm.write(f"{name}, seed {seed}: given up, no query fits {JOB.length} tokens behind the demos.")
    return task, counts


def work(run, progress=None):
    """Do one run: adapt, then score. Returns the line for the results file.

    On a world raises what a method raises, as all its tasks are alike. On public data returns None, with a message, if
    a run is impossible, and raises NoRoom if memory is short.
    """
    name, method, at_task = run["world"], run["method"], (run["task"], run["seed"], run["k"])
    benchmark, is_world = BENCHMARKS[name], name in nano.WORLDS
    if method in CEILINGS:
        return run | benchmark.ceiling(*at_task, CEILINGS[method]) | about(torch.device("cpu"))
    model, tokenizer = load(name)
    if is_world:
        with finite(method, run["task"]):
            warm_up(name, method)
    task, counts = task_of(name, *at_task, run.get("wrong"))
    if not task.queries:
        return None
    if JOB.check_room:
        JOB.check_room(JOB, model, run, task, MODULES[method])
    try:
        measured, adapted = measure(model, task, method, run["config"], run["seed"], progress, MODULES[method])
    except (MemoryError, RuntimeError) as error:
        if is_world or not cli.is_out_of_memory(error):
            raise
        raise NoRoom(f"out of memory in {method} on {run['task']}, seed {run['seed']}: {HELPS}") from None
    except ValueError as error:  # of this task alone, such as no room for a pair behind the demos
        if is_world:
            raise
        tqdm.write(f"{method} on {run['task']}, seed {run['seed']}, is left out: {error}")
        return None
    if also := getattr(MODULES[method], "also", None):  # what a study measures besides
        measured |= also(model, task, MODULES[method].Config(**run["config"]), run["seed"], adapted)
    if not is_world:
        return run | asdict(counts) | measured
    with finite(method, run["task"]):
        kl = benchmark.divergence(adapted, tokenizer, *at_task)
    check_finite(method, task, [kl])
    return run | dict(kl=round(kl, 4)) | measured


def done(job, runs, results):
    """The lines of the runs, once those are done that the results lack; None in all joined processes but the first."""
    return execute(runs, results, work, job.workers, prepare, job)


def none_lacking(lines, runs, advice=""):
    """Raises ValueError if a study lacks a run, without which there is nothing to compare with."""
    if len(lines) < len(runs):
        raise ValueError(f"{len(runs) - len(lines)} of {len(runs)} runs came to no result, for the reasons above, and "
                         f"without them there is nothing to compare with{advice}.")
