"""A tuned cache cut to fewer entries, and two of them one behind the other; the study's rows and table."""

from dataclasses import asdict, replace

import pytest
import torch
from helpers import V, line, message, random_task, relative_error, same_bits, tiny_llama

from nanoct.fewshot import Query, concatenate, encode_context
from nanoct.gpt2 import GPT2, GPT2Config
from nanoct.methods import ct_kv, icl
from nanoct.packing import pack_demos, visible
from nanoct.runs import ablations, caches, cuts
from nanoct.score import asked, evaluate, score_pairs

CHANGES = [{}, dict(attention_bias=True), dict(qk_norm="head"), dict(no_rope=(1,))]


def setting(**changes):
    return caches.Config(**dict(n_step=2, lr=0.1) | changes)


def with_others(**fields):
    task = random_task(**fields)
    task.others = random_task(((4, 1), (2, 2), (3, 3)), seed=8).demos
    return task


def looked_at(model, task, theta):
    """The row of the task's pairs, the mask of leave-one-out, and what caches.looks finds."""
    row = pack_demos(task, model, theta.next_position)
    mask = row.mask(visible(theta.owner, len(task.demos), True))
    return row, mask, caches.looks(model, row, theta, mask)


# --- cut ---


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_the_attention_sums_to_one_and_reads_what_the_model_reads(changes):
    model, task, read = tiny_llama(**changes), random_task(), {}
    with torch.no_grad():
        for layer in model.linears.values():
            if layer.bias is not None:
                layer.bias.normal_(generator=torch.Generator().manual_seed(5))
    theta = ct_kv.adapt(model, task, ct_kv.Config(n_step=2)).prefix
    row, mask, found = looked_at(model, task, theta)
    taps = {f"layers.{i}.self_attn.o_proj": lambda x, weight, i=i: read.setdefault(i, x) @ weight.T for i in (0, 1)}
    model(row.tokens, positions=row.positions, mask=mask, prefix=theta, adapter=taps)
    for i, (scores, values) in enumerate(found):
        weight = scores.softmax(-1)  # (K, G, T, P+T)
        assert weight.shape == (2, 2, len(row.pair), mask.shape[-1])
        assert torch.allclose(weight.sum(-1), torch.ones(()).double()) and (weight[..., ~mask[0]] == 0).all()
        y = (weight @ values[:, None]).flatten(0, 1).transpose(0, 1).flatten(1)  # (T, H·D)
        assert relative_error(y.float(), read[i][0]) < 1e-5


def test_with_all_entries_the_values_are_fitted_to_themselves(model):
    task = random_task()
    theta = ct_kv.adapt(model, task, ct_kv.Config(n_step=3, lr=0.1)).prefix
    whole = caches.cut(model, task, theta, setting(keep=1.0))
    for ours, tuned in zip(whole.stack(), theta.stack(), strict=True):
        assert relative_error(ours, tuned) < 1e-6
    task = random_task()
    assert same_bits(caches.adapt(model, task, setting()), ct_kv.adapt(model, task, ct_kv.Config(n_step=2, lr=0.1)))


@pytest.mark.parametrize("choose", ["attention", "random"])
@pytest.mark.parametrize("keep, n", [(0.5, 14), (0.25, 7), (0.1, 3), (0.001, 1)])
def test_a_cut_keeps_keys_and_positions_of_so_many_entries_in_every_head(model, keep, n, choose):
    task = random_task()  # of 28 entries
    whole, adapted = ct_kv.adapt(model, task, ct_kv.Config(n_step=2, lr=0.1)), caches.adapt(
        model, task, setting(keep=keep, choose=choose))
    theta, (keys, values) = adapted.prefix, whole.prefix.stack()
    assert theta.next_position == whole.prefix.next_position == 28 and adapted.n_trained == whole.n_trained
    assert theta.owner.tolist() == [-1] * n and {part.shape for part in theta.stack()} == {(2, 1, 2, n, 6)}
    same = (theta.stack()[0][..., None, :] == keys[..., None, :, :]).all(-1)  # (L, 1, K, n, P)
    assert (same.sum(-1) == 1).all()
    kept = same.int().argmax(-1)
    assert (kept.diff(dim=-1) > 0).all()  # in their order, none twice
    old = values.gather(3, kept[..., None].expand(-1, -1, -1, -1, 6))
    assert relative_error(theta.stack()[1], old) > 1e-3  # fitted again
    rough = caches.adapt(model, task, setting(keep=keep, choose=choose, refit=False)).prefix
    assert torch.equal(rough.stack()[0], theta.stack()[0]) and torch.equal(rough.stack()[1], old)
    evaluate(adapted, task)


def test_what_is_kept_gets_the_most_attention_and_random_entries_are_the_seeds(model):
    task = random_task()
    theta = ct_kv.adapt(model, task, ct_kv.Config(n_step=2, lr=0.1)).prefix
    keys_of = lambda seed=0, **changes: caches.adapt(model, task, setting(keep=0.25, **changes), seed).prefix.stack()[0]
    kept = (keys_of()[..., None, :] == theta.stack()[0][..., None, :, :]).all(-1).any(3)  # (L, 1, K, P)
    _, _, found = looked_at(model, task, theta)
    for is_kept, (scores, _) in zip(kept[:, 0], found, strict=True):
        mass = scores.softmax(-1)[..., :28].sum((1, 2))  # (K, P)
        for head in (0, 1):
            assert mass[head][is_kept[head]].min() > mass[head][~is_kept[head]].max()
    random = keys_of(choose="random")
    assert torch.equal(random, keys_of(choose="random")) and not torch.equal(random, keys_of())
    start = icl.adapt(model, task).prefix
    cut_start = [caches.cut(model, task, start, setting(keep=0.25), torch.Generator().manual_seed(s)).stack()[0]
                 for s in (1, 1, 2)]
    assert torch.equal(*cut_start[:2]) and not torch.equal(*cut_start[1:])


def test_the_new_values_are_those_of_least_squares_without_small_directions(model, monkeypatch):
    """LAPACK's solver, with so high a CUTOFF that it shows."""
    monkeypatch.setattr(caches, "CUTOFF", 0.8)
    task, config = random_task(), setting(keep=0.25)
    theta = icl.adapt(model, task).prefix
    row, _, found = looked_at(model, task, theta)
    new = caches.cut(model, task, theta, config)
    for i, (scores, values) in enumerate(found):
        wanted = scores.softmax(-1) @ values[:, None]  # (K, G, T, D)
        for head in (0, 1):
            kept = (new.kv[i][0][0, head][:, None] == theta.kv[i][0][0, head]).all(-1).int().argmax(-1)
            entries = torch.cat([kept, torch.arange(28, 28 + len(row.pair))])
            rest = scores[head][..., entries].softmax(-1).flatten(0, 1)  # (G·T, n+T)
            own, A = values[head, 28:], rest[:, :7]
            lacking = lambda v: wanted[head].flatten(0, 1) - A @ v - rest[:, 7:] @ own
            before, after = lacking(values[head, kept]), lacking(new.kv[i][1][0, head].double())
            change = torch.linalg.lstsq(A, before, driver="gelsd", rcond=caches.CUTOFF).solution
            assert relative_error(new.kv[i][1][0, head].double() - values[head, kept], change) < 1e-4
            assert after.norm() < before.norm()


# --- one behind the other ---


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_the_second_context_is_as_if_read_behind_the_first_and_apart_from_it(changes):
    model, (one, two) = tiny_llama(**changes), (random_task(seed=s, instruction=s) for s in (2, 3))
    first, second = (encode_context(model, task.instruction, task.demos) for task in (one, two))
    both, P = caches.joined(model, first, second), len(first.owner)
    tokens, _ = concatenate(model, two.instruction, two.demos)
    with torch.no_grad():
        _, later = model(tokens, positions=torch.arange(P, P + tokens.shape[1])[None])
    for layer, before, after in zip(both.kv, first.kv, later, strict=True):
        for ours, head, tail in zip(layer, before, after, strict=True):
            assert torch.equal(ours[:, :, :P], head) and relative_error(ours[:, :, P:], tail) < 1e-5
    assert both.next_position == P + tokens.shape[1] == len(both.owner) and set(both.owner.tolist()) == {-1}


def test_before_and_behind_say_where_the_other_stands_and_a_cache_is_tuned_once(model, monkeypatch):
    task, tuned, adapt = with_others(), [], ct_kv.adapt
    monkeypatch.setattr(ct_kv, "adapt", lambda *args: tuned.append(args[1].demos) or adapt(*args))
    of = {beside: caches.adapt(model, task, setting(beside=beside)).prefix.stack()[1] for beside in caches.BESIDE}
    caches.adapt(model, task, setting(keep=0.5))
    assert tuned == [task.demos, task.others]
    own, other = of[""], of["alone"]
    assert torch.equal(of["before"], torch.cat([other, own], 3))
    assert torch.equal(of["behind"], torch.cat([own, other], 3))
    assert not torch.equal(own[..., :5, :], other[..., :5, :])
    caches.adapt(model, task, setting(lr=0.2))
    caches.adapt(model, task, setting(), seed=1)
    caches.adapt(tiny_llama(seed=1), task, setting())
    assert len(tuned) == 5


def test_as_other_counts_wrong_answers_that_the_other_context_gives(model):
    task, config = with_others(n_query=8), setting(beside="alone")
    alone = caches.adapt(model, task, config)
    x = task.queries[0].x
    task.queries[0] = Query(x, caches.generate(alone, [x], 1)[0])  # one that the other answers right
    share = lambda adapted: caches.also(model, task, config, 0, adapted)["as_other"]
    score = evaluate(alone, task).score
    assert 0 < score < 1 and share(alone) == 1 - score
    said = share(caches.adapt(model, task, setting()))
    own = caches.adapt(model, task, setting())
    answers = [caches.generate(alone, [asked(task, q)], 12, task.queries[0].y[-1])[0] for q in task.queries]
    same = [score_pairs(own, [(asked(task, q), y)])[1].item() and y != list(q.y) for q, y in zip(task.queries, answers)]
    assert said == sum(same) / 8
    assert caches.also(model, task, setting(), 0, own) == {}
    assert caches.also(model, replace(task, metric="accuracy"), config, 0, own) == {}


@pytest.mark.parametrize("changes, said", [
    (dict(keep=0.0), "keep = 0.0 must be above 0"), (dict(keep=1.5), "keep = 1.5"), (dict(choose="best"), "'best'"),
    (dict(beside="under"), "beside = 'under' must be empty"), (dict(beside="before"), "with task.others, before"),
])
def test_impossible_settings_are_said(model, changes, said):
    with pytest.raises(ValueError) as error:
        caches.adapt(model, random_task(), setting(**changes), progress=lambda *_: pytest.fail("trained"))
    assert said in message(error)


def test_gpt2_is_refused():
    gpt2 = GPT2(GPT2Config(V, n_layer=1, n_head=1, n_embd=4, n_ffn=4, n_position=99))
    with pytest.raises(ValueError, match="Only a Llama's cache"):
        caches.adapt(gpt2, random_task(), setting())


# --- the study ---


def test_rows_differ_from_ct_kv_in_what_they_name():
    chosen = dict(n_step=7, lr=0.5)
    named, runs = cuts.rows(chosen), cuts.variants(4, chosen, 0.0)
    assert len(named) == len({str(run) for run in runs}) == 4 + 2 * (9 + 2)
    full = named["CT-KV"][1]
    assert full == asdict(caches.Config(**chosen))
    change = lambda row: {name: value for name, value in named[row][1].items() if value != full.get(name)}
    assert named["first entry frozen"][:2] == (ablations.NAME, asdict(ablations.Config(**chosen, freeze_first=True)))
    assert change(cuts.ALONE) == dict(beside="alone")
    assert change("CT-KV, another task's behind it") == dict(beside="behind")
    assert change("ICL, another task's before it") == dict(n_step=0, beside="before")
    assert change("ICL") == dict(n_step=0) and named["ICL"][2] == "CT-KV"
    assert change("ICL, 10% at random") == dict(n_step=0, keep=0.1, choose="random")
    assert change("CT-KV, 25% by attention, values as they were") == dict(keep=0.25, refit=False)
    assert named["ICL, 50% by attention"][2] == "ICL" and named["CT-KV, 50% by attention"][2] == "CT-KV"
    assert {(k, wrong) for *_, k, wrong in runs} == {(4, 0.0)}


def test_every_line_finds_its_row_of_the_table():
    lines = []
    for number, (method, config, *_) in enumerate(cuts.variants(4, dict(n_step=7))):
        for task, more in ("a", 0), ("b", 2):
            found = line(method, task, score=(number + more) / 100, config=config)
            lines.append(found | (dict(as_other=0.3 + more / 100) if config.get("beside") else {}))
    table = dict(map(str.strip, row.split("|")[1:3]) for row in cuts.text(lines).splitlines() if "|" in row)
    for number, row in enumerate(cuts.rows({})):
        assert table[row].startswith(f"{number + 1}.0 ± 1.0")
    assert table["CT-KV"] == "1.0 ± 1.0" and table["ICL"] == "4.0 ± 1.0 (+3.0 ± 0.0 (all equal))"
    assert table["ICL, 50% at random"].endswith("(+14.0 ± 0.0 (all equal))")  # minus ICL, not minus CT-KV
    assert table["ICL, another task's behind it: answered as that alone"] == "31.0 ± 1.0"
