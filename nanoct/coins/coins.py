"""Binary sequences and their exact predictors, to compare a meta-trained network with (arXiv 2505.17010).

A source draws sequences x (n, T), int64, and their truth (n, T): the probability of a 1 at every position, given which
coin was drawn. Its bayes(x) is the best prediction that knows the source but not the coin: the posterior predictive
P(x_t = 1 | x_<t) (n, T), which sums over the coins. All probabilities are float64.

    Beta(1, 1)                 pretraining: a coin whose bias is drawn uniformly
    Coins([.2])                a single coin; Coins([.2, .8]) a mixture, each equally likely
    Markov(.9)                 not in pretraining: x_t differs from x_{t-1} with probability .9

A hard prefix s is a sequence of flips that a predictor sees before x; after(source, s, x) predicts x behind it.
"""

from dataclasses import dataclass

import torch


def flip(truth, generator):
    """Draw sequences of the shape of truth, which has the probabilities of a 1."""
    return (torch.rand(truth.shape, generator=generator, dtype=torch.float64) < truth).long()


def ones_before(x):
    """The number of ones before every position (n, T)."""
    return x.cumsum(1) - x


@dataclass
class Beta:
    """Coins whose bias is drawn from Beta(a, b)."""

    a: float = 1.0
    b: float = 1.0

    def sample(self, n, T, generator):
        shapes = torch.tensor([[self.a, self.b]], dtype=torch.float64).expand(n, 2).contiguous()
        gammas = torch._standard_gamma(shapes, generator)
        bias = gammas[:, :1] / gammas.sum(1, keepdim=True)
        return flip(truth := bias.expand(n, T), generator), truth

    def bayes(self, x):
        """(a + ones so far) / (a + b + flips so far)."""
        return (self.a + ones_before(x)) / (self.a + self.b + torch.arange(x.shape[1], dtype=torch.float64))


@dataclass
class Coins:
    """One of several coins, each equally likely, flipped again and again. biases: the coins' probabilities of a 1."""

    biases: list

    def sample(self, n, T, generator):
        which = torch.randint(len(self.biases), (n, 1), generator=generator)
        return flip(truth := torch.tensor(self.biases, dtype=torch.float64)[which].expand(n, T), generator), truth

    def bayes(self, x):
        """The mean of the biases, weighted by how likely each makes the flips so far."""
        ones, biases = ones_before(x)[..., None], torch.tensor(self.biases, dtype=torch.float64)
        zeros = torch.arange(x.shape[1])[:, None] - ones
        return (torch.softmax(ones.xlogy(biases) + zeros.xlogy(1 - biases), -1) * biases).sum(-1)


@dataclass
class Markov:
    """A coin that turns: the first flip is fair, x_t differs from x_{t-1} with probability `turn`; 1 alternates."""

    turn: float = 0.9

    def sample(self, n, T, generator):
        first = flip(torch.full((n, 1), 0.5, dtype=torch.float64), generator)
        turns = flip(torch.full((n, T - 1), self.turn, dtype=torch.float64), generator)
        x = torch.cat([first, turns], 1).cumsum(1) % 2
        return x, self.bayes(x)

    def bayes(self, x):
        """Its own law: there is nothing to infer."""
        later = torch.where(x[:, :-1] == 1, 1 - self.turn, self.turn).double()
        return torch.cat([torch.full((len(x), 1), 0.5, dtype=torch.float64), later], 1)


def after(source, prefix, x):
    """The source's Bayes prediction of x (n, T) after a hard prefix (L,) of flips."""
    seen = torch.cat([torch.as_tensor(prefix)[None].expand(len(x), -1), x], 1)
    return source.bayes(seen)[:, len(prefix):]


def log_loss(p, x):
    """-log p(x_t) in nats (n, T), p (n, T) the probability of a 1. Always finite: p is kept 1e-12 away from 0 and 1."""
    p = p.double().clamp(1e-12, 1 - 1e-12)
    return -torch.where(x == 1, p, 1 - p).log()


def regret(p, x, truth):
    """Cumulative regret in nats (n, T): the log loss of p so far minus that of the truth."""
    return (log_loss(p, x) - log_loss(truth, x)).cumsum(1)
