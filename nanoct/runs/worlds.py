"""What a job on the built-in worlds has of its own: its tasks, seeds and settings, and committed lines to compare with.

CT-KV and TTT run at several numbers of steps, each with its own cosine schedule and the rate that validation tasks
chose for it (runs/sweep.py), so that curves are compared and not points. Settings whose committed runs took over LONG
seconds are left to --full.
"""

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from nanoct import cli
from nanoct.benchmarks.nano import FOLDER, WORLDS, pick, read_curves, read_settings
from nanoct.io.weights import load_model, pick_device
from nanoct.methods import KNOWN, METHODS, expand
from nanoct.runs import ablations, cuts, scaling, sweep
from nanoct.runs.job import BENCHMARKS, done, folder_of, identify, load, none_lacking, plan, task_of
from nanoct.runs.report import CEILINGS, against_committed
from nanoct.runs.results import Results, distinct, n_core, read
from nanoct.runs.stats import settings

N_TASK = 2  # tasks of the held-out pool of each world
COMMITTED = FOLDER / "results" / "full.jsonl"  # the lines behind the README's table
LONG = 10  # seconds of a run


def settle(job):
    """Fill in what follows from the options of a job: pool, tasks, seeds, settings. Raises ValueError on a mistake."""
    rows = [*METHODS, *CEILINGS]
    if job.sweep + job.ablations + job.cuts + job.scaling > 1:
        raise ValueError("--sweep, --ablations, --cuts and --scaling are four jobs: choose one.")
    changed = job.full, job.kind != "results", job.tasks, job.seeds, job.k, job.set, job.methods
    job.brief = not any(changed) and job.pool in (None, "held_out")
    if (job.study or job.scaling) and (job.set or job.methods not in (None, rows)):
        raise ValueError(f"--{job.kind} has methods and settings of its own: no --methods and no --set.")
    job.pool = "validation" if job.sweep else job.pool or "held_out"
    job.device, job.out = pick_device(job.device or "cpu"), Path(job.out or "results")
    if job.workers is None:
        job.workers = n_core() if job.device.type == "cpu" else 0
    cli.at_least_one(job, "k")
    if job.workers < 0:
        raise ValueError(f"--workers {job.workers} must be 0 or more.")
    job.benchmarks = list(dict.fromkeys(job.benchmarks or WORLDS))
    job.methods = [name for name in expand(job.methods or rows) if name in KNOWN or not job.sweep]
    asked, asked_seeds, job.tasks, job.seeds = job.tasks, job.seeds, {}, {}
    default = None if job.full else 1 if job.quick else sweep.N_TASK if job.sweep else N_TASK
    for world in job.benchmarks:
        benchmark = BENCHMARKS[world]
        pool = job.neighbours[world] = benchmark.pools()[job.pool]
        job.tasks[world] = tasks = pick(world, job.pool, asked, default)
        given = asked_seeds or benchmark.SEEDS[: None if job.full else 1]
        if job.sweep and not (asked_seeds or job.full):
            given = range(sweep.n_seed(world, len(tasks), len(pool)))
        job.seeds[world] = list(dict.fromkeys(given))
    job.set = cli.overrides(job.set, [method for method in job.methods if method in KNOWN])


def configs(method, chosen, curve, overrides):
    """Configs of a method on a world: the chosen settings, and those of its curve over numbers of steps, fewest first.

    overrides: {method: {field: [texts]}}; they replace values.
    """
    if method in CEILINGS:
        return [{}]
    found = []
    for base in sorted([*curve, chosen], key=lambda config: config.get("n_step", 0)):
        values = {name: [value] for name, value in base.items()}
        found += cli.configs(method, KNOWN[method].Config, values, overrides.get(method, {}))
    return distinct(found)


def variants(job):
    """What to run on every task of each world."""
    presets, curves, of_worlds = read_settings(), read_curves(), {}
    for world in job.benchmarks:
        chosen, k = presets.get(world, {}), job.k or BENCHMARKS[world].K
        if job.cuts:
            of_worlds[world] = cuts.variants(k, chosen.get("ct_kv", {}), 0.0)
        elif job.ablations:
            of_worlds[world] = ablations.variants(k, partial(preset, chosen))
        elif job.scaling:
            of_worlds[world] = scaling.variants(k, partial(preset, chosen))
        else:
            of_worlds[world] = [(method, config, k, 0.0) for method in job.methods
                                for config in configs(method, chosen.get(method, {}),
                                                      curves.get(world, {}).get(method, ()), job.set)]
    return of_worlds


def preset(chosen, method):
    """The whole config of a method, with the values chosen {method: config} for it."""
    return asdict(KNOWN[method].Config(**chosen.get(method, {})))


def brief(variants, ids, committed):
    """The variants without those whose committed runs took more than LONG seconds; says which these are."""
    lines, slow = [line for line in committed if line["model"] in ids.values() and line["world"] in variants], []
    for world, methods in settings(lines).items():
        for method, among in methods.items():
            slow += [(world, method, setting.config) for setting in among if setting.seconds > LONG]
    if slow:
        named = ", ".join(f"{method} in {world}" for world, method, _ in slow)
        print(f"Runs of over {LONG} seconds are left to --full: {named}.")
    return {world: [variant for variant in of_world if (world, *variant[:2]) not in slow]
            for world, of_world in variants.items()}


def fits(run):
    """Whether a run's k demos fit the model's context together with one more like the longest."""
    model, _ = load(run["world"])
    try:
        task, _ = task_of(run["world"], run["task"], run["seed"], run["k"], run["wrong"])
    except ValueError:  # the world has fewer examples
        return False
    lengths = [len(demo.x) + len(demo.y) for demo in task.demos]
    return len(task.instruction) + sum(lengths) + max(lengths) <= model.config.n_position


def run(job):
    """Do the job and report it. Raises ValueError if a world's model came to no result, or an ablation lacks one."""
    torch.set_num_threads(1)
    start, ids = time.perf_counter(), identify(job)
    for world in job.benchmarks:
        if job.k and job.k > (n_position := load(world)[0].config.n_position):
            raise ValueError(f"--k {job.k}: so many demos do not fit the {n_position} tokens of {world}'s model: take "
                             "fewer.")
    results, runs = Results(job.out / f"{job.kind}.jsonl"), []
    committed = read(COMMITTED) if COMMITTED.exists() else []  # weights may come without them

    def lines_of(variants):
        new = plan(job, ids, variants)
        if job.scaling:
            new = [run for run in new if fits(run)]
        runs.extend(new)
        return done(job, new, results)

    def lines_of_configs(todo):
        """Lines of a step of the sweep. todo: {(world, method): configs}."""
        variants = {world: [] for world in job.benchmarks}
        for (world, method), configs in todo.items():
            variants[world] += [(method, config, job.k or BENCHMARKS[world].K, 0.0) for config in configs]
        return lines_of(variants)

    if job.sweep:
        lines, tried = sweep.search(job.benchmarks, job.methods, job.set, read_settings(), lines_of_configs)
    else:
        lines = lines_of(brief(variants(job), ids, committed) if job.brief else variants(job))
    if not lines:
        pass  # the end says so
    elif job.sweep:
        sweep.report(lines, tried, job.out)
    elif job.study:
        none_lacking(lines, runs, ": see whether the weights are all finite")
        job.study.report(lines, job.out)
    elif job.scaling:
        embedded = load_model(folder_of(job.model, "strings"), job.device)
        scaling.report(lines, scaling.passes(embedded, job.out), job.out)
    else:
        against_committed(lines, committed, COMMITTED, read_settings(), job.out)
    print(f"{len(lines)} of {len(runs)} runs, {time.perf_counter() - start:.0f} seconds; lines in {results.path}")
    if nothing := with_a_model(runs) - with_a_model(lines):
        raise ValueError(f"no run of {job.model} on {', '.join(sorted(nothing))} came to a result, for the reasons "
                         "above: see whether its weights are all finite, or try smaller rates.")


def with_a_model(runs):
    """The worlds of these runs or lines, but for those of the Bayes ceilings."""
    return {run["world"] for run in runs if run["method"] not in CEILINGS}
