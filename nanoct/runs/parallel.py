"""Do the runs that a file of results lacks, and save each line as it comes: what all jobs share.

Small models run in worker processes, as small matrices are faster in several processes of one thread than in one
process of several. A large model runs in this process, and in those that torchrun has started beside it.
"""

import os
import signal
import sys
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from multiprocessing import current_process, get_context, parent_process
from pathlib import Path
from threading import Thread

import torch
import torch.distributed as dist
from tqdm import tqdm

from nanoct import cli
from nanoct.io.files import lock
from nanoct.runs.results import Results
from nanoct.score import NotFinite

GRACE = 5  # seconds that the other workers get behind an error of one
DIED = ("a worker process died, perhaps for want of memory: use fewer --workers; the same command goes on from what is "
        "saved.")
NO_START = ("no worker process could start. Each imports the script that starts it: save it as a file, with its work "
            'under `if __name__ == "__main__":`, or use 0 workers.')


class NoRoom(ValueError):
    """A run needs more memory than there is."""


def execute(runs, results, work, n_worker=0, prepare=None, *arguments):
    """Do the runs that the results do not have yet; return the lines of all runs that are done, in their order.

    work(run) returns the line of a run, in n_worker processes of one thread. With n_worker = 0, work(run, progress)
    does so in this process. A run is left out if work returns None, or raises NotFinite or NoRoom, which is printed.
    Each process that works calls prepare(*arguments) first. Where processes have joined, each task belongs to one; the
    first process gets the lines, the others get None.
    Raises ValueError if a process dies, or if another job is at work in the folder of the results.
    """
    if getattr(current_process(), "_inheriting", False):  # a worker that imports a script without such a line
        sys.exit(1)
    runs = list({results.key(run): run for run in runs}.values())
    mine = runs if n_worker else share(runs)
    with nullcontext() if rank() else lock(results.path.parent):  # one lock for all processes that have joined
        wait()
        results.refresh()  # another job may have ended since the results were read
        todo = [run for run in mine if results.key(run) not in results.keys]
        n_done, n_no_room = len(mine) - len(todo), 0
        if n_done:
            print(f"{n_done} of {len(mine)} runs are in {results.path} already; going on from there.")
        if todo:
            with tqdm(total=len(mine), initial=n_done, desc="runs", smoothing=0, miniters=0, disable=rank() > 0) as bar:

                def done(get):
                    nonlocal n_no_room
                    try:
                        line = get()
                    except (NotFinite, NoRoom) as error:
                        bar.write(f"left out: {error}")
                        line, n_no_room = None, n_no_room + isinstance(error, NoRoom)
                    if line is not None:
                        results.append(line)
                    bar.update()

                if n_worker:
                    in_workers(todo, work, done, n_worker, (prepare, arguments))
                else:
                    _prepare(prepare, arguments)
                    for run in todo:
                        done(lambda: work(run, shows(bar, run)))
        if n_no_room:
            print(f"{n_no_room} of {len(mine)} runs were left out for want of memory.")
        return results.of(runs) if leave(results) else None


def in_workers(todo, work, done, n_worker, start):
    """Do all runs in n_worker processes. Calls done(get) for each; get() returns work(run).

    If an error ends that, done() still gets the runs that end within GRACE seconds, or have ended at a Ctrl-C; then the
    workers are ended, and the error is raised. Raises ValueError if a worker dies or cannot start.
    """
    context, main = get_context("spawn"), sys.modules["__main__"]
    if main.__spec__ is None and not Path(getattr(main, "__file__", "/")).exists():
        raise ValueError(NO_START)
    began, left = context.Event(), set()
    with ProcessPoolExecutor(n_worker, context, _start_worker, (began, *start)) as pool:
        try:
            with deaf():
                for run in todo:
                    left.add(pool.submit(work, run))
            for future in as_completed(left.copy()):
                left.remove(future)
                done(future.result)
        except BaseException as error:
            workers = list(pool._processes.values())
            pool.shutdown(wait=False, cancel_futures=True)
            begun = [future for future in left if future.running() or future.done()]
            ended, _ = wait_for(begun, 0 if isinstance(error, KeyboardInterrupt) else GRACE)
            for worker in workers:
                worker.terminate()
            for future in ended:
                if not future.cancelled() and not future.exception():
                    done(future.result)
            if not isinstance(error, BrokenExecutor):
                raise
            raise ValueError(DIED if began.is_set() else NO_START) from None


@contextmanager
def deaf():
    """with deaf(): processes that start hear no Ctrl-C, which this process answers, not even while they import."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(began, *start):
    began.set()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    sys.stdout, sys.stderr = cli.streams()
    # a worker ends when its parent dies
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
    torch.set_num_threads(1)
    _prepare(*start)


def _prepare(prepare, arguments):
    if prepare:
        prepare(*arguments)


def shows(bar, run):
    """Return progress(step, loss), which shows a run in the bar."""
    name = f"{run['method']} on {run['task']}"
    bar.set_postfix_str(name)

    def progress(step, loss):
        bar.set_postfix_str(f"{name}, step {step + 1}, loss {loss:.3f}", refresh=False)
        bar.update(0)  # tqdm decides how often it draws

    return progress


def rank():
    """The number of this process among those that have joined; 0 if alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def join(path, n_process):
    """Join the processes that torchrun has started, if any; return the Results in a file that all of them append to."""
    if n_process > 1:
        dist.init_process_group("gloo", timeout=timedelta(days=30))
    return Results(path)


def wait():
    """Wait for all processes that have joined. Raises ValueError if one has stopped."""
    if dist.is_initialized():
        try:
            dist.barrier()
        except RuntimeError:
            raise ValueError("another process stopped, for the reason that it gives; the results so far are kept, and "
                             "the same command goes on from there.") from None


def share(runs):
    """The runs of this process. All runs of a (task, seed) go to one process, in turn."""
    n = dist.get_world_size() if dist.is_initialized() else 1
    tasks = list(dict.fromkeys((run["task"], run["seed"]) for run in runs))
    mine = set(tasks[rank() :: n])
    return [run for run in runs if (run["task"], run["seed"]) in mine]


def leave(results):
    """Wait for all that have joined; return whether this is the first. Its results then have the lines of all."""
    if not dist.is_initialized():
        return True
    wait()
    is_first = rank() == 0
    dist.destroy_process_group()
    if is_first:
        results.refresh()
    return is_first
