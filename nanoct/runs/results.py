"""Results as JSON lines: one line per (method, config, task, seed), appended as it comes.

A job that is killed and started again skips the lines that are there; report.py makes tables and figures of them.
"""

import json
import os
import platform
import re
import time
from datetime import UTC, datetime
from importlib import metadata, util
from pathlib import Path
from warnings import warn

import torch

KEY = ("model", "world", "pool", "k", "method", "config", "task", "seed")  # what makes two lines the same run
MORE = ("wrong", "dtype", "length", "limit_queries", "tokenizer", "form")  # and this, where a job has it
NEEDS = ("score", "seconds")  # what is reported of it


def key(line):
    """Identity of a run, hashable."""
    more = {name: line[name] for name in MORE if name in line}
    return json.dumps([*(line[name] for name in KEY), more], sort_keys=True)


def about(device):
    """What a line says of the machine and the versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
    return dict(device=name, n_thread=torch.get_num_threads(), torch=torch.__version__, date=time.strftime("%Y-%m-%d"))


def machine(device):
    """What a time depends on beside the code."""
    cpu = Path("/proc/cpuinfo")
    cpu = re.search("model name.*: (.*)", cpu.read_text() if cpu.exists() else "")
    cpu = cpu[1] if cpu else platform.machine()
    theirs = {name: metadata.version(name) if util.find_spec(name) else None for name in ("transformers", "peft")}
    return dict(device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
                threads=torch.get_num_threads(), torch=torch.__version__, **theirs,
                date=datetime.now(UTC).isoformat(timespec="seconds"))


def n_core():
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Results:
    """A file of JSON lines. Opening it repairs a half-written last line; append() is durable line by line."""

    def __init__(self, path, key=key, needs=NEEDS):
        """key(line): a run's identity; needs: what else a line has.

        Raises ValueError on a line that is not a result, OSError with a sentence where it cannot be written."""
        self.path, self.key, self.needs = Path(path), key, needs
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.open("a").close()
        except OSError as error:
            raise OSError(f"cannot write {self.path} ({error.strerror}): give another folder with --out.") from None
        text = self.path.read_text()
        if text and not text.endswith("\n"):  # killed while writing
            warn(f"{self.path}: the last line was half-written; it is dropped and its run done again.")
            text = text[: text.rfind("\n") + 1]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(text)
            temporary.replace(self.path)
        self.refresh()

    def refresh(self):
        """Read the file anew: other processes may have appended."""
        self.lines = read(self.path, self.key, self.needs)
        self.keys = set(map(self.key, self.lines))

    def append(self, line):
        with self.path.open("ab", buffering=0) as f:  # one write: several processes may share the file
            f.write(json.dumps(line).encode() + b"\n")
        self.lines.append(line)
        self.keys.add(self.key(line))

    def of(self, runs):
        """The lines of these runs, in their order; of runs that are not done, none."""
        lines = {self.key(line): line for line in self.lines}
        return [lines[key] for key in map(self.key, runs) if key in lines]


def read(path, key=key, needs=NEEDS):
    """The lines of a results file. Raises FileNotFoundError, or ValueError with the number of a broken line."""
    path, lines = Path(path), []
    if not path.is_file():
        raise FileNotFoundError(f"there is no results file {path}: give a .jsonl file that reproduce wrote.")
    for n, text in enumerate(path.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
            key(line), [line[name] for name in needs]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, line {n} is not a result: {text[:60]!r}; delete that line.") from None
        lines.append(line)
    return lines
