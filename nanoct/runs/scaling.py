"""Accuracy and seconds against the number of demos k.

    python -m nanoct.reproduce --scaling

Demos are solved examples. The first table has the accuracy on the built-in worlds at every k that fits their context,
and the seconds at the preset settings. The second has the seconds of one *pass*, in which every demo is a target once
with the others in context. It is timed on a built-in model and on a random one of 24 million weights, whose matrices
are large enough to show the asymptote. A CPU does both in one thread. For a pass CT-KV needs one row of P tokens,
CT-Prompt and TTT need k rows of P. The fit is a·k + b·k², so b says how quadratic a method is.
"""

import json
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch

from nanoct.fewshot import Demo, Task
from nanoct.io.files import publish, replace_file
from nanoct.methods import KNOWN
from nanoct.model import Llama, LlamaConfig
from nanoct.optimise import EVERY
from nanoct.runs.measure import clock
from nanoct.runs.stats import score_and_seconds, settings
from nanoct.runs.table import table, tasks_a_world

K = (2, 4, 8, 16, 32)
TUNED = ("ct_kv", "ct_prompt", "ttt")
N_TOKEN = 12  # tokens of a demo in the passes
N_PASS = 3  # timed passes, after one that warms up
RANDOM = LlamaConfig(vocab_size=4096, n_layer=8, n_head=8, n_kv_head=4, n_embd=512, head_dim=64, n_ffn=1408,
                     n_position=1024)


def variants(k, base):
    """(method, config, k, share of wrong labels) of every run on a task. base(method): its config in this world."""
    return [(method, base(method), k, 0.0) for k in K for method in ("icl", *TUNED)]


def adapting(model, method, config, task, seed=0):
    """Adapt and time it: (seconds of each step but the first, seconds of all else, the first loss or None).

    The first step warms up. Only the last config.n_step steps count; TTT's in TTT+CT-KV are in all else.
    """
    stamps, losses = [], []

    def progress(step, loss):
        stamps.append(clock(model.device))
        losses.append(loss)

    usual, EVERY["cuda"] = EVERY["cuda"], 1  # each step is timed, so each is waited for
    try:
        start = clock(model.device)
        KNOWN[method].adapt(model, task, config, seed=seed, progress=progress)
        total = clock(model.device) - start
    finally:
        EVERY["cuda"] = usual
    steps = [after - before for before, after in pairwise(stamps[-getattr(config, "n_step", 0) :])]
    return steps, total - sum(steps), losses[0] if losses else None


def pass_seconds(model, method, k):
    """Seconds of one pass over k demos of N_TOKEN tokens each, the median of N_PASS."""
    generator = torch.Generator().manual_seed(k)
    ids = torch.randint(model.config.vocab_size, (k, N_TOKEN), generator=generator).tolist()
    task = Task("timing", [Demo(row[:-2], row[-2:]) for row in ids], queries=[])
    options = dict(n_step=N_PASS + 1) | (dict(batch=k) if hasattr(KNOWN[method].Config, "batch") else {})
    steps, _, _ = adapting(model, method, KNOWN[method].Config(**options), task)
    return median(steps)


def passes(embedded, folder):
    """Time a pass of every method at every k on both models; return the lines and write them to passes.jsonl."""
    torch.set_num_threads(1)
    lines = []
    random = Llama(RANDOM).init_weights(torch.Generator().manual_seed(0)).requires_grad_(False).to(embedded.device)
    for name, model in (("embedded, 0.9M", embedded), ("random, 24M", random)):
        for k in K:
            for method in TUNED:  # methods one right after another, as machines are noisy
                seconds = pass_seconds(model, method, k)
                lines.append(dict(model=name, method=method, k=k, seconds=seconds, n_token=N_TOKEN,
                                  n_thread=torch.get_num_threads(), device=str(model.device), torch=torch.__version__,
                                  date=time.strftime("%Y-%m-%d")))
                print(f"a pass of {method} over {k} demos, {name}: {seconds:.3f} s")
    replace_file(folder / "passes.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    return lines


def fit(k, seconds):
    """Fit seconds ≈ a·k + b·k² by least squares of relative errors: (a, b)."""
    k, seconds = np.asarray(k, float), np.asarray(seconds)
    return np.linalg.lstsq(np.stack([k, k**2], 1) / seconds[:, None], np.ones_like(seconds), rcond=None)[0]


def accuracy(by_k):
    """The table of scores and seconds at every k. by_k: {k: settings of its lines}."""
    worlds = dict.fromkeys(world for groups in by_k.values() for world in groups)
    rows = []
    for world in worlds:
        for method in ("icl", *TUNED):
            cells = []
            for groups in by_k.values():
                among = groups.get(world, {}).get(method)
                cells.append(score_and_seconds(among[0]) if among else "")
            rows.append([world, method, *cells])
    return table(rows, ["world", "method", *(f"k = {k}" for k in by_k)])


def times(timed):
    """The table of seconds of a pass at every k, with the fit. timed: lines of passes()."""
    seconds, rows = {}, []
    for line in timed:
        seconds.setdefault((line["model"], line["method"]), {})[line["k"]] = line["seconds"]
    for model in dict.fromkeys(line["model"] for line in timed):
        for method in TUNED:
            by_k = seconds[model, method]
            a, b = fit(list(by_k), list(by_k.values()))
            rows.append([model, method, *(f"{1e3 * by_k[k]:.0f}" for k in K), f"{1e3 * a:.2f}", f"{1e3 * b:.3f}",
                         f"{b * max(K) / (a + b * max(K)):.0%}"])
    return table(rows, ["model", "method", *(f"k = {k}" for k in K), "a", "b", f"share of b·k² at {max(K)}"])


def report(lines, timed, folder):
    """Print the tables, write them to scaling.md, and draw scaling.png."""
    folder, by_k = Path(folder), {}
    for k in K:
        by_k[k] = settings([line for line in lines if line["k"] == k])
    head = (f"{tasks_a_world(lines)}; score % ± s.e., in brackets seconds a task at the settings of the world's own k; "
            "empty: the context is too short")
    of_passes = f"One pass over k demos of {N_TOKEN} tokens, milliseconds, and the fit a·k + b·k²"
    publish("\n\n".join([head, accuracy(by_k), of_passes, times(timed)]) + "\n", folder / "scaling.md")
    from nanoct.runs import plots  # matplotlib is slow to import

    plots.scaling(by_k, timed, folder / "scaling.png")
    print(f"wrote scaling.md and scaling.png in {folder}")
