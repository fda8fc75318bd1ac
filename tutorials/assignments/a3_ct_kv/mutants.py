"""A3 with one mistake each, and the test that must say so. `of` names the correct file that the mistake is made in."""

from grading import Mutant

PADDED, LOOPS = "alternatives/padded.py", "alternatives/loops.py"
APART = '''    kv, at, owner = [], 0, []
    for i, ids in enumerate([[*instruction], *([*x, *y] for x, y in demos)]):
        kv += [model(torch.tensor([ids]), torch.arange(at, at + len(ids))[None])[1:]] if ids else []
        at += len(ids)
        owner += [i - 1] * len(ids)
    keys, values = (torch.cat(part, dim=3) for part in zip(*kv))
    return keys.float(), values.float(), torch.tensor(owner)
'''
BODY = '''    _, keys, values = model(torch.tensor([tokens]), positions)
    return keys.float(), values.float(), torch.tensor(owner)
'''
START, MEAN = "test_start_reads_the_demos_one_after_the_other", "test_loss_is_one_mean_over_answer_tokens"
OWN, MEET = "test_own_demo_is_hidden_and_no_other", "test_pairs_do_not_meet"
DROP, GRADIENT = "test_dropout_hides_and_nothing_is_rescaled", "test_keys_and_values_have_the_gradient"
ONE, FROZEN, FLOAT = "test_a_single_demo_is_seen", "test_weights_are_frozen", "test_what_is_trained_is_float32"
STEPS, NORM = "test_steps_follow_the_optimiser", "test_the_norm_is_of_the_prefix_alone"
DRAWN, SEEDS = "test_dropout_is_drawn_for_every_step_pair_and_entry", "test_seeds"
ICL, ALL = "test_without_a_step_the_answer_is_icl", "test_answer_sees_all_of_a_tuned_prefix"
OPTIMIZER = "optimizer = torch.optim.AdamW(leaves, lr=lr, weight_decay=0.0)"
CLIP = "torch.nn.utils.clip_grad_norm_(leaves, 1.0)"
CALL = "model(torch.tensor([tokens]), torch.tensor([positions]), mask, keys, values)"
DRAW = "dropped = torch.rand(len(demos), len(owner), generator=generator) < p"
AT = "positions += range(P, P + len(ids))"
LOOP = "    for step in range(n_step):\n        " + DRAW

MUTANTS = [
    Mutant("dropout in the first steps alone", DRAWN, "every step", [
        ("generator=generator) < p", "generator=generator) < (p if step < 5 else 0)")]),
    Mutant("eight seeds for all", DRAWN, "seeds", [("manual_seed(seed)", "manual_seed(seed % 8)")]),
    # start
    Mutant("demos encoded apart", START, "encoded apart", [(BODY, APART)]),
    Mutant("context starts at 1", START, "position",
           [("torch.arange(len(tokens))", "torch.arange(1, len(tokens) + 1)")]),
    Mutant("values for keys", START, "cache", [("return keys.float(), values", "return values.float(), keys")]),
    Mutant("instruction owned by demo 0", "test_start_shapes_and_owners", "owner", [("[-1] * len", "[0] * len")]),
    Mutant("only questions are owned", "test_start_shapes_and_owners", "owner",
           [("[i] * (len(x) + len(y))", "[i] * len(x) + [-1] * len(y)")]),
    # the loss
    Mutant("loss on x", MEAN, "tokens of x",
           [("where += range(len(tokens) + len(x) - 1,", "where += range(len(tokens),"),
                                             ("target += y", "target += [*x, *y][1:]")]),
    Mutant("mean over pairs", MEAN, "mean over pairs", [
        ("    return F.cross_entropy(logits[0, where], torch.tensor(target))",
         "    parts = logits[0, where].split([len(y) for _, y in demos])\n"
         "    return sum(F.cross_entropy(a, torch.tensor(y)) for a, (_, y) in zip(parts, demos)) / k")]),
    Mutant("a sum", MEAN, "sum", [("torch.tensor(target))", "torch.tensor(target), reduction='sum')")]),
    Mutant("targets shifted", MEAN, "shifted", [("target += y", "target += [x[-1], *y][:-1]")]),
    Mutant("last of y not learned", MEAN, "every token of y",
           [("len(tokens) + len(ids))", "len(tokens) + len(ids) - 1)"), ("target += y", "target += y[:-1]")]),
    Mutant("positions restart at 0", MEAN, "restart at 0", [(AT, AT.replace("P, P +", ""))]),
    Mutant("positions run on", MEAN, "run on", [(AT, AT.replace("P", "P + len(tokens)"))]),
    Mutant("positions one early", MEAN, "right behind", [(AT, AT.replace("P", "P - 1"))]),
    Mutant("own demo seen", OWN, "sees its own demo", [("if k > 1", "if k < 1")]),
    Mutant("next demo hidden", OWN, "own demo", [("torch.arange(k)[:, None])", "(torch.arange(k)[:, None] + 1) % k)")]),
    Mutant("instruction hidden", OWN, "instruction", [("seen & (owner !=", "seen & (owner >= 0) & (owner !=")]),
    Mutant("pairs see the pairs before them", MEET, "pairs meet",
           [("(pair[:, None] == pair).tril()", "torch.ones(len(pair), len(pair), dtype=torch.bool).tril()")]),
    Mutant("a pair looks ahead", MEAN, "looks ahead", [("(pair[:, None] == pair).tril()", "pair[:, None] == pair")]),
    Mutant("dropout rescaled", DROP, "rescaled",
           [(CALL, CALL.replace("values)", "values / (~dropped).float().mean())"))]),
    Mutant("dropout rescaled by what is seen", DROP, "rescaled",
           [(CALL, CALL.replace("values)", "values * P / seen.sum(1).float().mean() if dropped.any() else values)")
             .replace("values * P", "values * (P - P / k)"))]),
    Mutant("one draw for all pairs, given", DROP, "one draw",
           [("seen = ~dropped", "seen = ~dropped[:1].expand(k, P)")]),
    Mutant("instruction exempt, given", DROP, "exempt", [("seen = ~dropped", "seen = ~(dropped & (owner >= 0))")]),
    Mutant("dropped is ignored", DROP, "hides nothing", [("seen = ~dropped", "seen = torch.ones_like(dropped)")]),
    Mutant("keys detached", GRADIENT, "keys have no gradient", [(CALL, CALL.replace("keys,", "keys.detach(),"))]),
    Mutant("values detached", GRADIENT, "values have no gradient",
           [(CALL, CALL.replace("values)", "values.detach())"))]),
    Mutant("keys detached in the last layer", GRADIENT, "gradient in the keys",
           [(CALL, CALL.replace("keys,", "torch.cat([keys[:-1], keys[-1:].detach()]),"))]),
    Mutant("a single demo left out", ONE, "k = 1", [("if k > 1", "if k > 0")]),
    Mutant("values changed in place", MEAN, "in place",
           [("seen = ~dropped", "seen = ~dropped\n    values[..., 0] += 0.1")]),
    # the loop
    Mutant("a step before the first", "test_no_step_is_the_start", "n_step = 0",
           [("for step in range(n_step)", "for step in range(max(n_step, 1))"),
            ("step / n_step", "step / max(n_step, 1)")]),
    Mutant("weights trained as well", FROZEN, "weights",
           [(OPTIMIZER, OPTIMIZER.replace("(leaves", "([*leaves, *model.parameters()]")),
            ("loss.backward(inputs=leaves)", "loss.backward()")]),
    Mutant("keys left out of the optimiser", FROZEN, "keys do not move",
           [(OPTIMIZER, OPTIMIZER.replace("(leaves", "(leaves[1:]"))]),
    Mutant("leaves in the model's dtype", FLOAT, "bfloat16", [
        ("leaves = [keys.requires_grad_(), values.requires_grad_()]",
         "keys, values = keys.to(model.dtype), values.to(model.dtype)\n"
         "    leaves = [keys.requires_grad_(), values.requires_grad_()]"),
        ("return keys.detach(), values.detach()", "return keys.detach().float(), values.detach().float()")]),
    Mutant("start in the model's dtype", FLOAT, "bfloat16",
           [("return keys.float(), values.float()", "return keys, values")]),
    Mutant("no cosine", STEPS, "cosine",
           [('group["lr"] = lr * (1 + math.cos(math.pi * step / n_step)) / 2', 'group["lr"] = lr')]),
    Mutant("cosine one step late", STEPS, "cosine", [("math.pi * step / n_step", "math.pi * (step + 1) / n_step")]),
    Mutant("a step for each pair", STEPS, "step for each pair", [
        ("        loss = step_loss(model, keys, values, owner, demos, dropped)\n"
         "        optimizer.zero_grad()\n        loss.backward(inputs=leaves)\n"
         "        torch.nn.utils.clip_grad_norm_(leaves, 1.0)\n        for group in optimizer.param_groups:\n"
         '            group["lr"] = lr * (1 + math.cos(math.pi * step / n_step)) / 2\n        optimizer.step()\n',
         "        for i, (x, y) in enumerate(demos):\n            alone = owner.where(owner != i, len(demos))\n"
         "            loss = step_loss(model, keys, values, alone - i, [(x, y)], (owner == i)[None])\n"
         "            optimizer.zero_grad()\n            loss.backward(inputs=leaves)\n"
         "            torch.nn.utils.clip_grad_norm_(leaves, 1.0)\n            for group in optimizer.param_groups:\n"
         '                group["lr"] = lr * (1 + math.cos(math.pi * step / n_step)) / 2\n'
         "            optimizer.step()\n")]),
    Mutant("weight decay", STEPS, "weight decay", [(", weight_decay=0.0", "")]),
    Mutant("not clipped", STEPS, "not clipped", [(CLIP, "pass")]),
    Mutant("betas of a language model", STEPS, "betas", [("weight_decay=0.0", "weight_decay=0.0, betas=(0.9, 0.95)")]),
    Mutant("clipping over the model", NORM, "frozen weights",
           [(CLIP, "torch.nn.utils.clip_grad_norm_([*leaves, *model.parameters()], 1.0)"),
            ("optimizer.zero_grad()", "optimizer.zero_grad()\n        model.zero_grad()"),
            ("loss.backward(inputs=leaves)", "loss.backward()")]),
    Mutant("dropout drawn once", DRAWN, "every step", [(LOOP, "    " + DRAW + "\n    for step in range(n_step):")]),
    Mutant("one draw for all pairs", DRAWN, "serves all pairs",
           [(DRAW, "dropped = (torch.rand(len(owner), generator=generator) < p).expand(len(demos), -1)")]),
    Mutant("instruction exempt", DRAWN, "exempt", [(DRAW, "dropped = (torch.rand(len(demos), len(owner), generator="
                                                    "generator) < p) & (owner >= 0)")]),
    Mutant("p is what is kept", DRAWN, "probability p", [(DRAW, DRAW.replace("< p", ">= p"))]),
    Mutant("rescaled in the loop", DRAWN, "rescaled",
           [("loss = step_loss(model, keys, values, ", "loss = step_loss(model, keys, values / (1 - p), ")]),
    Mutant("global generator", SEEDS, "same seed", [(", generator=generator) < p", ") < p")]),
    Mutant("global seed", SEEDS, "global generator", [("generator = torch.Generator().manual_seed(seed)",
                                                      "generator = torch.manual_seed(seed)")]),
    Mutant("seed ignored", SEEDS, "seed changes nothing", [("manual_seed(seed)", "manual_seed(0)")]),
    # the answer
    Mutant("question at position 0", ICL, "restart at 0",
           [("torch.arange(P, P + len(ids))", "torch.arange(len(ids))")]),
    Mutant("question one late", ICL, "positions of the question",
           [("torch.arange(P, P + len(ids))", "torch.arange(P + 1, P + 1 + len(ids))")]),
    Mutant("answer without the prefix", ICL, "ICL", [("positions, None, keys, values)", "positions)")]),
    Mutant("answer under dropout", ALL, "whole tuned prefix",
           [("positions, None, keys, values)", "positions, None, F.dropout(keys, 0.1), F.dropout(values, 0.1))")]),
    Mutant("sum over an option", ALL, "sum", [("torch.tensor(option)))", "torch.tensor(option), reduction='sum'))")]),
    Mutant("answer behind bfloat16", ALL, "whole tuned prefix",
           [("positions, None, keys, values)", "positions, None, keys.bfloat16(), values.bfloat16())")]),
    # the same kind in implementations that look different
    Mutant("padded: positions restart at 0", MEAN, "restart at 0",
           [("place = n_prefix + torch.arange(width)", "place = torch.arange(width)")], PADDED),
    Mutant("padded: own demo seen", OWN, "sees its own demo", [("if n_pair != 1:", "if n_pair == 1:")], PADDED),
    Mutant("padded: loss on x", MEAN, "tokens of x",
           [("labels[row, len(question) : size] = torch.tensor(reply)",
             "labels[row, :size] = torch.tensor(question + reply)")], PADDED),
    Mutant("padded: dropout rescaled", DROP, "rescaled",
           [("values.expand(-1, n_pair, -1, -1, -1))[0]", "values.expand(-1, n_pair, -1, -1, -1)"
             " / (1 - dropped.float().mean(1))[:, None, None, None])[0]")], PADDED),
    Mutant("padded: rescaled in the loop", DRAWN, "rescaled",
           [("step_loss(model, trained[0], trained[1],", "step_loss(model, trained[0], trained[1] / (1 - p),")],
           PADDED),
    Mutant("padded: clipping over frozen weights", NORM, "frozen weights",
           [("total = sum(part.grad.square().sum() for part in trained).sqrt()",
             "total = sum(part.grad.square().sum() for part in [*trained, *model.parameters()]).sqrt()"),
            ("descent.zero_grad()", "descent.zero_grad()\n        model.zero_grad()")], PADDED),
    Mutant("padded: mean over rows", MEAN, "mean over pairs",
           [("-(taken * real).sum() / real.sum()", "-((taken * real).sum(1) / real.sum(1)).mean()")], PADDED),
    Mutant("loops: positions restart at 0", MEAN, "restart at 0",
           [("len(reply), len(owner), *mine)", "len(reply), 0, *mine)")], LOOPS),
    Mutant("loops: positions close the gap", MEAN, "close the gap",
           [("len(reply), len(owner), *mine)", "len(reply), len(stays), *mine)")], LOOPS),
    Mutant("loops: own demo seen", OWN, "sees its own demo", [("owner[e] != i)]", "True)]")], LOOPS),
    Mutant("loops: loss on x", MEAN, "tokens of x",
           [("question + reply, len(reply),", "question + reply, len(question + reply) - 1,")], LOOPS),
    Mutant("loops: dropout rescaled", DROP, "rescaled",
           [("values[..., stays, :]) if", "values[..., stays, :] / (1 - dropped[i].double().mean())) if")], LOOPS),
    Mutant("loops: own clip a tensor", STEPS, "clipped apart",
           [("shrink * slope)\n", "min(1.0, 1.0 / slope.norm().item()) * slope)\n"),
            ("(shrink * slope) ** 2", "(min(1.0, 1.0 / slope.norm().item()) * slope) ** 2")], LOOPS),
]
