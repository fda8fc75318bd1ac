"""Tables of the coin-flip study, from the lines of its runs (experiment.py); figures.py draws figures of them.

Regret is cumulative, in nats; ± is the standard error over repetitions. The two sides of a difference were scored on
the same sequences, repetition by repetition.
"""

from itertools import product
from statistics import mean

import torch

from nanoct.coins import experiment, figures
from nanoct.coins.experiment import BASE, BASELINES, BAYES, BEHIND, LENGTH, PRETRAINING, VARIED
from nanoct.coins.predictors import KINDS
from nanoct.coins.tuning import METHODS, best
from nanoct.io.files import publish
from nanoct.runs.stats import standard_error
from nanoct.runs.table import table

POSITIONS = 50, 100, 200


class Lines:
    """The lines of one preset; select(…), regret(…) and above(…) take those of one method."""

    def __init__(self, lines, preset):
        self.lines, self.preset = lines, preset
        self.lengths, self.sizes = sorted({LENGTH, *preset.lengths}), (BASE, *preset.sizes)

    def select(self, target, kind, method, trained=True, length=LENGTH, size=BASE):
        """The lines that match, in the order of their seeds. length: counts for methods with a prefix only."""
        wanted = dict(zip(("width", "n_layer", "n_embd"), size), target=target, kind=kind, method=method,
                      trained=trained, length=length if method in BEHIND else 0)
        found = [line for line in self.lines if wanted.items() <= line.items()]
        return sorted(found, key=lambda line: line["seed"])

    def regret(self, *args, **wanted):
        """Regret (repetitions, 200) of the selected lines; (0, 200) if there is none."""
        return torch.tensor([line["regret"] for line in self.select(*args, **wanted)]).reshape(-1, experiment.T)

    def exact(self, target):
        """{name: regret (repetitions, 200)} of the exact predictors that have lines."""
        curves = {name: self.regret(target, "exact", name) for name in BAYES}
        return {name: curve for name, curve in curves.items() if len(curve)}

    def above(self, target, *args, at=50, bayes="TargetBayes", **wanted):
        """Regret at a position minus an exact predictor's, repetition by repetition."""
        ours, exact = self.regret(target, *args, **wanted), self.regret(target, "exact", bayes)
        return (ours[:, at - 1] - exact[: len(ours), at - 1]).tolist()

    def ranked(self):
        """{(kind, target): ({hard prefix: loss by search}, the same behind PreBayes)} of the first repetition."""
        flips, found = list(product((0, 1), repeat=LENGTH)), {}
        for kind, target in product(KINDS, VARIED):
            search, closed = self.select(target, kind, "HardPT")[0], self.select(target, "exact", "PreBayesPT")[0]
            found[kind, target] = dict(zip(flips, search["searched"])), dict(zip(flips, closed["searched"]))
        return found


def cell(values, form=".2f"):
    """Mean ± s.e. of a list, "" if it is empty."""
    values = list(map(float, values))
    if not values:
        return ""
    return f"{mean(values):{form}}" + (f" ± {standard_error(values):.2f}" if len(values) > 1 else "")


def near_bayes(lines):
    rows = []
    for kind, size in product(KINDS, lines.sizes):
        above = [lines.above(PRETRAINING, kind, "NoTuning", size=size, at=at, bayes="PreBayes") for at in POSITIONS]
        rows.append([kind, *named(size), *map(cell, above)])
    exact = ", ".join(at_positions(lines.exact(PRETRAINING)["PreBayes"]))
    return (f"How near to Bayes meta-training came: regret above PreBayes (which has {exact}) "
            "on the pretraining source after 50, 100 and 200 flips; it saw 100",
            table(rows, ["predictor", "size", "embedding", *map(str, POSITIONS)]))


def named(size):
    """Width x layers, and the embedding's width."""
    return [f"{size[0]}x{size[1]}", str(size[2])]


def at_positions(regret):
    return [cell(regret[:, position - 1]) for position in POSITIONS]


def methods(lines, target, trained):
    title = target if trained else f"{target}, untrained"
    rows = [[name, *at_positions(regret) * len(KINDS)] for name, regret in lines.exact(target).items()]
    for method in (*BASELINES, *METHODS):
        cells = [text for kind in KINDS for text in at_positions(lines.regret(target, kind, method, trained))]
        if any(cells):
            rows.append([method, *cells])
    header = [title, *(f"{kind}, {position}" for kind, position in product(KINDS, POSITIONS))]
    return f"{title}: regret after 50 flips, which tuning saw, after 100 and after 200", table(rows, header)


def lengths(lines):
    rows = []
    for which in product(VARIED, KINDS, ("HardPT", "SoftPT")):
        rows.append([*which, *(cell(lines.above(*which, length=length)) for length in lines.lengths)])
    return ("Regret above TargetBayes after 50 flips, against the length of the prefix",
            table(rows, ["target", "predictor", "method", *map(str, lines.lengths)]))


def sizes(lines):
    rows, shown = [], ("NoTuning", "SoftPT", "RealPT", "FullWT")
    for target, kind, size in product(VARIED, KINDS, lines.sizes):
        above = [cell(lines.above(target, kind, method, size=size)) for method in shown]
        rows.append([target, kind, *named(size), *above, gap(lines, target, kind, size)])
    return ("Regret above TargetBayes after 50 flips, of other sizes",
            table(rows, ["target", "predictor", "size", "embedding", *shown, "RealPT - SoftPT"]))


def gap(lines, target, kind, size):
    real, soft = (lines.regret(target, kind, method, size=size)[:, 49] for method in ("RealPT", "SoftPT"))
    return cell((real - soft).tolist(), "+.2f") if len(real) == len(soft) else ""


def spearman(a, b):
    """Rank correlation of two lists. Ties get the mean of their ranks; numbers equal to 9 decimals are ties."""
    values = torch.tensor([a, b], dtype=torch.float64).round(decimals=9)  # (2, n)
    others = values[:, None], values[:, :, None]
    ranks = (others[0] < others[1]).sum(2) + (others[0] == others[1]).sum(2) / 2
    return torch.corrcoef(ranks)[0, 1].item()


def ranking(lines):
    rows = []
    for (kind, target), (search, closed) in lines.ranked().items():
        correlation, bound = spearman(list(search.values()), list(closed.values())), best(closed)
        rows.append([kind, target, f"{correlation:.2f}", "".join(map(str, best(search))),
                     f"any {len(bound)} flips with {sum(bound)} ones"])
    return ("The 64 hard prefixes of length 6 ranked by search and by PreBayes in closed form: Spearman's correlation, "
            "and the best of each",
            table(rows, ["predictor", "target", "correlation", "best by search", "best in closed form"]))


def findings(lines):
    """What the paper found, as numbers: regret above TargetBayes after 50 flips."""
    longest = lines.lengths[-1]
    asked = [("single: NoTuning", "single", "NoTuning", {}),
             ("single: SoftPT reaches Bayes", "single", "SoftPT", {}),
             ("single: HardPT does not", "single", "HardPT", {}),
             ("mixture: NoTuning", "mixture", "NoTuning", {}),
             ("mixture: SoftPT does not", "mixture", "SoftPT", {}),
             (f"mixture: nor with {longest} rows", "mixture", "SoftPT", dict(length=longest)),
             ("mixture: FullWT does", "mixture", "FullWT", {}),
             ("mixture: LoRAWT does", "mixture", "LoRAWT", {}),
             ("single, untrained: SoftPT, Transformer close, LSTM not", "single", "SoftPT", dict(trained=False))]
    rows = [[name, *(cell(lines.above(target, kind, method, **wanted)) for kind in KINDS)]
            for name, target, method, wanted in asked]
    bound = cell(lines.above("single", "exact", "PreBayesPT"))
    rows.insert(3, ["single: PreBayesPT, the bound of HardPT", bound, bound])
    for size in lines.sizes:
        if size == BASE or size[2] == 4:
            gaps = [gap(lines, "single", kind, size) for kind in KINDS]
            rows.append([f"single, embedding {size[2]}: RealPT - SoftPT", *gaps])
    return "The paper's findings: regret above TargetBayes after 50 flips", table(rows, ["the paper", *KINDS])


def report(lines, preset, out):
    """Print the tables, write them to study.md in a folder, and draw the figures there."""
    lines = Lines(lines, preset)
    parts = [findings(lines), near_bayes(lines)]
    parts += [methods(lines, target, trained) for trained in (True, False) for target in preset.targets]
    parts += [lengths(lines)] if preset.lengths else []
    parts += [sizes(lines)] if preset.sizes else []
    parts += [ranking(lines)]
    publish("\n\n".join(f"{title}\n\n{rows}" for title, rows in parts) + "\n", out / "study.md")
    figures.draw(lines, out)
    print(f"wrote study.md and figures in {out}")
