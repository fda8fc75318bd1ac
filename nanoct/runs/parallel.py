"""Runs spread over worker processes, each line saved as it comes: what jobs on small models share.

Small matrices run faster in several processes of one thread than in one of several.
"""

import os
import signal
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from threading import Thread

import torch
from tqdm import tqdm

from nanoct.runs.results import n_core


def execute(runs, results, work, n_worker, prepare=None, *arguments):
    """Do the runs that the results do not have yet, line = work(run) each, in n_worker processes; returns the lines of all.

    prepare(*arguments) is called first in every process. Raises ValueError with a sentence if one of them dies.
    """
    todo = [run for run in runs if results.key(run) not in results.keys]
    if len(todo) < len(runs):
        print(f"{len(runs) - len(todo)} of {len(runs)} runs are in {results.path} already; going on from there.")
    if todo:
        _execute(todo, len(runs) - len(todo), results, work, n_worker, (max(1, n_core() // n_worker), prepare, arguments))
    return results.of(runs)


def _execute(todo, n_done, results, work, n_worker, start):
    with (ProcessPoolExecutor(n_worker, get_context("spawn"), _start_worker, start) as pool,
          tqdm(total=n_done + len(todo), initial=n_done, desc="runs", smoothing=0) as bar):
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


def _start_worker(n_thread, prepare, arguments):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()  # it dies: no orphan stays behind
    torch.set_num_threads(n_thread)
    if prepare:
        prepare(*arguments)
