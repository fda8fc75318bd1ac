"""A world with the interface of a public benchmark, and what no public one has: the exact Bayes answer."""

import time
from functools import lru_cache

from nanoct.benchmarks.nano import WORLDS, bayes, encode, make_task


@lru_cache(maxsize=8)
def predictives(world, name, seed, k, which):
    """The queries of a task as text, and the exact Bayes prediction for each."""
    demos, queries = WORLDS[world].examples(name, seed, k, WORLDS[world].n_query)
    return queries, bayes.predictives(WORLDS[world], demos, queries, which)


class Benchmark:
    """A world: K, SEEDS, pools and make_task, as every benchmark has them, and two functions of the Bayes answer."""

    SEEDS = (0, 1, 2)

    def __init__(self, name):
        self.name, self.world, self.K = name, WORLDS[name], WORLDS[name].k

    def pools(self, data=None):
        return self.world.pools()

    def make_task(self, data, name, tokenizer, seed, k=None, length=None, limit_queries=None, wrong=0.0):
        """Return the Task, and None: nothing is left out of it."""
        return make_task(self.name, name, tokenizer, seed, k, wrong=wrong), None

    def ceiling(self, name, seed, k, which):
        """The fields of a line: the score of the exact Bayes answers under a prior."""
        start = time.perf_counter()
        queries, predicted = predictives(self.name, name, seed, k, which)
        return dict(score=bayes.evaluate(self.world, predicted, queries).score, n_query=len(queries), n_trained=0,
                    seconds=round(time.perf_counter() - start, 4), kl=None)

    def divergence(self, adapted, tokenizer, name, seed, k):
        """KL from the exact Bayes predictive to what an Adapted answers, in nats a query."""
        queries, predicted = predictives(self.name, name, seed, k, "all")
        answers = []
        for (x, _, _), probabilities in zip(queries, predicted):
            answers.append({y: encode(tokenizer, x, y, self.world.delimiter) for y in probabilities})
        return bayes.divergence(adapted, predicted, answers)
