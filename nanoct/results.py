"""Results as JSON lines: one line per (method, config, task, seed), appended as it comes, read by tables and figures.

A job that is killed and started again skips the lines that are there. Error bars are over tasks, the
cluster: seeds of one task are averaged first. Differences between methods are paired by task.
"""

import json
import math
from pathlib import Path
from statistics import NormalDist, mean, median, stdev
from warnings import warn

KEY = ("model", "world", "pool", "k", "method", "config", "task", "seed")  # what makes two lines the same run


def key(line):
    """Identity of a run, hashable."""
    return json.dumps([line[name] for name in KEY], sort_keys=True)


class Results:
    """A file of JSON lines. Opening it repairs a half-written last line; append() is durable line by line."""

    def __init__(self, path):
        """Raises ValueError on a line that is not a result, OSError with a sentence where it cannot be written."""
        self.path = Path(path)
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
        self.lines = read(self.path)
        self.keys = {key(line) for line in self.lines}

    def append(self, line):
        with self.path.open("a") as f:
            f.write(json.dumps(line) + "\n")
        self.lines.append(line)
        self.keys.add(key(line))


def read(path):
    """The lines of a results file. Raises FileNotFoundError, or ValueError with the number of a broken line."""
    path, lines = Path(path), []
    if not path.is_file():
        raise FileNotFoundError(f"there is no results file {path}: give a .jsonl file that reproduce wrote.")
    for n, text in enumerate(path.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
            key(line), line["score"], line["seconds"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, line {n} is not a result: {text[:60]!r}; delete that line.") from None
        lines.append(line)
    return lines


def by_task(lines):
    """{task: score in percent, the mean over its seeds}."""
    scores = {}
    for line in lines:
        scores.setdefault(line["task"], []).append(100 * line["score"])
    return {task: mean(values) for task, values in scores.items()}


def standard_error(values):
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def interval(values, level=0.95):
    """Mean and half width of its confidence interval from Student's t (Cornish-Fisher expansion, good for n > 5)."""
    n, z = len(values) - 1, NormalDist().inv_cdf((1 + level) / 2)
    t = z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2) if n else math.nan
    return mean(values), t * standard_error(values)


def paired(lines, base):
    """Differences in points to the runs `base`, one for each task that both have: a list."""
    ours, theirs = by_task(lines), by_task(base)
    return [ours[task] - theirs[task] for task in ours if task in theirs]


def summary(lines):
    """Figures of one method with one config: tasks, score and s.e. in percent, median seconds a task, trained numbers."""
    scores = list(by_task(lines).values())
    return dict(n=len(scores), score=mean(scores), se=standard_error(scores),
                seconds=median(line["seconds"] for line in lines),
                n_trained=round(mean(line["n_trained"] for line in lines)))


def group(lines):
    """{(method, config as JSON): lines}, in order of appearance."""
    groups = {}
    for line in lines:
        groups.setdefault((line["method"], json.dumps(line["config"])), []).append(line)
    return groups


def table(rows, header):
    """Rows of strings as a Markdown table, first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    line = lambda row: "| " + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))) + " |"
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])
