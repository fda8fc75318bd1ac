"""Prompt tuning, prefix tuning and CT-Prompt: against one plain row for each pair. (test_adapters.py: against peft.)"""

import pytest
import torch
import torch.nn.functional as F
from helpers import UNEVEN, V, drawn, message, pairs_of, random_task, relative_error, same_bits

from nanoct.fewshot import Prefix
from nanoct.methods import ct_prompt, icl, prefix_tuning, prompt_tuning
from nanoct.runs.leak import HIDDEN, retrieved
from nanoct.score import evaluate, score_pairs

BOTH = pytest.mark.parametrize("method", [prompt_tuning, prefix_tuning], ids=["prompt", "prefix"])


# --- prompt and prefix tuning ---


@BOTH
def test_tokens_are_the_start_modulo_the_vocabulary(model, steps, method):
    method.adapt(model, random_task(), method.Config(n_step=1, n_prefix=V + 5))
    tokens = torch.tensor([[*range(V), *range(5)]])
    start = [model.embed(tokens)] if method is prompt_tuning else map(torch.stack, zip(*model(tokens)[1]))
    for leaf, expected in zip(steps[0]["before"], start, strict=True):
        assert torch.equal(leaf, expected)


@BOTH
@pytest.mark.parametrize("n_step", [0, 3])
def test_noise_is_drawn_by_the_seed_and_tokens_are_not(model, method, n_step):
    run = lambda start, seed: method.adapt(model, random_task(), method.Config(n_step, n_prefix=7, start=start), seed)
    assert same_bits(run("noise", 0), run("noise", 0)) and not same_bits(run("noise", 0), run("noise", 1))
    assert same_bits(run("tokens", 0), run("tokens", 1)) and not same_bits(run("tokens", 0), run("noise", 0))


@BOTH
def test_noise_is_spread_as_the_tokens_are(model, steps, method):
    for start in ("tokens", "noise"):
        method.adapt(model, random_task(), method.Config(n_step=1, n_prefix=100, start=start))
    for tokens, noise in zip(steps[0]["before"], steps[1]["before"], strict=True):
        assert tokens.shape == noise.shape
        layers = zip(tokens, noise) if method is prefix_tuning else [(tokens, noise)]
        for a, b in layers:
            assert b.std().item() == pytest.approx(a.std().item(), rel=0.1) and abs(b.mean()) < 0.1 * b.std()


@BOTH
@pytest.mark.parametrize("instruction", [0, 3])
def test_a_tuned_prefix_is_m_entries_and_the_instruction_behind_them(model, steps, method, instruction):
    """It scores as the instruction does at the head of every row behind the m entries, one pair at a time."""
    task = random_task(instruction=instruction, metric="accuracy", options=3)
    adapted = method.adapt(model, task, method.Config(n_step=3, lr=0.05, n_prefix=7))
    assert adapted.adapter is None and adapted.prefix.owner.tolist() == [-1] * (7 + instruction)
    assert adapted.prefix.next_position == 7 + instruction
    after = steps[-1]["after"]
    kv = model(embeds=after[0])[1] if method is prompt_tuning else list(zip(*after))
    pairs, losses = [(q.x, option) for q in task.queries for option in q.options], []
    for x, y in pairs:
        hidden, _ = model(torch.tensor([[*task.instruction, *x, *y]]), prefix=Prefix(kv, None, 7))
        losses.append(F.cross_entropy(model.logits(hidden)[0, -len(y) - 1 : -1], torch.tensor(y)).item())
    assert score_pairs(adapted, pairs)[0].tolist() == pytest.approx(losses, rel=1e-4)
    assert 0 <= evaluate(adapted, task).score <= 1


@BOTH
@pytest.mark.parametrize("changes, said", [
    (dict(n_prefix=0), "n_prefix = 0"), (dict(n_prefix=-2), "n_prefix = -2"), (dict(n_prefix=161), "161"),
    (dict(start="demos"), "'demos'"),
])
def test_prefixes_that_cannot_be_are_refused(model, method, changes, said):
    with pytest.raises(ValueError) as error:
        method.adapt(model, random_task(), method.Config(**changes), progress=lambda *_: pytest.fail("trained"))
    assert said in message(error)


# --- CT-Prompt ---


def rows_loss(model, embeds, task, seen, one_pass):
    """One full row for each pair, [prompt, x, y], with a mask written out: hidden tokens are hidden from the whole row,
    or, with one_pass, from the pair alone."""
    P, losses = embeds.shape[1], []
    for demo, visible in zip(task.demos, seen):
        ids = torch.tensor([[*demo.x, *demo.y]])
        S = P + ids.shape[1]
        mask = torch.zeros(S, S, dtype=torch.bool)
        for at in range(S):
            for other in range(at + 1):
                mask[at, other] = other == at or other >= P or visible[other] or (one_pass and at < P)
        row = torch.cat([embeds, model.embed(ids)], dim=1)
        hidden, _ = model(embeds=row, positions=torch.arange(S)[None], mask=mask[None])
        logits = model.logits(hidden)[0, P + len(demo.x) - 1 : -1]
        losses.append(F.cross_entropy(logits, torch.tensor(demo.y), reduction="none"))
    return torch.cat(losses).mean()


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("leave_one_out", [True, False])
@pytest.mark.parametrize("instruction, dropout", [(0, 0.0), (4, 0.0), (4, 0.3)])
def test_ct_prompt_steps_on_the_loss_of_one_row_a_pair(model, steps, instruction, dropout, leave_one_out, one_pass):
    """Loss and gradients of every step, at the values of that step, under masks drawn here."""
    task = random_task(UNEVEN, instruction=instruction)
    k, losses = len(task.demos), []
    config = ct_prompt.Config(n_step=3, lr=0.05, token_dropout=dropout, leave_one_out=leave_one_out, one_pass=one_pass)
    adapted = ct_prompt.adapt(model, task, config, seed=5, progress=lambda step, loss: losses.append(loss))
    owner = torch.tensor([-1] * instruction + [i for i, (n, m) in enumerate(UNEVEN) for _ in range(n + m)])
    g = torch.Generator().manual_seed(5)
    for step, loss in zip(steps, losses, strict=True):
        seen = drawn(g, k, owner, dropout, leave_one_out)
        (embeds,) = (part.requires_grad_() for part in step["before"])
        slow = rows_loss(model, embeds, task, seen, one_pass)
        assert loss == pytest.approx(slow.item(), rel=1e-5)
        assert relative_error(step["raw"][0], torch.autograd.grad(slow, embeds)[0]) < 1e-5
    with torch.no_grad():
        for ours, expected in zip(adapted.prefix.kv, model(embeds=steps[-1]["after"][0])[1], strict=True):
            assert all(map(torch.equal, ours, expected))
    assert torch.equal(adapted.prefix.owner, owner) and adapted.prefix.next_position == len(owner)


@pytest.mark.parametrize("one_pass", [False, True])
def test_ct_prompt_starts_at_the_embeddings_and_so_at_icl(model, steps, one_pass):
    task = random_task()
    ours, plain = ct_prompt.adapt(model, task, ct_prompt.Config(n_step=0, one_pass=one_pass)), icl.adapt(model, task)
    assert same_bits(ours, plain) and ours.prefix.next_position == plain.prefix.next_position
    assert torch.equal(ours.prefix.owner, plain.prefix.owner)
    ct_prompt.adapt(model, task, ct_prompt.Config(n_step=1, one_pass=one_pass))
    ids = [*task.instruction, *(t for demo in task.demos for t in (*demo.x, *demo.y))]
    assert torch.equal(steps[0]["before"][0], model.embed(torch.tensor([ids])))


@pytest.mark.parametrize("one_pass", [False, True])
def test_a_demo_leaks_into_its_own_pair_in_one_pass_and_not_in_k(model, monkeypatch, one_pass):
    """Demo i's embeddings get a gradient of exactly 0 from pair i; in one pass later tokens of the prompt show them."""
    kept, logits_of = {}, ct_prompt.answer_logits

    def spy(model, row, *args, **options):
        kept.update(row=row, logits=logits_of(model, row, *args, **options))
        return kept["logits"]

    monkeypatch.setattr(ct_prompt, "answer_logits", spy)
    monkeypatch.setattr(ct_prompt, "optimise", lambda loss, leaves, *_: kept.update(leaves=leaves, loss=loss()))
    task = random_task(UNEVEN)
    k = len(task.demos)
    owner = ct_prompt.adapt(model, task, ct_prompt.Config(token_dropout=0.0, one_pass=one_pass)).prefix.owner
    losses = F.cross_entropy(kept["logits"], kept["row"].target, reduction="none")
    for i in range(k):
        mine = losses[kept["row"].pair[kept["row"].where] == i].sum()
        (gradient,) = torch.autograd.grad(mine, kept["leaves"], retain_graph=True)
        zero = (gradient == 0).all(-1)[0]  # (P,)
        leaks = one_pass and i < k - 1  # no token of the prompt stands behind the last demo
        assert torch.equal(zero, torch.zeros_like(zero) if leaks else owner == i)


@pytest.mark.parametrize("one_pass", [False, True])
def test_one_pass_and_k_passes_are_one_thing_where_nothing_is_hidden(model, one_pass):
    """The first loss is then ICL's on its own demos."""
    task, losses = random_task(UNEVEN), []
    ct_prompt.adapt(model, task, ct_prompt.Config(1, token_dropout=0.0, leave_one_out=False, one_pass=one_pass),
                    progress=lambda step, loss: losses.append(loss))
    n = torch.tensor([len(demo.y) for demo in task.demos])
    mean, _ = score_pairs(icl.adapt(model, task), pairs_of(task))
    assert losses == [pytest.approx(((mean * n).sum() / n.sum()).item(), rel=1e-5)]


def test_training_a_hidden_demo_retrieves_it_in_one_pass_and_not_in_k(model):
    task = random_task(((3, 1),) * 5, n_query=1, seed=1)
    config = ct_prompt.Config(n_step=60, lr=0.05, token_dropout=0.0)
    gained = {name: retrieved(model, task, *hidden, config) for name, hidden in HIDDEN.items()}
    assert gained["k passes"][1] == gained["k passes"][0]
    assert gained["one pass"][0] < gained["one pass"][1] < gained["visible"][1]
