"""Which kinds of input the tests give to every function: gate.py records the calls, and the matrix must be full.

A function here gets the arguments of one call and says which kinds it is. Each kind was once a hole: a mistake that
shows on inputs of that kind alone.
"""

import torch

repeats = lambda ids: len(set(ids)) < len(ids)


def rope(x, positions, theta):
    rows = positions.tolist()
    return {
        "one row": len(x) == 1,
        "one head": x.shape[1] == 1,
        "one token": x.shape[2] == 1,
        "one pair": x.shape[3] == 2,
        "float32": x.dtype == torch.float32,
        "float64": x.dtype == torch.float64,
        "position 0": 0 in rows[0],
        "positions beyond 4,096": positions.max() > 4096,
        "repeated positions": repeats(rows[0]),
        "positions that go down": rows[0] != sorted(rows[0]),
        "rows that differ": rows[0] != rows[-1],
        "a theta of a real model": theta >= 1e4,
        "a small theta": theta <= 10,
    }


def attend(q, k, v, past, mask):
    loud = past is not None and past[0].abs().max() > 1e8
    kinds = {
        "one row": len(q) == 1,
        "one token": q.shape[2] == 1,
        "one KV head": k.shape[1] == 1 < q.shape[1],
        "a KV head for each head": k.shape[1] == q.shape[1] > 1,
        "float32": q.dtype == torch.float32,
        "an odd width": q.shape[3] % 2 == 1,
        "huge numbers that are hidden": loud,
    }
    has_past, has_mask = past is not None, mask is not None
    for name, is_so in (
        ("a past", has_past),
        ("one past for all rows", has_past and len(past[0]) < len(q)),
        ("a past of one entry", has_past and past[0].shape[2] == 1),
        ("no past", not has_past),
        ("one token and no past", not has_past and q.shape[2] == 1),
        ("float32", q.dtype == torch.float32),
        ("more new tokens than past", has_past and past[0].shape[2] < q.shape[2]),
    ):
        kinds |= {f"{name}, a mask": is_so and has_mask, f"{name}, no mask": is_so and not has_mask}
    if has_mask:
        P = mask.shape[2] - q.shape[2]
        kinds |= {
            "a token that does not see itself": not mask[:, range(q.shape[2]), range(P, mask.shape[2])].all(),
            "a token that sees ahead": mask[:, 0, P + 1 :].any(),
            "one entry seen": (mask.sum(-1) == 1).any(),
            "masks that differ from row to row": not torch.equal(mask[0], mask[-1]),
        }
    return kinds


def read(weights, tokens, past, positions):
    D, H = weights["head_dim"], len(weights["q_proj"]) // weights["head_dim"]
    K, rows = len(weights["k_proj"]) // D, tokens.tolist()
    return {
        "one row": len(tokens) == 1,
        "one token": tokens.shape[1] == 1,
        "token 0": 0 in rows[0],
        "a token twice": repeats(rows[0]),
        "the last token": len(weights["embed"]) - 1 in rows[0],
        "no past": past is None,
        "a past": past is not None,
        "one token behind a past": past is not None and tokens.shape[1] == 1,
        "a past of one entry": past is not None and past[0].shape[2] == 1,
        "float32": weights["embed"].dtype == torch.float32,
        "one KV head": K == 1,
        "a KV head for each head": K == H > 1,
        "positions that go down": positions.tolist()[0] != sorted(positions.tolist()[0]),
        "a small eps": weights["eps"] < 1e-4,
        "a large eps": weights["eps"] > 0.01,
    }


def pack(pairs, start):
    there = [pair for pair in pairs if pair is not None]
    return {
        "k = 1": len(pairs) == 1,
        "k > 5": len(pairs) > 5,
        "start 0": start == 0,
        "a long prefix": start >= 1000,
        "token 0": any(0 in part for pair in there for part in pair),
        "a token twice in a pair": any(repeats([*x, *y]) for x, y in there),
        "equal pairs": any(there.count(pair) > 1 for pair in there),
        "a pair of many tokens": any(len(x) + len(y) > 40 for x, y in there),
        "a large id": any(token > 30_000 for pair in there for part in pair for token in part),
        "x of one token": any(len(x) == 1 for x, _ in there),
        "y of one token": any(len(y) == 1 for _, y in there),
        "one token each, alone": len(pairs) == 1 and len(there[0][0]) == len(there[0][1]) == 1,
        "the first left out": pairs[0] is None,
        "the last left out": pairs[-1] is None,
        "all but one left out": len(there) == 1 < len(pairs),
        "lengths that differ": len({len(x) + len(y) for x, y in there}) > 1,
    }


def visible(owner, k, leave_one_out, p, generator):
    owned = owner.tolist()
    return {
        "k = 1": k == 1,
        "k = 1 with an instruction": k == 1 and -1 in owned and leave_one_out,
        "no instruction": -1 not in owned,
        "an instruction alone": set(owned) == {-1},
        "owners in no order": owned != sorted(owned),
        "a demo that owns nothing": len(set(owned) - {-1}) < k,
        "one entry": len(owned) == 1,
        "many entries and a draw": len(owned) > 30 and p > 0,
        "p = 0 and no generator": not p and generator is None,
        "p = 0 and a generator": not p and generator is not None,
        "a small p": 0 < p < 0.25,
        "a large p": p >= 0.7,
        "dropout alone": p > 0 and not leave_one_out,
        "both": p > 0 and leave_one_out,
    }


def row_mask(row, seen):
    return {
        "k = 1": len(seen) == 1,
        "P = 0": seen.shape[1] == 0,
        "P = 1": seen.shape[1] == 1,
        "rows of seen that differ": seen.numel() > 1 and not torch.equal(seen[0], seen[-1]),
        "a pair that sees nothing": seen.shape[1] > 0 and bool((~seen).all(1).any()),
        "a pair left out": len(set(row.pair.flatten().tolist()) - {-1}) < len(seen),
        "one token": row.tokens.numel() == 1,
    }


def model_kinds(model):
    return {
        f"a model in {name}": model.dtype == dtype
        for name, dtype in (("float64", torch.float64), ("float32", torch.float32))
    } | {"a frozen model": not model.token.requires_grad, "a model that is not": model.token.requires_grad}


def demo_kinds(demos):
    ids = [token for pair in demos for part in pair for token in part]
    return {
        "k = 1": len(demos) == 1,
        "k = 2": len(demos) == 2,
        "k > 2": len(demos) > 2,
        "token 0": 0 in ids,
        "a token many times": len(ids) > 3 * len(set(ids)),
        "answers of unequal lengths": len({len(y) for _, y in demos}) > 1,
        "answers of one token alone": {len(y) for _, y in demos} == {1},
        "a question of one token": any(len(x) == 1 for x, _ in demos),
    }


def start(model, instruction, demos):
    return model_kinds(model) | demo_kinds(demos) | {
        "no instruction": not instruction,
        "an instruction": bool(instruction),
        "a long one": len(instruction) > 9,
        "a model in bfloat16": model.dtype == torch.bfloat16,
        "k = 1 with an instruction": bool(instruction) and len(demos) == 1,
    }


def step_loss(model, keys, values, owner, demos, dropped):
    return model_kinds(model) | demo_kinds(demos) | {
        "no instruction": -1 not in owner.tolist(),
        "k = 1 with an instruction": len(demos) == 1 and -1 in owner.tolist(),
        "nothing dropped": not dropped.any(),
        "all dropped": dropped.all(),
        "some dropped": 0 < dropped.float().mean() < 1,
        "k = 1, some dropped": len(demos) == 1 and 0 < dropped.float().mean() < 1,
        "rows of dropped that differ": not torch.equal(dropped[0], dropped[-1]),
        "leaves": keys.requires_grad,
        "no leaves": not keys.requires_grad,
    }


def adapt(model, instruction, demos, n_step, lr, p, seed):
    return model_kinds(model) | {
        "k = 1": len(demos) == 1,
        "k = 1 with an instruction": len(demos) == 1 and bool(instruction),
        "k > 2": len(demos) > 2,
        "no instruction": not instruction,
        "no step": n_step == 0,
        "one step": n_step == 1,
        "many steps": n_step > 5,
        "many steps with dropout": n_step > 5 and p > 0,
        "p = 0": p == 0,
        "a large p": p > 0.5,
        "a large lr": lr > 0.5,
        "a small lr": lr < 0.01,
        "a model in bfloat16": model.dtype == torch.bfloat16,
        "tiny gradients": model.head.abs().max() < 1e-4,
        "large gradients": model.head.std() > 5,
        "large weights": model.stretch > 1,
    }


def answer(model, keys, values, x, options):
    return model_kinds(model) | {
        "one option": len(options) == 1,
        "many options": len(options) > 3,
        "an option of one token": 1 in map(len, options),
        "options of unequal lengths": len(set(map(len, options))) > 1,
        "a question of one token": len(x) == 1,
        "token 0": 0 in x or any(0 in option for option in options),
        "equal options": repeats(list(map(tuple, options))),
    }


def tune(model, keys, values, owner, demos, dropped, lr):
    return {
        "large weights": model.stretch > 1,
        "large gradients": model.head.std() > 5,
        "a large lr": lr > 0.5,
        "steps that differ": not torch.equal(dropped[0], dropped[1]),
        "more than one step": len(dropped) > 1,
    }


def flops_step(c, P, T, n):
    return {
        "one loss": n == 1,
        "a loss at every token": n == T,
        "P > T": P > T,
        "T > P": T > P,
        "a KV head for fewer heads": c.n_kv_head < c.n_head,
        "H·D is not C": c.n_head * c.head_dim != c.n_embd,
        "a large vocabulary": c.vocab_size > 9999,
    }


def peak_bytes(c, P, T, n):
    return {
        "a loss at every token": n == T,
        "P > T": P > T,
        "T > P": T > P,
        "a KV head for each head": c.n_kv_head == c.n_head,
        "a KV head for fewer heads": c.n_kv_head < c.n_head,
        "a wide MLP": c.n_ffn > 9 * c.n_embd,
        "a mask as large as the rest": T * (P + T) > 4000 > c.n_layer * c.n_embd * 40,
        "a large vocabulary": c.vocab_size > 900,
    }


def fit(k, seconds):
    fits = len(k) == len(seconds) > 0
    return {
        "two points": fits and len(k) == 2,
        "k in no order": k != sorted(k),
        "a k twice": repeats(k),
        "a k twice, with other seconds": fits and len({*zip(k, seconds)}) == len(k) > len({*k}),
        "one k": fits and len(set(k)) == 1,
        "none": not k,
        "fewer seconds": len(seconds) < len(k),
        "more seconds": len(seconds) > len(k),
        "seconds of 0": 0 in seconds,
        "seconds below 0": any(s < 0 for s in seconds),
        "k = 0": 0 in k,
        "k below 0": any(x < 0 for x in k),
        "microseconds": fits and 0 < max(seconds) < 0.02,
    }


def macro_f1(predicted, gold):
    fits = len(predicted) == len(gold) > 0
    return {
        "one class": fits and len(set(gold)) == 1,
        "three classes or more": len(set(gold)) > 2,
        "labels that cannot be sorted": len({type(c) for c in gold}) > 1,
        "labels that read alike": len({*map(str, gold)}) < len({*gold}),
        "numbers": fits and all(isinstance(c, int) for c in gold),
        "a label that is false": fits and (0 in gold or "" in gold),
        "a class never predicted": fits and bool(set(gold) - set(predicted)),
        "a class only predicted": fits and bool(set(predicted) - set(gold)),
        "all right": fits and predicted == gold,
        "no hit": fits and not any(map(lambda p, g: p == g, predicted, gold)),
        "none": not gold and not predicted,
        "fewer predictions": len(predicted) < len(gold),
        "more predictions": len(predicted) > len(gold) > 0,
        "predictions alone": bool(predicted) and not gold,
    }


def paired(a, b):
    tasks, ours = {task for task, _, _ in a}, {row[:2] for row in a}
    theirs = {row[:2] for row in b}
    return {f"{n} tasks": len(tasks) == n for n in (1, 2, 3, 5, 12, 31, 40)} | {
        "names that are alike when joined": len({task + query for task, query in ours}) < len(ours),
        "rows in another order": ours == theirs and [r[:2] for r in a] != [r[:2] for r in b],
        "none": not a and not b,
        "tasks of unequal size": len({sum(t == task for t, _, _ in a) for task in tasks}) > 1,
        "a lacks some": ours < theirs,
        "b lacks some": theirs < ours,
        "as many, but others": ours != theirs and len(ours) == len(theirs) > 0,
        "nothing of a": not a and bool(b),
        "nothing of b": bool(a) and not b,
        "a is worse": bool(a) and bool(b) and sum(x for *_, x in a) < sum(x for *_, x in b),
    }


def choose(lines, validation):
    of = {}
    for setting, task, score in lines:
        of.setdefault((setting, task), []).append(score)
    names = list(dict.fromkeys(setting for setting, _, _ in lines))
    return {
        "one validation task": len(validation) == 1,
        "many settings": len(names) > 5,
        "seeds that differ": any(len(set(scores)) > 1 for scores in of.values()),
        "reported tasks": any(t not in validation for _, t in of),
        "scores below 0": any(x < 0 for *_, x in lines),
        "a score of 0": any(x == 0 for *_, x in lines),
        "scores that are nearly equal": len(lines) in (4, 8) and 0 < lines[1][2] - lines[0][2] < 0.05,
        "no lines": not lines,
        "a setting that lacks a task": len({len({t for s, t in of if s == name}) for name in names}) > 1,
        "names in no order": names != sorted(names),
        "equal settings": len(names) > 1
        and len({tuple(sorted(x for s, _, x in lines if s == name)) for name in names}) < len(names),
    }


OF = {
    "a1_attention": (rope, attend, read),
    "a2_row": (pack, visible, row_mask),
    "a3_ct_kv": (start, step_loss, adapt, answer),
    "a4_bug": (step_loss, tune),
    "a5_cost": (flops_step, peak_bytes, fit),
    "a6_table": (macro_f1, paired, choose),
}
NOT_IN_A4 = {  # its steps are given, and mended in one place
    "a model in float32", "a frozen model", "k > 2", "no leaves", "nothing dropped", "answers of one token alone",
    "a question of one token",
}
