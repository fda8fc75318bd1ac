"""The Bayes ceiling: the exact posterior over tasks given k demos (solved examples), and what it predicts.

    p(h | D) ~ p(h) · product over the demos of p(x_i, y_i | h)          p(y | x, D) = sum_h p(h | D) p(y | x, h)

There are two priors. "training" is the distribution that pretraining draws tasks from: its score is the best that
an in-context learner of that distribution can reach. "all" also has the held-out kinds of tasks (see each world's
`prior`): its score is the best that anyone can reach with the information in k demos.

A held-out task contradicts every training hypothesis. So each observation is taken to be wrong with probability e,
independently, and e -> 0. In this limit only the hypotheses with the fewest contradictions remain, weighted by
prior and likelihood. A hypothesis without contradictions beats all others.

A world supplies
    prior(which)                            {hypothesis: log p}
    fit(h, pairs, labels)                   (number of contradictions, log-likelihood of the rest) of a data set
    answers(h, x, options, demos, fit)      [(y, contradictions, log-likelihood)] of demos and query together
Cost: at most |prior| · k · n_query calls of a task's function; no model runs.
"""

import random
from math import exp, log

from nanoct.score import judge, score_questions

PRIORS = ("training", "all")


def normalise(terms):
    """Return {key: probability} of terms (key, contradictions, log weight) in the limit e -> 0; keys may recur."""
    least = min(contradictions for _, contradictions, _ in terms)
    terms = [(key, weight) for key, contradictions, weight in terms if contradictions == least]
    top, total = max(weight for _, weight in terms), {}
    for key, weight in terms:
        total[key] = total.get(key, 0.0) + exp(weight - top)
    whole = sum(total.values())
    return {key: p for key, value in total.items() if (p := value / whole)}  # without those that underflow to 0


def posterior(world, demos, which, labels=None):
    """{hypothesis: p(h | demos)}, without those of probability 0."""
    return normalise([(h, *_add(world.fit(h, demos, labels), p)) for h, p in world.prior(which).items()])


def predictives(world, demos, queries, which):
    """p(y | x, demos) for each query (x, y, options): [{y: probability}], without those of probability 0."""
    prior = world.prior(which)
    fits = {h: world.fit(h, demos, queries[0][2]) for h in prior}

    def terms(x, options):
        for h, p in prior.items():
            for y, *fit in world.answers(h, x, options, demos, fits[h]):
                yield y, *_add(fit, p)

    return [normalise(list(terms(x, options))) for x, _, options in queries]


def _add(fit, log_prior):
    return fit[0], fit[1] + log_prior


def evaluate(world, predicted, queries, seed=0):
    """Score predictives by the world's metric: a Result. Of equally probable answers (or options) a seed draws one."""
    rng, guesses, gold = random.Random(seed), [], [y for _, y, _ in queries]
    for p, (_, _, options) in zip(predicted, queries):
        among = options or list(p)
        best = max(p.get(y, 0.0) for y in among) * (1 - 1e-9)  # equal up to rounding, as sums run in another order
        guesses.append(rng.choice([y for y in among if p.get(y, 0.0) >= best]))
    return judge([[guess] for guess in guesses], gold, world.metric)


def divergence(adapted, predicted, pairs):
    """KL(exact predictive || the model's) in nats, the mean over queries.

    predicted: [{y: probability}]. pairs: for each query {y: (ids of x, ids of y)}, at least for the answers y in it;
    x is the same for all y.
    """
    answers = [[ids[y] for y in of_query] for of_query, ids in zip(predicted, pairs)]
    loss, _ = score_questions(adapted, [(of[0][0], [y for _, y in of]) for of in answers])  # per token of y
    terms = [(p, ids[y][1]) for of_query, ids in zip(predicted, pairs) for y, p in of_query.items()]
    return sum(p * (log(p) + nats * len(y)) for (p, y), nats in zip(terms, loss.tolist())) / len(predicted)
