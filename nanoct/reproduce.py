"""The main job: methods x held-out tasks x seeds of four worlds, compared with the committed runs of the same.

    python -m nanoct.reproduce                          # 2 held-out tasks of each built-in world, minutes on two cores
    python -m nanoct.reproduce --quick                  # 1 task of each
    python -m nanoct.reproduce --full                   # every held-out task, 3 seeds of demos
    python -m nanoct.reproduce --world lexicon facts    # two of the worlds
    python -m nanoct.reproduce --sweep                  # choose the settings, on validation tasks (runs/sweep.py)
    python -m nanoct.reproduce --ablations              # CT-KV without its parts, and with wrong labels
    python -m nanoct.reproduce --cuts                   # CT-KV with fewer entries, or two contexts (runs/cuts.py)
    python -m nanoct.reproduce --scaling                # accuracy and seconds against k (runs/scaling.py)
    python -m nanoct.reproduce --pool validation --set ct_kv.lr=3e-3,1e-2 ct_kv.n_step=32          # compare your own
    python -m nanoct.reproduce --report weights/nano/results/full.jsonl                               # run nothing

Every run's score is compared with the committed score of the same run. Table and figures show all committed runs, with
the live ones in their place. With other settings, methods, pools or models they show the live runs alone. Settings
whose committed runs took over ten seconds are left to --full, or run when methods, tasks or seeds are named. The Bayes
ceilings (benchmarks/nano/bayes.py) stand beside the methods. Runs are spread over processes of one thread, in which
small matrices run faster. If a job is stopped, the same command continues it.
"""

from pathlib import Path

from nanoct import cli
from nanoct.benchmarks.nano import FOLDER, WORLDS, read_settings
from nanoct.methods import KNOWN
from nanoct.runs import sweep, worlds
from nanoct.runs.job import Job, add_options
from nanoct.runs.report import CEILINGS, report
from nanoct.runs.results import read


def parse():
    """The Job that the options ask for; with --report the options alone."""
    p = cli.Parser(prog="nanoct reproduce", description=__doc__)
    p.add_argument("--world", dest="benchmarks", nargs="+", choices=list(WORLDS), help="default: all")
    p.add_argument("--quick", action="store_true", help="1 task of each world")
    p.add_argument("--full", action="store_true", help="every task of the pool, seeds 0 1 2")
    add_options(
        p, [*KNOWN, *CEILINGS], ("held_out", "validation", "train"), methods="default: the paper's, and the ceilings",
        pool="default: held_out, --sweep validation", device="cpu, as the built-in models are too small for more",
        tasks=f"how many of each pool, or names of one world's; default: {worlds.N_TASK}, --sweep {sweep.N_TASK}, "
        "--full all", seeds="0, --full 0 1 2, more in a sweep of few tasks", out="results",
        sweep=f"choose settings on {sweep.N_TASK} validation tasks of each world (runs/sweep.py); writes sweep.jsonl, "
        "sweep.md and settings.json")
    p.add_argument("--scaling", action="store_true", help="accuracy and seconds against k; writes scaling.jsonl")
    p.add_argument("--model", help="folder of a model trained on the worlds, or of one for each; default: weights/nano")
    p.add_argument("--workers", type=int, help="processes beside this one; default: one per core, or 0 on a GPU")
    p.add_argument("--report", metavar="FILE", help="redraw table and figures beside a results file, and run nothing")
    job = p.parse_args(namespace=Job(model=str(FOLDER), workers=None))
    if not job.report:
        worlds.settle(job)
    return job


def main():
    job = parse()
    if not job.report:
        return worlds.run(job)
    lines = read(job.report)
    if not lines:
        raise ValueError(f"--report {job.report}: there is no result in it yet.")
    report(lines, read_settings(), Path(job.report).parent)


if __name__ == "__main__":
    cli.run(main)
