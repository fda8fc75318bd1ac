"""The Bayes ceiling: against cases by hand, literal sums with a small noise, and what pretraining really draws."""

import random
from collections import Counter
from dataclasses import replace
from itertools import combinations, islice, product
from math import comb, exp, log, prod
from types import SimpleNamespace

import pytest
import torch
from helpers import V, random_ids, random_task, tiny_llama

from nanoct.benchmarks import nano
from nanoct.benchmarks.nano import bayes, facts, grids, lexicon
from nanoct.fewshot import Adapted
from nanoct.methods import icl

STRINGS, LEXICON, FACTS = (nano.WORLDS[name] for name in ("strings", "lexicon", "facts"))
GRIDS = replace(grids.WORLD, primitives=dict(list(grids.PRIMITIVES.items())[::3]))  # a ninth of the functions: fast
E = 1e-9  # the noise of the literal sums
LABELS = [" dog", " cat"]


def literal(terms):
    """{key: probability} of terms (key, weight)."""
    total = {}
    for key, weight in terms:
        total[key] = total.get(key, 0.0) + weight
    return {key: weight / sum(total.values()) for key, weight in total.items()}


def assert_equal(p, expected, tolerance=1e-6):
    assert sum(p.values()) == pytest.approx(1)
    for y in p.keys() | expected.keys():
        assert p.get(y, 0.0) == pytest.approx(expected.get(y, 0.0), abs=tolerance), y


# --- the noise limit ---


def test_fewest_contradictions_win_then_weights_and_equal_keys_add_up():
    terms = [("a", 1, log(0.2)), ("b", 1, log(0.5)), ("a", 1, log(0.1)), ("b", 2, log(900.0)), ("c", 3, 0.0)]
    assert bayes.normalise(terms) == pytest.approx({"a": 3 / 8, "b": 5 / 8})


def test_very_small_weights_do_not_underflow():
    assert bayes.normalise([("a", 0, -5000.0), ("b", 0, -5000.0 + log(3))]) == pytest.approx({"a": 0.25, "b": 0.75})
    # no answer of probability 0: KL takes its log
    assert bayes.normalise([("a", 0, -5000.0), ("b", 0, 0.0)]) == {"b": 1.0}


@pytest.mark.parametrize("task, k", [("reverse", 1), ("reverse", 2), ("held out", 0), ("held out", 1), ("held out", 6)])
def test_strings_against_a_literal_sum_with_noise(task, k):
    """A held-out function contradicts every hypothesis; what is left then are those that contradict least."""
    name = STRINGS.pools()["held_out"][0] if task == "held out" else task
    demos, queries = STRINGS.examples(name, seed=1, k=k, n_query=4)
    right = lambda h, x, y: STRINGS.apply(h, x) == y
    terms = [(h, exp(p) * prod(1 - E if right(h, x, y) else E for x, y in demos))
             for h, p in STRINGS.prior("training").items()]
    assert_equal(bayes.posterior(STRINGS, demos, "training"), literal(terms))
    for (x, _, _), predictive in zip(queries, bayes.predictives(STRINGS, demos, queries, "training")):
        assert_equal(predictive, literal([(STRINGS.apply(h, x), weight) for h, weight in terms]))
    if task == "held out" and k == 6:
        assert all(not all(right(h, x, y) for x, y in demos) for h, _ in terms)


@pytest.mark.parametrize("world", [STRINGS, GRIDS, LEXICON, FACTS])
@pytest.mark.parametrize("which", bayes.PRIORS)
def test_without_demos_the_posterior_is_the_prior(world, which):
    prior = {h: exp(p) for h, p in world.prior(which).items()}
    assert sum(prior.values()) == pytest.approx(1)
    assert_equal(bayes.posterior(world, [], which, LABELS), prior, 1e-12)


# --- the training prior is what pretraining draws ---


def assert_frequencies(drawn, expected):
    """Counts of draws, within four standard errors of the expected {key: probability}; nothing else was drawn."""
    n = drawn.total()
    assert drawn.keys() <= expected.keys()
    for key, p in expected.items():
        assert abs(drawn[key] / n - p) <= 4 * (p * (1 - p) / n) ** 0.5, key


@pytest.mark.parametrize("world", [STRINGS, GRIDS])
def test_functions_are_drawn_with_their_prior(world):
    rng, train = random.Random(0), world.pools()["train"]
    prior = {name: exp(p) for name, p in world.prior("training").items()}
    drawn = Counter(world.draw_name(rng, train) for _ in range(8000))
    kind = lambda name: "pair" if " then " in name else name
    expected = Counter()
    for name, p in prior.items():
        expected[kind(name)] += p
    assert_frequencies(Counter(map(kind, drawn.elements())), expected)
    assert set(prior) == set(train) and len(set(p for name, p in prior.items() if " then " in name)) == 1
    for seed in range(20):  # and an episode is of such a draw
        rng, episode = random.Random(seed), world.episode(random.Random(seed), "train")
        name, pair = world.draw_name(rng, train), next(episode)
        x = world.draw(rng)
        assert pair == (world.write(x), world.apply(name, world.write(x)))


def test_attributes_are_drawn_with_their_prior(monkeypatch):
    """The prior is that of episodes with animals for labels; half of all name their attribute."""
    drawn = []
    monkeypatch.setattr(lexicon, "sentences", lambda name, labels, rng: drawn.append((name, labels)))
    rng = random.Random(0)
    for _ in range(6000):
        LEXICON.episode(rng)
    unnamed = [(name, labels) for name, labels in drawn if set(labels) <= set(lexicon.ANIMALS)]
    named = Counter((name, *labels) for name, labels in drawn if not set(labels) <= set(lexicon.ANIMALS))
    assert_frequencies(named, {(pair[0], *(f" {label}" for label in pair)): 1 / 4 for pair in lexicon.ATTRIBUTES})
    assert abs(len(unnamed) / len(drawn) - 0.5) < 0.03
    hypotheses = Counter((name.removesuffix(" renamed"), sorted(labels).index(labels[0])) for name, labels in unnamed)
    assert_frequencies(hypotheses, {h: exp(p) for h, p in LEXICON.prior("training").items()})


def test_relations_are_drawn_with_their_prior():
    rng, drawn, stated = random.Random(0), Counter(), 0
    for _ in range(4000):
        pairs = list(islice(FACTS.episode(rng), 8))
        named = [x for x, _ in pairs if len(x.split()) == 2]
        assert len(named) in (0, 8)
        stated += bool(named)
        if not named:
            (name,) = [name for name, to in facts.table().items() if all(to[x] == y for x, y in pairs)]
            drawn[name] += 1
    assert abs(stated / 4000 - 0.7) < 0.03
    assert_frequencies(drawn, {name: exp(p) for name, p in FACTS.prior("training").items()})


# --- the lexicon ---


def test_lexicon_prior_by_hand():
    """Five kinds, the labels either way round: 4 attributes, 24 ANDs, 11 XORs, 16 of most, all halves as one."""
    training, all_ = LEXICON.prior("training"), LEXICON.prior("all")
    assert len(training) == 2 * 4 and len(all_) == 2 * (4 + 24 + 11 + 16 + 1)
    assert [exp(p) for p in training.values()] == pytest.approx([1 / 8] * 8)
    names = ["big", "alive and not hot", "alive xor hot", "most of alive, big, not hot", "half"]
    assert [exp(all_[name, 1]) for name in names] == pytest.approx([1 / 40, 1 / 240, 1 / 110, 1 / 160, 1 / 10])
    assert sum(map(exp, training.values())) == pytest.approx(1) == sum(map(exp, all_.values()))


def test_lexicon_fit_by_hand():
    """ral is dead, small, cold, slow; san is alive instead; vel is alive, big and hot instead."""
    assert [lexicon.bits(word) for word in (" ral", " san", " vel")] == [(0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 1, 0)]
    # hypothesis (·, 0) calls its first class the cat: it sorts first
    fit = lambda h, *pairs: LEXICON.fit(h, pairs, LABELS)
    half, cat, dog = log(2), (" san vel san", " cat"), (" san vel san", " dog")
    assert fit(("alive", 0), cat) == (0, pytest.approx(-half - 3 * log(48)))
    assert fit(("alive", 1), dog) == (0, pytest.approx(-half - 3 * log(48)))
    # noise says nothing of classes
    assert fit(("alive", 0), dog) == fit(("alive", 1), cat) == (3, pytest.approx(-half))
    assert fit(("big", 0), cat) == (2, pytest.approx(-half - log(48)))
    assert fit(("alive and not hot", 0), cat) == (1, pytest.approx(-half - 2 * log(24)))
    assert fit(("alive and not hot", 1), cat) == (2, pytest.approx(-half - log(72)))
    assert fit(("alive xor hot", 0), cat, dog) == (1 + 2, pytest.approx(-2 * half - 3 * log(48)))
    assert fit(("most of alive, big, fast", 0), cat) == (2, pytest.approx(-half - log(48)))
    assert fit(("half", 0), cat) == (0, pytest.approx(-half - 3 * log(48) + log(comb(94, 46) / comb(96, 48))))
    assert fit(("half", 0), cat)[1] == pytest.approx(-half - 3 * log(48) + log(47 / 190))  # (48 · 47) / (96 · 95)
    wrong, evidence = fit(("half", 0), cat, (" vel ral ral", " dog"))  # vel stood in both classes: it may be in either
    ways = comb(93, 46) + comb(93, 47)  # san is in the first, ral in the second, vel in either
    assert (wrong, evidence) == (1, pytest.approx(-2 * half - 5 * log(48) + log(ways / comb(96, 48))))


def test_lexicon_predictive_by_hand():
    """After one cat sentence of ral, which has no attribute, all four stand, alike.

    Those that san has say "dog" to it, one of four, and those that vel has, three of four.
    """
    demos = [(" ral ral ral", " cat")]
    queries = [(f" {word} {word} {word}", " cat", LABELS) for word in ("san", "vel", "ral")]
    expected = [{" cat": 3 / 4, " dog": 1 / 4}, {" cat": 1 / 4, " dog": 3 / 4}, {" cat": 1.0}]
    for options in (LABELS, LABELS[::-1]):  # the order of the labels, also from query to query, says nothing
        got = bayes.predictives(LEXICON, demos, [queries[0], *((x, y, options) for x, y, _ in queries[1:])], "training")
        for p, of_query in zip(got, expected):
            assert_equal(p, of_query)
    # a query judges the attributes too: alive, big and hot have words on both sides; fast decides
    (mixed,) = bayes.predictives(LEXICON, demos, [(" san vel ral", " cat", LABELS)], "training")
    assert mixed == {" cat": 1.0}


@pytest.fixture
def few_words(monkeypatch):
    """Eight words instead of 96, so that all 70 halves can be written out."""
    monkeypatch.setattr(lexicon, "WORDS", random.Random(3).sample(lexicon.WORDS, 8))
    lexicon.classes.cache_clear()
    yield lexicon.WORDS
    lexicon.classes.cache_clear()


def noisy(classes, i, pairs):
    """p(pairs | h) with noise: a word is drawn from its class, but with probability E from all words not in it."""
    one = lambda word, of: (1 - E) / len(of) if word in of else E
    return prod(0.5 * prod(one(word, classes[y != sorted(LABELS)[i]]) for word in lexicon.words(x)) for x, y in pairs)


def sentences(rng, words, first, n):
    """n sentences of the task, some with a word of the wrong class."""
    pairs = []
    for _ in range(n):
        y, x = rng.choice(LABELS), []
        while len(x) < 3:
            word = rng.choice(words)
            if (word in first) == (y == " cat") or rng.random() < 0.1:
                x.append(word)
        pairs.append(("".join(x), y))
    return pairs


@pytest.mark.parametrize("seed", range(12))
def test_half_is_the_sum_over_all_halves(few_words, seed):
    rng = random.Random(seed)
    first = rng.sample(few_words, rng.choice((2, 4, 4, 6)))  # also where more words are seen in a class than a half has
    pairs = sentences(rng, few_words, first, 1 + seed)
    for i in (0, 1):
        halves = [(sum((word in half) != (y == sorted(LABELS)[i]) for x, y in pairs for word in lexicon.words(x)))
                  for half in combinations(few_words, 4)]
        least = min(halves)
        evidence = halves.count(least) / len(halves) * 0.5 ** len(pairs) * 0.25 ** (3 * len(pairs) - least)
        assert LEXICON.fit(("half", i), pairs, LABELS) == (least, pytest.approx(log(evidence)))


@pytest.mark.parametrize("which", bayes.PRIORS)
@pytest.mark.parametrize("seed, k", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)])
def test_lexicon_against_a_literal_sum_with_noise(few_words, which, seed, k):
    """Every hypothesis written out, the halves one by one, and each word wrong with a small probability."""
    rng = random.Random(seed)
    pairs = sentences(rng, few_words, rng.sample(few_words, 4), k + 3)
    demos, queries = pairs[:k], [(x, y, LABELS) for x, y in pairs[k:]]
    hypotheses = []
    for (name, i), p in LEXICON.prior(which).items():
        halves = [(set(half), set(few_words) - set(half)) for half in combinations(few_words, 4)]
        classes = halves if name == "half" else [lexicon.classes(name)]
        hypotheses += [(name, of, i, exp(p) / len(classes)) for of in classes]
    weights = [((name, i), p * noisy(of, i, demos)) for name, of, i, p in hypotheses]
    assert_equal(bayes.posterior(LEXICON, demos, which, LABELS), literal(weights))
    for (x, _, _), predictive in zip(queries, bayes.predictives(LEXICON, demos, queries, which)):
        sums = [(y, p * noisy(of, i, [*demos, (x, y)])) for _, of, i, p in hypotheses for y in LABELS]
        assert_equal(predictive, literal(sums))


# --- facts ---


def test_a_fact_that_two_relations_share_leaves_both():
    table, train = facts.table(), FACTS.pools()["train"]
    person, answer, both = next((x, y, both) for x, y in product(facts.PEOPLE, facts.PEOPLE)
                                if len(both := [name for name in train if table[name][x] == y]) == 2)
    assert bayes.posterior(FACTS, [(person, answer)], "training") == pytest.approx({both[0]: 0.5, both[1]: 0.5})
    other = next(x for x in facts.PEOPLE if table[both[0]][x] != table[both[1]][x])
    (predictive,) = bayes.predictives(FACTS, [(person, answer)], [(other, table[both[0]][other], None)], "training")
    assert predictive == pytest.approx({table[name][other]: 0.5 for name in both})


# --- the score of the ceiling ---


def queries_of(options, *gold):
    return [("x", y, options) for y in gold]


def test_ties_are_broken_by_seed_and_nothing_without_probability_beats_what_has_some():
    world, n = SimpleNamespace(metric="accuracy"), 2000
    queries = queries_of(list("abcd"), *"a" * n)
    guessed = lambda p, seed=0: sum(bayes.evaluate(world, [p] * n, queries, seed).per_query) / n
    assert guessed({"b": 1e-6, "z": 1 - 1e-6}) == 0  # b, the only option that has any; z is none
    assert guessed({"a": 1e-6, "z": 1 - 1e-6}) == 1
    assert guessed({"a": 0.4, "b": 0.4, "c": 0.2}) == pytest.approx(0.5, abs=0.05)
    assert guessed({"a": 0.1 + 0.2, "b": 0.3, "z": 0.4}) == pytest.approx(0.5, abs=0.05)  # but for rounding equal
    assert guessed({"z": 1.0}) == pytest.approx(0.25, abs=0.04)
    ties = [bayes.evaluate(world, [{"a": 0.5, "b": 0.5}] * 20, queries[:20], seed).per_query for seed in (0, 0, 1)]
    assert ties[0] == ties[1] != ties[2]


def test_without_options_every_answer_is_one():
    result = bayes.evaluate(SimpleNamespace(metric="ids"), [{"a": 0.6, "b": 0.4}] * 3, queries_of(None, "a", "b", "a"))
    assert result.score == 2 / 3 and result.per_query == [True, False, True]


def test_the_world_chooses_the_metric():
    predicted, queries = [{"a": 1.0}] * 4, queries_of(["a", "b"], *"aaab")
    assert bayes.evaluate(SimpleNamespace(metric="accuracy"), predicted, queries).score == 3 / 4
    macro = bayes.evaluate(SimpleNamespace(metric="macro_f1"), predicted, queries)
    assert macro.score == pytest.approx((6 / 7 + 0) / 2) and macro.per_query == [True] * 3 + [False]


def ceiling(world, pool, which, tasks, seed=0):
    scores = []
    for name in world.pools()[pool][:tasks]:
        demos, queries = world.examples(name, seed, world.k, world.n_query)
        predicted = bayes.predictives(world, demos, queries, which)
        assert all(sum(p.values()) == pytest.approx(1) and min(p.values()) > 0 for p in predicted)
        scores.append(bayes.evaluate(world, predicted, queries).score)
    return sum(scores) / tasks


@pytest.mark.parametrize("which", bayes.PRIORS)
def test_what_is_trained_is_clear_from_k_demos(which):
    assert ceiling(STRINGS, "train", which, tasks=3) > 0.95 and ceiling(FACTS, "train", which, tasks=3) > 0.95


def test_relations_without_a_task_are_chance_to_the_training_prior_and_clear_to_the_other():
    # 4 s.e. of 384 queries: 0.09
    assert ceiling(FACTS, "held_out", "training", tasks=24) == pytest.approx(0.25, abs=0.1)
    assert ceiling(FACTS, "held_out", "all", tasks=24) > 0.95


# --- KL ---


@pytest.fixture(scope="module")
def adapted():
    """A tiny Llama that has read four demos, and its slow log p(y | x): token by token, all read again each time."""
    model, task = tiny_llama(), random_task()
    context = [*task.instruction, *(token for demo in task.demos for token in (*demo.x, *demo.y))]

    def slow(x, y):
        log_p = 0.0
        for i, token in enumerate(y):
            hidden, _ = model(torch.tensor([[*context, *x, *y[:i]]]))
            log_p += torch.log_softmax(model.logits(hidden[0, -1]), -1)[token].item()
        return log_p

    return icl.adapt(model, task, icl.Config()), slow


def test_divergence_against_a_slow_loop(adapted):
    adapted, slow = adapted
    g = torch.Generator().manual_seed(1)
    pairs = [{name: (x, random_ids(n, g)) for name, n in zip("abcd", (1, 3, 2, 4))}
             for x in (random_ids(3, g), random_ids(5, g), random_ids(2, g))]
    predicted = [{"c": 0.1, "a": 0.7, "b": 0.2}, {"b": 1.0}, {"a": 0.5, "d": 0.5}]  # in another order, and not of all
    by_hand = [sum(p * (log(p) - slow(*of[y])) for y, p in of_query.items()) for of_query, of in zip(predicted, pairs)]
    assert bayes.divergence(adapted, predicted, pairs) == pytest.approx(sum(by_hand) / 3, rel=1e-5)
    assert by_hand[1] == -slow(*pairs[1]["b"])  # a point mass: -log p of the whole answer, the sum over its tokens
    assert bayes.divergence(adapted, predicted[1:2], pairs[1:2]) == pytest.approx(by_hand[1], rel=1e-5)


def test_divergence_of_the_models_own_distribution_is_zero_and_of_any_other_is_not():
    model = tiny_llama()
    x, answers = [3, 1, 4], list(product(range(V), repeat=2))
    hidden, _ = model(torch.tensor([[*x, first] for first in range(V)]))
    log_p = torch.log_softmax(model.logits(hidden).double(), -1)  # (V, 4, V)
    own = {(a, b): (log_p[0, 2, a] + log_p[a, 3, b]).exp().item() for a, b in answers}
    pairs = [{y: (x, y) for y in answers}]
    assert sum(own.values()) == pytest.approx(1)
    assert bayes.divergence(Adapted(model), [own], pairs) == pytest.approx(0, abs=1e-5)
    rng = random.Random(0)
    for _ in range(5):
        other = literal([(y, rng.random()) for y in answers])
        assert bayes.divergence(Adapted(model), [other], pairs) > 0.01
