"""The paper's protocol on public models and data: methods x tasks x seeds of a benchmark -> JSON lines and a table.

    python -m nanoct.paper --model weights/smollm2 --benchmark words        # the lists come with the package
    python -m nanoct.paper --model weights/smollm2 --benchmark words --sweep        # settings, on its validation pool
    python -m nanoct.paper --model weights/smollm2 --benchmark words --ablations    # CT-KV without its parts
    python -m nanoct.paper --model weights/smollm2 --benchmark words --cuts         # fewer entries, two contexts
    python -m nanoct.paper --model HuggingFaceTB/SmolLM2-1.7B-Instruct --benchmark bbh --data data/bbh
    python -m nanoct.paper --model meta-llama/Meta-Llama-3-8B-Instruct --benchmark bbh --data data/bbh --device cuda
    python -m nanoct.paper --model M --benchmark B --data F --dry-run       # memory and time, before anything is loaded
    torchrun --nproc-per-node 4 -m nanoct.paper --model M --benchmark B --data F    # tasks over 4 GPUs, or processes

The table has the paper's scores too, and those of giving every query the same answer. Settings are the paper's
(benchmarks/presets.py); --set changes one. Finished runs are kept in --out. If a job is stopped, the same
command continues it, with any number of processes; all append to one file.
"""

from nanoct import cli
from nanoct.costs import forecast
from nanoct.methods import KNOWN
from nanoct.runs import public
from nanoct.runs.job import PUBLIC, Job, add_options


def parse():
    """The Job that the options ask for."""
    p = cli.Parser(prog="nanoct paper", description=__doc__)
    p.add_argument("--benchmark", choices=list(PUBLIC), required=True)
    p.add_argument("--model", required=True, help="folder or hub name of a Llama or GPT-2")
    p.add_argument("--data", help="folder of its files; `nanoct benchmarks.fetch` gets them; default for "
                   "words: the lists of the package")
    add_options(
        p, list(KNOWN), ("validation", "test"), methods="default: the paper's", tasks="names; default: all of the pool",
        pool="of words; default: that of the --tasks, else test", device="the first there is", out="results/BENCHMARK",
        seeds="the paper's, the first of them with --sweep, --ablations and --cuts",
        sweep="each method at all settings of SWEEPS (benchmarks/presets.py) on the validation pool, or on the --tasks "
        "of a benchmark without one; writes sweep.jsonl, sweep.md")
    p.add_argument("--length", type=int, help="tokens of context and query; default: the paper's, at most the model's")
    p.add_argument("--limit-queries", type=int, metavar="N", help="the first N queries of a task")
    p.add_argument("--skip-queries", type=int, metavar="N", help="leave out the first N queries of a task, so that "
                   "settings can be chosen on others than those that are reported")
    p.add_argument("--seconds", metavar="FILE", help="lines of a run on a quiet machine, for the seconds and memory "
                   "of the table")
    p.add_argument("--no-form", action="store_true", help="bbh without the sentence on how to answer")
    p.add_argument("--dtype", help="of the model; default: bfloat16 on cuda, float32 elsewhere")
    p.add_argument("--checkpoint", action="store_true",
                   help="recompute activations in the backward pass: less memory, but a third slower")
    p.add_argument("--graph", action="store_true", help="keep the step of CT-KV and prefix tuning as a CUDA graph for "
                   "all tasks (optimise.py); off by default, as it has never run on a GPU")
    p.add_argument("--tokenizer", help='folder of another tokenizer than the model\'s, or "bytes"')
    p.add_argument("--dry-run", action="store_true", help="estimate memory and time and load no model")
    job = p.parse_args(namespace=Job(check_room=forecast.check_room))
    public.settle(job)
    return job


def main():
    public.run(parse(), forecast.dry_run)


if __name__ == "__main__":
    cli.run(main)
