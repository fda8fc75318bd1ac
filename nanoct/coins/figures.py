"""Figures of the coin-flip study, 800 px wide, one colour per method in all of them."""

from functools import cache
from itertools import product

import matplotlib

matplotlib.use("Agg")  # files, no window
import matplotlib.pyplot as plt
import torch

from nanoct.coins import experiment
from nanoct.coins.coins import Beta, log_loss
from nanoct.coins.predictors import KINDS, Config, shipped
from nanoct.coins.tuning import METHODS, Tuned, one_hot, tune
from nanoct.files import replacing
from nanoct.runs import plots
from nanoct.runs.report import standard_error

COLOURS = {"NoTuning": "#4d4d4d", "RandomPrefix": "#b0b0b0",
           "HardPT": "#c9a227", "SimplexPT": "#e0a03f", "RealPT": "#e07a3f", "SoftPT": "#d1495b",
           "FullWT": "#2a6fbb", "EmbedWT": "#7fb3d5", "UnembedWT": "#4fa3a5", "Un+EmbedWT": "#3c8d5a",
           "LoRAWT": "#6a3d9a"}
BAYES = {"PreBayes": dict(color="black", linestyle="--"), "TargetBayes": dict(color="black", linestyle=":")}
TUNED = 50  # flips that tuning saw
FLIPS = range(1, 1 + experiment.T)


def draw(lines, ranked, out):
    """All figures into a folder. lines: report.Lines; ranked: {(kind, target): (losses by search, in closed form)}."""
    near_bayes(lines, out / "near_bayes.png")
    for trained, name in ((True, ""), (False, "_untrained")):
        curves(lines, trained, "regret", out / f"regret{name}.png")
        curves(lines, trained, "loss", out / f"loss{name}.png")
    bars(lines, out / "bars.png")
    if lines.preset.lengths:
        lengths(lines, out / "lengths.png")
    ranking(ranked, out / "ranking.png")
    pca(lines.preset, out / "pca.png")


def grid(n_row, n_column, height, **options):
    figure, panels = plt.subplots(n_row, n_column, figsize=(8, height), dpi=100, squeeze=False, **options)
    for axes in panels.flat:
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def save(figure, path, bottom=0.0):
    figure.tight_layout(rect=(0, bottom, 1, 1))
    with replacing(path) as new:
        figure.savefig(new, format="png")
    plt.close(figure)


def legend(figure, panels):
    found = {label: handle for axes in panels.flat for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(found.values(), found.keys(), fontsize=7, ncols=7, loc="lower center", frameon=False)


def spread(values):
    """Standard error of a tensor of repetitions, 0 of a single one."""
    return standard_error(values.tolist()) if len(values) > 1 else 0


def curves(lines, trained, what, path):
    """Regret, or the mean log loss of a flip, against the position, with the exact predictors.

    A panel for each target and kind. The loss is a running mean over 9 flips, of what each adds to the regret and of
    the truth's own loss: one flip alone is noise.
    """
    targets = lines.preset.targets
    figure, panels = grid(len(targets), 2, 0.7 + 2.4 * len(targets), sharex=True)
    for target, row in zip(targets, panels):
        exact = {name: of.mean(0) for name, of in lines.exact(target).items()}
        source = truth_loss(lines, target)
        loss = lambda of: smooth(of.diff(prepend=torch.zeros(1, dtype=of.dtype)) + source)
        shown = (lambda of: of) if what == "regret" else loss
        for kind, axes in zip(KINDS, row):
            for method in (*experiment.BASELINES, *METHODS):
                if len(found := lines.of(target, kind, method, trained)):
                    axes.plot(FLIPS, shown(found.mean(0)), color=COLOURS[method], linewidth=1.2, label=method)
            for name, style in BAYES.items():
                axes.plot(FLIPS, shown(exact[name]), linewidth=1.2, label=name, **style)
            axes.axvline(TUNED, color="#cccccc", linewidth=0.8, zorder=0)
            axes.set_title(f"{target}, {kind}{'' if trained else ', untrained'}", fontsize=9)
            top, low = max(4.5, 1.25 * exact["PreBayes"][-1].item()), source.mean().item()
            axes.set_ylim((-0.05 * top, top) if what == "regret" else (low - 0.03, low + (0.25 if top < 5 else 0.55)))
    said = "cumulative regret, nats" if what == "regret" else "log loss of a flip, nats, mean over 9"
    figure.supylabel(said, fontsize=9)
    panels[-1, 0].set_xlabel("flips; tuning saw those to the grey line", fontsize=8)
    legend(figure, panels)
    save(figure, path, 0.05)


@cache
def truth_loss(lines, target):
    """Mean log loss of the truth at every position (200,), on the sequences that runs are scored on."""
    drawn = [experiment.fresh(target, lines.preset.n_eval, seed) for seed in range(lines.preset.n_repetition)]
    return torch.stack([log_loss(truth, x).mean(0) for x, truth in drawn]).mean(0)


def smooth(values, n=9):
    """Running mean over n, at the ends over what there is."""
    sums = torch.nn.functional.pad(values, (n // 2, n // 2)).unfold(0, n, 1).sum(1)
    return sums / torch.nn.functional.pad(torch.ones_like(values), (n // 2, n // 2)).unfold(0, n, 1).sum(1)


def near_bayes(lines, path):
    """Regret of the meta-trained predictors above PreBayes on the pretraining source, against the position."""
    figure, ((axes,),) = grid(1, 1, 3.2)
    exact = lines.exact(experiment.PRETRAINING)["PreBayes"]
    for kind, colour in zip(KINDS, ("#d1495b", "#2a6fbb")):
        for size, style in zip((experiment.BASE, *lines.preset.sizes), ("-", ":", "--")):
            found = lines.of(experiment.PRETRAINING, kind, "NoTuning", size=size)
            above, label = (found - exact[: len(found)]).mean(0), "{} {}x{}, embedding {}".format(kind, *size)
            axes.plot(FLIPS, above, style, color=colour, linewidth=1.5, label=label)
    axes.axvline(100, color="#cccccc", linewidth=0.8, zorder=0)
    axes.set_ylim(-0.05, 1.5)
    axes.set_xlabel("flips; meta-training saw those to the grey line", fontsize=8)
    axes.set_ylabel("regret above PreBayes, nats", fontsize=8)
    axes.legend(fontsize=7, frameon=False)
    save(figure, path)


def bars(lines, path):
    """Regret after 200 flips, mean ± s.e. over repetitions; pale: untrained predictors. Bars end at the edge."""
    targets = lines.preset.targets
    figure, panels = grid(len(targets), 2, 0.5 + 2.6 * len(targets))
    for target, row in zip(targets, panels):
        exact = {name: of[:, -1].mean().item() for name, of in lines.exact(target).items()}
        runs_of = lambda method: (lines.of(target, *which) for which in product(KINDS, [method], (True, False)))
        names = [method for method in (*experiment.BASELINES, *METHODS) if any(map(len, runs_of(method)))][::-1]
        right = max(8, 1.25 * exact["PreBayes"])
        for kind, axes in zip(KINDS, row):
            for (i, method), trained in product(enumerate(names), (True, False)):
                if len(values := lines.of(target, kind, method, trained)[:, -1]):
                    at, alpha = (i + 0.2, 1) if trained else (i - 0.2, 0.35)
                    axes.barh(at, min(values.mean().item(), right), height=0.38, color=COLOURS[method], alpha=alpha,
                              xerr=spread(values), error_kw=dict(linewidth=0.8))
            for name, style in BAYES.items():
                axes.axvline(exact[name], linewidth=1, **style)
            axes.set_yticks(range(len(names)), names)
            axes.set_xlim(-0.02 * right, right)
            axes.set_title(f"{target}, {kind}", fontsize=9)
    figure.supxlabel("regret after 200 flips, nats; pale: untrained; dashed PreBayes, dotted TargetBayes", fontsize=8)
    save(figure, path)


def lengths(lines, path):
    """Regret after 50 flips against the length of the prefix, hard and soft, with the exact predictors."""
    figure, panels = grid(2, 2, 4.6, sharex=True, sharey=True)
    for target, row in zip(("single", "mixture"), panels):
        for kind, axes in zip(KINDS, row):
            for method in ("HardPT", "SoftPT"):
                found = {n: lines.of(target, kind, method, length=n)[:, TUNED - 1] for n in lines.lengths}
                found = {n: of for n, of in found.items() if len(of)}
                means, errors = [of.mean().item() for of in found.values()], [spread(of) for of in found.values()]
                axes.errorbar(list(found), means, errors, color=COLOURS[method], marker="o", markersize=3,
                              linewidth=1.5, label=method)
            for name, style in BAYES.items():
                at = lines.exact(target)[name][:, TUNED - 1].mean().item()
                axes.axhline(at, linewidth=1, label=name, **style)
            axes.set_title(f"{target}, {kind}", fontsize=9)
    figure.supylabel("regret after 50 flips, nats", fontsize=9)
    panels[-1, 0].set_xlabel("rows of the prefix", fontsize=8)
    legend(figure, panels)
    save(figure, path, 0.05)


def ranking(ranked, path):
    """The 64 hard prefixes of length 6: log loss of 50 flips behind them, by search against PreBayes in closed form."""
    figure, panels = grid(1, 4, 2.4)
    for axes, ((kind, target), (found, exact)) in zip(panels.flat, ranked.items()):
        ones = [sum(prefix) for prefix in found]
        axes.scatter([exact[prefix] for prefix in found], list(found.values()), c=ones, cmap="viridis", s=9)
        low, high = min(exact.values()), max(*exact.values(), *found.values())
        axes.plot((low, high), (low, high), color="#cccccc", linewidth=0.8, zorder=0)
        axes.set_title(f"{target}, {kind}", fontsize=8)
        axes.set_xlabel("PreBayes behind it, nats", fontsize=7)
    panels[0, 0].set_ylabel("search, nats; colour: ones", fontsize=7)
    save(figure, path)


def pca(preset, path, n=200, length=6):
    """Two principal components of the states along sequences of the pretraining source, coloured by the ones so far.

    Lines are where SoftPT's prefix, the best hard one and no prefix lead on sequences of the single coin: their mean.
    """
    figure, panels = grid(1, 2, 3.6)
    x, _ = Beta().sample(n, TUNED, torch.Generator().manual_seed(1))
    single, _ = experiment.TARGETS["single"].sample(n, TUNED, torch.Generator().manual_seed(2))
    for kind, axes in zip(KINDS, panels.flat):
        predictor = shipped(Config(kind))
        with torch.no_grad():
            data = predictor(x, states=True)[:, 1:]  # (n, T-1, width)
        centre = data.flatten(0, 1).mean(0)
        _, s, V = torch.linalg.svd(data.flatten(0, 1) - centre, full_matrices=False)
        share = s**2 / (s**2).sum()
        flat = lambda states: (states - centre) @ V[:2].T
        ones = (x.cumsum(1)[:, :-1] / torch.arange(1, TUNED)).flatten()
        points = axes.scatter(*flat(data).flatten(0, 1).T, c=ones, cmap="coolwarm", s=2, alpha=0.5, linewidths=0)
        best = Tuned(predictor, prefix=predictor.embed(one_hot(predictor, (0, 0, 0, 0, 1, 0))).detach())
        soft = tune(predictor, experiment.TARGETS["single"], "SoftPT", length, preset.n_step, preset.batch)
        for name, tuned, colour in (("no prefix", Tuned(predictor), "black"), ("one 1 in 6", best, COLOURS["HardPT"]),
                                    ("SoftPT", soft, COLOURS["SoftPT"])):
            way = flat(tuned(single, states=True).mean(0))  # (1+L+T-1, 2)
            L = 0 if tuned.prefix is None else length
            axes.plot(*way[L:].T, color=colour, linewidth=1.5, label=name)
            axes.plot(*way[: L + 1].T, color=colour, linewidth=0.8, linestyle=":", marker=".", markersize=4)
            axes.plot(*way[-1], color=colour, marker="s", markersize=4)
        axes.set_title(f"{kind}: {share[0]:.0%} and {share[1]:.0%} of the variance", fontsize=9)
    axes.legend(fontsize=7, frameon=False)
    figure.colorbar(points, ax=panels.ravel().tolist(), label="share of ones so far").ax.tick_params(labelsize=7)
    with replacing(path) as new:
        figure.savefig(new, format="png")
    plt.close(figure)


def bridge(curves, exact, path):
    """Regret of Context Tuning's methods on the Llama against the position in a query, a panel for each target.

    curves: {target: {method: regret (T,)}}; exact: {target: {name: regret (T,)}}.
    """
    figure, panels = grid(1, len(curves), 3.6)
    for target, axes in zip(curves, panels.flat):
        for method, of in curves[target].items():
            name, colour = plots.style(method)
            axes.plot(range(1, 1 + len(of)), of, color=colour, linewidth=1.5, label=name)
        for (name, of), style in zip(exact[target].items(), ("--", "-.", (0, (1, 1, 4, 1)), ":")):
            axes.plot(range(1, 1 + len(of)), of, color="black", linestyle=style, linewidth=1, label=name)
        axes.set_title(target, fontsize=9)
        axes.set_xlabel("flips of a query; demos have 25", fontsize=8)
    panels[0, 0].set_ylabel("cumulative regret, nats", fontsize=8)
    legend(figure, panels)
    save(figure, path, 0.1)
