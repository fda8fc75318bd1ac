"""Tables of the coin-flip study, from the lines of its runs (experiment.py); figures.py draws figures of them.

Regret is cumulative, in nats; ± is the standard error over repetitions. The two sides of a difference were scored on
the same sequences, repetition by repetition.
"""

from itertools import product
from statistics import mean

import torch

from nanoct.coins import experiment, figures
from nanoct.coins.experiment import BASE, BAYES, BEHIND, LENGTH
from nanoct.coins.predictors import KINDS
from nanoct.coins.tuning import METHODS, best
from nanoct.io.files import replace_file
from nanoct.runs.stats import standard_error
from nanoct.runs.table import table

POSITIONS = 50, 100, 200


class Lines:
    """Lines of one preset; of(…) selects among them."""

    def __init__(self, lines, preset):
        self.lines, self.preset, self.lengths = lines, preset, sorted({LENGTH, *preset.lengths})

    def select(self, target, kind, method, trained=True, length=LENGTH, size=BASE):
        """The lines that match, in the order of their seeds. length: counts for methods with a prefix only."""
        wanted = dict(zip(("target", "kind", "width", "n_layer", "n_embd", "trained", "method", "length"),
                          (target, kind, *size, trained, method, length if method in BEHIND else 0)))
        found = [line for line in self.lines if all(line[name] == value for name, value in wanted.items())]
        return sorted(found, key=lambda line: line["seed"])

    def of(self, *args, **wanted):
        """Regret (repetitions, 200) of the selected lines; (0, 200) if there is none."""
        return torch.tensor([line["regret"] for line in self.select(*args, **wanted)]).reshape(-1, experiment.T)

    def exact(self, target):
        """{name: regret (repetitions, 200)} of the exact predictors that have lines."""
        found = {name: self.of(target, "exact", name) for name in BAYES}
        return {name: of for name, of in found.items() if len(of)}

    def above(self, target, *args, at=50, bayes="TargetBayes", **wanted):
        """Regret at a position minus an exact predictor's, repetition by repetition."""
        found, exact = self.of(target, *args, **wanted), self.of(target, "exact", bayes)
        return (found[:, at - 1] - exact[: len(found), at - 1]).tolist()

    def ranked(self):
        """{(kind, target): ({hard prefix: loss by search}, the same behind PreBayes)} of the first repetition."""
        flips = list(product((0, 1), repeat=LENGTH))
        losses = lambda target, kind, method: dict(zip(flips, self.select(target, kind, method)[0]["searched"]))
        return {(kind, target): (losses(target, kind, "HardPT"), losses(target, "exact", "PreBayesPT"))
                for kind in KINDS for target in ("single", "mixture")}


def cell(values, form=".2f"):
    """Mean ± s.e. of a list, "" if it is empty."""
    values = list(map(float, values))
    return f"{mean(values):{form}}" + (f" ± {standard_error(values):.2f}" if len(values) > 1 else "") if values else ""


def named(size):
    """Width x layers, and the embedding's width."""
    return [f"{size[0]}x{size[1]}", str(size[2])]


def near_bayes(lines):
    source = experiment.PRETRAINING
    above = lambda kind, size: [cell(lines.above(source, kind, "NoTuning", size=size, at=at, bayes="PreBayes"))
                                for at in POSITIONS]
    rows = [[kind, *named(size), *above(kind, size)] for kind in KINDS for size in (BASE, *lines.preset.sizes)]
    exact = ", ".join(cell(lines.exact(source)["PreBayes"][:, at - 1]) for at in POSITIONS)
    return (f"How near to Bayes meta-training came: regret above PreBayes (which has {exact}) "
            "on the pretraining source after 50, 100 and 200 flips; it saw 100",
            table(rows, ["predictor", "size", "embedding", *map(str, POSITIONS)]))


def methods(lines, target, trained):
    said = target if trained else f"{target}, untrained"
    at = lambda of: [cell(of[:, position - 1]) for position in POSITIONS]
    rows = [[name, *at(of), *at(of)] for name, of in lines.exact(target).items()]
    for method in (*experiment.BASELINES, *METHODS):
        cells = [text for kind in KINDS for text in at(lines.of(target, kind, method, trained))]
        if any(cells):
            rows.append([method, *cells])
    header = [said, *(f"{kind}, {position}" for kind, position in product(KINDS, POSITIONS))]
    return f"{said}: regret after 50 flips, which tuning saw, after 100 and after 200", table(rows, header)


def lengths(lines):
    rows = [[target, kind, method, *(cell(lines.above(target, kind, method, length=n)) for n in lines.lengths)]
            for target in ("single", "mixture") for kind in KINDS for method in ("HardPT", "SoftPT")]
    return ("Regret above TargetBayes after 50 flips, against the length of the prefix",
            table(rows, ["target", "predictor", "method", *map(str, lines.lengths)]))


def sizes(lines):
    shown = "NoTuning", "SoftPT", "RealPT", "FullWT"
    above = lambda *which, size: [cell(lines.above(*which, method, size=size)) for method in shown]
    rows = [[target, kind, *named(size), *above(target, kind, size=size), gap(lines, target, kind, size)]
            for target in ("single", "mixture") for kind in KINDS for size in (BASE, *lines.preset.sizes)]
    return ("Regret above TargetBayes after 50 flips, of other sizes",
            table(rows, ["target", "predictor", "size", "embedding", *shown, "RealPT - SoftPT"]))


def gap(lines, target, kind, size):
    real, soft = (lines.of(target, kind, method, size=size)[:, 49] for method in ("RealPT", "SoftPT"))
    return cell((real - soft).tolist(), "+.2f") if len(real) == len(soft) else ""


def spearman(a, b):
    """Rank correlation of two lists. Ties get the mean of their ranks; numbers equal to 9 decimals are ties."""
    values = torch.tensor([a, b], dtype=torch.float64).round(decimals=9)  # (2, n)
    others = values[:, None], values[:, :, None]
    ranks = (others[0] < others[1]).sum(2) + (others[0] == others[1]).sum(2) / 2
    return torch.corrcoef(ranks)[0, 1].item()


def ranking(ranked):
    rows = []
    for (kind, target), (found, exact) in ranked.items():
        correlation, bound = spearman(list(found.values()), list(exact.values())), best(exact)
        rows.append([kind, target, f"{correlation:.2f}", "".join(map(str, best(found))),
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
    rows = [[said, *(cell(lines.above(target, kind, method, **wanted)) for kind in KINDS)]
            for said, target, method, wanted in asked]
    bound = cell(lines.above("single", "exact", "PreBayesPT"))
    rows.insert(3, ["single: PreBayesPT, the bound of HardPT", bound, bound])
    for size in (BASE, *(size for size in lines.preset.sizes if size[2] == 4)):
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
    written = "\n\n".join(part for pair in (*parts, ranking(lines.ranked())) for part in pair) + "\n"
    print(f"\n{written}")
    replace_file(out / "study.md", written.encode())
    figures.draw(lines, out)
    print(f"wrote study.md and figures in {out}")
