"""What a job on a public benchmark has of its own: data that is read before a model is loaded, and torchrun."""

import itertools
import os
from dataclasses import fields
from pathlib import Path

import torch
from tqdm import tqdm

from nanoct import cli
from nanoct.benchmarks import words
from nanoct.benchmarks.common import Counts, pick
from nanoct.benchmarks.presets import SETTINGS, SWEEPS
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import fetch, pick_device, read_config, resolve_dtype
from nanoct.methods import KNOWN, METHODS, expand
from nanoct.runs import ablations, cuts, sweep
from nanoct.runs.job import MODULES, PUBLIC, done, identify, neighbour, none_lacking, plan, read_task
from nanoct.runs.parallel import join
from nanoct.runs.report import report_public
from nanoct.runs.results import data_id, distinct, n_core, read
from nanoct.score import constants


def settle(job):
    """Fill in what follows from the options of a job: pool, tasks, seeds, settings. Raises ValueError on a mistake."""
    name, benchmark = job.benchmark, PUBLIC[job.benchmark]
    cli.at_least_one(job, "k", "length", "limit_queries", "skip_queries")
    if job.no_form and name != "bbh":
        raise ValueError(f"--no-form: {name} has no sentence on how to answer; bbh has.")
    job.data = job.data or getattr(benchmark, "PACKAGED", None)
    if job.data is None:
        raise ValueError(f"--data is missing: give the folder of {name}'s files, which `python -m "
                         "nanoct.benchmarks.fetch` gets.")
    if job.ablations and job.cuts:
        raise ValueError("--ablations and --cuts are two jobs: choose one.")
    if job.study and (job.sweep or job.set or job.dry_run or job.methods not in (None, list(METHODS))):
        study = "--ablations" if job.ablations else "--cuts"
        raise ValueError(f"{study} has methods and settings of its own: no --sweep, --methods, --set and --dry-run.")
    job.pool, tasks = pick(benchmark, name, job.data, job.tasks, job.pool, job.sweep)
    seeds = job.seeds or benchmark.SEEDS[: 1 if job.sweep or job.study else None]
    job.tasks, job.seeds, job.neighbours = {name: tasks}, {name: list(dict.fromkeys(seeds))}, {name: tasks}
    job.k, job.benchmarks, job.make = job.k or benchmark.K, [name], {"form": False} if job.no_form else {}
    job.methods, job.out = expand(job.methods or METHODS), Path(job.out or f"results/{name}")
    job.variants = {name: variants(job, name, cli.overrides(job.set, job.methods))}
    job.timed = read(job.seconds) if job.seconds else ()


def variants(job, benchmark, overridden):
    """What to run on every task: presets, or with --sweep all of SWEEPS. overridden: {method: {field: [texts]}}."""
    if job.cuts:
        return cuts.variants(job.k, SETTINGS[benchmark]["ct_kv"])
    if job.ablations:
        rows = ablations.rows(SETTINGS[benchmark]["ct_kv"])
        return [("icl", {}, job.k, None), *((ablations.NAME, config, job.k, None) for config in rows.values())]
    return [(method, config, job.k, None) for method in job.methods
            for config in listed(benchmark, method, overridden.get(method, {}), job.sweep)]


def listed(benchmark, method, overridden, to_choose=True):
    """The configs of a method on a public benchmark: its preset, or to choose all of SWEEPS, or its module's SWEEP.

    overridden: {field: [texts]}, which replace values.
    """
    values = {name: [value] for name, value in SETTINGS[benchmark].get(method, {}).items()}
    if to_choose:
        tried = SWEEPS.get(benchmark, SWEEPS["words"]).get(method) or getattr(KNOWN[method], "SWEEP", {})
        if fields(KNOWN[method].Config) and not tried:
            print(f"{method} is not in SWEEPS and has no SWEEP, the values worth trying: it runs at its defaults.")
        values |= tried
    return distinct(cli.configs(method, KNOWN[method].Config, values, overridden))


def without_graph(variants):
    """The methods among variants {benchmark: [(method, …)]} that have steps, and none to keep as a CUDA graph."""
    names = dict.fromkeys(method for among in variants.values() for method, *_ in among)
    return [name for name in names if hasattr(MODULES[name].Config, "n_step") and not hasattr(MODULES[name], "GRAPH")]


def read_all(job, tokenizer, is_first=True):
    """Read every task and seed once and print what was left out.

    Returns {(task, seed): scores of constant answers}, and {(task, seed): id of the data}.
    """
    (benchmark,) = job.benchmarks
    total, alike, ids = Counts(), {}, {}
    asked = list(itertools.product(job.tasks[benchmark], job.seeds[benchmark]))
    for name, seed in tqdm(asked, desc="reading", leave=False, disable=not is_first):
        task, counts = read_task(job, dict(world=benchmark, task=name, seed=seed, k=job.k), tokenizer)
        total, ids[name, seed] = total + counts, data_id(task)
        if task.queries:
            alike[name, seed] = constants(task)
    if not alike:
        raise ValueError(none_fits(job))
    if is_first:
        print(f"{benchmark}, {len(job.tasks[benchmark])} tasks, {len(job.seeds[benchmark])} seeds: {total}; "
              f"{len(asked) - len(alike)} without a query that fits {job.length} tokens")
    return alike, ids


def none_fits(job):
    return (f"no task of {job.data} has a query that fits {job.length} tokens: lower --k or --skip-queries, raise "
            "--length, or take a model with a longer context.")


def with_data(job, runs, ids, results, is_first=True):
    """Give each run the id of its data, but where the results have a line without one, of the package's own lists.

    Other lines without one may be of any data: says how many there are, as their runs are done again.
    """
    is_packaged = job.benchmarks == ["words"] and words.pools(job.data) is words.POOLS
    known, n_unknown = [], 0
    for run in runs:
        data = ids[run["task"], run["seed"]]
        if run["config"].get("start") == "others" or run["config"].get("beside"):
            data += "+" + ids[neighbour(job, run), run["seed"]]
        is_old = results.key(run) in results.keys and results.key(run | dict(data=data)) not in results.keys
        known.append(run if is_old and is_packaged else run | dict(data=data))
        n_unknown += is_old and not is_packaged
    if n_unknown and is_first:
        print(f"{n_unknown} lines of {results.path} do not say which data they are of; their runs are done again.")
    return known


def run(job, dry_run):
    """Do the job and report it, in the first of all joined processes; with --dry-run, dry_run(job, model's config, …).

    Raises ValueError if no run came to a result, or an ablation lacks one.
    """
    rank, n_process, local = cli.ranks()
    job.device = pick_device(job.device)
    if job.device.type == "cuda" and job.device.index is None:
        job.device = pick_device(f"cuda:{local % torch.cuda.device_count()}")
    job.dtype = resolve_dtype(job.dtype, job.device)
    folder = fetch(job.model, weights=False)
    config, tokenizer = read_config(folder), load_tokenizer(job.tokenizer or folder)
    tokenizer.check_belongs(config.vocab_size)
    job.length = min(job.length or PUBLIC[job.benchmark].LENGTH, config.n_position)
    if job.dry_run:
        return dry_run(job, config, tokenizer)
    if job.graph:
        cli.need_gpu("--graph", job.device)
        if rank == 0 and (names := without_graph(job.variants)):
            print(f"--graph: {', '.join(names)} have no step that is kept as a CUDA graph, and run as without it.")
    alike, data_ids = read_all(job, tokenizer, rank == 0)
    # torchrun sets OMP_NUM_THREADS to 1
    if job.device.type == "cpu" and (n_process > 1 or "OMP_NUM_THREADS" not in os.environ):
        torch.set_num_threads(max(1, n_core() // n_process))
    job.more = dict(name=str(job.model), dtype=str(job.dtype).removeprefix("torch."), length=job.length,
                    limit_queries=job.limit_queries, tokenizer=job.tokenizer)
    if job.skip_queries:
        job.more["skip_queries"] = job.skip_queries
    if job.graph:
        job.more["graph"] = True  # for whoever compares seconds; the run is the same
    if job.benchmark == "bbh":
        job.more["form"] = not job.no_form
    runs = plan(job, identify(job), job.variants)
    results = join(job.out / f"{job.kind}.jsonl", n_process)
    runs = with_data(job, runs, data_ids, results, rank == 0)
    lines = done(job, runs, results)
    if lines is None:
        return  # the first process reports
    if not lines:
        raise ValueError("no method could do any task, for the reasons above: take other --methods or a lower --k.")
    if job.study:
        none_lacking(lines, runs)
        job.study.report(lines, job.out, job.model)
    elif job.sweep:
        sweep.report_public(lines, job.model, len(data_ids), job.out)
    else:
        report_public(lines, job.model, len(data_ids), job.out, alike, job.timed)
    print(f"{len(lines)} of {len(runs)} runs; lines in {results.path}")
