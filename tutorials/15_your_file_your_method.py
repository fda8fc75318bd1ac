# %% [markdown]
# # 11 · Your file, your method
#
# **The claim.** A file of sixteen lines gives a context that answers bit for bit the same after loading and that
# another model refuses, and a new method takes less than sixty lines to stand in the table with an interval and a
# verdict.
#
# One minute on one core. Nothing is downloaded.
#
# In Colab: clone the repository, run `pip install --no-deps -e .` in it, open this notebook.

# %%
import inspect
import json
import random
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from lesson import breaks, claim, colour, few, label, plt

from nanoct import tune
from nanoct.benchmarks import nano
from nanoct.fewshot import Adapted, Demo, Task, encode_context
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model
from nanoct.methods import ct_kv, icl
from nanoct.optimise import optimise
from nanoct.packing import answer_logits, can_leave_one_out, pack_demos, visible
from nanoct.runs.contexts import load_adapted, save_adapted
from nanoct.runs.measure import measure
from nanoct.runs.stats import Setting, difference
from nanoct.runs.table import table

# %% [markdown]
# ## Your file
#
# A file of examples has a line for each: `{"input": …, "output": …}`. Here a rule makes them, so that we can ask new
# questions afterwards. The rule is yours: change the one line. The embedded model knows the letters from a to p.


# %%
def my_rule(s):
    return s[-1] + s + s[-1]  # the last letter on both ends


rng = random.Random(0)
inputs = list(dict.fromkeys("".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 5))) for _ in range(80)))
folder = Path(tempfile.mkdtemp())
write = lambda name, some: (folder / name).write_text("".join(
    json.dumps(dict(input=x, output=my_rule(x))) + "\n" for x in some))
write("mine.jsonl", inputs[:16])
write("questions.jsonl", inputs[16:few(56, 20)])
print((folder / "mine.jsonl").read_text())

# %% [markdown]
# On the command line the rest is one command, `python -m nanoct.tune --data mine.jsonl --out ctx.safetensors
# --held-out questions.jsonl`. We do by hand what it does.
#
# A *template* makes text of a line. What stands before `{output}` is the question, `{output}` and what follows is the
# answer with its end.

# %%
WORLD = "strings"
model, tokenizer = load_model(nano.FOLDER / WORLD, "cpu", torch.float32), load_tokenizer(nano.FOLDER / WORLD)
lines, questions = (tune.read_lines(folder / name) for name in ("mine.jsonl", "questions.jsonl"))
print("template:", tune.EMBEDDED)
encoded = [tune.encode(line, model, tokenizer, tune.EMBEDDED, None) for line in lines]
demos = [Demo(x, ys[line.output]) for line, (x, ys) in zip(lines, encoded)]
mine = Task("mine", demos, [], instruction=[tokenizer.bos_id])
print(lines[0].input, "->", lines[0].output, "·", demos[0])

# %% [markdown]
# CT-KV reads the sixteen lines, keeps the keys and values that this leaves in every layer, and trains them. Its
# settings are those of the embedded world.

# %%
chosen = nano.read_settings()[WORLD]["ct_kv"] | few({}, dict(n_step=2))
context = ct_kv.adapt(model, mine, ct_kv.Config(**chosen))
how = dict(template=tune.EMBEDDED, metric=None, max_new_tokens=16)
for name, adapted in (("ICL", icl.adapt(model, mine)), ("CT-KV", context)):
    answers = tune.answer(adapted, tokenizer, questions, **how)
    print(f"{name:6} {tune.score(questions, answers, None):.0%} right;",
          ", ".join(f"{q.input} -> {said}" for q, (said, _) in list(zip(questions, answers))[:4]))

# %% [markdown]
# ## A context is a file
#
# What was trained is small, and it does not contain the model. How large is it, compared with the model's weights?
# Type a share in percent.

# %%
my_guess = 5  # percent

# %%
file = save_adapted(context, folder / "ctx.safetensors", "ct_kv", chosen, k=16, **how)
weights = (nano.FOLDER / WORLD / "model.safetensors").stat().st_size
share = 100 * file.stat().st_size / weights
print(f"{file.name}: {file.stat().st_size:,} bytes, {share:.0f}% of the model's; you said {my_guess}%")
print({name: tuple(part.shape) for name, part in zip(("keys", "values"), context.prefix.stack())},
      "layers, rows, KV heads, entries, width")

# %% [markdown]
# Load it, and ask again. *The same* must mean every bit of every number that the model puts out, not the same words.


# %%
def outputs(adapted):
    """Logits of the first demo's answer behind a context: what all answers are made of."""
    return answer_logits(model, pack_demos(mine, model, adapted.prefix.next_position), adapted.prefix)


def same(a, b):
    """AssertionError unless two contexts give the same bits."""
    distance = (outputs(a) - outputs(b)).abs().max().item()
    assert torch.equal(outputs(a), outputs(b)), f"the logits are {distance:.2g} apart"


loaded, about = load_adapted(file, model)
same(loaded, context)
assert tune.answer(loaded, tokenizer, questions, **how) == answers
print("bit for bit the same;", {name: about[name] for name in ("method", "k", "model", "template")})

# %% [markdown]
# **Break it.** Half of the bytes would do if the numbers were rounded to bfloat16, a common habit. The answers may
# even stay. The numbers do not.

# %%
with breaks("the context was rounded to bfloat16 before it was saved"):
    rounded = context.prefix.of(*(part.bfloat16().float() for part in context.prefix.stack()))
    small = save_adapted(Adapted(model, prefix=rounded), folder / "small.safetensors", "ct_kv", chosen, k=16)
    same(load_adapted(small, model)[0], context)

# %% [markdown]
# A context belongs to one model. The embedded model of another world has the same sizes, so the tensors would fit,
# and the answers would be nonsense. The file knows better: it holds a *fingerprint*, a hash of the weights that it
# was tuned on.

# %%
other = load_model(nano.FOLDER / "facts", "cpu", torch.float32)
try:
    load_adapted(file, other)
except ValueError as error:
    refused = str(error).replace(str(file), file.name)
assert "was tuned on the model" in refused
print(refused)

# %% [markdown]
# ## Your method
#
# A method is one file with three things: a `Config`, a function `adapt`, and, if it wants its cost known, a function
# `footprint`. Let us write one that nanoct does not have.
#
# CT-KV trains every key and every value of the cache on its own. That is a lot of freedom. What if each *channel* of
# each head had only a scale and a shift, the same for all entries? The context still says what it said; only its
# contrast and its brightness change.

# %%
@dataclass
class Config:
    n_step: int = 16  # optimiser steps
    lr: float = 0.1  # of AdamW
    token_dropout: float = 0.05  # as in CT-KV


# %% [markdown]
# `adapt` is CT-KV's, but for the leaves. The keys and values stay as they were read. Trained are two scales, which
# start at one, and two shifts, which start at zero. So before the first step the method *is* ICL.


# %%
def adapt(model, task, config=Config(), seed=0, progress=None):
    """Train a scale and a shift for every channel of the demos' keys and values."""
    demos, generator = task.need_demos("scale and shift"), torch.Generator().manual_seed(seed)
    context = encode_context(model, task.instruction, demos, separator=task.separator)
    row, leave_one_out = pack_demos(task, model, context.next_position), can_leave_one_out(task)
    read = [part.float() for part in context.stack()]  # keys and values, (L, 1, K, P, D)
    scales = [torch.ones_like(part[..., :1, :], requires_grad=True) for part in read]  # (L, 1, K, 1, D)
    shifts = [torch.zeros_like(part[..., :1, :], requires_grad=True) for part in read]
    theta = lambda: context.of(*(scale * part + shift for scale, part, shift in zip(scales, read, shifts)))

    def loss():
        seen = visible(context.owner, len(demos), leave_one_out, config.token_dropout, generator)
        return F.cross_entropy(answer_logits(model, row, theta(), mask=row.mask(seen)), row.target)

    optimise(loss, leaves := [*scales, *shifts], config, progress)
    return Adapted(model, prefix=theta(), n_trained=sum(leaf.numel() for leaf in leaves))


method = SimpleNamespace(Config=Config, adapt=adapt)
n_line = len(fields(Config)) + 2 + len(inspect.getsource(adapt).splitlines())
assert n_line <= 60
print(f"{n_line} lines; numbers trained: {adapt(model, mine, Config(n_step=1)).n_trained:,}, "
      f"CT-KV {context.n_trained:,}")

# %% [markdown]
# Is it what we say it is? Two properties need no score. Without a step it is ICL, to the bit. And it does not touch a
# weight.

# %%
before = {name: p.clone() for name, p in model.named_parameters()}
same(adapt(model, mine, Config(n_step=0)), icl.adapt(model, mine))
adapt(model, mine, Config(n_step=2))
assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
print("no step: ICL to the bit; two steps: the weights are what they were")

# %% [markdown]
# ## Into the table
#
# A new method has settings, and whoever picks them on the tasks that are reported has picked a winner. So: choose on
# *validation* tasks, report on *held-out* ones, each once.

# %%
pools = nano.WORLDS[WORLD].pools()
make = lambda name: nano.make_task(WORLD, name, tokenizer, seed=0, n_query=few(None, 4))
validation = [make(name) for name in pools["validation"][: few(6, 1)]]
found = {lr: [measure(model, task, "scale and shift", dict(lr=lr, n_step=few(16, 1)), 0, module=method)[0]["score"]
              for task in validation] for lr in (0.03, 0.1, 0.3)}
for lr, scores in found.items():
    print(f"lr {lr}: {sum(scores) / len(scores):.0%} on {len(scores)} validation tasks")
lr = max(found, key=lambda lr: sum(found[lr]))
settings = asdict(Config(n_step=few(16, 1), lr=lr))

# %% [markdown]
# Now the tasks that no model was trained on and no setting was chosen on. `measure` takes a method by its name, or
# the module of a new one.

# %%
RUNS = {"icl": ({}, None), "ct_kv": (chosen, None), "scale and shift": (settings, method)}
held_out = [make(name) for name in pools["held_out"][: few(24, 2)]]
stands = {}
for name, (config, module) in RUNS.items():
    measured = [measure(model, task, name, config, 0, module=module)[0] | dict(task=task.name, seed=0)
                for task in held_out]
    stands[name] = Setting(name, config, measured)
    print(f"{name:16} {stands[name].score:.1f} ± {stands[name].error:.1f} on {len(held_out)} tasks")


# %%
def verdict(a, b):
    """What an interval allows one to say of setting a against b."""
    centre, half = a.minus(b)
    return "ahead" if centre > half else "behind" if centre < -half else "not told apart"


mine_is = stands["scale and shift"]
rows = [[f"scale and shift - {label(name)}", difference(mine_is, stands[name]), verdict(mine_is, stands[name]),
         f"{stands[name].over_lines('n_trained', mean):,.0f}"] for name in ("icl", "ct_kv")]
print(table(rows, ["difference", "points, 95%", "verdict", "the other trains"]))
print(f"scale and shift trains {mine_is.over_lines('n_trained', mean):,.0f} numbers")
claim(mine_is.minus(stands["icl"])[0] > 5, "scale and shift answers more than ICL, by five points and more")

# %% [markdown]
# The picture: one point a task, what another method scores against what the new one does. A point above the diagonal
# is a task that the new method wins. On the right are the mean differences with their intervals.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8), width_ratios=(1, 1.2))
OWN = "#8c564b"
for name in ("icl", "ct_kv"):
    ours, theirs = (list(s.scores().values()) for s in (mine_is, stands[name]))
    left.plot(theirs, ours, "o", color=colour(name), alpha=0.7, label=f"against {label(name)}")
left.plot([0, 100], [0, 100], color="#999999", linewidth=1)
left.set(xlabel="the other, % right", ylabel="scale and shift, % right", aspect="equal")
left.legend(frameon=False, fontsize=8)
for y, name in enumerate(("ct_kv", "icl")):
    centre, half = mine_is.minus(stands[name])
    right.errorbar(centre, y, xerr=half, fmt="o", color=OWN, capsize=5, markersize=8)
    right.annotate(f"{centre:+.1f} ± {half:.1f}, {verdict(mine_is, stands[name])}", (centre, y), xytext=(0, 10),
                   textcoords="offset points", ha="center", color=OWN)
right.axvline(0, color="#999999", linewidth=1)
right.set_yticks([0, 1], [f"minus {label(name)}" for name in ("ct_kv", "icl")])
right.margins(x=0.3)
right.set(ylim=(-0.6, 1.6), xlabel="points, mean over tasks with its 95% interval")
plt.show()

# %% [markdown]
# ## Questions
#
# **1.** A verdict is an interval. Where it holds zero, does that show that the two methods are equally good?
# <details><summary>Answer</summary>
# No. It shows that these tasks do not tell them apart. The interval says how large a difference could still hide: its
# ends are the numbers to report.
# </details>
#
# **2.** The context's file holds keys and values for each token of the demos. What could a file of scale and shift
# hold instead?
# <details><summary>Answer</summary>
# The demos as text and four small tensors. Whoever has the model can read the demos again. As written above, `adapt`
# returns the whole cache, so `save_adapted` keeps it all.
# </details>
#
# **3.** Why is the fingerprint taken of the weights, and not of the model's name?
# <details><summary>Answer</summary>
# A name stays when a model is trained further, quantised or mended. Keys and values mean something only to the
# weights that made them.
# </details>

# %% [markdown]
# ## Change next
#
# - Write another `my_rule`, or your own `mine.jsonl`. Which rules does CT-KV find that ICL does not?
# - Train the shifts alone, or the values' scales alone. How few numbers still beat ICL?
# - Move `Config` and `adapt` to `nanoct/methods/scale_shift.py` and name it in `nanoct/methods/__init__.py`: `python
#   -m nanoct.reproduce --methods icl ct_kv scale_shift` then has it in every table and figure.
#   `tests/methods/mine.py` is another example, with a `footprint`.
# - Deep-Thinking needs no gradient: the demos attend to their own cache again and again, and each round mixes the new
#   keys and values into the old ones. Write its `adapt`.
