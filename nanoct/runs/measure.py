"""Measure one run of a method on a task: its score, its seconds, and the peak of memory."""

import ctypes
import gc
import math
import os
import platform
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

from nanoct.methods import KNOWN
from nanoct.optimise import Stopped
from nanoct.runs.results import about
from nanoct.score import NotFinite, evaluate

try:
    import resource
except ImportError:  # Windows
    resource = None

SHOWN = {}  # a registry of warnings, so that Python shows each once


def measure(model, task, method, config, seed, progress=None, module=None):
    """Adapt by a method (its name) with config {field: value}, then score. Returns a results line and the Adapted.

    progress(step, loss) is called every step. module: the method's module, if KNOWN lacks it. Raises what the
    method raises, and NotFinite if a loss or score is not finite, even if training stopped at that loss.
    """
    module, losses = module or KNOWN[method], []

    def note(step, loss):
        losses.append(loss)
        if progress:
            progress(step, loss)

    with peak(model.device) as used, finite(method, task.name):
        start = clock(model.device)
        adapted = module.adapt(model, task, module.Config(**config), seed, note)
        adapted_at = clock(model.device)
        result = evaluate(adapted, task)
        scored_at = clock(model.device)
    check_finite(method, task, [*losses, result.score])
    more = dict(tied=result.tied) if result.tied else {}
    more |= dict(valid=round(result.valid, 4)) if result.valid is not None else {}
    peak_bytes = dict(peak_bytes=used.bytes) if used.bytes is not None else {}
    return dict(score=result.score, n_query=len(task.queries), n_trained=adapted.n_trained, **peak_bytes,
                seconds=round(adapted_at - start, 4), seconds_score=round(scored_at - adapted_at, 4),
                loss=[round(losses[0], 4), round(losses[-1], 4)] if losses else None, **more,
                **about(model.device)), adapted


def check_finite(method, task, values):
    """Raise NotFinite if a loss or score of a method on a Task, or on what a name says, is not finite: no result."""
    if wrong := [value for value in values if not math.isfinite(value)]:
        raise NotFinite(f"{method} on {getattr(task, 'name', task)} comes to {wrong[0]}, which is no result: try a "
                        "smaller lr, and see whether the model's weights are all finite.")


@contextmanager
def finite(method, name):
    """with finite(method, task's name): raise NotFinite if a loss or logit is not finite.

    Also if training then went back to finite values.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            yield
        except NotFinite as error:
            raise NotFinite(f"{method} on {name}: {error}") from None
    for warning in said:
        if issubclass(warning.category, Stopped):  # training ended early, so this is not the method at these settings
            raise NotFinite(f"{method} on {name}: {warning.message}")
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno, registry=SHOWN)


def clock(device):
    """The time in seconds, once all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def peak(device):
    """with peak(device) as used: … sets used.bytes to the peak: allocated on a GPU, else resident_peak()."""
    used = SimpleNamespace(bytes=0)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _reset_resident_peak()
    yield used
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        used.bytes = torch.cuda.max_memory_allocated(device)
    else:
        used.bytes = resident_peak()


def _reset_resident_peak():
    if os.access("/proc/self/clear_refs", os.W_OK):  # Linux can reset the peak; elsewhere it is that of the process
        ctypes.CDLL(None).malloc_trim(0)  # give free memory back, or its reuse would not show in the peak
        Path("/proc/self/clear_refs").write_text("5")


def resident_peak():
    """Peak of the resident bytes of this process; None where the system does not say, as on Windows."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
