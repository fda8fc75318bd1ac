"""The sources of the coin-flip study and their exact predictors, against enumeration and published figures."""

import itertools
from math import exp, lgamma, log

import pytest
import torch

from nanoct.coins.coins import Beta, Coins, Markov, after, log_loss, regret

ALL = torch.tensor(list(itertools.product((0, 1), repeat=6)))  # every sequence of six flips, in the order of counting


def joint(source, biases):
    """P(sequence) of all of ALL by summing over a grid of coins."""
    ones = ALL.sum(1).double()
    return torch.stack([b**ones * (1 - b) ** (6 - ones) for b in biases]).mean(0)


@pytest.mark.parametrize("source, biases", [
    (Beta(), (torch.arange(50_000, dtype=torch.float64) + 0.5) / 50_000),
    *((Coins(biases), biases) for biases in ([0.2], [0.2, 0.8], [0.1, 0.5, 0.5])),
])
def test_bayes_is_the_ratio_of_what_enumeration_gives(source, biases):
    p = joint(source, biases)
    assert p.sum().item() == pytest.approx(1)
    for t in range(6):
        for x in itertools.product((0, 1), repeat=t):
            begins = (ALL[:, :t] == torch.tensor(x, dtype=torch.long)).all(1)
            wanted = p[begins & (ALL[:, t] == 1)].sum() / p[begins].sum()
            sequence = ALL[begins][:1]
            assert source.bayes(sequence)[0, t].item() == pytest.approx(wanted.item(), abs=1e-9)


@pytest.mark.parametrize("prefix", [[1], [0, 0, 1], [1] * 6])
def test_a_hard_prefix_conditions(prefix):
    """By Bayes' rule on the enumeration of prefix and sequence together."""
    ones = sum(prefix)
    x = torch.tensor([[0, 1, 1, 0]])
    got = after(Beta(), prefix, x)[0]
    wanted = Beta(1 + ones, 1 + len(prefix) - ones).bayes(x)[0]  # conjugacy
    torch.testing.assert_close(got, wanted)
    assert not torch.allclose(got, Beta().bayes(x)[0])


@pytest.mark.parametrize("source", [Beta(), Beta(2, 5), Coins([0.2]), Coins([0.2, 0.8]), Markov(0.9), Markov(1.0)])
def test_samples_follow_their_law(source):
    """Predictions are calibrated: among sequences with one past the share of ones is what bayes says."""
    x, truth = source.sample(40_000, 4, torch.Generator().manual_seed(0))
    assert x.shape == truth.shape == (40_000, 4) and x.dtype == torch.int64
    for past in itertools.product((0, 1), repeat=3):
        begins = (x[:, :3] == torch.tensor(past)).all(1)
        if n := begins.sum().item():
            p = source.bayes(x[begins])[0, 3].item()
            error = (max(p * (1 - p), 1e-9) / n) ** 0.5
            assert x[begins, 3].double().mean().item() == pytest.approx(p, abs=4 * error + 1e-9)
            assert truth[begins, 3].mean().item() == pytest.approx(p, abs=0.05)
    again, _ = source.sample(40_000, 4, torch.Generator().manual_seed(0))
    other, _ = source.sample(40_000, 4, torch.Generator().manual_seed(1))
    assert torch.equal(x, again) and not torch.equal(x, other)


def exact_regret(n, p_ones):
    """Regret of the Beta(1,1) predictor after n flips.

    It is the sum over counts k of p_ones(k) times log(P_true(x) / P_bayes(x)), where P_bayes(x) = k! (n-k)! / (n+1)!.
    """
    log_bayes = lambda k: lgamma(k + 1) + lgamma(n - k + 1) - lgamma(n + 2)
    return sum(p * (log_true - log_bayes(k)) for k, (p, log_true) in enumerate(p_ones))


@pytest.mark.parametrize("n", [50, 100, 200])
def test_regret_is_the_closed_form(n):
    """On Beta(1,1) 1.57, 1.90, 2.24 nats at 50, 100, 200, on the coin of .2 and on the mixture 1.48, 1.81, 2.15."""
    choose = lambda k: lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
    log_true = [k * log(0.2) + (n - k) * log(0.8) for k in range(n + 1)]
    single = exact_regret(n, [(exp(choose(k) + log_p), log_p) for k, log_p in enumerate(log_true)])
    assert single == pytest.approx({50: 1.48, 100: 1.81, 200: 2.15}[n], abs=0.01)
    # H(x) - E H(x | bias), half a nat a flip
    own = sum((log(n + 1) + choose(k)) / (n + 1) for k in range(n + 1)) - n / 2
    g = torch.Generator().manual_seed(0)
    for source, wanted in ((Beta(), own), (Coins([0.2]), single), (Coins([0.2, 0.8]), single)):
        x, truth = source.sample(20_000, n, g)
        r = regret(Beta().bayes(x), x, truth)[:, -1]
        assert r.mean().item() == pytest.approx(wanted, abs=4 * r.std().item() / 20_000**0.5)


def test_target_bayes_pays_for_the_choice_of_the_coin_alone():
    x, truth = Coins([0.2]).sample(2_000, 200, torch.Generator().manual_seed(0))
    assert regret(Coins([0.2]).bayes(x), x, truth).abs().max() < 1e-9
    x, truth = Coins([0.2, 0.8]).sample(2_000, 200, torch.Generator().manual_seed(0))
    last = regret(Coins([0.2, 0.8]).bayes(x), x, truth)[:, -1]
    torch.testing.assert_close(last, torch.full((2_000,), log(2), dtype=torch.float64))
    x, truth = Markov(0.9).sample(10, 50, torch.Generator().manual_seed(0))
    assert regret(Markov(0.9).bayes(x), x, truth).abs().max() == 0


def test_log_loss_of_certainties_is_finite():
    x = torch.tensor([[0, 1]])
    assert log_loss(torch.tensor([[0.0, 1.0]]), x)[0].tolist() == pytest.approx([0, 0], abs=1e-9)
    assert log_loss(torch.tensor([[1.0, 0.25]]), x)[0].tolist() == pytest.approx([-log(1e-12), log(4)], rel=1e-3)
