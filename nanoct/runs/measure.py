"""One run of a method on a task, measured: the peak of memory."""

import ctypes
import gc
import os
import platform
import resource
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch


@contextmanager
def peak(device):
    """with peak(device) as used: …; used.bytes is then the peak: allocated on a GPU, resident in all on the CPU."""
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
    if os.access("/proc/self/clear_refs", os.W_OK):  # Linux can start the peak anew; elsewhere it is the peak so far
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, or it would hide what follows
        Path("/proc/self/clear_refs").write_text("5")


def resident_peak():
    """Peak of the resident bytes of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
