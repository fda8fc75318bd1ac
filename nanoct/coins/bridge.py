"""The bridge between the two papers: the question of the coin-flip study, asked of Context Tuning's methods on a Llama.

    nanoct coins.bridge               # the table and the figure, minutes on two cores
    nanoct coins.bridge --pretrain    # meta-train the Llama again (weights/coins/llama)
    nanoct coins.bridge --sweep       # choose the settings again, on other coins and seeds

A tiny Llama (2 layers, width 64; three tokens: 0, 1 and a start) is meta-trained on Beta(1, 1) coins. A row has flips
of one coin, in sessions of 4 to 64, each behind a start token. A task has k demos (solved examples): sessions of 25
flips of a target. Queries are fresh sessions of 50. The target is a single coin of .2, or a mixture of .2 and .8, in
which every demo and every query has one of the two coins. The score is the cumulative regret of the queries against the
truth. Exact predictors stand beside the methods:

    PreBayes            knows the pretraining source and not the demos: each query is a new coin
    PreBayes, demos     takes demos and query as flips of one coin: an ideal learner of the pretraining source
    Two coins, demos    each session is one of two coins of unknown biases, learned from the demos (a grid of biases)
    TargetBayes         knows the coins: regret 0 on the single one, up to ln 2 on the mixture

CT-KV and TTT hold the demos in context, so their k ends at 8, where the model's rows end. Prefix tuning and LoRA also
get 64. So does CT-KV, which then starts at the cache of 8 demos and trains on 64 others.
"""

import json
import time
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from tqdm import tqdm

from nanoct import cli
from nanoct.coins.coins import Beta, Coins, after, ones_before, regret
from nanoct.coins.predictors import FOLDER
from nanoct.fewshot import Demo, Task
from nanoct.io.files import check_out, publish, read_json, replace_file
from nanoct.io.weights import load_model, save_model
from nanoct.methods import METHODS
from nanoct.model import Llama, LlamaConfig
from nanoct.packing import answer_logits, pack
from nanoct.runs import ablations
from nanoct.runs.measure import check_finite
from nanoct.runs.parallel import execute
from nanoct.runs.results import Results, about, n_core
from nanoct.runs.stats import plus_minus, standard_error
from nanoct.runs.table import table

START = 2  # the third token
CONFIG = LlamaConfig(vocab_size=3, n_layer=2, n_head=4, n_kv_head=4, n_embd=64, head_dim=16, n_ffn=128, n_position=512)
ROW, T_DEMO, T_QUERY, N_QUERY = 320, 25, 50, 256
TARGETS = {"single": Coins([0.2]), "mixture": Coins([0.2, 0.8])}
OTHERS = {"single": Coins([0.7]), "mixture": Coins([0.7, 0.25])}  # targets of the sweep
TUNED = "prefix_tuning", "ct_kv", "lora", "ttt"
SHOWN = "zero_shot", "icl", *TUNED
SEVERAL, MANY = (2, 4, 8), 64  # demos
LORA = dict(n_step=(16, 64), rank=(8,), alpha=(16.0,))
SWEEP = {  # {demos: {method: values}}: few demos need small rates, many allow large ones
    8: dict(prefix_tuning=dict(n_step=(16, 64), lr=(1e-2, 3e-2, 1e-1), n_prefix=(8,)),
            ct_kv=dict(n_step=(16, 64), lr=(3e-3, 1e-2, 3e-2), token_dropout=(0.05,)),
            lora=LORA | dict(lr=(3e-4, 1e-3, 3e-3)), ttt=LORA | dict(lr=(3e-4, 1e-3, 3e-3), batch=(4,))),
    MANY: dict(prefix_tuning=dict(n_step=(16, 64), lr=(1e-2, 3e-2, 1e-1), n_prefix=(8,)),
               ct_kv=dict(n_step=(16, 64), lr=(1e-2, 3e-2, 1e-1), token_dropout=(0.05,), start=("others",)),
               lora=LORA | dict(lr=(1e-3, 3e-3, 1e-2))),
}
MODULES = METHODS | {"ct_kv": ablations}  # CT-KV that can start from another context
SETTINGS = FOLDER / "bridge.json"  # {target: {demos of the sweep: {method: config}}}
KEY = "target", "pool", "method", "config", "k", "seed"


def pretrain(n_step=1500, batch=32, lr=3e-3, seed=0):
    """Meta-train a Llama on rows of one coin each, sessions behind start tokens; return it and the losses."""
    generator = torch.Generator().manual_seed(seed)
    model = Llama(CONFIG).init_weights(generator)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01), []
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, n_step, pct_start=0.1)
    bar = tqdm(range(n_step), desc="meta-train the Llama", mininterval=2)
    for _ in bar:
        x, _ = Beta().sample(batch, ROW, generator)
        session = torch.randint(4, 65, (batch, 1), generator=generator)
        x[torch.arange(ROW) % (session + 1) == 0] = START  # it replaces a flip
        hidden, _ = model(x[:, :-1])
        loss = F.cross_entropy(model.logits(hidden).flatten(0, 1), x[:, 1:].flatten(), ignore_index=START)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
    return model.requires_grad_(False), losses


def sessions(source, n, T, seed):
    """Draw n sessions of T flips, and their truth (n, T)."""
    return source.sample(n, T, torch.Generator().manual_seed(seed))


def queries(source, seed):
    """The sessions that all methods are scored on, and their truth."""
    return sessions(source, N_QUERY, T_QUERY, 10_000 + seed)


def make_task(source, k, seed):
    """A Task of k demos. With k = MANY it has 8 others, whose cache CT-KV starts from."""
    demos = [Demo([START], x.tolist()) for x in sessions(source, k, T_DEMO, seed)[0]]
    task = Task("coins", demos, [])
    task.others = make_task(source, max(SEVERAL), 500 + seed).demos if k == MANY else ()
    return task


@torch.no_grad()
def predict(adapted, x, n_row=16):
    """P(x_t = 1 | theta, x_<t) (n, T), float64, of an Adapted on sessions x (n, T); n_row of them in a packed row."""
    found, start = [], adapted.prefix.next_position if adapted.prefix is not None else 0
    for part in x.split(n_row):
        row = pack([([START], flips.tolist()) for flips in part], adapted.model, start)
        logits = answer_logits(adapted.model, row, adapted.prefix, adapted.adapter)  # (n_row·T, 3)
        found.append(logits[:, :START].double().softmax(-1)[:, 1].view(part.shape))  # no target is a start
    return torch.cat(found)


def two_coins(demos, x, n=40):
    """P(x_t = 1 | demos, x_<t) (n, T) if each session is known to be one of two coins, and their biases are not known.

    n: number of possible biases of a coin; pairs of them are a grid of n x n.
    """
    bias = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    pairs = torch.cartesian_prod(bias, bias)  # (n², 2)
    each = lambda counts: counts[..., None, None]  # for every pair and coin
    likely = lambda ones, zeros: each(ones) * pairs.log() + each(zeros) * (1 - pairs).log()  # (…, n², 2)
    counts = lambda flips: (flips.sum(-1).double(), (1 - flips).sum(-1).double())
    posterior = likely(*counts(demos)).logsumexp(-1).sum(0)  # (n²,), up to constants such as each coin's 1/2
    t = torch.arange(x.shape[1], dtype=torch.float64)[:, None]
    ones = torch.minimum(torch.arange(x.shape[1], dtype=torch.float64), t)  # (T, T), ones before t, at most t
    weight = (posterior[:, None] + likely(ones, t - ones)).flatten(2).softmax(-1)  # (T, T, n²·2)
    return (weight @ pairs.flatten())[torch.arange(x.shape[1]), ones_before(x)]


def exact(source, k, seed):
    """{name: mean regret at every position} of the exact predictors, on the queries of a task."""
    x, truth = queries(source, seed)
    demos, _ = sessions(source, k, T_DEMO, seed)
    predicted = {"PreBayes": Beta().bayes(x), "PreBayes, demos": after(Beta(), demos.flatten(), x),
                 "Two coins, demos": two_coins(demos, x), "TargetBayes": source.bayes(x)}
    return {name: regret(p, x, truth).mean(0).tolist() for name, p in predicted.items()}


def plan(sweep, n_seed):
    """All runs, seed by seed. Raises ValueError before the first sweep."""
    if sweep:
        settings = [(method, config, k) for k, methods in SWEEP.items() for method, values in methods.items()
                    for config in cli.configs(method, MODULES[method].Config, values, {})]
        return [dict(zip(KEY, (target, "others", *setting, seed)))
                for seed, target in product((100, 101, 102), TARGETS) for setting in settings]
    if not SETTINGS.exists():
        raise ValueError(f"there is no {SETTINGS}: run with --sweep first.")
    chosen, runs = read_json(SETTINGS, kind=dict), []
    for seed, target in product(range(n_seed), TARGETS):
        runs.append((target, "targets", "zero_shot", {}, 0, seed))
        for k in (*SEVERAL, MANY):
            configs = chosen[target][str(min(of for of in SWEEP if of >= k))] | ({} if k == MANY else {"icl": {}})
            runs += [(target, "targets", method, config, k, seed) for method, config in configs.items()]
    return [dict(zip(KEY, run)) for run in runs]


def key(line):
    return json.dumps([line[name] for name in KEY], sort_keys=True)


@cache
def model():
    folder = FOLDER / "llama"
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no {folder}: `nanoct coins.bridge --pretrain --out {FOLDER}` "
                                "makes it.")
    return load_model(folder, "cpu", torch.float32)


def work(run):
    """Adapt and score: the line of a run."""
    source, method = (TARGETS if run["pool"] == "targets" else OTHERS)[run["target"]], MODULES[run["method"]]
    start = time.perf_counter()
    task = make_task(source, run["k"], run["seed"])
    adapted = method.adapt(model(), task, method.Config(**run["config"]), run["seed"])
    seconds = time.perf_counter() - start
    x, truth = queries(source, run["seed"])
    curve = regret(predict(adapted, x), x, truth).mean(0)
    check_finite(run["method"], run["target"], curve.tolist())
    return run | dict(regret=[round(value, 4) for value in curve.tolist()], n_trained=adapted.n_trained,
                      seconds=round(seconds, 3), **about(torch.device("cpu")))


def choose(lines):
    """{target: {demos: {method: config}}} with the lowest mean regret in the lines of a sweep."""
    found, chosen = {}, {}
    for line in lines:
        among = found.setdefault((line["target"], str(line["k"]), line["method"]), {})
        among.setdefault(json.dumps(line["config"]), []).append(line["regret"][-1])
    for (target, k, method), among in found.items():
        best = min(among, key=lambda config: mean(among[config]))
        chosen.setdefault(target, {}).setdefault(k, {})[method] = json.loads(best)
    return chosen


def report(lines, seeds, out):
    """Print the table of regret after 50 flips, write it to bridge.md, and draw bridge.png."""
    columns = list(product(TARGETS, (*SEVERAL, MANY)))
    bayes = {column: [exact(TARGETS[column[0]], column[1], seed) for seed in range(seeds)] for column in columns}
    names = list(bayes[columns[0]][0])

    def curves(name, target, k):
        """Regret of an exact predictor or a method, draw by draw; the same for all k if it is zero-shot."""
        if name in names:
            return [regrets[name] for regrets in bayes[target, k]]
        wanted = target, name, k if name != "zero_shot" else 0
        return [line["regret"] for line in lines if (line["target"], line["method"], line["k"]) == wanted]

    rows = []
    for name in (*names, *SHOWN):
        row = [name]
        for target, k in columns:
            ends = [curve[-1] for curve in curves(name, target, k)]
            row.append(plus_minus(mean(ends), standard_error(ends), form=".2f") if ends else "")
        rows.append(row)
    title = (f"Cumulative regret after {T_QUERY} flips of a query, nats, mean ± s.e. over {seeds} draws of demos and "
             f"queries; columns: demos of {T_DEMO} flips")
    header = ["", *(f"{target}, {k}" for target, k in columns)]
    publish(f"{title}\n\n{table(rows, header)}\n", out / "bridge.md")
    from nanoct.coins import figures  # matplotlib is slow to import

    means = {target: {name: torch.tensor(curves(name, target, max(SEVERAL))).mean(0) for name in (*names, *SHOWN)}
             for target in TARGETS}
    figures.bridge(means, SHOWN, names, max(SEVERAL), out / "bridge.png")


def main():
    p = cli.Parser(prog="nanoct coins.bridge", description=__doc__)
    p.add_argument("--pretrain", action="store_true", help="meta-train the Llama")
    p.add_argument("--sweep", action="store_true", help="choose settings on other coins; writes bridge.json")
    p.add_argument("--seeds", type=int, default=6, help="draws of demos and queries")
    p.add_argument("--n-step", type=int, default=1500, help="optimiser steps of --pretrain")
    p.add_argument("--workers", type=int, default=n_core(), help="processes of one thread; default: one per core")
    p.add_argument("--out", default="results/coins/bridge",
                   help="folder of the lines, the table and the figure")
    args = p.parse_args()
    args.out = Path(args.out)
    cli.at_least_one(args, "seeds", "workers", "n_step")
    if args.pretrain:
        start = time.perf_counter()
        check_out(args.out / "llama" / "model.safetensors")
        trained, losses = pretrain(args.n_step)
        check_finite("meta-training", "coins", losses)
        save_model(trained, args.out / "llama", metadata={"n_step": str(args.n_step), "seed": "0"})
        print(f"loss {mean(losses[-50:]):.4f}, {time.perf_counter() - start:.0f} seconds; {args.out / 'llama'}")
        return
    results = Results(args.out / ("sweep.jsonl" if args.sweep else "bridge.jsonl"), key,
                      dict(regret=T_QUERY, seconds=None))
    check_out(SETTINGS if args.sweep else args.out / "bridge.md")
    lines = execute(plan(args.sweep, args.seeds), results, work, args.workers)
    if args.sweep:
        replace_file(SETTINGS, (json.dumps(choose(lines), indent=1) + "\n").encode())
        print(f"wrote {SETTINGS}")
    else:
        report(lines, args.seeds, args.out)


if __name__ == "__main__":
    cli.run(main)
