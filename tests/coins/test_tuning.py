"""Predictors and tuning of the coin-flip study: shapes, causality, what is trained, gradients, the hard search."""

import itertools
import json
import sys

import pytest
import torch

from nanoct.coins import predictors
from nanoct.coins.coins import Beta, Coins, after, log_loss, regret
from nanoct.coins.predictors import (
    KINDS,
    Config,
    Predictor,
    load,
    loss_of,
    meta_train,
    save,
)
from nanoct.coins.tuning import METHODS, PREFIX, rank, start, tune

TINY = dict(width=16, n_layer=2, n_embd=8)


@pytest.fixture(params=KINDS)
def predictor(request):
    return Predictor(Config(request.param, **TINY))


def flips(n=5, T=7, seed=0):
    return Beta().sample(n, T, torch.Generator().manual_seed(seed))[0]


def test_a_prediction_depends_on_the_past_alone(predictor):
    x = flips()
    log_p = predictor(x)
    assert log_p.shape == (5, 7, 2)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(5, 7))
    for t in range(7):
        changed = x.clone()
        changed[:, t] = 1 - changed[:, t]
        same = (predictor(changed) - log_p).abs().amax((0, 2)) < 1e-6
        assert same[: t + 1].all() and not same[t + 1 :].any()


def test_a_prefix_of_embedded_flips_is_as_flips_before(predictor):
    x, before = flips(), torch.tensor([1, 0, 1])
    prefix = predictor.embed(torch.nn.functional.one_hot(before, 2).float())
    longer = predictor(torch.cat([before.expand(5, -1), x], 1))
    torch.testing.assert_close(predictor(x, prefix), longer[:, 3:])
    assert predictor(x, prefix, states=True).shape == (5, 1 + 3 + 6, 16)


def test_meta_training_lowers_the_loss_and_files_hold_it(predictor, tmp_path):
    losses = meta_train(predictor, Coins([0.1]), n_step=40, batch=32, T=10, lr=1e-2)
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]
    save(predictor, tmp_path / "p.safetensors", seed=0)
    again = load(tmp_path / "p.safetensors")
    assert again.config == predictor.config and torch.equal(again(flips()), predictor(flips()))
    (tmp_path / "p.safetensors").write_bytes((tmp_path / "p.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match="no predictor that nanoct.coins wrote, or broken"):
        load(tmp_path / "p.safetensors")
    with pytest.raises(FileNotFoundError, match="python -m nanoct.coins.predictors"):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match="transformer, lstm, not 'rnn'"):
        Predictor(Config("rnn"))
    for sizes in dict(width=30), dict(width=0), dict(n_layer=0), dict(n_embd=0):
        with pytest.raises(ValueError, match="must be a multiple of 4"):
            Config("lstm", **sizes)


def test_predictors_are_made_once_and_said_to_be_near_bayes(tmp_path, monkeypatch, capsys):
    sizes = ["--width", "8", "--n-step", "2", "--batch", "4"]
    command = ["predictors", "--kind", "lstm", *sizes, "--out", str(tmp_path / "new")]
    monkeypatch.setattr(sys, "argv", command)
    for said in "nats above Bayes", "is there; delete it":
        predictors.main()
        assert said in capsys.readouterr().out
    (line,) = map(json.loads, (tmp_path / "new" / "log.jsonl").read_text().splitlines())
    assert line["name"] == "lstm-8x1" and line["n_step"] == 2 and line["above_bayes"] > 0 and line["torch"]
    assert load(tmp_path / "new" / "lstm-8x1.safetensors").config == Config("lstm", 8)
    monkeypatch.setattr(sys, "argv", [*command, "--batch", "0"])
    with pytest.raises(ValueError, match="--batch 0 must"):
        predictors.main()


@pytest.mark.parametrize("method", METHODS)
def test_only_what_is_tuned_changes_and_seeds_decide(predictor, method):
    before = {name: p.clone() for name, p in predictor.named_parameters()}
    settings = dict(length=3, n_step=3, batch=8, T=6)
    a, b, other = (tune(predictor, Coins([0.2]), method, **settings, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in predictor.named_parameters())
    x = flips()
    assert torch.equal(a.predict(x), b.predict(x))
    assert method == "HardPT" or not torch.equal(a.predict(x), other.predict(x))
    assert (a.prefix is not None) == (method in PREFIX) and bool(a.weights) == (method not in PREFIX)
    embed, unembed = {"embed.weight", "embed.bias"}, {"unembed.weight", "unembed.bias"}
    matrices = {name for name, p in before.items() if name.startswith("body.") and p.dim() == 2}
    trained = {"FullWT": set(before), "EmbedWT": embed, "UnembedWT": unembed, "Un+EmbedWT": embed | unembed,
               "LoRAWT": matrices}
    wanted = trained.get(method, set())
    assert set(a.weights) == wanted
    assert all(not torch.equal(a.weights[name], before[name]) for name in wanted if name.endswith("weight"))
    if method in PREFIX:
        assert a.prefix.shape == (3, 8)
    assert a(x, states=True).shape == (5, 7 + 3 * (method in PREFIX), 16)


@pytest.mark.parametrize("method", METHODS[1:])
def test_tuning_starts_from_the_predictor(predictor, method):
    """Weights from its own, RealPT and SoftPT from flips; SimplexPT a softmax away from them."""
    leaves, make = start(predictor, method, 3, torch.Generator().manual_seed(0))
    weights, prefix = make(leaves)
    if method not in PREFIX:
        assert prefix is None
        got = torch.func.functional_call(predictor, weights, (flips(),))
        torch.testing.assert_close(got, predictor(flips()), rtol=0, atol=0)
    else:
        before = torch.randint(2, (3,), generator=torch.Generator().manual_seed(0))
        rows = torch.nn.functional.one_hot(before, 2).float()
        torch.testing.assert_close(prefix, predictor.embed(rows.softmax(-1) if method == "SimplexPT" else rows))


@pytest.mark.parametrize("method", ["SimplexPT", "RealPT", "SoftPT", "LoRAWT"])
def test_gradients_are_those_of_finite_differences(predictor, method):
    x = flips(4, 5)
    leaves, make = start(predictor, method, 2, torch.Generator().manual_seed(0))
    noise = lambda leaf: 0.1 * torch.randn(leaf.shape, generator=torch.Generator().manual_seed(1))
    leaves = {name: (leaf + noise(leaf)).requires_grad_(True) for name, leaf in leaves.items()}

    def loss():
        weights, prefix = make(leaves)
        return loss_of(torch.func.functional_call(predictor, weights, (x, prefix)), x)

    name = next(iter(leaves))
    (gradient,) = torch.autograd.grad(loss(), [leaves[name]])
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        step = 1e-2
        leaves[name] += step * direction
        up = loss()
        leaves[name] -= 2 * step * direction
        down = loss()
    assert ((up - down) / (2 * step)).item() == pytest.approx((gradient * direction).sum().item(), rel=0.03, abs=2e-5)


def test_simplex_rows_stay_probabilities(predictor):
    tuned = tune(predictor, Coins([0.2]), "SimplexPT", length=3, n_step=5, batch=8, T=6, lr=0.5)
    zero, one = predictor.embed(torch.eye(2))
    share = ((tuned.prefix - zero) @ (one - zero)) / ((one - zero) @ (one - zero))
    assert ((0 < share) & (share < 1)).all()
    torch.testing.assert_close(tuned.prefix, zero + share[:, None] * (one - zero))


def test_the_hard_search_tries_all_and_takes_the_best(predictor):
    losses = rank(predictor, Coins([0.2]), length=4, n_search=64, T=8)
    assert list(losses.values()) == sorted(losses.values()) and set(losses) == set(itertools.product((0, 1), repeat=4))
    x, _ = Coins([0.2]).sample(64, 8, torch.Generator().manual_seed(0))
    flips = (1, 0, 0, 1)
    longer = predictor.predict(torch.cat([torch.tensor(flips).expand(64, -1), x], 1))[:, 4:]
    assert losses[flips] == pytest.approx(log_loss(longer, x).sum(1).mean().item(), rel=1e-5)
    tuned = tune(predictor, Coins([0.2]), "HardPT", length=4, T=8)
    assert tuned.hard in losses
    with pytest.raises(ValueError, match="a length from 1 to 12"):
        tune(predictor, Coins([0.2]), "HardPT", length=25)
    with pytest.raises(ValueError, match="no method 'SoftWT'"):
        tune(predictor, Coins([0.2]), "SoftWT", n_step=1)


class Exact(torch.nn.Module):
    """A predictor that is Bayes itself: what hard prefixes do to it is known in closed form."""

    embed, device = staticmethod(lambda rows: rows), torch.device("cpu")

    def predict(self, x, prefix=None):
        return Beta().bayes(x) if prefix is None else after(Beta(), prefix.argmax(-1), x)


def test_the_search_on_exact_bayes_is_the_closed_form():
    """The best of 2^6 prefixes for the coin of .2 holds one 1 in 6, and what follows is as of Beta(2, 6)."""
    best = next(iter(rank(Exact(), Coins([0.2]), n_search=2048)))
    assert sum(best) == 1
    x, truth = Coins([0.2]).sample(2000, 50, torch.Generator().manual_seed(5))
    torch.testing.assert_close(after(Beta(), best, x), Beta(2, 6).bayes(x))
    last = lambda p: regret(p, x, truth)[:, -1].mean()
    assert last(after(Beta(), best, x)) < 0.5 * last(Beta().bayes(x))
