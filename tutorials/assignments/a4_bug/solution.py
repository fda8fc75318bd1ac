"""A4 solved for all twelve bugs; NAME draws the five that are handed in."""

import draw
import given
import torch
from variants import BUGS

NAME = "Ada Lovelace"


def example(k=3, head=2, **model):
    """A model and the arguments of a step: answers of unequal lengths, an instruction, nothing dropped."""
    generator = torch.Generator().manual_seed(0)
    model = given.Model(0, **model)
    ids = lambda n: torch.randint(model.vocab, (n,), generator=generator).tolist()
    demos = [(ids(2), ids(1)), (ids(1), ids(4)), (ids(3), ids(2))][:k]
    owner = torch.tensor([-1] * head + [i for i, (x, y) in enumerate(demos) for _ in [*x, *y]])
    size = model.L, 1, model.K, len(owner), model.D
    keys, values = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in "kv")
    return model, keys, values, owner, demos, torch.zeros(k, len(owner), dtype=torch.bool)


def alone(i):
    """(gradients (2, P), owner) of the loss when all of the prefix is dropped for every pair but i."""
    def gradients(step):
        model, keys, values, owner, demos, dropped = example()
        dropped[:] = True
        dropped[i] = False
        leaves = [keys.requires_grad_(), values.requires_grad_()]
        step.step_loss(model, *leaves, owner, demos, dropped).backward()
        size = lambda leaf: torch.zeros(len(owner)) if leaf.grad is None else leaf.grad.abs().sum((0, 1, 2, 4))
        return torch.stack([size(leaf) for leaf in leaves]), owner
    return gradients


def own(step):
    for i in range(3):
        gradients, owner = alone(i)(step)
        assert not gradients[:, owner == i].any(), f"pair {i} has a gradient in demo {i}"


def next_(step):
    for i in range(3):
        gradients, owner = alone(i)(step)
        assert gradients[1][owner != i].all(), f"pair {i} does not see what it may"


def keys(step):
    gradients, _ = alone(0)(step)
    assert gradients[0].any(), "no gradient in the keys"


def plain(step, **more):
    """The loss with nothing of the prefix seen, and what every token costs there: -log p, pair by pair."""
    model, keys, values, owner, demos, dropped = example(**more)
    loss = step.step_loss(model, keys, values, owner, demos, ~dropped)
    costs = []
    for x, y in demos:
        ids = [*x, *y]
        logits, _, _ = model(torch.tensor([ids]), len(owner) + torch.arange(len(ids))[None])
        costs.append([-logits[0, t].log_softmax(0)[ids[t + 1]] for t in range(len(x) - 1, len(ids) - 1)])
    return loss, costs


def near(a, b):
    assert abs(a - b) < 1e-6, f"{float(a):.6f} is not {float(b):.6f}"


def question(step):
    loss, costs = plain(step)
    near(loss, sum(map(sum, costs)) / sum(map(len, costs)))


restart = run_on = pairs = question


def one_draw(step):
    model, keys, values, owner, demos, dropped = example()
    dropped[1] = True
    before = step.step_loss(model, keys, values, owner, demos, dropped)
    values = values.clone()
    values[..., owner == 0, :] += 1
    after = step.step_loss(model, keys, values, owner, demos, dropped)
    assert abs(before - after) > 1e-6, "pair 2 does not see demo 0, which was dropped for pair 1 alone"
    dropped[:], dropped[0] = True, False
    losses = []
    for shift in (0, 1):
        values = values.clone()
        values[..., owner == 0, :] += shift
        losses.append(step.step_loss(model, keys, values, owner, demos, dropped))
    near(*losses)


def rescaled(step):
    model, keys, values, owner, demos, dropped = example()
    hidden = owner == torch.arange(3)[:, None]
    near(step.step_loss(model, keys, values, owner, demos, dropped),
         step.step_loss(model, keys, values, owner, demos, hidden))


def meet(step):
    model, keys, values, owner, demos, dropped = example()
    turned = step.step_loss(model, keys, values, torch.tensor([2, 1, 0, -1])[owner], demos[::-1], dropped.flip(0))
    near(step.step_loss(model, keys, values, owner, demos, dropped), turned)


def once(step):
    model, keys, values, owner, demos, dropped = example(k=2, head=0)
    masks = torch.stack([~dropped, dropped, dropped])
    after, _ = step.tune(model, keys, values, owner, demos, masks, 0.1)
    assert not torch.equal(after, keys), "what the later steps show is not trained"


def norm(step):
    results = []
    for stretch in (1.0, 1024.0):
        model, keys, values, owner, demos, dropped = example(stretch=stretch)
        results.append(step.tune(model, keys, values, owner, demos, dropped.expand(4, -1, -1), 0.1)[0])
    near((results[0] - results[1]).abs().max(), 0)


CATCH = dict(own=own, next=next_, question=question, restart=restart, run_on=run_on, pairs=pairs, rescaled=rescaled,
             one_draw=one_draw, meet=meet, keys=keys, once=once, norm=norm)


def fix(i):
    _, right, wrong = BUGS[draw.drawn(NAME)[i - 1]][0]
    return wrong, right


def catch(i, step):
    CATCH[draw.drawn(NAME)[i - 1]](step)


def fix_1():
    return fix(1)


def fix_2():
    return fix(2)


def fix_3():
    return fix(3)


def fix_4():
    return fix(4)


def fix_5():
    return fix(5)


def catch_1(step):
    catch(1, step)


def catch_2(step):
    catch(2, step)


def catch_3(step):
    catch(3, step)


def catch_4(step):
    catch(4, step)


def catch_5(step):
    catch(5, step)
