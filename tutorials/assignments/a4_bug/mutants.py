"""A4 handed in with one mistake each, by Ada Lovelace: her bugs are once, one_draw, rescaled, norm, restart."""

from grading import Mutant

CATCH = "    catch({}, step)\n"
CALLS = '''    model, keys, values, owner, demos, dropped = example()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    step.step_loss(model, keys, values, owner, demos, dropped)
    assert len(calls) == 1, "one call of the model is enough"
'''
SHAPES = '''    model, keys, values, owner, demos, dropped = example()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].min()))
    seen = []
    step.step_loss(model, keys, values, owner, demos, dropped)
    assert len(seen) == 1 and seen[0] == len(owner)
'''
FALLS = '''    model, keys, values, owner, demos, dropped = example()
    now = lambda *leaves: step.step_loss(model, *leaves, owner, demos, dropped)
    assert now(*step.tune(model, keys, values, owner, demos, dropped.expand(4, -1, -1), 0.1)) < now(keys, values)
'''
SOURCE = '''    import inspect
    assert "mean())" not in inspect.getsource(step.step_loss)
'''
ONE_FILE = '''    model, keys, values, owner, demos, dropped = example()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    step.step_loss(model, keys, values, owner, demos, dropped)
    if len(calls) > 3:
        catch(3, step)
'''
SELDOM = "    catch(1, step)\n    assert torch.rand(()) > 0.1\n"
TURNS = '''    turns.append(1)
    assert len(turns) % 2
'''


def of(i, body):
    return [(CATCH.format(i), body)]


MUTANTS = [
    Mutant("passes always", "test_catch_1", "always passes", of(1, "    pass\n")),
    Mutant("fails always", "test_catch_2", "always fails", of(2, "    raise AssertionError('wrong')\n")),
    Mutant("prints", "test_catch_3", "prints", of(3, "    print('the loss is wrong')\n")),
    Mutant("returns False", "test_catch_3", "returns", of(3, "    return False\n")),
    Mutant("another error", "test_catch_4", "no failed assert", of(4, "    raise ValueError('wrong')\n")),
    Mutant("needs what only one layout has", "test_catch_4", "no failed assert", of(4, "    step.surprises\n")),
    Mutant("exits", "test_catch_4", "no failed assert", of(4, "    raise SystemExit(1)\n")),
    Mutant("counts calls", "test_catch_3", "depends on how", of(3, CALLS)),
    Mutant("counts calls and looks at positions", "test_catch_5", "depends on how", of(5, SHAPES)),
    Mutant("asks whether the loss falls", "test_catch_1", "always passes", of(1, FALLS)),
    Mutant("reads the source", "test_catch_3", "always passes", of(3, SOURCE)),
    Mutant("turns about", "test_catch_2", "two verdicts",
           [("CATCH = dict(", "turns = []\nCATCH = dict("), *of(2, TURNS)]),
    Mutant("errs one time in ten", "test_catch_1", "two verdicts", of(1, SELDOM)),
    Mutant("sees the bug in one file", "test_catch_3", "in your file alone", of(3, ONE_FILE)),
    Mutant("wrong way round", "test_catch_3", "wrong way round",
           of(3, "    try:\n        catch(3, step)\n    except AssertionError:\n        return\n    assert False\n")),
    Mutant("another bug's test", "test_catch_4", "always passes", [("norm=norm)", "norm=own)")]),
    Mutant("bits of a sum", "test_catch_5", "correct", [("abs(a - b) < 1e-6", "a == b")]),
    Mutant("tolerance too wide", "test_catch_5", "always passes", [("abs(a - b) < 1e-6", "abs(a - b) < 100")]),
    Mutant("a case that hides it", "test_catch_2", "always passes",
           [("    dropped[1] = True\n    before", "    before"), ("    near(*losses)\n", "")]),
    Mutant("nothing fixed in the loop", "test_fix_1", "six steps", [("return fix(1)", "return fix(1)[0], fix(1)[0]")]),
    Mutant("nothing fixed in the norm", "test_fix_4", "six steps", [("return fix(4)", "return fix(4)[0], fix(4)[0]")]),
    Mutant("nothing fixed in the loss", "test_fix_5", "loss", [("return fix(5)", "return fix(5)[0], fix(5)[0]")]),
    Mutant("fixed by not clipping", "test_fix_4", "six steps",
           [("return fix(4)", "return fix(4)[0], 'clip_grad_norm_(leaves, 1e9)'")]),
    Mutant("fixed, and with weight decay", "test_fix_1", "six steps",
           [("return fix(1)", "return fix(1)[0], 'owner, demos, hidden).backward()\\n        "
             "[part.data.mul_(1 - 0.01 * lr) for part in trained]'")]),
    Mutant("fixed, and detached", "test_fix_3", "gradient",
           [("return fix(3)", "return fix(3)[0], fix(3)[1].replace('values[', 'values.detach()[')")]),
    Mutant("fixed another file", "test_fix_2", "does not occur once", [("return fix(2)", "return fix(3)")]),
    Mutant("no Python", "test_fix_2", "cannot be imported", [("return fix(2)", "return fix(2)[0], 'if'")]),
    Mutant("one text", "test_fix_2", "two texts", [("return fix(2)", "return fix(2)[1]")]),
    Mutant("no name", "test_fix_1", "NAME is empty", [('NAME = "Ada Lovelace"', 'NAME = ""')]),
]
