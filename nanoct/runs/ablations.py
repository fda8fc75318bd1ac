"""What each part of CT-KV is worth: the paper's ablations, other starts of theta, and demos with wrong labels.

    python -m nanoct.reproduce --ablations

Theta is the KV cache that CT-KV trains. The module looks like a method: adapt is CT-KV's loop, from another start, with
fixed keys, or in the authors' bfloat16.
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
from nanoct.runs.report import Setting, difference, table
from nanoct.runs.results import VARIANTS

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
    keys, values = (part.to(dtype) for part in context.stack())  # (L, 1, K, P, D)
    leaves = [part.requires_grad_() for part in ([values] if config.values_only else [keys, values])]

    def loss():
        seen = visible(context.owner, len(task.demos), leave_one_out, config.token_dropout, generator)  # (k, P)
        logits = answer_logits(model, row, context.of(keys, values), mask=row.mask(seen))
        return F.cross_entropy(logits, row.target)

    optimise(loss, leaves, config, progress)
    return Adapted(model, prefix=context.of(keys, values), n_trained=sum(leaf.numel() for leaf in leaves))


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
    found = {}
    for world in dict.fromkeys(line["world"] for line in lines):
        here = [line for line in lines if line["world"] == world]
        full = next(line["config"] for line in here if line["method"] == NAME and line["wrong"])  # CT-KV as it is
        at = lambda method, config, wrong: Setting(method, config, [
            line for line in here if (line["method"], line["config"], line["wrong"]) == (method, config, wrong)])
        by_share = lambda method, config: {wrong: at(method, config, wrong) for wrong in WRONG}
        found[world] = ({row: at(NAME, full | change, 0.0) for row, change in ABLATIONS.items()},
                        dict(icl=by_share("icl", {}), ct_kv=by_share(NAME, full)))
    return found


def report(lines, folder):
    """Print both tables, write them to ablations.md, and draw ablations.png."""
    folder, found = Path(folder), groups(lines)
    n = {len({(line["task"]) for line in lines if line["world"] == world}) for world in found}
    minus = lambda s, full: "" if s is full else f" ({difference(s, full)})"
    parts = [f"{lines[0]['pool'].replace('_', '-')} pool, {' or '.join(map(str, sorted(n)))} tasks a world; "
             "score % ± s.e. over tasks, in brackets minus CT-KV, paired, 95%"]
    cells = lambda row: [rows[row].cell + minus(rows[row], rows["CT-KV"]) for rows, _ in found.values()]
    parts.append(table([[row, *cells(row)] for row in ABLATIONS], ["", *found]))
    cells = lambda method, wrong: [by_method[method][wrong].cell for _, by_method in found.values()]
    rows = [[f"{method}, {wrong:.0%} wrong", *cells(method, wrong)] for method in ("icl", "ct_kv") for wrong in WRONG]
    parts.append(table(rows, ["labels of demos", *found]))
    written = "\n\n".join(parts) + "\n"
    publish(written, folder / "ablations.md")
    from nanoct.runs import plots  # matplotlib is slow to import

    plots.ablations(found, folder / "ablations.png")
    print(f"wrote ablations.md and ablations.png in {folder}")
