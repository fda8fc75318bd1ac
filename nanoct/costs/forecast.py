"""What a job on public data needs, before it begins: the table of --dry-run, and the room for one run."""

from statistics import mean

from tqdm import tqdm

from nanoct.costs import memory
from nanoct.runs.job import HELPS, read_task
from nanoct.runs.parallel import NoRoom
from nanoct.runs.public import none_fits
from nanoct.runs.table import table
from nanoct.score import BATCH, ROOM

RATES = 0.05, 50, 400  # TFLOP/s, in the order of two CPU cores, a consumer's GPU, and a data centre's


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


def estimate(job, model_config, method, config, lengths, *module):
    return memory.estimate(model_config, method, config, lengths, job.dtype, job.checkpoint, job.device.type == "cuda",
                           *module)


def check_room(job, model, run, task, module):
    """Raise NoRoom if a run will need more memory beside the weights than is free; not if either is unknown."""
    try:
        needs = estimate(job, model.config, run["method"], run["config"], lengths_of(task), module)
    except ValueError:  # the method does not say what it costs
        return
    if said := memory.lacking(needs, job.device):
        raise NoRoom(f"{run['method']} on {run['task']}, seed {run['seed']}, {said}: {HELPS}")


def dry_run(job, model_config, tokenizer):
    """Print memory and time of every method on the longest task, from the model's config and the data alone."""
    ((benchmark, tasks),), lengths = job.tasks.items(), []
    for name in tqdm(tasks, desc="tasks"):
        run = dict(world=benchmark, task=name, seed=job.seeds[benchmark][0], k=job.k)
        task, _ = read_task(job, run, tokenizer)
        if task.queries:
            lengths.append(lengths_of(task))
    if not lengths:
        raise ValueError(none_fits(job))
    longest, rows, whole = max(lengths, key=lambda each: each.context), [], 0
    n_seed = len(job.seeds[benchmark])
    for method, config, *_ in job.variants[benchmark]:
        try:
            peak = estimate(job, model_config, method, config, longest)
            of_tasks = [estimate(job, model_config, method, config, each) for each in lengths]
        except ValueError as error:  # the method does not say what it costs
            print(error)
            continue
        adapting, scoring = mean(each.flops for each in of_tasks), mean(each.flops_score for each in of_tasks)
        both = adapting + scoring
        whole += len(lengths) * n_seed * both
        parts = peak.weights, peak.theta, peak.saved, peak.passing, peak.scoring, peak.total
        times = [both / rate for rate in RATES]
        rows.append([method, *(f"{part / 1e9:.2f}" for part in parts),
                     *(brief(flops / 1e12) for flops in (adapting, scoring, *times))])
    if not rows:
        raise ValueError("there is no estimate of any of these --methods.")
    average, dtype = mean(each.context for each in lengths), str(job.dtype).removeprefix("torch.")
    print(f"\n{benchmark}, {job.model}: {len(lengths)} tasks, contexts of {average:.0f} tokens on average, "
          f"{longest.context} at most; gigabytes on the longest, {dtype}; TFLOP to adapt and to score, the mean of "
          "tasks, and seconds of both at so many TFLOP/s (on a GPU decoding is slower: it waits for the weights)\n")
    print(table(rows, ["method", "weights", "theta", "saved", "passing", "scoring", "peak GB", "adapt", "score",
                       *(f"s at {rate}" for rate in RATES)]))
    hours = ", ".join(f"{brief(whole / (3.6e15 * rate))} hours at {rate} TFLOP/s" for rate in RATES)
    print(f"\nAll {len(lengths) * n_seed * len(rows):,} runs, {n_seed} seeds: {hours}")


def brief(x):
    return f"{x:,.0f}" if x >= 10 else f"{x:.2g}"
