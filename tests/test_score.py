"""Scoring: packed against one pair at a time, teacher forcing against decoding, metrics against hand-counted ones."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import V, float64_llama, random_ids, random_task, tiny_llama

from nanoct.adapters import LoRA, attach
from nanoct.fewshot import Adapted, Query, Task, Text, encode_context
from nanoct.score import (
    BATCH,
    constants,
    decode,
    evaluate,
    generate,
    judge,
    lowest,
    macro_f1,
    option_losses,
    score_pairs,
    score_questions,
)


def icl(model, task):
    """An Adapted, and the same context as plain ids."""
    context = [*task.instruction, *(t for demo in task.demos for t in (*demo.x, *demo.y))]
    return Adapted(model, prefix=encode_context(model, task.instruction, task.demos)), context


@torch.no_grad()
def slow_loss(model, context, x, y):
    """Mean loss of y and whether every token of it is the argmax, by one plain forward over everything."""
    logits = model.logits(model(torch.tensor([[*context, *x, *y]]))[0])[0, -len(y) - 1 : -1]
    target = torch.tensor(y)
    return -logits.log_softmax(-1)[range(len(y)), target].mean().item(), torch.equal(logits.argmax(-1), target)


@torch.no_grad()
def slow_greedy(model, context, prompt, n):
    """Greedy decoding that reads everything anew for every token."""
    new = []
    for _ in range(n):
        new.append(model.logits(model(torch.tensor([[*context, *prompt, *new]]))[0])[0, -1].argmax().item())
    return new


# --- teacher forcing ---


@pytest.mark.parametrize("row_tokens", [1, 13, 1024])
@pytest.mark.parametrize("demos", [True, False])
def test_packed_losses_equal_one_pair_at_a_time(model, row_tokens, demos):
    task = random_task(n_query=7, options=3)
    adapted, context = icl(model, task) if demos else (Adapted(model), [])
    pairs = [(q.x, option) for q in task.queries for option in q.options]
    pairs += [(x, slow_greedy(model, context, x, 3)) for x, _ in pairs[:3]]  # some that are right
    loss, exact = score_pairs(adapted, pairs, row_tokens)
    slow, right = zip(*(slow_loss(model, context, x, y) for x, y in pairs))
    assert loss.tolist() == pytest.approx(list(slow), rel=1e-4)
    assert exact.tolist() == list(right) and {True, False} == set(right)


OPTIONS = [  # of a question: ragged, of one token, one the beginning of another, one twice, only one
    [[1, 2, 3], [4], [5, 6]], [[7], [8]], [[9, 10], [9, 10, 11], [9]], [[1, 2], [3], [1, 2]], [[12, 13]]]


@pytest.mark.parametrize("dtype, within", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("row_tokens", [1, 9, 14, 1024])
@pytest.mark.parametrize("separator", [[], [3, 4]])
def test_options_that_share_their_question_score_as_rows_of_their_own(dtype, within, row_tokens, separator):
    model, task = float64_llama() if dtype == torch.float64 else tiny_llama(), random_task()
    adapted, _ = icl(model, task)
    questions = [([*separator, *[5, 2, 9, 1][: 1 + i % 4]], options) for i, options in enumerate(OPTIONS)]
    loss, exact = score_questions(adapted, questions, row_tokens)
    apart, exact_apart = score_pairs(adapted, [(x, y) for x, ys in questions for y in ys], row_tokens=1)
    assert loss.dtype == torch.float64 and len(loss) == 12 and torch.equal(exact, exact_apart)
    torch.testing.assert_close(loss, apart, rtol=0, atol=within)
    assert len({round(value, 4) for value in loss.tolist()}) == 11  # all differ but the option that is there twice


def test_a_question_is_in_the_row_once_and_rows_stay_bounded(model):
    """x again only where a question alone is more than a row, and several such parts may share one."""
    sizes = []
    hook = model.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[1]))
    options, n = [[1] * 3, [2] * 3, [3] * 3], {}
    for row_tokens in (1024, 22, 11, 10, 5, 4):
        sizes.clear()
        score_questions(Adapted(model), [([4] * 2, options), ([5] * 2, options)], row_tokens)
        n[row_tokens] = sizes.copy()
    hook.remove()
    assert n == {1024: [16], 22: [16], 11: [8, 8], 10: [8, 8, 8], 5: [4] * 6, 4: [4] * 6}


def test_ids_by_teacher_forcing_is_greedy_decoding():
    """Right if and only if `generate` yields exactly y; answers are decoded ones, half of them with one id changed."""
    outcomes = Counter()
    for seed in range(12):
        model, g = tiny_llama(seed=seed), torch.Generator().manual_seed(seed)
        task = random_task(seed=seed)
        adapted, context = icl(model, task)
        queries = []
        for i in range(8):
            x = random_ids(1 + i % 4, g)
            y = slow_greedy(model, context, x, 1 + i % 5)
            if i % 2:
                at = torch.randint(len(y), (), generator=g)
                y[at] = (y[at] + 1) % V
            queries.append(Query(x, y))
        right = evaluate(adapted, replace(task, queries=queries, metric="ids")).per_query
        decoded = [generate(adapted, [q.x], len(q.y)) == [q.y] for q in queries]
        assert right == decoded
        outcomes.update(right)
    assert outcomes == {True: 48, False: 48}


@pytest.mark.parametrize("metric", ["ids", "accuracy", "macro_f1"])
def test_evaluate_does_not_depend_on_the_rows(model, metric):
    task = random_task(n_query=9, options=4, metric=metric)
    adapted, context = icl(model, task)
    if metric == "ids":
        task.queries += [Query([i], slow_greedy(model, context, [i], 2)) for i in range(3)]
    results = [evaluate(adapted, task, row_tokens) for row_tokens in (1, 17, 10_000)]
    assert results[0] == results[1] == results[2] and 0 < results[0].score < 1


def test_options_are_ranked_by_mean_loss_of_their_tokens(model):
    task = random_task(n_query=40, options=3, metric="accuracy")
    adapted, context = icl(model, task)
    predicted = [min(q.options, key=lambda option: slow_loss(model, context, q.x, option)[0]) for q in task.queries]
    right = [p == q.y for p, q in zip(predicted, task.queries)]
    by_sum = [min(q.options, key=lambda y: slow_loss(model, context, q.x, y)[0] * len(y)) == q.y for q in task.queries]
    assert right != by_sum
    result = evaluate(adapted, task)
    assert result.per_query == right and result.score == sum(right) / 40
    f1 = macro_f1([tuple(p) for p in predicted], [tuple(q.y) for q in task.queries])
    assert evaluate(adapted, replace(task, metric="macro_f1")).score == f1


# --- ties ---


def knows_nothing():
    """A model for which every token is as likely as every other."""
    model = tiny_llama()
    model.model.embed_tokens.weight.data.zero_()  # the head too: its weights are tied
    return model


@pytest.mark.parametrize("row_tokens", [1, 1024])
def test_who_knows_nothing_gets_the_score_of_guessing_wherever_the_right_option_stands(row_tokens):
    """Options of 1 to 23 tokens: their mean losses are exactly equal, not up to rounding."""
    options, queries = [[1], [2] * 3, [3] * 7, [4] * 23], []
    for i in range(4):
        queries.append(Query([5], [1], options[i:] + options[:i]))
    adapted, task = Adapted(knows_nothing()), Task("blank", [], queries, metric="accuracy")
    with pytest.warns(UserWarning, match="^task 'blank': of 4 queries 4 have several options of exactly the lowest"):
        result = evaluate(adapted, task, row_tokens)
    assert result.per_query == [1 / 4] * 4 and result.score == 1 / 4 and result.tied == 4
    with pytest.warns(UserWarning, match="which macro_f1 takes the first"):
        result = evaluate(adapted, replace(task, metric="macro_f1"), row_tokens)
    assert result.score == macro_f1([tuple(q.options[0]) for q in queries], [(1,)] * 4) == 2 / 5 and result.tied == 4


def test_a_tie_counts_the_share_of_the_options_that_are_the_answer():
    """The answer twice among three: 2/3. The same option again is no tie, and one option alone is no choice."""
    score = lambda *queries: evaluate(Adapted(knows_nothing()), Task("blank", [], list(queries), metric="accuracy"))
    with pytest.warns(UserWarning, match="of 1 queries 1 have several"):
        assert score(Query([5], [1, 2], [[1, 2], [3], [1, 2]])).score == 2 / 3
    with pytest.warns(UserWarning) as said:
        result = score(Query([5], [1], [[1], [1]]), Query([5], [2], [[2]]), Query([6], [3], [[4], [3]]))
    assert result.per_query == [1, 1, 1 / 2] and result.tied == 1 and len(said) == 1
    assert "1 have several options" in str(said[0].message) and "2 have only one option" in str(said[0].message)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_without_a_tie_nothing_is_said(model, metric, recwarn):
    result = evaluate(Adapted(model), random_task(options=3, metric=metric))
    assert result.tied == 0 and not recwarn.list and {type(right) for right in result.per_query} == {bool}


@pytest.mark.parametrize("gold, predicted, expected", [
    ("aabb", "aabb", 1.0),
    ("aabb", "bbaa", 0.0),
    ("aabb", "aaab", (4 / 5 + 2 / 3) / 2),
    ("aabb", "aaaa", (2 / 3 + 0) / 2),  # b is never predicted
    ("aabb", "aabc", (1 + 2 / 3) / 2),  # c is no class of the answers and no term of the mean
    ("abc", "abb", (1 + 2 / 3 + 0) / 3),
    ("aaaa", "aaab", 6 / 7),
])
def test_macro_f1_by_hand(gold, predicted, expected):
    assert macro_f1(list(predicted), list(gold)) == pytest.approx(expected, abs=1e-12)


# --- decoding ---


@torch.no_grad()
def test_an_adapter_scores_and_decodes_as_its_merged_weights(model):
    g, merged = torch.Generator().manual_seed(6), tiny_llama()
    adapter = attach(LoRA, model, rank=2, alpha=3.0, generator=g, targets=("q_proj", "k_proj", "down_proj"))
    for name, part in adapter.items():
        part.b.normal_(std=0.5, generator=g)
        merged.linears[name].weight += 1.5 * part.b @ part.a
    task = random_task(n_query=8)
    adapted = Adapted(model, adapter, encode_context(model, task.instruction, task.demos, adapter))
    plain, context = icl(merged, task)
    pairs = [(q.x, q.y) for q in task.queries]
    torch.testing.assert_close(score_pairs(adapted, pairs)[0], score_pairs(plain, pairs)[0], rtol=1e-4, atol=0)
    prompts = [random_ids(3, g) for _ in range(8)]
    decoded = generate(adapted, prompts, 6)
    assert decoded == [slow_greedy(merged, context, p, 6) for p in prompts]
    assert decoded != [slow_greedy(model, context, p, 6) for p in prompts]


@pytest.mark.parametrize("demos", [True, False])
def test_generate_equals_decoding_without_a_cache(model, demos):
    adapted, context = icl(model, random_task()) if demos else (Adapted(model), [])
    g = torch.Generator().manual_seed(2)
    prompts = [random_ids(4, g) for _ in range(8)]
    slow = [slow_greedy(model, context, p, 10) for p in prompts]
    assert len({tuple(ids) for ids in slow}) > 4
    assert generate(adapted, prompts, 10) == slow
    assert [generate(adapted, [p], 10)[0] for p in prompts] == slow
    for stop in Counter(t for ids in slow for t in ids):  # every id that occurs
        wanted = [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in slow]
        assert generate(adapted, prompts, 10, stop) == wanted
        assert generate(adapted, prompts[:1], 10, stop) == wanted[:1]


@pytest.mark.parametrize("demos", [True, False])
def test_prompts_of_different_lengths_are_decoded_as_alone(model, demos):
    adapted, context = icl(model, random_task()) if demos else (Adapted(model), [])
    g = torch.Generator().manual_seed(3)
    prompts, masks = [random_ids(n, g) for n in (4, 1, 7, 7, 2, 9, 1, 3)], []
    slow = [slow_greedy(model, context, p, 10) for p in prompts]
    assert len({tuple(ids) for ids in slow}) > 4
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: masks.append(kwargs["mask"]), with_kwargs=True)
    assert generate(adapted, prompts, 10) == slow
    hook.remove()
    assert all(mask.any(-1).all() for mask in masks)  # a token that sees nothing, be it padding, is NaN in some kernels
    stop = slow[0][3]
    assert generate(adapted, prompts, 10, stop) == [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in slow]


def test_a_long_prompt_does_not_shorten_what_is_decoded_beside_it(model):
    n, g = model.config.n_position, torch.Generator().manual_seed(4)
    prompts = [random_ids(m, g) for m in (n - 4, 2, *range(3, 3 + BATCH))]
    new = decode(Adapted(model), prompts, 8, Text(to_text, "\0"))
    assert [len(text) for text in new] == [5] + [8] * (BATCH + 1)  # the last id is not read
    assert new == [to_text(generate(Adapted(model), [p], len(text))[0]) for p, text in zip(prompts, new)]


def test_text_ends_with_the_terminator_wherever_a_token_holds_it_or_with_a_token_that_ends(model, monkeypatch):
    """A token may hold the terminator and more: ")\\n\\n" is one token of Llama-3's."""
    texts = {1: "a", 2: ")\n\n", 3: "\n", 4: "b", 9: "<|eot_id|>"}
    cases = {(1, 2, 4): "a)", (1, 3, 3, 4): "a", (1, 3, 4, 2): "a\nb)", (1, 9, 4): "a", (9,): "", (1, 4): "ab"}
    for ids, said in cases.items():
        left = iter(ids)
        logits = lambda hidden: F.one_hot(torch.tensor([next(left)]), V).float()
        monkeypatch.setattr(model, "logits", logits)
        text = Text(lambda ids: "".join(map(texts.get, ids)), "\n\n", ends={9})
        found = decode(Adapted(model), [[1]], len(ids), text)
        assert found == [said]
        cut = {"a)": 2, "a": len(ids) - 1, "": 1}.get(said, len(ids))
        assert len(list(left)) == len(ids) - cut  # nothing is decoded behind the end


@pytest.mark.parametrize("metric", ["ids", "accuracy", "macro_f1", "text"])
@pytest.mark.parametrize("broken", ["weight", "infinite weight", "context"])
def test_what_is_not_finite_gets_no_score(metric, broken):
    """argmax and argmin of NaN take the first: the right answer, where it is listed first."""
    model = tiny_llama()
    adapted, _ = icl(model, task := random_task(options=3, metric=metric, text=Text(to_text, "\0")))
    if broken == "context":
        adapted.prefix.kv[1][1][0, 0, 2, 3] = math.nan
    else:
        model.model.layers[0].mlp.up_proj.weight[2, 2] = math.nan if broken == "weight" else math.inf
    with pytest.raises(ValueError, match="not finite"):
        evaluate(adapted, task)


def to_text(ids):
    """One letter an id; ids 2n and 2n + 1 differ in case only."""
    return "".join(chr((97 if i % 2 else 65) + i // 2) for i in ids)


def text_task(model):
    """Queries of several lengths whose answers are what the model says up to a common terminator."""
    task = random_task(metric="text", text=Text(to_text, "?", str.lower))
    adapted, context = icl(model, task)
    g = torch.Generator().manual_seed(5)
    prompts = [random_ids(1 + i % 3, g) for i in range(24)]
    said = [slow_greedy(model, context, p, 4) for p in prompts]
    stop = Counter(t for ids in said for t in ids[1:]).most_common(1)[0][0]
    task.text.terminator = to_text([stop])
    ends = [(p, ids) for p, ids in zip(prompts, said) if stop in ids[1:] and ids[0] != stop]
    task.queries = [Query(p, ids[: ids.index(stop) + 1]) for p, ids in ends]
    assert len(task.queries) > 3
    return adapted, task


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_answers_are_the_options_of_the_lowest_loss(model, metric):
    task = random_task(n_query=7, options=3, metric=metric)
    adapted, _ = icl(model, task)
    result = evaluate(adapted, task)
    for query, answer, right in zip(task.queries, result.answers, result.per_query, strict=True):
        losses = score_pairs(adapted, [(query.x, option) for option in query.options], row_tokens=1)[0].tolist()
        assert answer == tuple(query.options[losses.index(min(losses))]) and right == (list(answer) == query.y)
    assert set(result.per_query) == {True, False}
    assert evaluate(adapted, replace(task, metric="ids")).answers is None


def test_answers_are_judged_alike_be_they_ids_or_text():
    best, gold = [["a"], ["b", "a"], ["c", "b", "c"], ["b"]], ["a", "a", "c", "c"]
    result = judge(best, gold)
    assert result.per_query == [True, 1 / 2, 2 / 3, False] and result.score == (1 + 1 / 2 + 2 / 3) / 4
    assert result.answers == ["a", "b", "c", "b"] and result.tied == 2
    assert judge(best, gold, "macro_f1").score == macro_f1(result.answers, gold)
    assert lowest(["a", "b", "c"], [2.0, 1.0, 1.0]) == ["b", "c"] and option_losses(Adapted(None), []) == []


def test_text_is_decoded_up_to_the_terminator_and_normalised(model):
    adapted, task = text_task(model)
    n = len(task.queries)
    assert evaluate(adapted, task).per_query == [True] * n
    assert evaluate(adapted, task).answers == [task.text.answer(q.y) for q in task.queries]
    other_case = [Query(q.x, [t ^ 1 for t in q.y[:-1]] + q.y[-1:]) for q in task.queries]
    assert evaluate(adapted, replace(task, queries=other_case)).score == 1
    as_it_is = replace(task.text, normalise=str)
    assert evaluate(adapted, replace(task, queries=other_case, text=as_it_is)).score == 0
    wrong = [Query(q.x, [(t + 2) % V for t in q.y[:-1]] + q.y[-1:]) for q in task.queries[:1]] + task.queries[1:]
    assert evaluate(adapted, replace(task, queries=wrong)).per_query == [False] + [True] * (n - 1)
    longer = [Query(q.x, [*q.y[:-1], q.y[0], q.y[-1]]) for q in task.queries]
    assert evaluate(adapted, replace(task, queries=longer)).score == 0


def test_valid_is_the_share_of_answers_that_are_possible_ones_right_or_wrong(model):
    """Possible are the answers of demos and queries, or those that the task names, normalised."""
    adapted, task = text_task(model)
    n, (first, *others) = len(task.queries), task.queries
    named = lambda answers: replace(task, text=replace(task.text, answers=answers))
    assert evaluate(adapted, task).valid == 1 and evaluate(adapted, named({"no"})).valid == 0
    elsewhere = [Query(first.x, others[-1].y), *others]  # what the model says to it is no answer of the task any more
    texts = [to_text(q.y).split(task.text.terminator)[0].lower() for q in elsewhere]
    said = [to_text(q.y).split(task.text.terminator)[0].lower() for q in task.queries]
    result = evaluate(adapted, replace(task, queries=elsewhere))
    assert result.valid == sum(text in texts for text in said) / n == (n - 1) / n
    assert evaluate(adapted, replace(task, queries=elsewhere, demos=[first])).valid == 1
    assert evaluate(adapted, replace(named(set(said)), queries=elsewhere)).valid == 1
    assert evaluate(adapted, replace(random_task(), metric="ids")).valid is None


# --- bad input: one line that holds the value ---


@pytest.mark.parametrize("changes, named", [
    (dict(queries=[]), "no queries"),
    (dict(metric="rouge"), "'rouge'"),
    (dict(metric="accuracy"), "without options"),
    (dict(metric="macro_f1"), "without options"),
    (dict(metric="text"), "decode"),
    (dict(metric="text", text=Text(to_text, "")), "terminator"),
])
def test_bad_tasks_are_refused(model, changes, named):
    with pytest.raises(ValueError) as error:
        evaluate(Adapted(model), replace(random_task(), **changes))
    assert named in str(error.value) and "'random'" in str(error.value) and "\n" not in str(error.value)


def test_queries_that_do_not_fit_are_refused(model):
    n = model.config.n_position
    adapted, context = icl(model, random_task())
    room = n - len(context)
    assert evaluate(adapted, Task("long", [], [Query([1] * room, [2])])).score in (0, 1)
    with pytest.raises(ValueError, match=f"needs {n + 1} tokens.* is {n}"):
        evaluate(adapted, Task("long", [], [Query([1] * (room + 1), [2])]))


def test_generate_refuses_what_it_cannot_decode(model):
    n = model.config.n_position
    assert len(generate(Adapted(model), [[1] * (n - 3)], 4)[0]) == 4  # the last id is not read
    with pytest.raises(ValueError, match=f"decoding 5 tokens needs {n + 1} tokens.* is {n}"):
        generate(Adapted(model), [[1] * (n - 3)], 5)
    with pytest.raises(ValueError, match="at least one id"):
        generate(Adapted(model), [[1], []], 3)
    with pytest.raises(ValueError, match="max_new_tokens = 0"):
        generate(Adapted(model), [[1]], 0)
    with pytest.raises(ValueError, match="the token id -1 is not one of the model's"):
        generate(Adapted(model), [[1], [2, -1]], 3)


def test_constants_are_what_answering_alike_scores():
    query = lambda y, options=None: Query([1], y, options)
    of = lambda metric, *queries: constants(Task("t", [], list(queries), metric=metric))
    assert of("ids", query([2]), query([3]), query([2]), query([4])) == (0.5, 1 / 3)
    yes, no = [2, 3], [4]
    two = [query(yes, [yes, no]), query(yes, [yes, no]), query(no, [yes, no])]
    assert of("accuracy", *two) == (2 / 3, 1 / 2)
    assert of("macro_f1", *two) == pytest.approx((0.4, (0.4 + 0.25) / 2))  # F1 of yes .8 and of no 0; of no .5
    uneven = [query([5], [[6], [5]]), query([7], [[6], [8], [7]])]
    assert of("accuracy", *uneven) == (1 / 2, (1 / 2 + 1 / 3) / 2)
