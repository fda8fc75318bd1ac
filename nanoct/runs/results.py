"""Results as JSON lines: one line per (method, config, task, seed), appended as soon as its run ends.

A job that was killed and starts again skips runs that have a line. report.py makes tables and figures of the lines.
"""

import hashlib
import json
import os
import platform
import re
import time
from contextlib import contextmanager
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from importlib import metadata, util
from pathlib import Path
from types import NoneType
from warnings import warn

import torch
from filelock import FileLock

from nanoct.io.files import read_bytes, read_json, read_json_lines, writing
from nanoct.methods import KNOWN

KEY = ("model", "world", "pool", "k", "method", "config", "task", "seed")  # lines that agree in these are one run
MORE = "wrong dtype length limit_queries skip_queries tokenizer form data".split()  # and in these, where a job has them
VARIANTS = {}  # {method: its Config}, as KNOWN has them, of studies, which add theirs
RETIRED = {"bf16": False}  # {field that a Config had once: the default that it had}, so that older lines are found
NEEDS = ("score", "seconds")  # what a report needs of a line
SCALARS = int, float, bool, str, NoneType  # types of a config's values
KINDS = dict.fromkeys(("model", "world", "pool", "method", "task"), (str,)) | dict(  # types of a line's fields
    config=(dict,), seed=(int,), k=(int, NoneType), n_query=(int,), n_trained=(int,), peak_bytes=(int,))
KINDS |= dict.fromkeys(("score", "seconds", "seconds_score"), (int, float)) | dict(kl=(int, float, NoneType))
KINDS |= dict(data=(str,), valid=(int, float, NoneType), tied=(int,))
KINDS |= dict.fromkeys("dtype length limit_queries skip_queries tokenizer form".split(), SCALARS)
BOUNDS = dict(score=(0, 1), valid=(0, 1), kl=(-1e-6, 1e300)) | dict.fromkeys(  # kl is 0 or more, but for rounding
    ("seconds", "seconds_score", "n_query", "n_trained", "peak_bytes", "tied"), (0, 1e300))


def key(line):
    """The identity of a run, hashable. A setting at its default counts as one that the line lacks."""
    more, line = {name: line[name] for name in MORE if name in line}, completed(line)
    return json.dumps([*(line[name] for name in KEY), more], sort_keys=True)


def completed(line):
    """The line with all fields of its method's Config, in their order: the defaults for those that it lacks.

    Of other fields, those of RETIRED at their former default are dropped. An unknown method's config stays as it is.
    """
    method, config = line["method"], line["config"]
    if method not in KNOWN and method not in VARIANTS:
        return line
    Config = VARIANTS.get(method) or KNOWN[method].Config
    own = {f.name: config.get(f.name, f.default) for f in fields(Config) if f.default is not MISSING}
    others = {name: value for name, value in config.items() if (name, value) not in RETIRED.items()}
    return line | dict(config=own | others)


def data_id(task):
    """12 hex digits that change with anything of a task that can change a score, but for its name."""
    pairs = [[list(pair.x), list(pair.y), [list(option) for option in getattr(pair, "options", None) or ()]]
             for pair in (*task.demos, *task.queries)]
    text = task.text and [task.text.terminator, sorted(task.text.ends), sorted(task.text.answers)]
    more = len(task.demos), list(task.instruction), list(task.separator), task.metric, task.length, text
    return hashlib.sha256(json.dumps([pairs, *more]).encode()).hexdigest()[:12]


def distinct(configs):
    """The configs, each once."""
    return list({json.dumps(config): config for config in configs}.values())


def about(device):
    """The fields of a line on machine, versions and date."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
    return dict(device=name, n_thread=torch.get_num_threads(), torch=torch.__version__, date=time.strftime("%Y-%m-%d"))


def machine(device):
    """What a time depends on besides the code."""
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


def compare(lines, committed):
    """Pair lines with the committed lines of the same runs: [(line, committed line)], and lines without one."""
    partners, pairs, own = {key(line): line for line in committed}, [], []
    for line in lines:
        if partner := partners.get(key(line)):
            pairs.append((line, partner))
        else:
            own.append(line)
    return pairs, own


class Results:
    """A file of JSON lines. Opening it repairs a half-written last line; append() is durable line by line."""

    def __init__(self, path, key=key, needs=NEEDS):
        """key(line): a run's identity. needs: other fields that every line has; of a dict, the lists {name: length}.

        Raises ValueError on a line that is not a result, OSError if the file cannot be written.
        """
        self.path, self.key, self.needs = Path(path), key, needs
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._alone() as file:
                self._repair(file)
        self.refresh()

    @contextmanager
    def _alone(self):
        """Open the file for appending; no other process can write to it meanwhile."""
        with FileLock(self.path.with_name(f".{self.path.name}.lock")), self.path.open("ab", buffering=0) as file:
            yield file

    def _repair(self, file):
        """Cut off a half-written last line, which a killed process left. If it lacks only its line break, add it."""
        content = read_bytes(self.path)
        end = content.rfind(b"\n") + 1
        if not content[end:].startswith(b"{"):  # no such line, or not one of ours, which refresh() reports
            return
        try:
            read_json(content[end:], self.path)
        except ValueError:
            warn(f"{self.path}: the last line was half-written; it is dropped and its run done again.")
            file.truncate(end)
        else:
            file.write(b"\n")

    def refresh(self):
        """Read the file again, as other processes may have appended."""
        self.lines = read(self.path, self.key, self.needs)
        self.keys = set(map(self.key, self.lines))

    def append(self, line):
        """Add a line; it is on the disk when this returns.

        Raises ValueError if it is no result, OSError if it does not fit; the file then stays as it was.
        """
        if said := fault(line, self.key, self.needs):
            raise ValueError(f"{line.get('method')} on {line.get('task')} has no result: {said}.")
        text = json.dumps(line).encode() + b"\n"
        with self._alone() as file:
            end = os.fstat(file.fileno()).st_size
            try:
                n_written = os.write(file.fileno(), text)  # a full disk may take only a part
                reason = None if n_written == len(text) else f"{n_written} of {len(text)} bytes went in"
                os.fsync(file.fileno())
            except OSError as error:
                reason = error.strerror
            if reason:
                file.truncate(end)
                raise OSError(f"cannot write to {self.path} ({reason}): make room, and the same command goes on from "
                              "what is saved.")
        self.lines.append(line)
        self.keys.add(self.key(line))

    def of(self, runs):
        """Return the lines of these runs, in the order of `runs`, without runs that are not done."""
        lines = {self.key(line): line for line in self.lines}
        return [lines[key] for key in map(self.key, runs) if key in lines]


def read(path, key=key, needs=NEEDS):
    """Return the lines of a results file, completed. Raises FileNotFoundError, or ValueError that names a line."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no results file {path}: give a .jsonl file that reproduce wrote.")
    found = read_json_lines(path)
    for where, line in found:
        if said := fault(line, key, needs):
            raise ValueError(f"{where} is not a result: {said}; delete that line and run the job again.")
    return [completed(line) if line.keys() >= set(KEY) else line for _, line in found]


def fault(line, key=key, needs=NEEDS):
    """Return why a line is no result, such as "'score' is None", or None.

    A result has the fields of key and `needs`, the types of KINDS, and numbers within BOUNDS.
    """
    in_bounds = lambda value, kinds: bool in kinds if isinstance(value, bool) else abs(value) < 1e300  # nan is not
    fits = lambda value, kinds: isinstance(value, kinds) and (
        not isinstance(value, (int, float)) or in_bounds(value, kinds))
    for name in (name for name in KINDS if name in line):
        if not fits(line[name], KINDS[name]):
            return f"{name!r} is {line[name]!r:.60}"
        low, high = BOUNDS.get(name, (0, 0))
        if name in BOUNDS and line[name] is not None and not low <= line[name] <= high:
            return f"{name!r} is {line[name]!r:.60}, which is not from {low} to {high}"
    for name, value in line.get("config", {}).items():
        if not fits(value, (int,) if name == "n_step" else SCALARS):
            return f"{name!r} in its config is {value!r:.60}"
    try:
        key(line), [line[name] for name in needs]
    except KeyError as error:
        return f"it has no {error.args[0]!r}"
    for name, n in needs.items() if isinstance(needs, dict) else ():
        if n and not (isinstance(line[name], list) and [type(value) for value in line[name]] == [float] * n):
            return f"{name!r} is {line[name]!r:.60}, which are not {n} numbers"
    try:
        json.dumps(line, allow_nan=False)
    except ValueError:
        return "it holds numbers that are not finite"
