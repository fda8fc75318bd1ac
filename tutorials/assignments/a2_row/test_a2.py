"""Grades assignment 2. One row, k padded rows, any order of pairs and answers: what counts is what the row says."""

import reference
import torch
from grading import fail, kind, points, primes, rng, same, shaped, untouched

TOL = 1e-5
FIELDS = ("tokens", "positions", "pair", "where", "target", "weight")


def draw(seed, salt, k=None, left_out=(), longest=5):
    """k pairs of uneven lengths, all tokens different within a call; some are left out."""
    g = rng(seed, salt)
    k = k or primes(seed, "k", among=(3, 5)).k
    lengths = [(1 + int(a), 1 + int(b)) for a, b in torch.randint(longest, (k, 2), generator=g)]
    lengths[0], lengths[1 % k] = (3, 2), (1, 4)  # always one of each kind: a long answer, an input of one token
    ids = iter((torch.randperm(89, generator=g) + 10).tolist())
    pairs = [([next(ids) for _ in range(m)], [next(ids) for _ in range(n)]) for m, n in lengths]
    return [None if i in left_out else pair for i, pair in enumerate(pairs)]


def cases(seed, salt):
    """[(pairs, start)]: what a row is made of. A message about the first is the easiest to read."""
    drawn = draw(seed, salt)
    return [
        (drawn[:1], 11), (drawn, 5), (drawn, 0), (draw(seed, salt, 7), 1000),
        ([([0], [0])], 3), ([([3], [0]), ([0], [5])], 2),  # one token each, and token 0
        ([([4, 4, 4], [4, 4]), ([4, 7, 4], [7, 4, 7])], 6), ([([1, 2], [3, 1])] * 3, 4),  # tokens and pairs that repeat
        ([(list(range(30)), list(range(50_070, 50_045, -1))), ([5], [6])], 9),  # longer, and of a larger vocabulary
        (draw(seed, salt, 5, [0]), 3), (draw(seed, salt, 5, [1, 3]), 3), (draw(seed, salt, 4, [0, 2, 3]), 0),
    ]


def packed(impl, pairs, start):
    """The student's row, with fields of the right shapes: tokens of no pair, and indices outside it, are found here."""
    given = [None if pair is None else (list(pair[0]), list(pair[1])) for pair in pairs]
    row, case = impl.pack(given, start), f"pairs {pairs}, start {start}"
    stop = lambda broke, got, want, ask="Which shape does the handout give?": fail(broke, case, got, want, ask, "1")
    if given != pairs:
        stop("pack changes the pairs it is given.", given, pairs, "Who else holds these lists?")
    for name in FIELDS:
        field = getattr(row, name, None)
        if not isinstance(field, torch.Tensor):
            stop(f"The row has no tensor {name}.", type(field).__name__, "a tensor")
        wanted = "float" if name == "weight" else "int"
        if kind(field) != wanted:
            stop(f"The row's {name} are no {'real' if wanted == 'float' else 'whole'} numbers.", field.dtype, wanted)
        if field.dim() != (2 if name in FIELDS[:3] else 1):
            stop(f"The row's {name} has another number of dimensions.", tuple(field.shape),
                 "(R, T)" if name in FIELDS[:3] else "(N,)")
    if not row.tokens.numel():
        stop("The row has no tokens.", tuple(row.tokens.shape), "(R, T)")
    for name in FIELDS[1:3]:
        if getattr(row, name).shape != row.tokens.shape:
            stop(f"tokens and {name} differ in shape.", tuple(getattr(row, name).shape), tuple(row.tokens.shape))
    if not len(row.where) == len(row.target) == len(row.weight):
        stop("where, target and weight differ in length.", [len(row.where), len(row.target), len(row.weight)], "one N")
    if len(row.where) and not 0 <= int(row.where.min()) <= int(row.where.max()) < row.tokens.numel():
        stop("where points outside the row.", row.where.tolist(), f"0 … {row.tokens.numel() - 1}")
    return row, case


def at(row, i):
    """The flat indices of the tokens of pair i, in the row's order."""
    return (row.pair.flatten() == i).nonzero().flatten().tolist()


def answers(row):
    """[(pair, how far into the pair the predicting token stands, target, weight)], sorted."""
    pair, inside = row.pair.flatten().tolist(), {}
    for i in set(pair):
        inside |= {t: n for n, t in enumerate(at(row, i))}
    lines = zip(row.where.tolist(), row.target.tolist(), row.weight.tolist(), strict=True)
    return sorted((pair[t], inside[t], target, weight) for t, target, weight in lines)


# 1 pack ------------------------------------------------------------------------------------------------------------

@points(2, minutes=10, section="1.1")
def test_the_row_holds_what_has_something_to_predict(impl, seed):
    for pairs, start in cases(seed, "tokens"):
        row, case = packed(impl, pairs, start)
        there = [i for i, pair in enumerate(pairs) if pair is not None]
        flat, wrong = row.tokens.flatten().tolist(), set(row.pair.flatten().tolist()) - {-1, *there}
        if wrong:
            fail("A token is of a pair that is not there.", case, f"pair {min(wrong)}", f"one of {there}",
                 "How are pairs numbered, and what marks padding?", "1.1")
        for i in there:
            (x, y), got = pairs[i], [flat[t] for t in at(row, i)]
            if got == [*x, *y]:
                fail("The last token of an answer is in the row.", f"pair {i}: x {x}, y {y}", got, [*x, *y[:-1]],
                     "What does the last token of y predict?", "1.1")
            if got != [*x, *y[:-1]]:
                fail("The tokens of a pair are not x and what of y is read, in their order.",
                     f"pair {i}: x {x}, y {y}", got, [*x, *y[:-1]], "Which tokens have a next one to predict?", "1.1")
            if len({t // row.tokens.shape[1] for t in at(row, i)}) != 1:
                fail("A pair is spread over several rows.", f"pair {i}: x {x}, y {y}", "several rows", "one",
                     "Can a token look at another row?", "1.1")


@points(3, minutes=15, section="1.2")
def test_positions_go_on_behind_the_prefix_for_each_pair(impl, seed):
    for pairs, start in cases(seed, "positions"):
        row, _ = packed(impl, pairs, start)
        places = row.positions.flatten().tolist()
        for i, (x, y) in ((i, pair) for i, pair in enumerate(pairs) if pair is not None):
            got, want = [places[t] for t in at(row, i)], list(range(start, start + len(x) + len(y) - 1))
            if got != want:
                fail("The positions of a pair do not begin right behind the prefix and go on by one.",
                     f"pair {i} of {len(pairs)}, {len(want)} tokens, start {start}", got, want,
                     "Where would this pair stand, if it were alone behind the prefix?", "1.2")


def wanted(pairs):
    """[(pair, how far into the pair the predicting token stands, target)] of every answer token, sorted."""
    there = ((i, *pair) for i, pair in enumerate(pairs) if pair is not None)
    return sorted((i, len(x) - 1 + j, token) for i, x, y in there for j, token in enumerate(y))


@points(2, minutes=15, section="1.3")
def test_each_answer_token_is_predicted_by_the_one_before_it(impl, seed):
    for pairs, start in cases(seed, "shift"):
        row, _ = packed(impl, pairs, start)
        asked = {(i, n, target) for i, n, target, _ in answers(row)}
        for i, n, token in wanted(pairs):
            if (i, n, token) in asked:
                continue
            (x, y), by = pairs[i], [m for p, m, target in asked if (p, target) == (i, token)]
            if not by:
                of = [p for p, _, target in asked if target == token]
                fail("An answer token is the target of no token of its pair.", f"pair {i}: x {x}, y {y}",
                     f"{token} predicted in pair {of[0]}" if of else f"{token} is never predicted",
                     f"{token} predicted by token {n} of pair {i}", "Which tokens does the loss ask for?", "1.3")
            fail("An answer token is not predicted by the token right before it: a shift.", f"pair {i}: x {x}, y {y}",
                 f"{token} predicted by token {by[0]} of the pair", f"by token {n}",
                 "A model's output at a token says what comes next. So at which token is it read?", "1.3")


@points(2, minutes=5, section="1.3")
def test_the_loss_asks_for_answers_alone(impl, seed):
    for pairs, start in cases(seed, "answers"):
        row, case = packed(impl, pairs, start)
        got = sorted((i, target) for i, _, target, weight in answers(row) if weight)
        want = sorted((i, target) for i, _, target in wanted(pairs))
        for i, token in got:
            if 0 <= i < len(pairs) and pairs[i] and token in pairs[i][0] and token not in pairs[i][1]:
                fail("The loss is not on answers alone.", f"pair {i}: x {pairs[i][0]}, y {pairs[i][1]}",
                     f"a target {token}, a token of x", f"the targets {pairs[i][1]}",
                     "Does the method learn to write questions?", "1.3")
        if got != want:
            fail("The targets are not the answer tokens, each once.", f"{case}; (pair, target)", got, want,
                 "Is a token asked for twice, or never?", "1.3")


@points(2, minutes=10, section="1.4")
def test_every_answer_token_weighs_the_same(impl, seed):
    for pairs, start in cases(seed, "weights"):
        row, case = packed(impl, pairs, start)
        want, of = wanted(pairs), {}
        for i, n, target, weight in answers(row):
            of[i, n, target] = of.get((i, n, target), 0.0) + weight
        got = torch.tensor([of.get(key, 0.0) for key in want])
        same(got / got.sum(), torch.full_like(got, 1 / len(want)), "The loss is not one mean over all answer tokens.",
             f"answers of {[len(pair[1]) for pair in pairs if pair]} tokens; the weight of each token, in that order",
             "Does a token of a long answer count less than one of a short answer?", "1.4", TOL)
        if not abs(float(row.weight.sum()) - 1) <= TOL:
            fail("The weights do not sum to 1.", case, f"{float(row.weight.sum()):.4f}", "1", "A mean, or a sum?",
                 "1.4")


@points(2, minutes=10, section="1.5")
def test_a_pair_that_is_left_out_leaves_the_others_their_number(impl, seed):
    k = 5
    for left_out in ([0], [1, 3], [4], [0, 1, 2, 3]):
        pairs = draw(seed, "left out", k, left_out)
        row, _ = packed(impl, pairs, 3)
        case = f"pairs {left_out} of {k} are None"
        flat = row.tokens.flatten().tolist()
        for i, pair in enumerate(pairs):
            got, ids = [flat[t] for t in at(row, i)], [*pair[0], *pair[1]] if pair else []
            if set(got) - set(ids) or ids and not got:
                fail("A pair that is left out renumbers the others.", case, f"pair {i} has the tokens {got}",
                     f"some of {ids}", "Which demo belongs to pair 4 when pair 1 is left out?", "1.5")
        got = [(i, n, target) for i, n, target, weight in answers(row) if weight]
        if got != wanted(pairs):
            fail("With a pair left out, other tokens are predicted.", f"{case}; (pair, place in it, target)", got,
                 wanted(pairs), "What of the row depends on a pair that is not there?", "1.5")
        seen = torch.zeros(k, k, dtype=torch.bool)
        seen.fill_diagonal_(True)  # entry j is seen by pair j alone
        mask = masked(impl, row, seen)
        for i in range(k):
            for t in at(row, i):
                got = lines(mask, row)[t][:k].nonzero().flatten().tolist()
                if got != [i]:
                    fail("A pair that is left out renumbers the others in the mask.", case + ", entry j is seen by "
                         f"pair j alone; a token of pair {i}", f"it sees entries {got}", [i],
                         "Which line of seen belongs to this token?", "1.5")


# 2 visible ---------------------------------------------------------------------------------------------------------

def table(impl, owner, k, leave_one_out, p, generator):
    """The student's visible, with its arguments watched: a bool tensor (k, P)."""
    with untouched("visible", "2", owner=owner):
        seen = impl.visible(owner, k, leave_one_out, p, generator)
    case = f"owner {owner.tolist()}, k = {k}, leave_one_out {leave_one_out}, p = {p:g}"
    if isinstance(seen, torch.Tensor) and kind(seen) == "float":
        fail("visible hides or shows, and scales nothing.", case, f"{seen.dtype}, at most {float(seen.max()):.4g}",
             "torch.bool", "Is what is left rescaled after dropout, or is it left as it is?", "2.2")
    return shaped(seen, torch.zeros(k, len(owner), dtype=torch.bool), "visible returns a bool tensor (k, P).", case,
                  "A line for each what, and a column for each what?", "2"), case


ALONE = torch.tensor([-1, 0, 0]), 1  # one demo: what leave-one-out leaves is the instruction
NO_INSTRUCTION = torch.tensor([1, 0, 2, 1]), 3


def owners(seed):
    """Owners in no order, with an instruction at both ends and a demo without entries."""
    k, g = 5, rng(seed, "owners")
    owner = torch.tensor([0, 0, 1, 2, 2, 2, 4, 4, -1])[torch.randperm(9, generator=g)]
    return torch.cat([torch.tensor([-1]), owner, torch.tensor([-1])]), k


@points(2, minutes=10, section="2.1")
def test_leave_one_out_hides_demo_i_from_pair_i(impl, seed):
    for owner, k in ((torch.tensor([0, 1, 1]), 2), owners(seed), ALONE, NO_INSTRUCTION, (torch.tensor([-1, -1]), 2)):
        seen, case = table(impl, owner, k, True, 0.0, None)
        for i in range(k):
            for e, demo in enumerate(owner.tolist()):
                if demo == i and seen[i, e]:
                    fail("A pair sees its own demo.", case, f"pair {i} sees entry {e} of demo {demo}", "it is hidden",
                         "What could a pair learn that way, without learning the task?", "2.1")
                if demo not in (i, -1) and not seen[i, e]:
                    fail("A pair does not see a demo that is not its own.", case,
                         f"entry {e} of demo {demo} is hidden from pair {i}", "it is seen",
                         "Whose demo is left out for this pair?", "2.1")


@points(1, minutes=5, section="2.1")
def test_the_instruction_is_never_left_out_and_nothing_is_without_it(impl, seed):
    for owner, k in (owners(seed), ALONE, NO_INSTRUCTION):
        seen, case = table(impl, owner, k, True, 0.0, None)
        same(seen[:, owner < 0], torch.ones(k, int((owner < 0).sum()), dtype=torch.bool),
             "Leave-one-out hides the instruction, which no demo owns.", case, "Whose entries are -1?", "2.1")
        if seen.all():
            fail("Leave-one-out hides nothing.", case, "all seen", "demo i hidden from pair i", "What is left out?",
                 "2.1")
        for generator in (None, rng(seed, "not drawn from")):
            seen, case = table(impl, owner, k, False, 0.0, generator)
            same(seen, torch.ones(k, len(owner), dtype=torch.bool),
                 "Something is hidden without leave-one-out and dropout.", case, "Is leave_one_out looked at?", "2.1")


def drops(impl, owner, k, p, generator, n, leave_one_out=False):
    """n draws of what is hidden by dropout: (n, k, P)."""
    return torch.stack([~table(impl, owner, k, leave_one_out, p, generator)[0] for _ in range(n)])


@points(2, minutes=10, section="2.2")
def test_dropout_hides_with_probability_p_and_no_entry_is_exempt(impl, seed):
    few = (torch.tensor([0]), 1), (torch.tensor([1, 0]), 2)  # where everything, or nothing, is hidden quite often
    for (owner, k), p in ((owners(seed), 0.2), (owners(seed), 0.7), (few[0], 0.6), (few[1], 0.4), (ALONE, 0.9)):
        n = 60 if len(owner) > 3 else 300
        hidden = drops(impl, owner, k, p, rng(seed, f"rate {p}"), n).double()
        of = lambda m, p=p: 5 * (p * (1 - p) / m) ** 0.5  # five standard errors of a rate over m draws
        case = f"owner {owner.tolist()}, k = {k}, p = {p:g}, {n} draws"
        ask = "What is hidden, and with which probability? Is any entry or pair exempt?"
        rate = hidden.mean().reshape(1)
        same(hidden.mean((0, 1)), rate.expand(len(owner)),
             "Dropout does not hide every entry of the prefix with one probability.",
             case + "; the rate of each entry, and of all", ask, "2.2", of(n * k))
        same(hidden.mean((0, 2)), rate.expand(k), "Dropout does not hide from every pair with one probability.",
             case + "; the rate of each pair, and of all", ask, "2.2", of(n * len(owner)))
        same(rate, torch.tensor([p], dtype=torch.float64), "Dropout does not hide a share p of the entries.",
             case, ask, "2.2", of(hidden.numel()))
    owner, k = owners(seed)
    for p in (0.3, 0.8):
        hidden = drops(impl, owner, k, p, rng(seed, "both"), 60, leave_one_out=True)
        own = owner == torch.arange(k)[:, None]
        if not hidden[:, own].all():
            fail("With dropout a pair sees its own demo.", f"owner {owner.tolist()}, p = {p}", "seen", "hidden",
                 "How do the two rules go together?", "2.2")
        rest = hidden[:, ~own].double()
        same(rest.mean().reshape(1), torch.tensor([p], dtype=torch.float64),
             "With leave-one-out, dropout hides another share of the rest.",
             f"owner {owner.tolist()}, p = {p}, 60 draws", "How do the two rules go together?", "2.2",
             5 * (p * (1 - p) / rest.numel()) ** 0.5)


@points(2, minutes=10, section="2.2")
def test_dropout_is_drawn_for_each_pair_and_each_entry(impl, seed):
    few, k = owners(seed)
    p, n = 0.5, 240
    for owner, leave_one_out in ((few, False), (few, True), (few.repeat(3), False)):
        P = len(owner)
        hidden = drops(impl, owner, k, p, rng(seed, "independent"), n, leave_one_out).double() - p  # (n, k, P)
        if leave_one_out:  # what is hidden anyway says nothing of the draw
            hidden[:, owner == torch.arange(k)[:, None]] = 0
        case = f"owner {owner.tolist()}, k = {k}, p = {p:g}, leave_one_out {leave_one_out}, {n} draws"
        counts = hidden.sum((1, 2))  # a sum of independent draws has the sum of their variances
        spread = counts.pow(2).mean().item() / (p * (1 - p) * (hidden[0] != 0).sum().item())
        cells = hidden.flatten(1)  # (n, k·P)
        for later in range(3):  # the draws of a call, and those of the next calls
            off = (cells[: n - later].T @ cells[later:] / (n - later)).abs()  # every two covary by 0
            if not later:
                off.fill_diagonal_(0)
            a, b = divmod(int(off.argmax()), k * P)
            if not off.max() < 6.5 * p * (1 - p) / (n - later) ** 0.5:  # six and a half standard errors
                (i, e), (j, f) = divmod(a, P), divmod(b, P)
                fail("Dropout is not drawn anew for each call." if later else
                     "Dropout is not drawn for each pair by itself." if i != j else
                     "Dropout is not drawn for each entry by itself.",
                     f"{case}; entry {e} for pair {i}, and entry {f} for pair {j}" + later * " one call later",
                     f"a covariance of {off.max():.3f}", "0",
                     "Do two pairs always miss the same entries? Are two entries always hidden together?", "2.2")
        if not 0.5 < spread < 1.7:  # its standard error is .09
            fail("How many entries are hidden is not left to chance: dropout is drawn for each entry by itself.",
                 case, f"{spread:.2f} times the variance of that number", "1",
                 "If ten entries have had their draw, what does the eleventh know of it?", "2.2")


@points(1, minutes=5, section="2.3")
def test_draws_come_from_the_generator(impl, seed):
    owner, k = owners(seed)
    owner = owner.repeat(7)
    make = lambda: rng(seed, "draws")
    for leave_one_out in (True, False):
        draw = lambda g, leave=leave_one_out: table(impl, owner, k, leave, 0.5, g)[0]
        torch.manual_seed(1)
        first = draw(g := make())
        second = draw(g)
        torch.manual_seed(2)
        again = draw(make())
        case = f"P = {len(owner)}, k = {k}, p = 0.5"
        same(again, first, "The same seed gives another draw.", case + "; two generators of one seed",
             "Where else could a random number come from?", "2.3")
        if torch.equal(first, second):
            fail("A second draw from a generator repeats the first.", case, "the same entries hidden", "another draw",
                 "Does every step of training see other holes?", "2.3")
        if torch.equal(draw(rng(seed, "other draws")), first):
            fail("Two generators give one draw.", case, "the same entries hidden", "another draw",
                 "Where does the generator go?", "2.3")


# 3 row_mask --------------------------------------------------------------------------------------------------------

def masked(impl, row, seen):
    """The student's row_mask, with its arguments watched: a bool tensor (R, T, P+T)."""
    tensors = {name: getattr(row, name) for name in FIELDS}
    with untouched("row_mask", "3", **tensors, seen=seen):
        mask = impl.row_mask(row, seen)
    (R, T), P = row.tokens.shape, seen.shape[1]
    return shaped(mask, torch.zeros(R, T, P + T, dtype=torch.bool),
                  "row_mask returns a bool tensor (R, T, P+T): it hides or shows, and scales nothing.",
                  f"R = {R}, T = {T}, P = {P}", "A line for each what, and a column for each what?", "3")


def lines(mask, row):
    """The mask's line of every token, by its flat index."""
    return mask.reshape(row.tokens.numel(), -1)


@points(1, minutes=5, section="3")
def test_a_token_sees_of_the_prefix_what_its_pair_sees(impl, seed):
    g = rng(seed, "seen")
    for pairs, start in cases(seed, "prefix"):
        for P in (11, 1, 0):
            seen = torch.rand(len(pairs), P, generator=g) < 0.5
            row, _ = packed(impl, pairs, start)
            mask = masked(impl, row, seen)
            for i in range(len(pairs)):
                for t in at(row, i):
                    same(lines(mask, row)[t, :P], seen[i], "A token does not see of the prefix what its pair sees.",
                         f"P = {P}, token {at(row, i).index(t)} of pair {i}, which sees {seen[i].int().tolist()}",
                         "Which line of seen belongs to this token?", "3")


@points(2, minutes=5, section="3")
def test_a_token_sees_its_own_pair_up_to_itself(impl, seed):
    for pairs, start in cases(seed, "own"):
        seen = torch.rand(len(pairs), 3, generator=rng(seed, "own")) < 0.5
        row, _ = packed(impl, pairs, start)
        mask, T = lines(masked(impl, row, seen), row)[:, 3:], row.tokens.shape[1]
        pair = row.pair.flatten().tolist()
        for t in range(len(pair)):
            i, mine = pair[t], at(row, pair[t])
            if i < 0:  # what padding sees is free
                continue
            n = mine.index(t)
            case = f"{len(pairs)} pairs, token {n} of the {len(mine)} that pair {i} has"
            got = [t // T * T + column for column in mask[t].nonzero().flatten().tolist()]
            others = [u for u in got if pair[u] != i]
            if others:
                fail("Pairs see each other, or padding.", case, f"it sees a token of pair {pair[others[0]]}",
                     "its own pair alone", "Would this pair see that token, if it were alone?", "3")
            if any(u > t for u in got):
                fail("A token looks ahead.", case, f"it sees token {mine.index(max(got))} of its pair",
                     f"tokens 0 … {n}", "What is left to predict then?", "3")
            if got != mine[: n + 1]:
                fail("A token does not see its own pair up to itself.", case, f"{[mine.index(u) for u in got]}",
                     f"{list(range(n + 1))}", "What does the token know of its own question?", "3")


# 4 all three -------------------------------------------------------------------------------------------------------

@points(1, minutes=5, section="4")
def test_the_loss_and_its_gradient_are_those_of_the_pairs_one_by_one(impl, seed):
    g, D = rng(seed, "loss"), 6
    pairs = draw(seed, "loss pairs", 3, longest=3)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    owner = torch.tensor([-1, 0, 0, 1, 2])
    model, prefix = dict(embed=normal(101, D), theta=10.0), [normal(len(owner), D).requires_grad_() for _ in range(2)]
    row, _ = packed(impl, pairs, len(owner))
    seen, _ = table(impl, owner, 3, True, 0.0, None)
    loss = row_loss(model, prefix, row, masked(impl, row, seen))
    want_seen = owner != torch.arange(3)[:, None]
    slow = reference.pairs_loss(model, [list(part) for part in prefix], want_seen.tolist(), pairs, len(owner))
    case = f"3 pairs of {[(len(x), len(y)) for x, y in pairs]} tokens, owner {owner.tolist()}, leave-one-out"
    ask = "The tests above look at one property each. Which of them fail?"
    same(loss.reshape(1), slow.reshape(1), "The loss of the row is not that of the pairs one by one.", case, ask, "4",
         TOL)
    for name, part, wanted in zip(("keys", "values"), torch.autograd.grad(loss, prefix),
                                  torch.autograd.grad(slow, prefix)):
        same(part, wanted, f"The gradient in the prefix's {name} is not that of the pairs one by one.", case, ask, "4",
             TOL)


def row_loss(model, prefix, row, mask):
    """The loss of a row by its own tokens, positions, mask and weights, in the model of reference.pair_loss."""
    embed, half = model["embed"], model["embed"].shape[1] // 2
    x = embed[row.tokens.long()]  # (R, T, D)
    angle = row.positions[..., None] * model["theta"] ** (-torch.arange(half).double() / half)
    a, b = x[..., :half], x[..., half:]
    q = torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)
    keys, values = (torch.cat([old.expand(len(x), -1, -1), new], dim=1) for old, new in zip(prefix, (q, x)))
    scores = (q @ keys.transpose(1, 2) / (2 * half) ** 0.5).masked_fill(~mask, -1e9)
    logits = (scores.softmax(-1) @ values + x) @ embed.T
    log_p = logits.flatten(0, 1)[row.where.long()].log_softmax(-1)
    return -(row.weight.double() * log_p.gather(1, row.target.long()[:, None])[:, 0]).sum()
