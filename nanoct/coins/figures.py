"""Figures of the coin-flip study, 800 px wide, one colour per method in all of them.

All figures are drawn from the lines of the runs. For the PCA the shipped predictors run once more, for their states.
"""

from itertools import product

import matplotlib

matplotlib.use("Agg")  # files, no window
import matplotlib.pyplot as plt
import torch

from nanoct.coins import experiment
from nanoct.coins.coins import Beta
from nanoct.coins.experiment import BASE
from nanoct.coins.predictors import KINDS, Config, shipped
from nanoct.coins.tuning import METHODS, PREFIX, WEIGHTS
from nanoct.io.files import replacing
from nanoct.runs import plots
from nanoct.runs.stats import standard_error

COLOURS = {"NoTuning": "#4d4d4d", "RandomPrefix": "#b0b0b0",
           "HardPT": "#e0a100", "SimplexPT": "#3a9d3a", "RealPT": "#c44fb8", "SoftPT": "#d62728",
           "FullWT": "#1f4e9c", "EmbedWT": "#7fb3d5", "UnembedWT": "#17becf", "Un+EmbedWT": "#0f7f78",
           "LoRAWT": "#6a3d9a"}
BAYES = {name: dict(color="black", linestyle=style) for name, style in zip(experiment.BAYES, ("--", "-.", ":"))}
TUNED = 50  # flips that tuning saw
FLIPS = torch.arange(1, 1 + experiment.T)


def draw(lines, out):
    """Draw all figures into a folder. lines: report.Lines."""
    near_bayes(lines, out / "near_bayes.png")
    for trained, name in ((True, ""), (False, "_untrained")):
        curves(lines, trained, "regret", out / f"regret{name}.png")
        curves(lines, trained, "loss", out / f"loss{name}.png")
    bars(lines, out / "bars.png")
    if lines.preset.lengths:
        lengths(lines, out / "lengths.png")
    ranking(lines.ranked(), out / "ranking.png")
    pca(lines, out / "pca.png")


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
    """Standard error of a tensor of repetitions, 0 for a single one."""
    return standard_error(values.tolist()) if len(values) > 1 else 0


def curves(lines, trained, what, path):
    """Regret, or what a flip adds to it, against the position: the mean, and a band from lowest to highest repetition.

    Each target and kind has a panel. Exact predictors are black, methods that tune weights dashed. What one flip adds
    is noisy at late positions. So it is averaged over bins that grow, on a logarithmic axis, which shows the first
    flips.
    """
    targets = lines.preset.targets
    figure, panels = grid(len(targets), 2, 0.8 + 2.4 * len(targets), sharex=True)
    at, shown = (FLIPS, lambda of: of) if what == "regret" else (binned(FLIPS[None].float())[0], added)
    for target, row in zip(targets, panels):
        exact = {name: shown(of).mean(0) for name, of in lines.exact(target).items()}
        of = exact["PreBayes"]
        top = max(4.5, 1.25 * of[-1].item()) if what == "regret" else 1.6 * of.max().item()
        for kind, axes in zip(KINDS, row):
            for method in (*experiment.BASELINES, *METHODS):
                if len(found := shown(lines.of(target, kind, method, trained))):
                    style = dict(color=COLOURS[method], linestyle=(0, (4, 1)) if method in WEIGHTS else "-")
                    axes.plot(at, found.mean(0), linewidth=1.3, label=method, **style)
                    axes.fill_between(at, found.amin(0), found.amax(0), color=COLOURS[method], alpha=0.2, linewidth=0)
            for name, of in exact.items():
                axes.plot(at, of, linewidth=1.2, label=name, **BAYES[name])
            axes.axvline(TUNED, color="#cccccc", linewidth=0.8, zorder=0)
            axes.set_title(f"{target}, {kind}{'' if trained else ', untrained'}", fontsize=9)
            axes.set_ylim(-0.05 * top, top)
            if what == "loss":
                axes.set_xscale("log")
                axes.set_xticks([1, 2, 5, 10, 20, 50, 100, 200], [1, 2, 5, 10, 20, 50, 100, 200])
                axes.minorticks_off()
    said = "cumulative regret, nats" if what == "regret" else "log loss of a flip above the truth's, nats"
    figure.supylabel(said, fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("flips; tuning saw those to the grey line", fontsize=8)
    legend(figure, panels)
    save(figure, path, 0.5 / figure.get_figheight())


def added(of):
    """What a flip adds to regret (n, 200), as the mean of each bin (n, bins)."""
    return binned(of.diff(prepend=torch.zeros(len(of), 1)))


def binned(of):
    """Mean over bins (n, bins) of values (n, T). The first bins have one position, later ones 1/7 of all before."""
    ends = [1]
    while ends[-1] < of.shape[1]:
        ends.append(min(of.shape[1], ends[-1] + max(1, ends[-1] // 7)))
    return torch.stack([of[:, a:b].mean(1) for a, b in zip([0, *ends], ends)], 1)


def near_bayes(lines, path):
    """Regret of the meta-trained predictors above PreBayes on the pretraining source, against the position."""
    figure, panels = grid(1, 2, 3.2, sharey=True)
    exact = lines.exact(experiment.PRETRAINING)["PreBayes"]
    for kind, axes in zip(KINDS, panels.flat):
        for size, style in zip((BASE, *lines.preset.sizes), ("-", "--", ":")):
            found = lines.of(experiment.PRETRAINING, kind, "NoTuning", size=size)
            if len(above := found - exact[: len(found)]):
                label = "{}x{}, embedding {}".format(*size)
                axes.plot(FLIPS, above.mean(0), style, color="#1f4e9c", linewidth=1.5, label=label)
                axes.fill_between(FLIPS, above.amin(0), above.amax(0), color="#1f4e9c", alpha=0.2, linewidth=0)
        axes.axvline(100, color="#cccccc", linewidth=0.8, zorder=0)
        axes.set_ylim(-0.05, 1)
        axes.set_title(kind, fontsize=9)
        axes.set_xlabel("flips; meta-training saw those to the grey line", fontsize=8)
        axes.legend(fontsize=7, frameon=False, loc="upper left")
    panels[0, 0].set_ylabel("regret above PreBayes, nats", fontsize=8)
    save(figure, path)


def bars(lines, path):
    """Regret after 200 flips, mean ± s.e. over repetitions. Untrained is pale. A bar that is cut ends in its number."""
    targets = lines.preset.targets
    figure, panels = grid(len(targets), 2, 0.5 + 2.8 * len(targets))
    for target, row in zip(targets, panels):
        exact = {name: of[:, -1].mean().item() for name, of in lines.exact(target).items()}
        runs_of = lambda method: (lines.of(target, *which) for which in product(KINDS, [method], (True, False)))
        names = [method for method in (*experiment.BASELINES, *METHODS) if any(map(len, runs_of(method)))][::-1]
        right = max(5, 1.25 * exact["PreBayes"])
        for kind, axes in zip(KINDS, row):
            for (i, method), trained in product(enumerate(names), (True, False)):
                if not len(values := lines.of(target, kind, method, trained)[:, -1]):
                    continue
                at, alpha, mean, error = i + 0.2 * (2 * trained - 1), 1 if trained else 0.35, values.mean().item(), None
                if mean + spread(values) < right:
                    error = spread(values)
                else:
                    said = f"{mean:.1f}" + (f" ± {spread(values):.1f}" if len(values) > 1 else "")
                    axes.text(right, at, f"{said} →", fontsize=6, ha="right", va="center",
                              bbox=dict(facecolor="white", edgecolor="none", pad=0.5))
                axes.barh(at, min(mean, right), height=0.38, color=COLOURS[method], alpha=alpha, xerr=error,
                          error_kw=dict(linewidth=0.8))
            for name, style in BAYES.items():
                axes.axvline(exact[name], linewidth=1, **style)
            axes.set_yticks(range(len(names)), names)
            axes.set_xlim(-0.02 * right, right)
            axes.set_title(f"{target}, {kind}", fontsize=9)
    figure.supxlabel("regret after 200 flips, nats; pale: untrained; dashed PreBayes, dash-dotted PreBayesPT, "
                     "dotted TargetBayes", fontsize=8)
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
    for axes in panels[-1]:
        axes.set_xlabel("rows of the prefix", fontsize=8)
    legend(figure, panels)
    save(figure, path, 0.05)


def ranking(ranked, path):
    """The 64 hard prefixes in the order of their loss by search, and the loss of PreBayes behind each."""
    figure, panels = grid(len(ranked), 1, 0.3 + 1.9 * len(ranked))
    for axes, ((kind, target), (found, exact)) in zip(panels.flat, ranked.items()):
        order = sorted(found, key=found.get)
        at, ones = range(len(order)), [sum(prefix) for prefix in order]
        axes.plot(at, [exact[prefix] for prefix in order], "_", color="black", markersize=6, label="PreBayes")
        axes.scatter(at, [found[prefix] for prefix in order], c=ones, cmap="viridis", s=12, label="by search")
        axes.set_xticks(at, ["".join(map(str, prefix)) for prefix in order], rotation=90, fontsize=6.5,
                        family="monospace")
        axes.set_xlim(-1, len(order))
        axes.set_title(f"{target}, {kind}; colour: number of ones", fontsize=9)
        axes.set_ylabel("loss of 50 flips, nats", fontsize=7)
        axes.legend(fontsize=7, frameon=False, loc="upper left")
    save(figure, path)


@torch.no_grad()
def pca(lines, path, n=200):
    """Where a prefix leads: two principal components of the states, a row for each kind, a panel for each method.

    Points are states along sequences of the pretraining source, coloured by the share of ones so far. Lines are the
    mean path along sequences of the single coin, without a prefix and behind the tuned one of the first repetition.
    """
    methods = [method for method in PREFIX if method in lines.preset.methods]
    figure, panels = grid(2, len(methods), 5.6, sharex="row", sharey="row")
    x, _ = Beta().sample(n, TUNED, torch.Generator().manual_seed(1))
    single, _ = experiment.TARGETS["single"].sample(n, TUNED, torch.Generator().manual_seed(2))
    ones = (x.cumsum(1)[:, :-1] / torch.arange(1, TUNED)).flatten()
    for kind, row in zip(KINDS, panels):
        predictor = shipped(Config(kind))
        data = predictor(x, states=True)[:, 1:].flatten(0, 1)  # (n·(T-1), C)
        centre = data.mean(0)
        _, s, V = torch.linalg.svd(data - centre, full_matrices=False)
        share = s**2 / (s**2).sum()
        flat = lambda states: (states - centre) @ V[:2].T
        for method, axes in zip(methods, row):
            axes.scatter(*flat(data).T, c=ones, cmap="coolwarm", s=1.5, alpha=0.4, linewidths=0)
            prefix = torch.tensor(lines.select("single", kind, method)[0]["prefix"])
            for of, colour in ((None, "black"), (prefix, COLOURS[method])):
                way, L = flat(predictor(single, of, states=True).mean(0)), 0 if of is None else len(of)
                axes.plot(*way[L:].T, color=colour, linewidth=1.4)
                axes.plot(*way[: L + 1].T, color=colour, linewidth=0.8, linestyle=":", marker=".", markersize=3)
                for at, marker, size in ((0, "o", 4), (L, "*", 9), (-1, "s", 4)):
                    axes.plot(*way[at], marker, color=colour, markersize=size, markeredgecolor="white",
                              markeredgewidth=0.5)
            axes.set_title(f"{kind}, {method}", fontsize=9)
            axes.set_xlabel(f"component 1 ({share[0]:.0%})", fontsize=7)
        row[0].set_ylabel(f"component 2 ({share[1]:.0%})", fontsize=7)
    figure.supxlabel("black: no prefix; dots: the prefix's rows; star: behind the prefix, where flips begin; square: "
                     "after 50 flips\npoints: states on the pretraining source, blue few ones, red many", fontsize=8)
    save(figure, path)


def bridge(curves, exact, k, path):
    """Regret of Context Tuning's methods on the Llama against the position in a query, a panel for each target.

    curves: {target: {method: regret (T,)}}; exact: {target: {name: regret (T,)}}; k: number of demos. Lines may cover
    each other, so the first are the widest. Names stand at the ends, one above the other where ends are equal.
    """
    figure, panels = grid(1, len(curves), 4.2)
    for target, axes in zip(curves, panels.flat):
        ends = {}
        for i, (method, of) in enumerate(curves[target].items()):
            name, colour = plots.style(method)
            axes.plot(range(1, 1 + len(of)), of, color=colour, linewidth=5 - 0.7 * i, solid_capstyle="butt")
            ends[name] = of[-1].item(), colour
        for (name, of), style in zip(exact[target].items(), ("--", "-.", (0, (1, 1, 4, 1)), ":")):
            axes.plot(range(1, 1 + len(of)), of, color="black", linestyle=style, linewidth=1)
            ends[name] = of[-1].item(), "black"
        top, below = axes.get_ylim()[1], -torch.inf
        for name, (end, colour) in sorted(ends.items(), key=lambda item: item[1][0]):
            below = max(end, below + 0.045 * top)
            axes.annotate(f"{name} {end:.2f}", (len(of), end), (len(of) + 2, below), fontsize=7, color=colour,
                          va="center", annotation_clip=False)
        axes.set_xlim(0, len(of))
        axes.set_title(f"{target}, k = {k} demos of 25 flips", fontsize=9)
        axes.set_xlabel("flips of a query", fontsize=8)
    panels[0, 0].set_ylabel("cumulative regret, nats", fontsize=8)
    save(figure, path)
