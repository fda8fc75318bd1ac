"""One run, one line: what is measured, and results that are none."""

import math
import time
import warnings
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from helpers import random_task, tiny_llama

from nanoct.fewshot import Adapted
from nanoct.methods import METHODS, icl
from nanoct.runs import measure as measured
from nanoct.runs.measure import NotFinite, finite, measure
from nanoct.score import Result, evaluate


def learns(*losses, seconds=0.0):
    """A method's module that reports these losses and so long a time."""

    def adapt(model, task, config, seed, progress):
        time.sleep(seconds)
        for step, loss in enumerate(losses):
            progress(step, loss)
        return Adapted(model, n_trained=7)

    return SimpleNamespace(Config=icl.Config, adapt=adapt)


def test_a_line_has_score_seconds_memory_and_losses(model, monkeypatch):
    task, seen = random_task(options=3, metric="accuracy"), []
    monkeypatch.setitem(METHODS, "mine", learns(3.00004, 5.0, 2.00006, seconds=0.05))
    line, adapted = measure(model, task, "mine", {}, 0, lambda step, loss: seen.append((step, loss)))
    assert line["score"] == evaluate(Adapted(model), task).score and line["n_query"] == 5 and line["n_trained"] == 7
    assert line["loss"] == [3.0, 2.0001] and seen == [(0, 3.00004), (1, 5.0), (2, 2.00006)]
    assert 0.05 <= line["seconds"] < 5 and 0 < line["seconds_score"] < 5 and adapted.n_trained == 7
    assert line["peak_bytes"] > 1e6 and line["torch"] == torch.__version__ and line["n_thread"] == 1
    assert measure(model, task, "icl", {}, 0)[0]["loss"] is None


def test_a_line_says_how_many_queries_tied_and_how_many_answers_were_valid(model, monkeypatch):
    of = lambda result: (monkeypatch.setattr(measured, "evaluate", lambda *_: result),
                         measure(model, random_task(), "icl", {}, 0)[0])[1]
    assert {"tied", "valid"}.isdisjoint(of(Result(0.5, [], 0)))
    line = of(Result(0.5, [], 3, 1 / 3))
    assert line["tied"] == 3 and line["valid"] == 0.3333 and of(Result(0.0, [], 0, 0.0))["valid"] == 0


def test_config_and_seed_are_the_methods(model):
    run = lambda seed, **config: measure(model, random_task(), "lora", dict(rank=2, **config), seed)[0]
    first = run(0, n_step=3)
    assert first["loss"] == run(0, n_step=3)["loss"] != run(1, n_step=3)["loss"]
    assert run(0, n_step=1)["loss"][1] == first["loss"][0]


def test_weights_that_are_not_finite_are_no_result_of_any_method():
    """The first option would win, and it is the gold one."""
    for value in math.nan, math.inf:
        broken, task = tiny_llama(), random_task(options=3, metric="accuracy")
        broken.model.embed_tokens.weight.data[:, 2] = value
        for method in "icl", "ct_kv", "lora":
            with pytest.raises(NotFinite, match=rf"^{method} on random: [^\n]*not finite[^\n]*\.$"):
                measure(broken, task, method, {} if method == "icl" else dict(n_step=1), 0)


def test_a_training_that_was_stopped_is_no_result_of_its_settings(model):
    with pytest.raises(NotFinite, match=r"^ct_kv on random: the loss is .*stopped.*a smaller lr than 1e\+30"):
        measure(model, random_task(), "ct_kv", dict(n_step=3, lr=1e30), 0)
    with pytest.warns(UserWarning, match="of another kind"), finite("ct_kv", "random"):
        warnings.warn("of another kind")  # goes through
    with pytest.raises(ValueError, match="^too long.$") as error, finite("ct_kv", "random"):
        raise ValueError("too long.")
    assert type(error.value) is ValueError


@pytest.mark.parametrize("losses, score, said", [
    ((2.0, math.nan, 1.0), 0.5, "nan"), ((math.inf,), 0.5, "inf"), ((1.0,), math.nan, "nan")])
def test_what_is_not_finite_is_no_result(model, monkeypatch, losses, score, said):
    monkeypatch.setitem(METHODS, "mine", learns(*losses))
    monkeypatch.setattr(measured, "evaluate", Mock(return_value=Result(score, [])))
    with pytest.raises(NotFinite, match=f"^mine on random comes to {said}, which is no result: [^\n]*$"):
        measure(model, random_task(), "mine", {}, 0)
