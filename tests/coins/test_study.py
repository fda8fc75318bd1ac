"""The coin-flip study's runs, tables and figures, on a preset of seconds."""

import json
import math
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanoct.coins import experiment, figures, report, study
from nanoct.coins.coins import Beta, Coins, after, log_loss, regret
from nanoct.coins.predictors import Config, load, save, shipped
from nanoct.coins.tuning import METHODS, tune
from nanoct.io.files import lock
from nanoct.runs.parallel import execute
from nanoct.score import NotFinite

TINY = experiment.Preset(
    2, 4, 2, 16, 4, methods=("HardPT", "SoftPT", "RealPT", "FullWT"), untrained=("SoftPT",), lengths=(1,),
    targets=("single", "mixture"), sizes=((128, 1, 4),),
)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Runs in this process: workers would not know the preset."""
    def execute(runs, results, work, n_worker, prepare, device):
        prepare(device)
        for run in runs:
            if results.key(run) not in results.keys:
                results.append(work(run))
        return results.of(runs)

    monkeypatch.setattr(study, "execute", execute)
    monkeypatch.setitem(experiment.PRESETS, "quick", TINY)
    monkeypatch.setattr(experiment, "DEVICE", "cpu", raising=False)


def start(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["study", *map(str, arguments)])
    study.main()


@pytest.mark.parametrize("preset", experiment.PRESETS)
def test_plans_hold_what_the_paper_asks(preset):
    runs = experiment.plan(experiment.PRESETS[preset])
    assert len({experiment.key(run) for run in runs}) == len(runs)
    of = lambda **wanted: [run for run in runs if all(run[name] == value for name, value in wanted.items())]
    assert all(run["length"] <= 12 for run in of(method="HardPT"))  # 2^L are searched
    assert {run["kind"] for run in runs} == {"transformer", "lstm", "exact"} and of(target="beta", method="NoTuning")
    exact = {(run["target"], run["method"]) for run in of(kind="exact")}
    assert {("single", method) for method in ("PreBayes", "PreBayesPT", "TargetBayes")} < exact
    assert ("beta", "PreBayes") in exact and {run["network"] for run in of(trained=False)} == {
        1000 + seed for seed in range(experiment.PRESETS[preset].n_repetition)}
    if preset != "quick":
        for target in "single", "mixture", "markov":
            assert {run["method"] for run in of(target=target, kind="lstm")} == {*experiment.BASELINES, *METHODS}
            assert {"SoftPT", "HardPT", "FullWT"} <= {run["method"] for run in of(target=target, trained=False)}
        assert {1, 6, 25} <= {run["length"] for run in of(target="mixture", method="SoftPT")}
        assert of(n_embd=4, method="RealPT") and of(n_embd=4, method="SoftPT")
        assert of(width=256, n_layer=2, method="FullWT")
        assert len({run["seed"] for run in of(width=256)}) == experiment.PRESETS[preset].n_wide
    assert {run["seed"] for run in runs} == set(range(experiment.PRESETS[preset].n_repetition))


def test_the_full_preset_is_the_papers():
    full = experiment.PRESETS["full"]
    assert (full.n_step, full.batch, full.n_repetition) == (1000, 256, 10)
    assert (full.n_eval, full.n_search, experiment.T) == (2048, 2048, 200)


def test_a_line_is_what_it_says():
    untuned = ("NoTuning", "single", True)
    run = next(run for run in experiment.plan(TINY) if (run["method"], run["target"], run["trained"]) == untuned)
    line, again = experiment.work(run), experiment.work(run)
    assert line["regret"] == again["regret"] and len(line["regret"]) == 200
    x, truth = experiment.fresh("single", 16, 0)
    wanted = regret(shipped(Config()).predict(x), x, truth).mean(0)
    torch.testing.assert_close(torch.tensor(line["regret"], dtype=torch.float64), wanted, atol=1e-4, rtol=0)
    assert not torch.equal(x, experiment.fresh("single", 16, 1)[0])


def test_lines_hold_what_figures_need():
    """The losses of all hard prefixes in the order of counting, and the tuned prefix of the first repetition."""
    runs = [run for run in experiment.plan(TINY) if run["target"] == "single" and run["length"] == 6]
    of = lambda method, kind, seed=0: experiment.work(next(
        run for run in runs if (run["method"], run["kind"], run["seed"]) == (method, kind, seed)))
    hard, soft = of("HardPT", "lstm"), of("SoftPT", "lstm")
    tuned = tune(shipped(Config("lstm")), Coins([0.2]), "SoftPT", n_step=2, batch=4)
    torch.testing.assert_close(torch.tensor(soft["prefix"]), tuned.prefix, atol=1e-4, rtol=0)
    assert len(hard["searched"]) == 64 and not of("SoftPT", "lstm", 1)["prefix"] and not soft["searched"]
    bound, x, truth = of("PreBayesPT", "exact"), *experiment.fresh("single", 16, 0)
    seen, _ = Coins([0.2]).sample(4, 50, torch.Generator().manual_seed(0))
    losses = [log_loss(after(Beta(), [i >> 5 - j & 1 for j in range(6)], seen), seen).sum(1).mean().item()
              for i in range(64)]
    assert bound["searched"] == pytest.approx(losses, abs=1e-4)
    first = min(range(64), key=losses.__getitem__)
    curve = regret(after(Beta(), [first >> 5 - j & 1 for j in range(6)], x), x, truth).mean(0)
    assert bound["regret"] == pytest.approx(curve.tolist(), abs=1e-4)


def test_repetitions_differ_in_weights_and_in_the_start_of_tuning():
    keys = [("single", "lstm", 128, 1, 128, network, trained, "SoftPT", 3, seed, 1, 2, 0, 0)
            for trained, network in ((True, 0), (False, 1000)) for seed in (0, 1)]
    runs = [dict(zip(experiment.KEY, key)) for key in keys]
    runs[3]["network"] += 1
    (a, b), (c, d) = ([experiment.tuned_of(run).prefix for run in pair] for pair in (runs[:2], runs[2:]))
    assert not torch.equal(a, b) and not torch.equal(c, d) and torch.equal(a, experiment.tuned_of(runs[0]).prefix)
    weights = [experiment.predictor_of(run).unembed.weight for run in runs]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[2], weights[3])


def test_shipped_predictors_are_near_bayes():
    """After 100 flips of the pretraining source; weights/coins/log.jsonl has how near on 8,192 sequences."""
    x, truth = Beta().sample(256, 100, torch.Generator().manual_seed(7))
    for kind, bound in ("lstm", 0.1), ("transformer", 0.25):
        above = regret(shipped(Config(kind)).predict(x), x, truth) - regret(Beta().bayes(x), x, truth)
        assert -0.05 < above[:, -1].mean().item() < bound


@pytest.mark.parametrize("method", ["SoftPT", "FullWT", "HardPT", "LoRAWT", "UnembedWT"])
def test_flops_are_those_that_torch_counts(method):
    """Of tuning a Transformer, within a fifth: attention is left out."""
    run = dict(zip(experiment.KEY, ("single", "transformer", 128, 1, 128, 0, True, method, 4, 0, 3, 8, 0, 8)))
    run["length"] *= method.endswith("PT")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        experiment.tuned_of(run)
    assert experiment.flops(run) == pytest.approx(counter.get_total_flops(), rel=0.2)


@pytest.mark.slow
def test_tables_figures_and_a_second_start(tmp_path, monkeypatch, capsys):
    start(monkeypatch, "--quick", "--out", tmp_path)
    said = capsys.readouterr().out
    text, lines = (tmp_path / "study.md").read_text(), (tmp_path / "runs.jsonl").read_text().splitlines()
    assert "TFLOP" in said and text in said and len(lines) == len(experiment.plan(TINY))
    with monkeypatch.context() as nothing_is_tuned:
        nothing_is_tuned.setattr(experiment, "work", None)
        start(monkeypatch, "--quick", "--report", "--out", tmp_path)
    curves = ("regret", "regret_untrained", "loss", "loss_untrained")
    for name in (*curves, "bars", "ranking", "pca"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000, name
    runs = tmp_path / "runs.jsonl"
    runs.write_text("\n".join(lines[:-3]) + "\n" + lines[-3][:40])  # killed while writing
    monkeypatch.setattr(figures, "draw", lambda *_: None)
    lacks = "lacks 3 of the .* runs of --quick"
    with pytest.warns(UserWarning, match="half-written"), pytest.raises(ValueError, match=lacks):
        start(monkeypatch, "--quick", "--report", "--out", tmp_path)
    start(monkeypatch, "--quick", "--out", tmp_path)
    assert (tmp_path / "study.md").read_text() == text
    written = map(json.loads, runs.read_text().splitlines())
    assert sorted(map(experiment.key, written)) == sorted(map(experiment.key, experiment.plan(TINY)))


def lines_of(values):
    """Lines of single-coin runs of a Transformer.

    values is {(method, trained, length, size): [regret after 50 flips of each repetition]}.
    """
    found = []
    for (method, trained, length, size), of in values.items():
        for seed, value in enumerate(of):
            kind = "exact" if method == "PreBayes" else "transformer"
            key = ("single", kind, *size, 0, trained, method, length, seed, 2, 4, 16, 4)
            run = dict(zip(experiment.KEY, key))
            found.append(run | dict(regret=[value] * 200, seconds=1.0))
    return found[::-1]  # in whatever order they came


def test_differences_are_paired_and_errors_over_repetitions():
    base, narrow = experiment.BASE, (128, 1, 4)
    values = {("SoftPT", True, 6, base): [0.3, 0.5], ("RealPT", True, 6, base): [1.3, 1.6],
              ("SoftPT", False, 6, base): [2.0, 3.0], ("SoftPT", True, 25, base): [0.1, 0.2],
              ("PreBayes", True, 0, base): [0.1, 0.25]}
    lines = report.Lines(lines_of(values), TINY)
    assert lines.regret("single", "transformer", "SoftPT")[:, 0].tolist() == pytest.approx([0.3, 0.5])
    assert lines.regret("single", "transformer", "SoftPT", length=25)[:, 0].tolist() == pytest.approx([0.1, 0.2])
    assert lines.regret("single", "transformer", "SoftPT", False)[:, 0].tolist() == [2, 3]
    assert report.gap(lines, "single", "transformer", base) == "+1.05 ± 0.05"
    assert report.gap(lines, "single", "transformer", narrow) == ""
    assert lines.above("single", "transformer", "SoftPT", bayes="PreBayes") == pytest.approx([0.2, 0.25])
    assert report.cell([1.0, 2.0]) == "1.50 ± 0.50" and report.cell([1.0]) == "1.00" and report.cell([]) == ""


def test_rank_correlation_with_ties():
    assert report.spearman([1, 2, 3, 4], [10.0, 20, 30, 45]) == pytest.approx(1)
    assert report.spearman([1, 2, 3], [3.0, 2, 1]) == pytest.approx(-1)
    # ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5
    assert report.spearman([1, 5, 5, 9], [1.0, 3, 2, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def test_bins_keep_the_first_flips_and_cover_all():
    at = figures.binned(torch.arange(1.0, 201)[None])[0]
    assert at[:14].tolist() == list(range(1, 15)) and at[14] == 15.5 and at[-1] > 180 and len(at) < 40
    rising = torch.arange(1, 201)[None] ** 2 / 2.0
    torch.testing.assert_close(figures.added(rising), at[None] - 0.5)


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_a_network_with_a_nan_gives_no_line_and_is_not_loaded(tmp_path, monkeypatch, kind):
    run = next(run for run in experiment.plan(TINY) if run["method"] == "NoTuning" and run["kind"] == kind)
    predictor = shipped(Config(kind))
    predictor.unembed.bias[0] = math.nan
    monkeypatch.setattr(experiment, "predictor_of", lambda *_: predictor)
    with pytest.raises(NotFinite, match="NoTuning on beta comes to nan"):
        experiment.work(run)
    save(predictor, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a.safetensors is no predictor .* or broken"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("regret, said", [
    ([], "which are not 200 numbers"), ([0.5] * 199, "which are not 200 numbers"), ("0.5", "'regret' is '0.5'"),
    ([None] * 200, "which are not 200 numbers"), ([0.5] * 199 + [math.nan], "numbers that are not finite")])
def test_lines_without_a_whole_finite_curve_are_refused_and_not_skipped(tmp_path, monkeypatch, regret, said):
    (line,) = lines_of({("SoftPT", True, 6, experiment.BASE): [0.5]})
    (tmp_path / "runs.jsonl").write_text(json.dumps(line | dict(regret=regret)) + "\n")
    with pytest.raises(ValueError, match=f"runs.jsonl, line 1 is not a result: .*{said}"):
        start(monkeypatch, "--quick", "--out", tmp_path)


def test_a_study_that_lacks_a_run_is_not_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "execute", lambda *_: [])
    with pytest.raises(ValueError, match="runs.jsonl lacks [0-9]+ of the [0-9]+ runs of --quick"):
        start(monkeypatch, "--quick", "--out", tmp_path)


@pytest.mark.parametrize("arguments, said", [
    (("--workers", "0"), "--workers 0 must be at least 1"),
    (("--device", "abacus"), "abacus"),
])
def test_mistakes_are_a_sentence(monkeypatch, tmp_path, arguments, said):
    with pytest.raises(ValueError, match=said):
        start(monkeypatch, "--quick", "--out", tmp_path, *arguments)


def test_a_second_study_in_the_same_folder_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "execute", execute)
    with lock(tmp_path), pytest.raises(ValueError, match="another process is at work"):
        start(monkeypatch, "--quick", "--out", tmp_path, "--workers", 1)
    assert not (tmp_path / "study.md").exists()
