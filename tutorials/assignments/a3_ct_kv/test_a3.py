"""Grades A3: pytest a3_ct_kv --impl my_file.py. The oracles are reference.py, and properties that need none."""

import math
from functools import cache

import given
import mistakes
import reference
import torch
from grading import fail, points, primes, rng, same, several, untouched

LOW, HIGH = torch.float32, torch.float64


# a case ------------------------------------------------------------------------------------------------------------

class Case:
    """A model, an instruction, demos of unequal lengths, and a prefix that is near the context but tuned a little.

    alike: the tokens are 0 and 1 alone; loud: how much larger the logits and gradients are; frozen: the weights are.
    """

    def __init__(self, seed, k=3, instruction=2, dtype=HIGH, long=4, lengths=None, alike=False, loud=1.0, frozen=False,
                 **model):
        self.model = given.Model(seed + 11, dtype, **model).requires_grad_(not frozen)
        with torch.no_grad():
            self.model.head *= loud
        generator = rng(seed, f"A3 {k} {instruction} {long}")
        words = 2 if alike else self.model.vocab
        self.ids = lambda n: torch.randint(words, (n,), generator=generator).tolist()
        if lengths is None:
            lengths = [(3, 1), (1, long), (2, 2), (4, 3)]
            turn = seed % 2  # both orders: the long answer first, or second
            lengths = lengths[1::-1] + lengths[2:] if turn else lengths
        self.demos = [(self.ids(x), self.ids(y)) for x, y in lengths[:k]]
        self.instruction = self.ids(instruction)
        sizes = [len(x) + len(y) for x, y in self.demos]
        self.owner = torch.tensor([-1] * instruction + [i for i, n in enumerate(sizes) for _ in range(n)])
        self.k, self.P = k, len(self.owner)
        draw = lambda: torch.randn(self.model.L, 1, self.model.K, self.P, self.model.D, generator=generator)
        self.keys, self.values = draw(), draw()
        self.dropped = torch.rand(k, self.P, generator=generator) < 0.3
        self.dropped[0, -1] &= k > 1  # a single pair sees something
        self.nothing = torch.zeros_like(self.dropped)
        of = f", of which {instruction} are the instruction's" if instruction else ""
        self.name = f"k = {k} pairs with answers of {[len(y) for _, y in self.demos]} tokens, P = {self.P} entries{of}"


KINDS = (  # of what start, step_loss and answer are given
    {}, dict(k=2, instruction=0), dict(k=4, instruction=11), dict(k=1, instruction=0), dict(k=1, instruction=3),
    dict(lengths=[(2, 1), (1, 1), (3, 1)]), dict(alike=True), dict(k=2, dtype=LOW), dict(k=2, frozen=True, L=1, K=1),
    dict(k=2, instruction=0, lengths=[(1, 1), (1, 1)]),
)


@cache
def right(seed, kind, drop):
    """The reference's loss of a kind and its gradients."""
    case = Case(seed, **KINDS[kind])
    exact = [part.double().requires_grad_() for part in (case.keys, case.values)]
    dropped = case.dropped if drop else case.nothing
    loss = reference.step_loss(case.model, *exact, case.owner.tolist(), case.demos, dropped.tolist())
    return loss.detach(), torch.autograd.grad(loss, exact)


@cache
def right_start(seed, kind):
    case = Case(seed, **KINDS[kind])
    return reference.start(case.model, case.instruction, case.demos)


def read(impl, case):
    """start of an implementation, its kinds of numbers checked."""
    weights = bits(case.model)
    with untouched("start", "1", instruction=case.instruction, demos=case.demos):
        got = several(impl.start(case.model, case.instruction, case.demos), ("keys", "values", "owner"), "start", "1")
    unchanged(case.model, weights, "start", "1")
    for part, name in zip(got, ("keys", "values")):
        wide(part, name, "start", "1")
        if part.shape != case.keys.shape:
            fail(f"The {name} of start have the shape (L, 1, K, P, D).", case.name, f"{tuple(part.shape)}",
                 f"{tuple(case.keys.shape)}", "Which token has which entry, and is there one for every token?", "1")
        if part.grad_fn is not None:
            fail(f"The {name} of start belong to a graph.", case.name, "a tensor with a history", "one without",
                 "What would a backward pass through these go on to?", "1")
    return got


def loss_of(impl, case, dropped, demos=None, owner=None, leaves=None):
    """step_loss of an implementation: one finite number."""
    keys, values = leaves or (case.keys.clone(), case.values.clone())
    owner, demos = case.owner.clone() if owner is None else owner, demos or case.demos
    weights = bits(case.model)
    with untouched("step_loss", "2", keys=keys, values=values, owner=owner, demos=demos, dropped=dropped):
        got = impl.step_loss(case.model, keys, values, owner, demos, dropped)
    unchanged(case.model, weights, "step_loss", "2")
    ask = "What does an optimiser call backward on?"
    if not isinstance(got, torch.Tensor) or got.shape != () or not got.is_floating_point():
        what = f"{got.dtype} {tuple(got.shape)}" if isinstance(got, torch.Tensor) else type(got).__name__
        fail("step_loss returns a scalar.", case.name, what, "a tensor of shape () of real numbers", ask, "2")
    if not got.isfinite():
        fail("The loss is not finite.", case.name, f"{got.item()}", "a positive number",
             "Is there a token that may see nothing at all, or an empty mean?", "2")
    return got


def right_loss(got, case, dropped, broke, ask, want=None, demos=None, owner=None, atol=2e-5):
    """Wrong unless a loss is the reference's. A mistake that would give this number is named."""
    demos, owner = demos or case.demos, case.owner if owner is None else owner
    if want is None:
        want = reference.step_loss(case.model, case.keys.double(), case.values.double(), owner.tolist(), demos,
                                   dropped.tolist())
    if abs(got.item() - want.item()) <= atol:
        return
    found = mistakes.named(got.item(), (case.model, case.keys, case.values, owner, demos, dropped))
    broke, ask = found or (broke, ask)
    fail(broke, case.name, f"a loss of {got.item():.6f}", f"{want.item():.6f}", ask, "2")


def tuned(impl, case, n_step, lr, p, seed):
    """adapt of an implementation: two wide tensors of the prefix's shape, and the weights as they were."""
    weights = bits(case.model)
    with untouched("adapt", "3", instruction=case.instruction, demos=case.demos):
        got = several(impl.adapt(case.model, case.instruction, case.demos, n_step, lr, p, seed), ("keys", "values"),
                      "adapt", "3")
    unchanged(case.model, weights, "adapt", "3")
    for part, name in zip(got, ("keys", "values")):
        wide(part, name, "adapt", "3")
        if part.shape != case.keys.shape:
            fail(f"{name} have the shape of the prefix.", case.name, f"{tuple(part.shape)}",
                 f"{tuple(case.keys.shape)}", "Is every entry tuned, and none added?", "3")
        if not part.isfinite().all():
            fail(f"The tuned {name} are finite.", case.name, "NaN or infinite numbers", "finite ones",
                 "At which step do they turn up first?", "3")
    return [part.detach() for part in got]


def wide(part, name, function, section):
    if not isinstance(part, torch.Tensor) or part.dtype not in (LOW, HIGH):
        what = f"{part.dtype}" if isinstance(part, torch.Tensor) else type(part).__name__
        fail(f"The {name} of {function} are float32, also where the model computes in bfloat16.",
             f"any call of {function}", what, "torch.float32",
             "How large is half an ulp of bfloat16 at .8, beside a learning rate of .001?", section)


def bits(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def unchanged(model, before, function, section):
    after = dict(model.named_parameters())
    moved = [name for name in before if name not in after or after[name].dtype != before[name].dtype
             or not torch.equal(after[name], before[name])]
    if moved:
        fail(f"{function} changes the weights of the model, which are frozen.", f"weights {', '.join(moved)}",
             f"{len(moved)} of {len(before)} weights that differ in some bit", "the same bits before and after",
             "Which tensors does the optimiser hold?", section)


# 1 the start -------------------------------------------------------------------------------------------------------

@points(1, minutes=10, section="1")
def test_start_shapes_and_owners(impl, seed):
    sizes = primes(seed, "K", "D", "L", among=(2, 3, 5))
    own = dict(L=sizes.L, K=sizes.K, D=sizes.D)
    for kind in (dict(k=3, **own), dict(k=2, instruction=0, **own), *KINDS, dict(k=2, dtype=torch.bfloat16)):
        case = Case(seed, **kind)
        *_, owner = read(impl, case)
        same(owner, case.owner, "owner names the demo that an entry came from, and -1 for the instruction.", case.name,
             "Whose token stands at this place of the context?", "1")


@points(2, minutes=15, section="1")
def test_start_reads_the_demos_one_after_the_other(impl, seed):
    case = Case(seed)
    values = read(impl, case)[1]
    names, behind = ("keys", "values"), case.owner == 1
    other = Case(seed)
    x, y = other.demos[0]
    other.demos[0] = [(token + 1) % case.model.vocab for token in x], y
    moved = read(impl, other)[1][..., behind, :]
    if torch.equal(moved, values[..., behind, :]) and moved.numel():
        fail("The demos are encoded apart: demo 1's entries do not depend on demo 0.",
             f"{case.name}; the question of demo 0 changed", "the same values of demo 1's entries, bit for bit",
             "others", "What has the model read when it comes to the first token of demo 1?", "1")
    for i, kind in enumerate(KINDS):
        case = Case(seed, **kind)
        keys, values, _ = read(impl, case)
        want_keys, want_values, _ = right_start(seed, i)
        for got, want, name in zip((keys, values), (want_keys, want_values), names):
            same(got.double(), want, f"The {name} are the cache of instruction and demos read as one sentence from "
                 "position 0 on.", case.name, "What stands before this token, and at which position does it stand?",
                 "1", atol=2e-5)


# 2 the loss of a step ----------------------------------------------------------------------------------------------

@points(3, minutes=20, section="2")
def test_loss_is_one_mean_over_answer_tokens(impl, seed):
    for i, kind in enumerate(KINDS):
        case = Case(seed, **kind)
        right_loss(loss_of(impl, case, case.nothing), case, case.nothing,
                   "The loss is not the mean of -log p over the answer tokens of all pairs.",
                   "Which tokens count, where do they stand, and what may they see?", right(seed, i, False)[0])


@points(2, minutes=10, section="2")
def test_own_demo_is_hidden_and_no_other(impl, seed):
    case = Case(seed)
    for i in range(case.k):
        dropped = torch.ones_like(case.nothing)
        dropped[i] = False  # the other pairs see nothing of the prefix, so what has a gradient is seen by pair i
        leaves = [case.keys.clone().requires_grad_(), case.values.clone().requires_grad_()]
        gradients = differentiate(loss_of(impl, case, dropped, leaves=leaves), leaves, case)
        has = (sum(g.abs().movedim(-2, 0).flatten(1).sum(1) for g in gradients) > 0)  # (P,)
        for e in range(case.P):
            j, seen = int(case.owner[e]), bool(has[e])
            if seen == (j != i):
                continue
            broke = ("Pair i sees its own demo: leave-one-out does not hide it." if seen else
                     "The instruction is hidden from the pairs." if j < 0 else
                     "The wrong demo is hidden: pair i does not see another demo.")
            fail(broke, f"i = {i}, entry {e} of owner {j}; {case.name}; all is dropped for the other pairs",
                 f"{'a' if seen else 'no'} gradient in that entry", f"{'none' if seen else 'one'}",
                 "Which entries may pair i look at?", "2")


@points(2, minutes=10, section="2")
def test_pairs_do_not_meet(impl, seed):
    case = Case(seed)
    one = loss_of(impl, case, case.dropped)
    turn = [1, 2, 0]
    owner = torch.tensor([turn.index(j) if j >= 0 else -1 for j in case.owner.tolist()])
    demos, dropped = [case.demos[i] for i in turn], case.dropped[turn]
    two = loss_of(impl, case, dropped, demos, owner)
    if abs(one - two) > 2e-5:
        arguments = case.model, case.keys, case.values, case.owner, case.demos, case.dropped
        found = mistakes.named(one.item(), arguments)
        broke, ask = found or ("The pairs meet: the loss depends on their order.",
                               "What does the first pair know that the last one does not?")
        fail(broke, f"{case.name}; the same pairs asked in the order {turn}, with their owners and draws",
             f"losses of {one.item():.6f} and {two.item():.6f}", "the same number", ask, "2")
    right_loss(one, case, case.dropped, "The loss is not the mean of -log p over the answer tokens of all pairs.",
               "What may a token see besides the prefix?")


@points(2, minutes=10, section="2")
def test_dropout_hides_and_nothing_is_rescaled(impl, seed):
    case, ask = Case(seed), "What does a hidden entry change for the ones that are seen?"
    right_loss(loss_of(impl, case, case.nothing), case, case.nothing, "The loss is wrong before anything is dropped.",
               "Does test_loss_is_one_mean_over_answer_tokens pass?", right(seed, 0, False)[0])
    got = loss_of(impl, case, case.dropped)
    arguments = case.model, case.keys, case.values, case.owner, case.demos, case.dropped
    if mistakes.named(got.item(), arguments):
        right_loss(got, case, case.dropped, "Token dropout is wrong.", ask, right(seed, 0, True)[0])
    own = case.owner == torch.arange(case.k)[:, None]
    twice = loss_of(impl, case, own)
    if abs(twice - loss_of(impl, case, case.nothing)) > 2e-5:
        fail("Token dropout is rescaled: to drop what is hidden already changes the loss.",
             f"{case.name}; dropped is True where demo i owns the entry, and nowhere else", f"{twice.item():.6f}",
             f"{loss_of(impl, case, case.nothing).item():.6f}", ask, "2")
    for i, kind in enumerate(KINDS):
        case = Case(seed, **kind)
        right_loss(loss_of(impl, case, case.dropped), case, case.dropped,
                   "Token dropout does not hide the entries that dropped names.", ask, right(seed, i, True)[0])
    case = Case(seed)
    everything = torch.ones_like(case.dropped)
    right_loss(loss_of(impl, case, everything), case, everything,
               "With all of the prefix dropped, a pair still sees its own tokens at their positions.",
               "What is left to see, and where does it stand?")


@points(2, minutes=5, section="2")
def test_keys_and_values_have_the_gradient(impl, seed):
    for i, kind in enumerate(KINDS):
        case = Case(seed, **kind)
        leaves = [case.keys.clone().requires_grad_(), case.values.clone().requires_grad_()]
        got = differentiate(loss_of(impl, case, case.dropped, leaves=leaves), leaves, case)
        for part, want, name in zip(got, right(seed, i, True)[1], ("keys", "values")):
            same(part.double(), want, f"The gradient in the {name} is not that of the loss of k pairs.", case.name,
                 "Does every path from the entry to the loss count, once?", "2", atol=1e-5)


@points(1, minutes=5, section="2")
def test_a_single_demo_is_seen(impl, seed):
    for instruction in (0, 3):
        case = Case(seed, k=1, instruction=instruction)
        got = loss_of(impl, case, case.nothing)
        own = (case.owner == 0)[None]
        hidden = mistakes.loss(case.model, case.keys, case.values, case.owner, case.demos, own)
        if abs(got - hidden) < 2e-5:
            fail("With one demo, k = 1, leave-one-out hides it, and nothing of it can be trained.", case.name,
                 f"a loss of {got.item():.6f}, that without the demo", "the loss behind the demo",
                 "What is left of the demos when the only one is left out?", "2")
        for dropped in (case.nothing, case.dropped):
            right_loss(loss_of(impl, case, dropped), case, dropped, "With one demo, k = 1, the loss is wrong.",
                       "What may the only pair see?")


def differentiate(loss, leaves, case):
    """Gradients of both leaves. Wrong if one has none."""
    gradients = [None, None] if not loss.requires_grad else torch.autograd.grad(loss, leaves, allow_unused=True)
    for gradient, name in zip(gradients, ("keys", "values")):
        if gradient is None or not gradient.any():
            fail(f"The {name} have no gradient: they are detached from the loss.", case.name,
                 "none" if gradient is None else "a gradient of zeros", "a gradient in what the pairs see",
                 f"Along which path does a change of the {name} reach the loss?", "2")
    return gradients


# 3 the loop --------------------------------------------------------------------------------------------------------

@points(1, minutes=5, section="3")
def test_no_step_is_the_start(impl, seed):
    for case in (Case(seed, **kind) for kind in KINDS):
        for part, want, name in zip(tuned(impl, case, 0, 0.1, 0.3, seed), read(impl, case), ("keys", "values")):
            same(part.double(), want.detach().double(), f"After n_step = 0 steps the {name} are not those of start.",
                 f"n_step = 0; {case.name}", "What has been trained after no step?", "3", atol=1e-12)


@points(1, minutes=5, section="3")
def test_weights_are_frozen(impl, seed):
    for kind in (dict(k=2), dict(k=2, dtype=torch.bfloat16), dict(k=2, frozen=True), dict(k=1), dict(dtype=LOW)):
        case = Case(seed, **kind)
        before = read(impl, case)
        after = tuned(impl, case, 2, 0.05, 0.1, seed)  # looks at the weights' bits, before and after
        for old, new, name in zip(before, after, ("keys", "values")):
            if torch.equal(old.to(new.dtype), new):
                fail(f"The {name} do not move in training.", f"n_step = 2, lr = .05; {case.name}", "the start",
                     f"{name} that were trained", "Which tensors does the optimiser hold?", "3")


@points(2, minutes=5, section="3")
def test_what_is_trained_is_float32(impl, seed):
    case, lr = Case(seed, k=2, dtype=torch.bfloat16), 1e-3
    before, after = read(impl, case), tuned(impl, case, 1, lr, 0.0, seed)
    for old, new, name in zip(before, after, ("keys", "values")):
        step = (new.double() - old.detach().double()).abs()
        full = ((step - lr).abs() < lr / 50).double().mean().item()
        if full < 0.8:  # the first step of Adam is as long as the rate wherever there is a gradient
            lost = (step == 0).double().mean().item()
            fail(f"The {name} are trained as bfloat16 numbers: steps smaller than half an ulp are lost.",
                 f"a bfloat16 model, one step of lr = {lr}; {case.name}",
                 f"{full:.0%} of the numbers that moved by lr, {lost:.0%} that did not move", "all moved by lr",
                 "Which numbers of bfloat16 are next to .8, and how far off are they?", "3")


STEPS = (  # of what adapt is given: (kind, n_step, lr, the least difference that counts)
    (dict(k=2, long=3), 4, 0.08, 1e-4),
    (dict(k=2, long=3), 6, 0.6, 5e-3),  # the first gradients are longer than 1, and the last ones are not
    (dict(k=2, long=3, loud=4.0), 4, 0.3, 2e-3),  # all are longer, and of other lengths
    (dict(k=3, loud=0.25, alike=True), 1, 0.1, 1e-4), (dict(k=1, frozen=True), 3, 0.2, 1e-3),
)


@cache
def right_steps(seed, i):
    kind, n_step, lr, _ = STEPS[i]
    case = Case(seed, **kind)
    if not i:
        return reference.adapt(case.model, case.instruction, case.demos, n_step, lr)
    begin = [part.double() for part in start_quickly(case)]
    return reference.descend(lambda leaves, t: quick(case, leaves), begin, reference.cosine(lr, n_step))


def farthest(a, b):
    return max(float((p.double() - q.double()).abs().max()) for p, q in zip(a, b))


@points(3, minutes=15, section="3")
def test_steps_follow_the_optimiser(impl, seed):
    for i, (kind, n_step, lr, atol) in enumerate(STEPS):
        case = Case(seed, **kind)
        got, want = tuned(impl, case, n_step, lr, 0.0, seed), right_steps(seed, i)
        if farthest(got, want) <= atol:
            continue
        what = f"{n_step} steps of lr = {lr}, p = 0; {case.name}"
        for sentence, question, made in other_steps(seed, i):
            if farthest(got, made) < atol < farthest(want, made) / 3:
                fail(sentence, what, f"keys and values off by up to {farthest(got, want):.4f}",
                     "those of the slow reference", question, "3")
        for part, exact, name in zip(got, want, ("keys", "values")):
            same(part.double(), exact, f"The {name} after {n_step} steps are not those of AdamW along the cosine.",
                 what, "Do one step, then two, by hand: at which step do they part?", "3", atol=atol)
    small(impl, seed, 0.0)


@cache
def other_steps(seed, i):
    """[(sentence, question, keys and values)] of what usually goes wrong in the loop."""
    kind, n_step, lr, _ = STEPS[i]
    return list(wrong_steps(Case(seed, **kind), n_step, lr))


def wrong_steps(case, n_step, lr):
    begin = [part.double() for part in start_quickly(case)]
    right = lambda leaves, t: quick(case, leaves)
    cosine = reference.cosine(lr, n_step)
    go = lambda rates=cosine, loss=right, **more: reference.descend(loss, begin, rates, **more)
    angle = lambda n: [lr * (1 + math.cos(math.pi * t / n)) / 2 for t in range(n_step)]
    rate, norm = "Which rate has step t of n_step?", "When is a gradient cut, and to which length?"
    yield "The rate does not fall along a cosine: every step has the same.", rate, go([lr] * n_step)
    yield "The rate falls, but along a line, not along a cosine.", rate, go([lr * (1 - t / n_step)
                                                                           for t in range(n_step)])
    yield "The cosine does not end at n_step: another number of steps stands in it.", rate, go(angle(n_step - 1))
    yield "The cosine does not end at n_step: another number of steps stands in it.", rate, go(angle(n_step + 1))
    yield "The cosine begins a step late: the first rate is not lr.", rate, go([*angle(n_step)[1:], 0.0])
    yield "There is a warm-up: the first rates are small.", rate, go([min(1, (t + 1) / 2) * r
                                                                    for t, r in enumerate(cosine)])
    yield "The gradient is not clipped.", norm, go(clip=math.inf)
    for clip in (0.1, 0.5, 5.0, 10.0):
        yield "The gradient is clipped at another norm.", norm, go(clip=clip)
    yield "The keys and the values are clipped apart, each by a norm of its own.", norm, go(apart=True)
    yield "There is weight decay: entries shrink without a gradient.", "What pulls an entry to 0?", go(decay=0.01)
    yield "The betas of AdamW are others.", "How long does each moment remember?", go(betas=(0.9, 0.95))
    yield ("There are more steps than n_step.", "How often does the optimiser step in one pass over all pairs?",
           go(reference.cosine(lr, n_step + 1)))
    every = lambda leaves, t: quick(case, leaves, mistakes.Way(only=t % case.k))
    for rates in ([r for r in cosine for _ in range(case.k)], reference.cosine(lr, n_step * case.k)):
        yield ("There is a step for each pair.", "How often does the optimiser step in one pass over all pairs?",
               go(rates, every))
    for i, name in ((0, "keys"), (1, "values")):
        only = lambda leaves, t: quick(case, [p if j != i else p.detach() + 0 * p for j, p in enumerate(leaves)])
        yield (f"The {name} are not trained: they are detached from the loss.", "Which tensors are leaves?",
               go(loss=only))
    for sentence, (ways, question) in mistakes.LOOK.items():
        for way in ways:
            if "dropout" not in sentence and "Only" not in sentence:
                yield sentence, question, go(loss=lambda leaves, t: quick(case, leaves, way))


def quick(case, leaves, way=None):
    return mistakes.loss(case.model, *leaves, case.owner, case.demos, case.nothing, way or mistakes.Way())


@torch.no_grad()
def start_quickly(case):
    tokens = [*case.instruction, *(token for x, y in case.demos for token in (*x, *y))]
    return case.model(torch.tensor([tokens]), torch.arange(case.P)[None])[1:]


@points(1, minutes=5, section="3")
def test_the_norm_is_of_the_prefix_alone(impl, seed):
    _, n_step, lr, _ = STEPS[0]
    plain, stretched = (tuned(impl, Case(seed, k=2, long=3, stretch=s), n_step, lr, 0.0, seed) for s in (1.0, 2.0**12))
    off = farthest(plain, stretched)
    if off > 1e-5:
        fail("The clipping norm is not of the prefix alone: the frozen weights' gradients count in it.",
             f"{n_step} steps on two models that compute the same numbers; the gradients of the weights of one are "
             "4096 times larger", f"keys and values that differ by up to {off:.4f}", "the same",
             "Which tensors' gradients make up the norm?", "3")
    off = farthest(plain, right_steps(seed, 0))
    if off > 1e-2:
        fail("The steps are too far off to say what the norm is of.", f"{n_step} steps of lr = {lr}",
             f"keys and values off by {off:.4f}", "those of the slow reference",
             "Does test_steps_follow_the_optimiser pass?", "3")


@points(2, minutes=10, section="3")
def test_dropout_is_drawn_for_every_step_pair_and_entry(impl, seed):
    ask, p, tiny = "How many numbers are drawn in a step, and when?", 0.4, dict(L=1, K=2, D=3)
    # An entry has no gradient, and stays where it is, exactly if it is dropped for every pair that would see it.
    case = Case(seed, k=1, instruction=26, lengths=[(2, 1)], **tiny)
    once = still(impl, case, 1, p)
    if not once[:, case.owner < 0].any():
        fail("The instruction is exempt from token dropout.", f"p = {p}, one step; {case.name}",
             "no entry of the instruction that is ever dropped", f"{p:.2f} of them",
             "Which entries can token dropout hide?", "3")
    drawn(once, p, "An entry is not dropped with probability p.", f"p = {p}, one step; {case.name}",
          "Is True in your draw what is kept, or what is dropped? Is any entry exempt?")
    if len({tuple(line) for line in once.tolist()}) < len(once) - 1:
        fail("Different seeds give the same draw of token dropout.", f"{len(once)} seeds, p = {p}, one step; "
             f"{case.name}", "few draws that differ", "one for each seed", "Where does the seed go?", "3")
    for n_step, q in ((2, p), (7, 0.85)):
        drawn(still(impl, case, n_step, q), q**n_step, "Token dropout is not drawn anew at every step.",
              f"p = {q}, the share of entries that are dropped in all of {n_step} steps; {case.name}", ask)
    case = Case(seed, k=2, instruction=0, lengths=[(9, 1), (1, 9)], **tiny)
    drawn(still(impl, case, 1, p), p, "Token dropout is not drawn for each entry: some are hidden together.",
          f"p = {p}, one step, where pair 1 alone sees demo 0, and pair 0 demo 1; {case.name}", ask)
    case = Case(seed, k=3, instruction=23, lengths=[(1, 1)] * 3, **tiny)
    drawn(still(impl, case, 1, 0.5)[:, :23], 0.5**3, "One draw of token dropout serves all pairs.",
          f"p = 0.5, the share of the instruction's entries that all three pairs do not see; {case.name}", ask)
    small(impl, seed, p)


def still(impl, case, n_step, p, n=24):
    """(n, P) bool: the entries that do not move at all in training, for n seeds."""
    before = read(impl, case)[:2]
    results = [tuned(impl, case, n_step, 0.05, p, seed) for seed in range(n)]
    stayed = torch.stack([unmoved(before, after) for after in results])
    shrunk = [after / old.double() for after, old in zip(results[0], before)]  # (L, 1, K, P, D)
    alike = (shrunk[0].amax((0, 1, 2, 4)) - shrunk[0].amin((0, 1, 2, 4))) < 1e-4
    if not stayed.any() and alike.any():
        fail("There is weight decay: an entry without a gradient shrinks.", f"p = {p}, {n_step} steps; {case.name}",
             f"entries {alike.nonzero().flatten().tolist()} multiplied by {float(shrunk[0][..., alike, :].mean()):.5f}",
             "entries that stay where they are when they are dropped", "What pulls an entry to 0?", "3")
    return stayed


def unmoved(before, after):
    """(P,) bool: the entries that are what they were, in every number."""
    return sum((a.double() - b.detach().double()).abs().movedim(-2, 0).flatten(1).sum(1)
               for a, b in zip(after, before)) == 0


def drawn(stayed, p, broke, case, ask):
    """Wrong unless stayed (n, m) looks like draws with probability p, each by itself: by its mean, by the variance of
    how many there are at a time, and by what two entries have in common that stand d apart, d = 1, 2, …
    """
    n, m = stayed.shape
    case += f"; {m} entries, {n} seeds"
    share, slack = stayed.double().mean().item(), 5 * math.sqrt(p * (1 - p) / stayed.numel())
    if abs(share - p) > slack:
        fail(broke, case, f"a share of {share:.2f}", f"{p:.2f} ± {slack:.2f}", ask, "3")
    off = stayed.double() - p
    spread = off.sum(1).pow(2).mean().item() / (m * p * (1 - p))
    if not 0.15 < spread < 3:  # one in a million is beyond
        fail("How many entries are dropped is not left to a draw for each entry.", case,
             f"{spread:.2f} times the variance of that number", "about 1", ask, "3")
    for d in range(1, m - 1):
        common, slack = (off[:, d:] * off[:, :-d]).mean().item(), 6 * p * (1 - p) / math.sqrt(n * (m - d))
        if abs(common) > slack:
            fail("What is dropped in one place depends on what is dropped in another.",
                 f"{case}; entries that stand {d} apart", f"a covariance of {common:.3f}", f"0 ± {slack:.3f}", ask, "3")


def small(impl, seed, p):
    """Where gradients are as small as AdamW's eps, the length of its first step tells how large they are."""
    case, lr = Case(seed, k=2, instruction=0), 0.05
    with torch.no_grad():
        case.model.head *= 2e-7
    before = [part.detach() for part in read(impl, case)[:2]]
    after = tuned(impl, case, 1, lr, p, seed)
    dropped = torch.stack([unmoved(before, after)] * 2)  # for the pair that sees the entry; the other does not anyway
    if not p:
        dropped = case.nothing
    begin = [part.double() for part in before]
    loss = lambda leaves, t: mistakes.loss(case.model, *leaves, case.owner, case.demos, dropped)
    want, what = reference.descend(loss, begin, [lr]), f"one step, p = {p}, gradients as small as eps; {case.name}"
    if farthest(after, want) <= 5e-4:
        return
    for eps in (0.0, 1e-10, 1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3):
        if farthest(after, reference.descend(loss, begin, [lr], eps=eps)) <= 5e-4:
            fail("The eps of AdamW is another.", what, f"steps as with eps = {eps:g}", "those with eps = 1e-8",
                 "What does eps do where a gradient is as small as that?", "3")
    for part, exact, name in zip(after, want, ("keys", "values")):
        broke = f"The {name} get too large or too small a gradient"
        same(part.double(), exact, f"{broke} with token dropout, as if what is kept were rescaled." if p else
             f"{broke}, or the step is too long or too short.", what,
             "What does a hidden entry change for the ones that are seen?" if p else
             "Which numbers of AdamW are as small as that?", "3", atol=5e-4)


@points(1, minutes=5, section="3")
def test_seeds(impl, seed):
    case = Case(seed, k=2)
    torch.manual_seed(1)
    one = tuned(impl, case, 2, 0.05, 0.3, seed)
    state = torch.random.get_rng_state()
    other = tuned(impl, case, 2, 0.05, 0.3, seed + 1)
    same_state = torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    again = tuned(impl, case, 2, 0.05, 0.3, seed)
    if not all(map(torch.equal, one, again)):
        fail("The same seed gives other numbers.", f"seed = {seed} twice, p = .3; {case.name}",
             "keys and values that differ", "the same bits", "What does your draw depend on besides the seed?", "3")
    if not same_state:
        fail("adapt draws from torch's global generator, or seeds it.", "the global generator's state before and after",
             "another state", "the same state", "Who else draws from that generator?", "3")
    if all(map(torch.equal, one, other)):
        fail("The seed changes nothing.", f"seeds {seed} and {seed + 1}, p = .3; {case.name}",
             "the same keys and values", "others", "Where does the seed go?", "3")


# 4 the answer ------------------------------------------------------------------------------------------------------

def answered(impl, case, keys, values, x, options):
    weights = bits(case.model)
    with untouched("answer", "4", keys=keys, values=values, x=x, options=options):
        got = impl.answer(case.model, keys, values, x, options)
    unchanged(case.model, weights, "answer", "4")
    if not isinstance(got, torch.Tensor) or got.shape != (len(options),) or got.dtype not in (LOW, HIGH):
        what = f"{got.dtype} {tuple(got.shape)}" if isinstance(got, torch.Tensor) else type(got).__name__
        fail("answer returns one loss an option.", f"{len(options)} options", what,
             f"real numbers of shape ({len(options)},)", "What do you take the least of?", "4")
    return got.detach().double()


OFF = "The positions of the question are off: it does not stand right behind the prefix."
LOOK = (("The loss of an option is a sum over its tokens, not their mean.", dict(mean="sum"),
         "Which option would win if all tokens were equally likely?"),
        ("The loss of an option counts tokens of x, the question.", dict(part="xy"),
         "Which tokens differ from option to option?"),
        ("The positions of the question restart at 0, as if no prefix stood before it.", dict(start="0"),
         "How many tokens has the model read before the question?"),
        (OFF, dict(start="P-1"), "Which position has the prefix's last entry?"),
        (OFF, dict(start="P+1"), "Which position has the prefix's last entry?"),
        ("The target is shifted: a token does not predict the one behind it.", dict(target=0),
         "At which token do the logits for an option's first token stand?"),
        ("The loss of an option does not count every token of it.", dict(part="y less last"),
         "Which token predicts the option's last?"),
        ("The loss of an option does not count every token of it.", dict(part="y less first"),
         "Which token predicts the option's first?"))


def right_answers(got, want, case, keys, values, x, options, broke):
    """Wrong unless the losses are right; a mistake that gives them is named, be it of all options or of some."""
    if (got - want).abs().max() <= 2e-5:
        return
    for sentence, way, question in LOOK:
        nothing = torch.zeros(1, case.P, dtype=torch.bool)
        with torch.no_grad():
            made = torch.stack([mistakes.loss(case.model, keys, values, case.owner, [(x, option)], nothing,
                                              mistakes.Way(owner_seen="all", **way)).double() for option in options])
        if (made - got).abs().max() < 2e-5 < (made - want).abs().max() / 3:
            fail(sentence, f"options of {[len(o) for o in options]} tokens, x of {len(x)}, P = {case.P}",
                 f"losses {[round(v, 4) for v in got.tolist()]}", f"{[round(v, 4) for v in want.tolist()]}", question,
                 "4")
    same(got, want, broke, f"options of {[len(o) for o in options]} tokens, x of {len(x)}, P = {case.P}",
         "Where does the question stand, and what does it see?", "4", atol=2e-5)


@points(2, minutes=5, section="4")
def test_without_a_step_the_answer_is_icl(impl, seed):
    case = Case(seed)
    x, options = case.ids(3), [case.ids(1), case.ids(3), case.ids(2)]
    keys, values = tuned(impl, case, 0, 0.1, 0.3, seed)
    got = answered(impl, case, keys, values, x, options)
    context, want = [*case.instruction, *(token for pair in case.demos for part in pair for token in part)], []
    for option in options:
        ids = [*context, *x, *option]
        with torch.no_grad():
            logits, _, _ = case.model(torch.tensor([ids[:-1]]), torch.arange(len(ids) - 1)[None])
        lines = logits[0, -len(option) :].log_softmax(-1)
        want.append(-lines[range(len(option)), option].mean())
    right_answers(got, torch.stack(want), case, keys, values, x, options,
                  "After n_step = 0 steps the answer is not that of in-context learning, ICL: the demos, the question "
                  "and the option read as one sentence.")


QUESTIONS = (({}, (2, 2, 1, 3)), *((kind, (1, 4)) for kind in KINDS), (dict(alike=True), (3, 1, 2, 2, 1)))


def question(seed, i):
    """(case, x, options) of what answer is given: kinds, and lengths of x and of the options."""
    kind, lengths = QUESTIONS[i]
    case = Case(seed, **dict(k=2) | kind)
    x, *options = map(case.ids, lengths)
    return case, x, options


@cache
def right_question(seed, i):
    case, x, options = question(seed, i)
    return reference.answer(case.model, case.keys.double(), case.values.double(), x, options)


@points(2, minutes=10, section="4")
def test_answer_sees_all_of_a_tuned_prefix(impl, seed):
    for i in range(len(QUESTIONS)):
        case, x, options = question(seed, i)
        got, want = answered(impl, case, case.keys.clone(), case.values.clone(), x, options), right_question(seed, i)
        right_answers(got, want, case, case.keys, case.values, x, options,
                      "The losses of the options are not those behind the whole tuned prefix.")
    turned = answered(impl, case, case.keys.clone(), case.values.clone(), x, options[::-1])
    same(turned.flip(0), got, "The loss of an option depends on the options beside it.",
         "the same options in the other order", "May an option see another one?", "4", atol=2e-5)
