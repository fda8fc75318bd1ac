"""What each part of CT-KV is worth: the paper's ablations, other starts of theta, and demos with wrong labels.

    python -m nanoct.reproduce --ablations

Theta is the KV cache that CT-KV trains. The module looks like a method: adapt is CT-KV's loop, from another start, with
fixed keys, a fixed first entry, or in the authors' bfloat16.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from nanoct.fewshot import Adapted, encode_context, noise_like
from nanoct.io.files import publish
from nanoct.methods import ct_kv
from nanoct.optimise import optimise
from nanoct.packing import answer_logits, can_leave_one_out, pack_demos, visible
from nanoct.runs.results import VARIANTS
from nanoct.runs.stats import Setting, difference
from nanoct.runs.table import one_benchmark, seeds_of_demos, table, tasks_a_world

NAME = "ct_kv_variant"  # the method's name in lines of results
ABLATIONS = {  # row of the table -> what differs from CT-KV at its settings
    "CT-KV": {},
    "no leave-one-out": dict(leave_one_out=False),
    "no token dropout": dict(token_dropout=0.0),
    "neither": dict(leave_one_out=False, token_dropout=0.0),
    "values only (CT-V)": dict(values_only=True),
    "start: noise": dict(start="noise"),
    "start: another task's demos": dict(start="others"),
    "theta in bfloat16": dict(bf16=True),
}
WRONG = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of demos with a wrong label


@dataclass
class Config(ct_kv.Config):
    start: str = "demos"  # theta_0; "noise": random entries; "others": the KV of task.others, another task's demos
    values_only: bool = False  # CT-V: the keys stay as they are
    bf16: bool = False  # train bfloat16 numbers, as the authors' code does: steps below half an ulp are lost
    freeze_first: bool = False  # the first entry stays as it is, as in Cartridges (2506.06266) and peft


VARIANTS[NAME], footprint = Config, ct_kv.footprint  # the same work and memory


def adapt(model, task, config=Config(), seed=0, progress=None):
    """Tune as ct_kv.adapt does, with what `config` changes. Another start has no demos to leave out.

    Raises ValueError on an unknown start, and what ct_kv.adapt raises.
    """
    others = getattr(task, "others", ())
    if config.start not in ("demos", "noise", "others") or config.start == "others" and not others:
        raise ValueError(f'start = {config.start!r} must be "demos", "noise", or, if the task has others, "others".')
    task.need_demos("CT-KV")
    generator = torch.Generator().manual_seed(seed)
    read = others if config.start == "others" else task.demos
    context = encode_context(model, task.instruction, read, separator=task.separator)
    if config.start == "noise":
        context = noise_like(context, torch.Generator().manual_seed(seed + 1))  # token dropout draws from `seed`
    row = pack_demos(task, model, context.next_position)
    leave_one_out = config.leave_one_out and config.start == "demos" and can_leave_one_out(task)

    dtype = torch.bfloat16 if config.bf16 else torch.float32
    whole, n_frozen = [part.to(dtype) for part in context.stack()], int(config.freeze_first)  # (L, 1, K, P, D)
    first = [part[..., :n_frozen, :] for part in whole]
    keys, values = rest = [part[..., n_frozen:, :].contiguous() for part in whole]
    leaves = [part.requires_grad_() for part in ([values] if config.values_only else rest)]
    theta = lambda: context.of(*(torch.cat(parts, dim=3) for parts in zip(first, rest)))

    def loss():
        seen = visible(context.owner, len(task.demos), leave_one_out, config.token_dropout, generator)  # (k, P)
        return F.cross_entropy(answer_logits(model, row, theta(), mask=row.mask(seen)), row.target)

    optimise(loss, leaves, config, progress)
    return Adapted(model, prefix=theta(), n_trained=sum(leaf.numel() for leaf in leaves))


def rows(chosen):
    """{row of the table: config}. chosen: CT-KV's settings."""
    return {row: asdict(Config(**chosen)) | change for row, change in ABLATIONS.items()}


def variants(k, base):
    """(method, config, k, share of wrong labels) of every run on a task. base(method): its config in this world."""
    configs = rows(base("ct_kv"))
    full = configs["CT-KV"]
    runs = [(NAME, config, k, 0.0) for config in configs.values()]
    runs += [("icl", {}, k, wrong) for wrong in WRONG]
    return runs + [(NAME, full, k, wrong) for wrong in WRONG if wrong]


def groups(lines):
    """{world: ({row: Setting} of the ablations, {method: {share of wrong labels: Setting}})}."""
    lines_of, by_world = {}, {}
    for line in lines:
        lines_of.setdefault(line["world"], []).append(line)
    for world, here in lines_of.items():
        full = unchanged([line["config"] for line in here if line["method"] == NAME])
        variants_of_full = {row: select(here, NAME, full | change, 0.0) for row, change in ABLATIONS.items()}
        by_share = {"icl": {wrong: select(here, "icl", {}, wrong) for wrong in WRONG},
                    "ct_kv": {wrong: select(here, NAME, full, wrong) for wrong in WRONG}}
        by_world[world] = variants_of_full, by_share
    return by_world


def unchanged(configs):
    """CT-KV's own config among those of all rows: the one of which each row is a change."""
    return next(config for config in configs
                if all(config | change in configs for change in ABLATIONS.values()))


def select(lines, method, config, wrong):
    """The Setting of the lines of one method, config and share of wrong labels, 0 where a line has no share."""
    wanted = method, config, wrong
    return Setting(method, config, [line for line in lines
                                    if (line["method"], line["config"], line.get("wrong", 0.0)) == wanted])


def text(by_world, lines, model=None):
    """The tables in Markdown. model: of a public benchmark, which has ICL and the difference in a row and a column."""
    header, rows = ["", *by_world], []
    for row in ABLATIONS:
        cells = [row]
        for variants_of_full, _ in by_world.values():
            setting, full = variants_of_full[row], variants_of_full["CT-KV"]
            minus = "" if setting is full else difference(setting, full)
            if model:
                cells += [setting.cell, minus]
            else:
                cells.append(setting.cell + (f" ({minus})" if minus else ""))
        rows.append(cells)
    if model:
        ((variants_of_full, by_share),) = by_world.values()
        icl = by_share["icl"][0.0]
        rows.insert(0, ["ICL", icl.cell, difference(icl, variants_of_full["CT-KV"])])
        header = ["CT-KV with a change", "score", "minus CT-KV, 95%"]
        head = f"{one_benchmark(lines, model)}, {seeds_of_demos(lines)}; score % ± s.e. over tasks"
        return f"{head}\n\n{table(rows, header)}\n"
    shares = []
    for method in ("icl", "ct_kv"):
        for wrong in WRONG:
            cells = [by_share[method][wrong].cell for _, by_share in by_world.values()]
            shares.append([f"{method}, {wrong:.0%} wrong", *cells])
    head = f"{tasks_a_world(lines)}; score % ± s.e. over tasks, in brackets minus CT-KV, paired, 95%"
    return "\n\n".join([head, table(rows, header), table(shares, ["labels of demos", *by_world])]) + "\n"


def report(lines, folder, model=None):
    """Print the tables, write them to ablations.md, and draw ablations.png of the worlds. model: as in text()."""
    folder, by_world = Path(folder), groups(lines)
    publish(text(by_world, lines, model), folder / "ablations.md")
    if model:
        return
    from nanoct.runs import plots  # matplotlib is slow to import

    plots.ablations(by_world, folder / "ablations.png")
    print(f"wrote ablations.md and ablations.png in {folder}")
