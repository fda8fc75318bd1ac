"""Packing: k pairs in one row behind one prefix, and what each of them may see."""

import re

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    UNEVEN,
    V,
    float64_llama,
    leaves,
    message,
    padded_loss,
    pairs_of,
    random_task,
    relative_error,
    tiny_llama,
)

from nanoct import packing
from nanoct.fewshot import Demo, Task, encode_context
from nanoct.packing import answer_logits, can_leave_one_out, pack, pack_demos, pack_questions, visible

# --- one packed row is k padded rows ---


def packed_case(model, dropout, instruction, lengths=UNEVEN):
    """(leaves, prefix, pairs, seen, packed loss) of one CT-KV step."""
    task = random_task(lengths, instruction=instruction)
    theta, prefix = leaves(encode_context(model, task.instruction, task.demos))
    pairs = pairs_of(task)
    seen = visible(prefix.owner, len(pairs), True, dropout, torch.Generator().manual_seed(1))
    row = pack(pairs, model, start=prefix.next_position)
    loss = lambda: F.cross_entropy(answer_logits(model, row, prefix, mask=row.mask(seen)), row.target)
    return theta, prefix, pairs, seen, loss


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("instruction", [0, 4])
@pytest.mark.parametrize("build, tolerance", [(tiny_llama, 1e-5), (float64_llama, 1e-10)], ids=["float32", "float64"])
def test_packed_loss_and_gradients_equal_the_padded(build, tolerance, instruction, dropout):
    model = build()
    theta, prefix, pairs, seen, loss = packed_case(model, dropout, instruction)
    assert (~seen).any(1).all() and seen.any(1).all()
    packed, padded = loss(), padded_loss(model, prefix, pairs, seen)
    assert packed.item() == pytest.approx(padded.item(), rel=tolerance)
    for ours, slow in zip(torch.autograd.grad(packed, theta), torch.autograd.grad(padded, theta), strict=True):
        assert relative_error(ours, slow) < tolerance


def test_gradients_equal_finite_differences():
    model = float64_llama()
    theta, _, _, _, loss = packed_case(model, 0.2, 2)
    gradients = torch.autograd.grad(loss(), theta)
    g, step = torch.Generator().manual_seed(3), 1e-5
    for leaf, gradient in zip(theta, gradients):
        for _ in range(6):
            at = torch.randint(leaf.numel(), (), generator=g)
            with torch.no_grad():
                flat = leaf.view(-1)
                flat[at] += step
                up = loss()
                flat[at] -= 2 * step
                down = loss()
                flat[at] += step
            difference = ((up - down) / (2 * step)).item()
            assert gradient.flatten()[at].item() == pytest.approx(difference, rel=1e-6, abs=1e-9)


def test_a_hidden_demo_gets_no_gradient_from_its_own_pair(model):
    task = random_task(UNEVEN)
    theta, prefix = leaves(encode_context(model, task.instruction, task.demos))
    row = pack(pairs_of(task), model, start=prefix.next_position)
    seen = visible(prefix.owner, len(task.demos), leave_one_out=True)
    logits = answer_logits(model, row, prefix, mask=row.mask(seen))
    losses = F.cross_entropy(logits, row.target, reduction="none")
    for i in range(len(task.demos)):
        loss = losses[row.pair[row.where] == i].sum()
        for gradient in torch.autograd.grad(loss, theta, retain_graph=True):
            zero = (gradient == 0).all(-1).all(1)[0]  # (P,)
            assert torch.equal(zero, prefix.owner == i)


@torch.no_grad()
def test_pairs_of_one_row_do_not_see_each_other(model):
    task = random_task(UNEVEN)
    prefix = encode_context(model, task.instruction, task.demos)
    pairs = pairs_of(task)
    before = pack(pairs, model, start=prefix.next_position)
    logits = answer_logits(model, before, prefix)
    for j, (x, y) in enumerate(pairs):
        other = ([(t + 1) % V for t in x], [(t + 5) % V for t in y])
        after = pack(pairs[:j] + [other] + pairs[j + 1 :], model, start=prefix.next_position)
        changed = (answer_logits(model, after, prefix) != logits).any(1)
        assert torch.equal(changed, before.pair[before.where] == j)


@torch.no_grad()
def test_new_tokens_stand_behind_the_context(model):
    """A packed pair is what a plain forward over context, x and y gives, at positions 0, 1, 2, …"""
    task = random_task(UNEVEN)
    prefix = encode_context(model, task.instruction, task.demos)
    P = len(prefix.owner)
    assert prefix.next_position == P == len(task.instruction) + sum(n + m for n, m in UNEVEN)
    context = [*task.instruction, *(t for demo in task.demos for t in (*demo.x, *demo.y))]
    pairs = [(q.x, q.y) for q in task.queries]
    row = pack(pairs, model, start=prefix.next_position)
    assert row.positions[0].tolist() == [P + t for x, y in pairs for t in range(len(x) + len(y) - 1)]
    logits = answer_logits(model, row, prefix)
    for i, (x, y) in enumerate(pairs):
        whole = model.logits(model(torch.tensor([context + x + y]))[0])[0]
        torch.testing.assert_close(logits[row.pair[row.where] == i], whole[-len(y) - 1 : -1], rtol=1e-4, atol=1e-4)


# --- what lies where ---


def test_pack_by_hand(model):
    row = pack([([7, 8], [9]), ([3], [4, 5, 6])], model, start=10, head=[1])
    assert row.tokens.tolist() == [[1, 7, 8, 1, 3, 4, 5]]  # the last token of an answer predicts nothing
    assert row.positions.tolist() == [[10, 11, 12, 10, 11, 12, 13]]
    assert row.pair.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert row.where.tolist() == [2, 4, 5, 6]
    assert row.target.tolist() == [9, 4, 5, 6]
    seen = torch.tensor([[True, False], [False, True]])
    o, i = False, True
    assert row.mask(seen)[0].tolist() == [
        [i, o, i, o, o, o, o, o, o],
        [i, o, i, i, o, o, o, o, o],
        [i, o, i, i, i, o, o, o, o],
        [o, i, o, o, o, i, o, o, o],
        [o, i, o, o, o, i, i, o, o],
        [o, i, o, o, o, i, i, i, o],
        [o, i, o, o, o, i, i, i, i],
    ]


def test_the_drawn_example_is_what_pack_makes(model):
    """Of the docstring of packing.py: the table of tokens, then the mask."""
    lines = [line.split() for line in packing.__doc__.split("A question with several")[0].splitlines() if line]
    drawn, ids = {words[0]: words[1:6] for words in lines}, "ABCDEFGH".index
    demos = [Demo([0, 1], [2]), Demo([3], [4, 5]), Demo([6], [7])]  # A B -> C, D -> E F, G -> H
    prefix = encode_context(model, (), demos)
    row = pack_demos(Task("drawn", demos, []), model, prefix.next_position)
    assert row.tokens[0].tolist() == [ids(letter) for letter in drawn["token"]]
    assert row.positions[0].tolist() == [int(n) for n in drawn["position"]]
    assert row.pair.tolist() == [int(n) for n in drawn["pair"]]
    answers = {t: ids(letter) for t, letter in enumerate(drawn["predicts"]) if letter != "."}
    assert dict(zip(row.where.tolist(), row.target.tolist())) == answers and "where = 1 2 3 4" in packing.__doc__
    mask = [[cell == "x" for cell in words[1:]] for words in lines if len(words) == 14 and words[1] in ".x"]
    assert row.mask(visible(prefix.owner, len(demos), leave_one_out=True))[0].tolist() == mask


def test_the_drawn_question_is_what_pack_questions_makes(model):
    text = packing.__doc__.split("A question with several")[1]
    lines = [line.split("  ") for line in text.splitlines()]
    cells = [[cell.strip() for cell in line if cell] for line in lines if line[0] == "" and len(line) > 8][1:]
    letter, position, branch, predicts = list(zip(*(of[:4] for of in cells)))
    ids = lambda letters: ["ABCDEFG".index(c) for c in letters]
    row = pack_questions([(ids("AB"), [ids("CD"), ids("EFG")])], model, start=8)
    assert row.tokens[0].tolist() == ids(letter) == [0, 1, 2, 4, 5] and row.pair.tolist() == [0] * 5
    assert row.positions[0].tolist() == list(map(int, position)) and row.branch.tolist() == list(map(int, branch))
    drawn = {name: re.search(f"{name} = (([A-G0-9] ?)+)", text)[1].split() for name in ("where", "target", "answer")}
    assert row.where.tolist() == list(map(int, drawn["where"])) and row.target.tolist() == ids(drawn["target"])
    assert row.answer.tolist() == list(map(int, drawn["answer"]))
    said = [[ids for at, ids in zip(drawn["where"], drawn["target"]) if int(at) == t] for t in range(5)]
    assert said == [of.replace(".", "").split() for of in predicts]
    mask = [[mark == "x" for mark in " ".join(of[4:8]).split()[:5]] for of in cells]
    seen = row.mask(torch.ones(1, 8, dtype=torch.bool))[0]
    assert seen[:, 8:].tolist() == mask and seen[:, :8].all()


def test_questions_share_a_row_and_each_sees_what_its_pair_may(model):
    """Answers are counted through the row; a question that is left out keeps its number."""
    row = pack_questions([([1], [[2], [3, 4]]), None, ([5, 6], [[7, 8]])], model, start=2, head=[9])
    assert row.tokens.tolist() == [[9, 1, 3, 9, 5, 6, 7]] and row.positions.tolist() == [[2, 3, 4, 2, 3, 4, 5]]
    assert row.pair.tolist() == [0, 0, 0, 2, 2, 2, 2] and row.branch.tolist() == [-1, -1, 1, -1, -1, -1, 2]
    assert row.where.tolist() == [1, 1, 2, 5, 6] and row.answer.tolist() == [0, 1, 1, 2, 2]
    assert row.target.tolist() == [2, 3, 4, 7, 8]
    seen = torch.tensor([[True, False], [True, True], [False, True]])
    assert row.mask(seen)[0, :, :2].tolist() == [[True, False]] * 3 + [[False, True]] * 4
    check_fits = lambda n: pack_questions([([1], [[2], [3] * n])], model, start=model.config.n_position - 4)
    assert check_fits(4).tokens.shape == (1, 4)
    with pytest.raises(ValueError, match="pair 0 behind"):
        check_fits(5)


def test_a_training_row_hides_nothing_by_its_branches(model):
    """With one answer a pair the mask is that of a row without branches."""
    row = pack_demos(random_task(UNEVEN), model, start=3)
    seen = torch.ones(len(UNEVEN), 3, dtype=torch.bool)
    plain = packing.Row(row.tokens, row.positions, row.pair, row.where, row.target)
    assert torch.equal(row.mask(seen), plain.mask(seen)) and torch.equal(row.answer, row.pair[row.where])


def test_every_training_pair_begins_with_head_and_separator(model):
    row = pack_demos(Task("t", [Demo([1, 2], [3]), Demo([4], [5])], [], separator=[8]), model, start=5, head=[9])
    assert row.tokens.tolist() == [[9, 8, 1, 2, 9, 8, 4]] and row.positions.tolist() == [[5, 6, 7, 8, 5, 6, 7]]
    assert row.target.tolist() == [3, 5] and row.where.tolist() == [3, 6] and row.pair.tolist() == [0] * 4 + [1] * 3


@pytest.mark.parametrize("room, kept", [(8, [0, 1, 2]), (7, [0, 2]), (6, [0, 2]), (5, [2]), (4, [2])])
def test_training_pairs_that_do_not_fit_are_left_out_and_the_others_keep_their_number(recwarn, room, kept):
    model = tiny_llama()
    demos = [Demo([1, 2, 3], [4]), Demo([5, 6, 7, 8], [9, 1]), Demo([2], [3])]  # rows of 6, 8 and 4
    start, task = model.config.n_position - room, Task("t", demos, [], separator=[8])
    row = pack_demos(task, model, start, head=[7, 7])
    alone = [pack([(demos[i].x, demos[i].y)], model, start, [7, 7, 8]) for i in kept]
    assert torch.equal(row.tokens, torch.cat([r.tokens for r in alone], dim=1))
    assert torch.equal(row.target, torch.cat([r.target for r in alone]))
    assert row.pair.unique().tolist() == kept
    said = [str(w.message) for w in recwarn]
    assert len(said) == (len(kept) < 3) and all(f"{3 - len(kept)} of 3 training pairs" in s for s in said)


def test_training_pairs_none_of_which_fits_are_refused(model):
    with pytest.raises(ValueError, match="fewer or shorter demos"):
        pack_demos(Task("t", [Demo([1] * 9, [2]), Demo([1] * 8, [2])], []), model, start=model.config.n_position - 7)


# --- what a pair may see ---


def owners(*counts):
    """The owners of so many entries of the instruction, of demo 0, of demo 1, …"""
    return torch.repeat_interleave(torch.arange(-1, len(counts) - 1), torch.tensor(counts))


def test_leave_one_out_hides_a_pairs_own_demo_and_nothing_else():
    seen = visible(owners(2, 1, 3), k=2, leave_one_out=True)
    assert seen.int().tolist() == [[1, 1, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]]
    assert visible(owners(2, 1, 3), k=2).all()


@pytest.mark.parametrize("p", [1.0, 1.5, -0.1])
def test_a_dropout_that_is_no_probability_below_1_is_refused(p):
    with pytest.raises(ValueError) as error:
        visible(owners(2, 3), 1, token_dropout=p)
    assert f"token_dropout = {p}" in message(error)


def test_demos_that_repeat_are_said_as_leave_one_out_shows_each_its_twin(recwarn):
    task = random_task()
    task.demos.append(Demo(tuple(task.demos[0].x), list(task.demos[0].y)))
    task.demos.append(Demo(task.demos[0].x, task.demos[1].y))  # another answer: nothing to copy
    with pytest.warns(UserWarning, match="1 of 6 demos repeat another, from which they can copy"):
        assert can_leave_one_out(task)


def test_one_demo_cannot_be_left_out(recwarn):
    assert can_leave_one_out(random_task()) and not recwarn
    assert not can_leave_one_out(random_task(lengths=[(1, 1)]))
    assert "'random'" in str(recwarn.pop(UserWarning).message) and not recwarn


@pytest.mark.parametrize("p", [0.05, 0.3])
def test_token_dropout_is_independent_per_pair_and_entry(p):
    k, counts = 5, (4, 9, 7, 8)
    g = torch.Generator().manual_seed(0)
    n = 2000
    hidden = torch.stack([~visible(owners(*counts), k, token_dropout=p, generator=g) for _ in range(n)]).double()
    sigma = (p * (1 - p) / n) ** 0.5
    assert (hidden.mean(0) - p).abs().max() < 5 * sigma  # every pair and entry, the instruction's too
    centred = hidden.flatten(1) - p
    correlation = centred.T @ centred / n / (p * (1 - p))
    assert (correlation - torch.eye(len(correlation))).fill_diagonal_(0).abs().max() < 6 * n**-0.5


def test_token_dropout_comes_on_top_of_leave_one_out():
    draw = lambda leave: visible(owners(5, 40, 40), 2, leave, 0.5, torch.Generator().manual_seed(7))
    alone = visible(owners(5, 40, 40), 2, leave_one_out=True)
    assert torch.equal(draw(True), draw(False) & alone)
    assert not torch.equal(draw(True), alone)


def test_a_task_may_be_shorter_than_the_model(recwarn):
    """As in NLP-LR, where a pair that exceeds 1,024 tokens behind the context is not trained on, whatever the model."""
    model, demos = tiny_llama(), [Demo([1] * n, [2, 3]) for n in (4, 9, 6)]
    row = pack_demos(Task("t", demos, [], length=28), model, start=20)  # 20 + 6 + 2
    assert row.pair.tolist() == [0] * 5 + [2] * 7 and "1 of 3" in str(recwarn[0].message)
    with pytest.raises(ValueError, match="no training pair fits 25 tokens"):
        pack_demos(Task("t", demos, [], length=25), model, start=20)
