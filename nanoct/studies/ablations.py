"""What each part of CT-KV is worth: the paper's ablation, other starts of theta, and demos with wrong labels.

    python -m nanoct.reproduce --ablations
"""

from pathlib import Path

from nanoct.runs.report import Setting, table

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


def variants(k, base):
    """(method, config, k, share of wrong labels) of every run on a task; base(method): its config in this world."""
    parts = [("ct_kv", base("ct_kv") | change, k, 0.0) for change in ABLATIONS.values()]
    return parts + [(method, base(method), k, wrong) for method in ("icl", "ct_kv") for wrong in WRONG if wrong or method == "icl"]


def groups(lines):
    """{world: ({row: Setting} of the ablations, {method: {share of wrong labels: Setting}})}."""
    found = {}
    for world in dict.fromkeys(line["world"] for line in lines):
        here = [line for line in lines if line["world"] == world]
        full = next(line["config"] for line in here if line["method"] == "ct_kv")  # the first variant
        at = lambda method, config, wrong: Setting(method, config, [
            line for line in here if (line["method"], line["config"], line["wrong"]) == (method, config, wrong)])
        configs = dict(icl={}, ct_kv=full)
        found[world] = ({row: at("ct_kv", full | change, 0.0) for row, change in ABLATIONS.items()},
                        {method: {wrong: at(method, config, wrong) for wrong in WRONG} for method, config in configs.items()})
    return found


def report(lines, folder):
    """Print both tables, write them to ablations.md, and draw ablations.png."""
    folder, found = Path(folder), groups(lines)
    n = {len({(line["task"]) for line in lines if line["world"] == world}) for world in found}
    cell = lambda s: f"{s.score:.1f} ± {s.error:.1f}"
    minus = lambda s, full: "" if s is full else " ({:+.1f} ± {:.1f})".format(*s.minus(full))
    parts = [f"{lines[0]['pool'].replace('_', '-')} pool, {' or '.join(map(str, sorted(n)))} tasks a world; score % ± s.e. over tasks, "
             "in brackets minus CT-KV, paired, 95%"]
    parts.append(table([[row, *(cell(rows[row]) + minus(rows[row], rows["CT-KV"]) for rows, _ in found.values())] for row in ABLATIONS],
                       ["", *found]))
    parts.append(table([[f"{method}, {wrong:.0%} wrong", *(cell(by_method[method][wrong]) for _, by_method in found.values())]
                        for method in ("icl", "ct_kv") for wrong in WRONG], ["labels of demos", *found]))
    written = "\n\n".join(parts) + "\n"
    print(f"\n{written}")
    (folder / "ablations.md").write_text(written)
    from nanoct.runs import plots  # matplotlib is slow to import

    plots.ablations(found, folder / "ablations.png")
    print(f"wrote ablations.md and ablations.png in {folder}")
