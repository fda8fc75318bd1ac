"""Figures of the coin-flip study, 800 px wide, one colour per method in all of them.

All figures are drawn from the lines of the runs. For the PCA the shipped predictors run once more, for their states.
"""

import torch

from nanoct.coins import experiment
from nanoct.coins.coins import Beta
from nanoct.coins.experiment import BASELINES
from nanoct.coins.predictors import KINDS, Config, shipped
from nanoct.coins.tuning import METHODS, PREFIX, WEIGHTS
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
    for trained, name in ((True, ""), (False, "_untrained")):
        curves(lines, trained, "regret", out / f"regret{name}.png")
        curves(lines, trained, "loss", out / f"loss{name}.png")
    bars(lines, out / "bars.png")
    ranking(lines, out / "ranking.png")
    pca(lines, out / "pca.png")


def panel_of_each(targets, panels):
    """(target, kind, its titled panel): a row for each target, a column for each kind."""
    for target, row in zip(targets, panels):
        for kind, axes in zip(KINDS, row):
            axes.set_title(f"{target}, {kind}", fontsize=9)
            yield target, kind, axes


def band(axes, position, curves, colour, **style):
    """The mean of curves (repetitions, T), and a band from the lowest to the highest."""
    axes.plot(position, curves.mean(0), color=colour, **style)
    axes.fill_between(position, curves.amin(0), curves.amax(0), color=colour, alpha=0.2, linewidth=0)


def legend(figure, panels):
    handles = {}
    for axes in panels.flat:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), fontsize=7, ncols=7, loc="lower center", frameon=False)


def curves(lines, trained, what, path):
    """Regret, or what a flip adds to it, against the position: the mean, and a band from lowest to highest repetition.

    Each target and kind has a panel. Exact predictors are black, methods that tune weights dashed. What one flip adds
    is noisy at late positions. So it is averaged over bins that grow, on a logarithmic axis, which shows the first
    flips.
    """
    targets = lines.preset.targets
    figure, panels = plots.new_figure(len(targets), 2, 0.8 + 2.4 * len(targets), sharex=True)
    position = FLIPS if what == "regret" else binned(FLIPS[None].float())[0]
    for target, kind, axes in panel_of_each(targets, panels):
        for method in (*BASELINES, *METHODS):
            found = lines.regret(target, kind, method, trained)
            if len(found):
                style = (0, (4, 1)) if method in WEIGHTS else "-"
                found = found if what == "regret" else added(found)
                band(axes, position, found, COLOURS[method], linestyle=style, linewidth=1.3, label=method)
        for name, found in lines.exact(target).items():
            mean = (found if what == "regret" else added(found)).mean(0)
            axes.plot(position, mean, linewidth=1.2, label=name, **BAYES[name])
            if name == "PreBayes":
                top = max(4.5, 1.25 * mean[-1].item()) if what == "regret" else 1.6 * mean.max().item()
        axes.axvline(TUNED, color="#cccccc", linewidth=0.8, zorder=0)
        axes.set_ylim(-0.05 * top, top)
        if not trained:
            axes.set_title(f"{target}, {kind}, untrained", fontsize=9)
        if what == "loss":
            axes.set_xscale("log")
            axes.set_xticks([1, 2, 5, 10, 20, 50, 100, 200], [1, 2, 5, 10, 20, 50, 100, 200])
            axes.minorticks_off()
    label = "cumulative regret, nats" if what == "regret" else "log loss of a flip above the truth's, nats"
    figure.supylabel(label, fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("flips; tuning saw those to the grey line", fontsize=8)
    legend(figure, panels)
    plots.save(figure, path, 0.5 / figure.get_figheight())


def added(regret):
    """What a flip adds to regret (n, 200), as the mean of each bin (n, bins)."""
    return binned(regret.diff(prepend=torch.zeros(len(regret), 1)))


def binned(values):
    """Mean over bins (n, bins) of values (n, T). The first bins have one position, later ones 1/7 of all before."""
    ends = [1]
    while ends[-1] < values.shape[1]:
        ends.append(min(values.shape[1], ends[-1] + max(1, ends[-1] // 7)))
    return torch.stack([values[:, start:end].mean(1) for start, end in zip([0, *ends], ends)], 1)


def bars(lines, path):
    """Regret after 200 flips, mean ± s.e. over repetitions. Untrained is pale. A bar that is cut ends in its number."""
    targets, ran = lines.preset.targets, {*BASELINES, *lines.preset.methods, *lines.preset.untrained}
    names = [method for method in (*BASELINES, *METHODS) if method in ran][::-1]
    figure, panels = plots.new_figure(len(targets), 2, 0.5 + 2.8 * len(targets))
    for target, kind, axes in panel_of_each(targets, panels):
        exact = {name: found[:, -1].mean().item() for name, found in lines.exact(target).items()}
        right = max(5, 1.25 * exact["PreBayes"])
        for i, method in enumerate(names):
            for trained in (True, False):
                values = lines.regret(target, kind, method, trained)[:, -1]
                if len(values):
                    place, alpha = (i + 0.2, 1) if trained else (i - 0.2, 0.35)
                    bar(axes, place, values, right, color=COLOURS[method], alpha=alpha)
        for name, style in BAYES.items():
            axes.axvline(exact[name], linewidth=1, **style)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlim(-0.02 * right, right)
    figure.supxlabel("regret after 200 flips, nats; pale: untrained; dashed PreBayes, dash-dotted PreBayesPT, "
                     "dotted TargetBayes", fontsize=8)
    plots.save(figure, path)


def bar(axes, place, values, right, **style):
    """A bar with its error; cut at the right edge, with its number, where it would pass that."""
    mean, error = values.mean().item(), standard_error(values.tolist()) if len(values) > 1 else 0
    if mean + error >= right:
        number = f"{mean:.1f}" + (f" ± {error:.1f}" if len(values) > 1 else "")
        axes.text(right, place, f"{number} →", fontsize=6, ha="right", va="center",
                  bbox=dict(facecolor="white", edgecolor="none", pad=0.5))
        error = None
    axes.barh(place, min(mean, right), height=0.38, xerr=error, error_kw=dict(linewidth=0.8), **style)


def ranking(lines, path):
    """The 64 hard prefixes in the order of their loss by search, and the loss of PreBayes behind each."""
    ranked = lines.ranked()
    figure, panels = plots.new_figure(len(ranked), 1, 0.3 + 1.9 * len(ranked))
    for axes, ((kind, target), (search, closed)) in zip(panels.flat, ranked.items()):
        order = sorted(search, key=search.get)
        places = range(len(order))
        axes.plot(places, [closed[prefix] for prefix in order], "_", color="black", markersize=6, label="PreBayes")
        axes.scatter(places, [search[prefix] for prefix in order], c=[sum(prefix) for prefix in order], cmap="viridis",
                     s=12, label="by search")
        axes.set_xticks(places, ["".join(map(str, prefix)) for prefix in order], rotation=90, fontsize=6.5,
                        family="monospace")
        axes.set_xlim(-1, len(order))
        axes.set_title(f"{target}, {kind}; colour: number of ones", fontsize=9)
        axes.set_ylabel("loss of 50 flips, nats", fontsize=7)
        axes.legend(fontsize=7, frameon=False, loc="upper left")
    plots.save(figure, path)


@torch.no_grad()
def pca(lines, path, n=200):
    """Where a prefix leads: two principal components of the states, a row for each kind, a panel for each method.

    Points are states along sequences of the pretraining source, coloured by the share of ones so far. Lines are the
    mean path along sequences of the single coin, without a prefix and behind the tuned one of the first repetition.
    """
    methods = [method for method in PREFIX if method in lines.preset.methods]
    figure, panels = plots.new_figure(2, len(methods), 5.6, sharex="row", sharey="row")
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
            way(axes, flat(predictor(single, states=True).mean(0)), 0, "black")
            prefix = torch.tensor(lines.select("single", kind, method)[0]["prefix"])
            way(axes, flat(predictor(single, prefix, states=True).mean(0)), len(prefix), COLOURS[method])
            axes.set_title(f"{kind}, {method}", fontsize=9)
            axes.set_xlabel(f"component 1 ({share[0]:.0%})", fontsize=7)
        row[0].set_ylabel(f"component 2 ({share[1]:.0%})", fontsize=7)
    figure.supxlabel("black: no prefix; dots: the prefix's rows; star: behind the prefix, where flips begin; square: "
                     "after 50 flips\npoints: states on the pretraining source, blue few ones, red many", fontsize=8)
    plots.save(figure, path)


def way(axes, path, L, colour):
    """A path (L+T, 2): dotted along the L rows of a prefix, then a line, with marks at its ends and between the two."""
    axes.plot(*path[L:].T, color=colour, linewidth=1.4)
    axes.plot(*path[: L + 1].T, color=colour, linewidth=0.8, linestyle=":", marker=".", markersize=3)
    for place, marker, size in ((0, "o", 4), (L, "*", 9), (-1, "s", 4)):
        axes.plot(*path[place], marker, color=colour, markersize=size, markeredgecolor="white", markeredgewidth=0.5)


def bridge(curves, methods, exact, k, path):
    """Regret of Context Tuning's methods on the Llama against the position in a query, a panel for each target.

    curves: {target: {name: regret (T,)}} of methods, and of exact predictors, which are black; k: number of demos.
    Lines may cover each other, so the first are the widest. Names stand at the ends, one above the other where ends
    are equal.
    """
    figure, panels = plots.new_figure(1, len(curves), 4.2)
    for (target, named), axes in zip(curves.items(), panels.flat):
        ends, flips = [], range(1, 1 + len(named[methods[0]]))  # (regret, name, colour)
        for i, method in enumerate(methods):
            name, colour = plots.style(method)
            axes.plot(flips, named[method], color=colour, linewidth=5 - 0.7 * i, solid_capstyle="butt")
            ends.append((named[method][-1].item(), name, colour))
        for name, style in zip(exact, ("--", "-.", (0, (1, 1, 4, 1)), ":")):
            axes.plot(flips, named[name], color="black", linestyle=style, linewidth=1)
            ends.append((named[name][-1].item(), name, "black"))
        top, below = axes.get_ylim()[1], -torch.inf
        for end, name, colour in sorted(ends, key=lambda end: end[0]):
            below = max(end, below + 0.045 * top)
            axes.annotate(f"{name} {end:.2f}", (len(flips), end), (len(flips) + 2, below), fontsize=7, color=colour,
                          va="center", annotation_clip=False)
        axes.set_xlim(0, len(flips))
        axes.set_title(f"{target}, k = {k} demos of 25 flips", fontsize=9)
        axes.set_xlabel("flips of a query", fontsize=8)
    panels[0, 0].set_ylabel("cumulative regret, nats", fontsize=8)
    plots.save(figure, path)
