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
    Block,
    Config,
    Predictor,
    load,
    loss_of,
    meta_train,
    save,
    shipped,
)
from nanoct.coins.tuning import METHODS, PREFIX, best, embedded, search, start, tune

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


def width(predictor):
    return predictor.unembed.in_features


def test_a_prefix_of_embedded_flips_is_as_flips_before(predictor):
    x, before = flips(), torch.tensor([1, 0, 1])
    prefix = embedded(predictor, before)
    longer = predictor(torch.cat([before.expand(5, -1), x], 1))
    torch.testing.assert_close(predictor(x, prefix), longer[:, 3:])
    assert predictor(x, prefix, states=True).shape == (5, 1 + 3 + 6, width(predictor))


def test_a_block_is_what_its_definition_says():
    """Head by head, with masks and norms written out, on random weights and norms."""
    block, g = Block(8, 12), torch.Generator().manual_seed(0)
    for p in block.parameters():
        p.data.normal_(generator=g)
    x = torch.randn(2, 5, 8, generator=g)

    def norm(x, of):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return x * of.weight + (0 if of.bias is None else of.bias)

    y = norm(x, block.attention_norm)
    q, k = norm(y @ block.q_proj.weight.T, block.q_norm), norm(y @ block.k_proj.weight.T, block.k_norm)
    v, heads = y @ block.v_proj.weight.T, []
    for h in range(4):
        at = slice(2 * h, 2 * h + 2)
        scores = (q[..., at] @ k[..., at].mT / 2**0.5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ v[..., at])
    attended = x + torch.cat(heads, -1) @ block.o_proj.weight.T
    hidden = torch.nn.functional.gelu(norm(attended, block.mlp_norm) @ block.up_proj.weight.T)
    torch.testing.assert_close(block(x), norm(attended + hidden @ block.down_proj.weight.T, block.norm))
    assert block.q_norm.bias is None and {name for name, _ in block.named_parameters() if "bias" in name} == {
        "attention_norm.bias", "mlp_norm.bias", "norm.bias"}


@pytest.mark.parametrize("kind", KINDS)
def test_networks_start_as_flax_does(kind):
    """Kernels of variance 1 / inputs, cut off at two deviations; recurrent ones orthogonal; no biases; by seed."""
    a, b = (Predictor(Config(kind, 96, 2, seed=seed)) for seed in (0, 1))
    for (name, p), other in zip(a.named_parameters(), b.parameters()):
        if "weight_hh" in name:
            for gate in p.chunk(4):
                torch.testing.assert_close(gate @ gate.T, torch.eye(96), atol=1e-5, rtol=0)
        elif p.dim() == 2:
            assert p.var().item() * p.shape[1] == pytest.approx(1, abs=5 / p.numel() ** 0.5)
            assert 1.9 < p.abs().max().item() * 0.87962566 * p.shape[1] ** 0.5 <= 2 + 1e-4 or p.numel() < 1000
        else:
            assert (p == ("norm" in name and "weight" in name)).all()
        assert p.dim() < 2 or not torch.equal(p, other)


def test_the_beginning_is_a_token_of_zeros(predictor):
    """Its embedding is the bias, so what tunes the embedding tunes the first flip, and so does LoRA on an LSTM."""
    torch.nn.init.normal_(predictor.embed.bias, generator=torch.Generator().manual_seed(0))
    first = predictor(flips())[:, 0]
    rows = predictor.embed(torch.zeros(1, 1, 2))
    if predictor.config.kind == "lstm":
        state = predictor.body(rows)[0]
    else:
        state = predictor.body(rows + torch.tensor([0.0, 1]).repeat(4))
    torch.testing.assert_close(first, predictor.unembed(state)[:, 0].log_softmax(-1).expand(5, -1))
    for method in "EmbedWT", "LoRAWT":
        tuned = tune(predictor, Coins([0.2]), method, n_step=60, batch=16, T=2, lr=0.1)
        assert 0.2 - 0.05 < tuned.predict(flips())[0, 0] < first.exp()[0, 1] - 0.05


def test_a_shipped_predictor_is_tuned_as_the_paper_says():
    """Six soft rows bring the LSTM within .2 nats of TargetBayes on the single coin, EmbedWT its first flip to .2."""
    predictor, (x, truth) = shipped(Config("lstm")), Coins([0.2]).sample(512, 50, torch.Generator().manual_seed(1))
    last = lambda tuned: regret(tuned.predict(x), x, truth)[:, -1].mean().item()
    assert last(predictor) > 1.3
    assert last(tune(predictor, Coins([0.2]), "SoftPT", n_step=100, batch=32)) < 0.2
    first = tune(predictor, Coins([0.2]), "EmbedWT", n_step=200, batch=64, T=1).predict(x)[0, 0].item()
    assert first == pytest.approx(0.2, abs=0.05) and predictor.predict(x)[0, 0].item() == pytest.approx(0.5, abs=0.05)


def test_meta_training_lowers_the_loss_and_files_hold_it(predictor, tmp_path):
    losses = meta_train(predictor, Coins([0.1]), n_step=40, batch=32, T=10, lr=1e-2)
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]
    save(predictor, tmp_path / "p.safetensors", seed=0)
    again = load(tmp_path / "p.safetensors")
    assert again.config == predictor.config and torch.equal(again(flips()), predictor(flips()))
    (tmp_path / "p.safetensors").write_bytes((tmp_path / "p.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match="no predictor that nanoct.coins wrote, or broken"):
        load(tmp_path / "p.safetensors")
    with pytest.raises(FileNotFoundError, match="nanoct coins.predictors"):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match="transformer, lstm, not 'rnn'"):
        Predictor(Config("rnn"))
    for sizes in dict(n_embd=30), dict(width=0), dict(n_layer=0), dict(n_embd=0):
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
    assert a(x, states=True).shape == (5, 7 + 3 * (method in PREFIX), width(predictor))


@pytest.mark.parametrize("method", METHODS[1:])
def test_tuning_starts_from_the_predictor(predictor, method):
    """Weights from its own, RealPT from flips of which half are ones, SimplexPT a softmax away, SoftPT one-hot."""
    leaves, make = start(predictor, method, 6, torch.Generator().manual_seed(0))
    weights, prefix = make(leaves)
    if method not in PREFIX:
        assert prefix is None
        got = torch.func.functional_call(predictor, weights, (flips(),))
        torch.testing.assert_close(got, predictor(flips()), rtol=0, atol=0)
        return
    rows, again = (start(predictor, method, 6, torch.Generator().manual_seed(seed))[0]["rows"] for seed in (0, 1))
    assert ((rows == 0) | (rows == 1)).all() and (rows.sum(1) == 1).all() and not torch.equal(rows, again)
    if method == "SoftPT":
        assert torch.equal(prefix, rows) and rows.shape == (6, 8)
    else:
        assert rows[:, 1].sum() == again[:, 1].sum() == 3
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
    behind = lambda flips, x: predictor.predict(x, embedded(predictor, flips))
    losses = search(behind, Coins([0.2]), length=4, n_search=64, T=8)
    assert list(losses) == list(itertools.product((0, 1), repeat=4))
    x, _ = Coins([0.2]).sample(64, 8, torch.Generator().manual_seed(0))
    flips = (1, 0, 0, 1)
    longer = predictor.predict(torch.cat([torch.tensor(flips).expand(64, -1), x], 1))[:, 4:]
    assert losses[flips] == pytest.approx(log_loss(longer, x).sum(1).mean().item(), rel=1e-5)
    tuned = tune(predictor, Coins([0.2]), "HardPT", length=4, n_search=64, T=8)
    assert tuned.searched == losses and losses[best(tuned.searched)] == min(losses.values())
    torch.testing.assert_close(tuned.prefix, embedded(predictor, best(tuned.searched)))
    with pytest.raises(ValueError, match="a length from 1 to 12"):
        tune(predictor, Coins([0.2]), "HardPT", length=25)
    with pytest.raises(ValueError, match="no method 'SoftWT'"):
        tune(predictor, Coins([0.2]), "SoftWT", n_step=1)


def test_the_search_on_exact_bayes_is_the_closed_form():
    """The best of 2^6 prefixes for the coin of .2 holds one 1 in 6, and what follows is as of Beta(2, 6)."""
    found = best(search(lambda flips, x: after(Beta(), flips, x), Coins([0.2])))
    assert sum(found) == 1
    x, truth = Coins([0.2]).sample(2000, 50, torch.Generator().manual_seed(5))
    torch.testing.assert_close(after(Beta(), found, x), Beta(2, 6).bayes(x))
    last = lambda p: regret(p, x, truth)[:, -1].mean()
    assert last(after(Beta(), found, x)) < 0.5 * last(Beta().bayes(x))
