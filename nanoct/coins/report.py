"""Tables of the coin-flip study, from the lines of its runs (experiment.py); figures.py draws them.

Regret is cumulative, in nats; ± is the standard error over repetitions. Where a difference is given both were scored on
the same sequences, repetition by repetition.
"""

from functools import cache
from statistics import mean

import torch

from nanoct.coins import experiment, figures
from nanoct.coins.coins import Beta, after, log_loss, regret
from nanoct.coins.predictors import KINDS, Config, shipped
from nanoct.coins.tuning import METHODS, PREFIX, rank
from nanoct.files import replace_file
from nanoct.runs.report import standard_error, table

BAYES = "PreBayes", "TargetBayes"


class Lines:
    """Lines of one preset; of(…) selects among them."""

    def __init__(self, lines, preset):
        self.lines, self.preset, self.lengths = lines, preset, sorted({6, *preset.lengths})
        self.exact = cache(self.exact)  # asked for again and again

    def of(self, target, kind, method, trained=True, length=None, size=experiment.BASE):
        """Regret (repetitions, 200) of the runs that are so; (0, 200) without any. length: by default a prefix's 6."""
        if length is None:
            length = 6 if method in (*PREFIX, "RandomPrefix") else 0
        wanted = dict(zip(("target", "kind", "width", "n_layer", "n_embd", "trained", "method", "length"),
                          (target, kind, *size, trained, method, length)))
        found = [line for line in self.lines if all(line[name] == value for name, value in wanted.items())]
        curves = [line["regret"] for line in sorted(found, key=lambda line: line["seed"])]
        return torch.tensor(curves).reshape(-1, experiment.T)

    def exact(self, target):
        """{name: regret (repetitions, 200)} of the exact predictors, on the sequences that runs are scored on."""
        curves = {name: [] for name in BAYES}
        for seed in range(self.preset.n_repetition):
            x, truth = experiment.fresh(target, self.preset.n_eval, seed)
            for name, source in zip(BAYES, (Beta(), experiment.TARGETS[target])):
                curves[name].append(regret(source.bayes(x), x, truth).mean(0))
        return {name: torch.stack(of) for name, of in curves.items()}

    def above(self, target, *args, at=50, bayes="TargetBayes", **wanted):
        """Regret at a position above an exact predictor's, repetition by repetition."""
        found = self.of(target, *args, **wanted)
        return (found[:, at - 1] - self.exact(target)[bayes][: len(found), at - 1]).tolist()


def cell(values, form=".2f"):
    """Mean ± s.e. of a list, "" of an empty one."""
    values = list(map(float, values))
    return f"{mean(values):{form}}" + (f" ± {standard_error(values):.2f}" if len(values) > 1 else "") if values else ""


def named(size):
    """Width x layers, and the embedding's width."""
    return [f"{size[0]}x{size[1]}", str(size[2])]


def near_bayes(lines):
    source, positions = experiment.PRETRAINING, (50, 100, 200)
    above = lambda kind, size: [cell(lines.above(source, kind, "NoTuning", size=size, at=at)) for at in positions]
    rows = [[kind, *named(size), *above(kind, size)]
            for kind in KINDS for size in (experiment.BASE, *lines.preset.sizes)]
    exact = ", ".join(cell(lines.exact(source)["PreBayes"][:, at - 1]) for at in positions)
    return (f"How near to Bayes meta-training came: regret above PreBayes (which has {exact}) "
            "on the pretraining source after 50, 100 and 200 flips; it saw 100",
            table(rows, ["predictor", "size", "embedding", *map(str, positions)]))


def methods(lines, target):
    columns = [(kind, trained, at) for kind in KINDS for trained in (True, False) for at in (50, 200)]
    header = [target, *(f"{kind}{'' if trained else ', untrained'}, {at}" for kind, trained, at in columns)]
    rows = [[name, *(cell(lines.exact(target)[name][:, at - 1]) for _, _, at in columns)] for name in BAYES]
    for method in (*experiment.BASELINES, *METHODS):
        cells = [cell(lines.of(target, kind, method, trained)[:, at - 1]) for kind, trained, at in columns]
        if any(cells):
            rows.append([method, *cells])
    return f"{target}: regret after 50 flips, which tuning saw, and after 200", table(rows, header)


def lengths(lines):
    rows = [[target, kind, method, *(cell(lines.above(target, kind, method, length=n)) for n in lines.lengths)]
            for target in ("single", "mixture") for kind in KINDS for method in ("HardPT", "SoftPT")]
    return ("Regret above TargetBayes after 50 flips, against the length of the prefix",
            table(rows, ["target", "predictor", "method", *map(str, lines.lengths)]))


def sizes(lines):
    shown = "NoTuning", "SoftPT", "RealPT", "FullWT"
    above = lambda *which, size: [cell(lines.above(*which, method, size=size)) for method in shown]
    rows = [[target, kind, *named(size), *above(target, kind, size=size), gap(lines, target, kind, size)]
            for target in ("single", "mixture") for kind in KINDS for size in (experiment.BASE, *lines.preset.sizes)]
    return ("Regret above TargetBayes after 50 flips, of other sizes",
            table(rows, ["target", "predictor", "size", "embedding", *shown, "RealPT - SoftPT"]))


def gap(lines, target, kind, size):
    real, soft = (lines.of(target, kind, method, size=size)[:, 49] for method in ("RealPT", "SoftPT"))
    return cell((real - soft).tolist(), "+.2f") if len(real) == len(soft) else ""


def rank_all(kind, target, n_search):
    """{prefix: mean log loss of 50 flips behind it}, all 64 hard prefixes of length 6; of a predictor, of PreBayes."""
    found = rank(shipped(Config(kind)), experiment.TARGETS[target], 6, n_search)
    x, _ = experiment.TARGETS[target].sample(n_search, 50, torch.Generator().manual_seed(0))
    return found, {prefix: log_loss(after(Beta(), prefix, x), x).sum(1).mean().item() for prefix in found}


def spearman(a, b):
    """Rank correlation of two lists, ties at the mean of their ranks; equal is what 9 decimals do not tell apart."""
    values = torch.tensor([a, b], dtype=torch.float64).round(decimals=9)  # (2, n)
    others = values[:, None], values[:, :, None]
    ranks = (others[0] < others[1]).sum(2) + (others[0] == others[1]).sum(2) / 2
    return torch.corrcoef(ranks)[0, 1].item()


def ranking(ranked):
    rows = []
    for (kind, target), (found, exact) in ranked.items():
        correlation, best = spearman(list(found.values()), list(exact.values())), min(exact, key=exact.get)
        rows.append([kind, target, f"{correlation:.2f}", "".join(map(str, next(iter(found)))),
                     f"any {len(best)} flips with {sum(best)} ones"])
    return ("The 64 hard prefixes of length 6 ranked by search and by PreBayes in closed form: Spearman's correlation, "
            "and the best of each",
            table(rows, ["predictor", "target", "correlation", "best by search", "best in closed form"]))


def findings(lines):
    """What the paper found, as numbers: regret above TargetBayes after 50 flips."""
    longest = lines.lengths[-1]
    asked = [("single: SoftPT reaches Bayes", "single", "SoftPT", {}),
             ("single: HardPT does not", "single", "HardPT", {}),
             ("mixture: SoftPT does not", "mixture", "SoftPT", {}),
             (f"mixture: nor with {longest} rows", "mixture", "SoftPT", dict(length=longest)),
             ("mixture: FullWT does", "mixture", "FullWT", {}),
             ("mixture: LoRAWT does", "mixture", "LoRAWT", {}),
             ("single, untrained: SoftPT, Transformer close, LSTM not", "single", "SoftPT", dict(trained=False))]
    rows = [[said, *(cell(lines.above(target, kind, method, **wanted)) for kind in KINDS)]
            for said, target, method, wanted in asked]
    for size in (experiment.BASE, *(size for size in lines.preset.sizes if size[2] == 4)):
        gaps = [gap(lines, "single", kind, size) for kind in KINDS]
        rows.append([f"single, embedding {size[2]}: RealPT - SoftPT", *gaps])
    return "The paper's findings: regret above TargetBayes after 50 flips", table(rows, ["the paper", *KINDS])


def report(lines, preset, out):
    """Print the tables, write them to study.md in a folder, and draw the figures there."""
    lines = Lines(lines, preset)
    ranked = {(kind, target): rank_all(kind, target, preset.n_search)
              for kind in KINDS for target in ("single", "mixture")}
    parts = [findings(lines), near_bayes(lines), *(methods(lines, target) for target in preset.targets)]
    parts += [lengths(lines)] if preset.lengths else []
    parts += [sizes(lines)] if preset.sizes else []
    written = "\n\n".join(part for pair in (*parts, ranking(ranked)) for part in pair) + "\n"
    print(f"\n{written}")
    replace_file(out / "study.md", written.encode())
    figures.draw(lines, ranked, out)
    print(f"wrote study.md and figures in {out}")
