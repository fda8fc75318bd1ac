# %% [markdown]
# # 15 · Your file, your method
#
# Two things that you will want to do with this package: tune a context on examples of your own and keep it as a file,
# and try an idea of your own and find out whether it is any good. The first half does the one, the second half the
# other, and each can be read without the other half.
#
# | | |
# |---|---|
# | **You build** | the file of a context, and a method of 25 lines with a learning rate, an interval and a verdict |
# | **You see** | a context that comes back bit for bit and that another model refuses; where the new method stands |
# | **Time** | twenty minutes to read, two to run on two cores |
# | **Before** | [14, A map of methods](14_a_map_of_in_context_optimisation.ipynb); for CT-KV 06, for intervals 11 |
# | **Next** | your own; [01, First minute](01_first_minute.ipynb) is where the book began |
#
# Run it as `python tutorials/15_your_file_your_method.py` from the repository's root, or open the notebook. Nothing is
# downloaded. Where `make smollm2` has put a model that knows English, the first half uses it.

# %%
import hashlib
import json
import random
import tempfile
from pathlib import Path

import drawings
import torch
from lesson import QUICK, breaks, claim, colour, few, label, plt
from safetensors import safe_open
from safetensors.torch import save_file

from nanoct import answer, task_of
from nanoct.benchmarks import nano
from nanoct.benchmarks.presets import SETTINGS
from nanoct.fewshot import Adapted, Prefix
from nanoct.io import smollm2
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import fingerprint, lasting, load_model
from nanoct.methods import ct_kv, icl
from nanoct.packing import answer_logits, pack_demos
from nanoct.runs.contexts import load_adapted, save_adapted
from nanoct.runs.results import n_core

# %% [markdown]
# # First half: your file
#
# A file of examples has a line for each, `{"input": …, "output": …}`. There is one beside this lesson, of opposites.
# It takes a model that knows English. Without one we write a file of letters, by a rule that you may change: the
# built-in model knows the letters from a to p.

# %%
def my_rule(s):
    return s[-1] + s + s[-1]  # the last letter on both ends


home = None if QUICK else smollm2.here()
folder = Path(tempfile.mkdtemp())
file = Path("opposites.jsonl")
if not home:
    rng, file = random.Random(0), folder / "mine.jsonl"
    inputs = list(dict.fromkeys("".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 5))) for _ in range(60)))
    file.write_text("".join(json.dumps(dict(input=s, output=my_rule(s))) + "\n" for s in inputs[:46]))
pairs = [tuple(json.loads(line).values()) for line in file.read_text(encoding="utf-8").splitlines()]
given, asked = pairs[:16], pairs[16:]
print(f"{file.name}: {len(given)} demonstrations, such as {given[0]}, and {len(asked)} questions")

# %% [markdown]
# ## From a line to tokens
#
# A *template* says how a pair becomes text: `{input}\n{output}\n\n` for words, `{input}={output};` for letters. What
# stands before `{output}` is the question x. The answer y is the output and then the end, tokenised apart, so that all
# answers end in the same token.

# %%
if home:
    torch.set_num_threads(n_core())
    model, tokenizer = load_model(home, "cpu", torch.float32), load_tokenizer(home)
    template, between, end, chosen = "{input}\n{output}\n\n", "\n", "\n\n", SETTINGS["words"]["ct_kv"]
else:
    model, tokenizer = load_model(nano.FOLDER / "strings", "cpu"), load_tokenizer(nano.FOLDER / "strings")
    template, between, end, chosen = "{input}={output};", "=", ";", nano.read_settings()["strings"]["ct_kv"]
chosen = chosen | few({}, dict(n_step=2))
mine = task_of(given, tokenizer, template=template)
for demo, (x, y) in zip(mine.demos, given):
    assert demo.x == tokenizer.encode(x + between) and demo.y == tokenizer.encode(y) + tokenizer.encode(end)
print(given[0], "->", mine.demos[0])

# %% [markdown]
# CT-KV reads the sixteen demonstrations and trains their cache. A line of the file that was not among them is a
# question, so we can see at once whether that paid.

# %%
context = ct_kv.adapt(model, mine, ct_kv.Config(**chosen))
show = asked[: few(14, 3)]
said = {name: [answer(adapted, x, tokenizer, template) for x, _ in show]
        for name, adapted in (("ICL", icl.adapt(model, mine)), ("CT-KV", context))}
print(f"{'question':12}{'right':12}{'ICL':14}CT-KV")
for (x, y), *both in zip(show, *said.values()):
    texts = [text.replace("\n", "⏎")[:10] + " ✗" * (text != y) for text in both]
    print(f"{x:12}{y:12}{texts[0]:14}{texts[1]}")
print({name: f"{sum(a == y for a, (_, y) in zip(answers, show))} of {len(show)}" for name, answers in said.items()})

# %% [markdown]
# So few questions decide nothing between two methods; a real check needs tens of them. The command
# `python -m nanoct.tune --data tutorials/opposites.jsonl --out ctx.safetensors` does all of this half in one go, and
# holds a fifth of the lines out by itself.
#
# ## A context is a file
#
# What must be in it? Keys and values of every layer, the owner of each entry, and the position that comes next. The
# weights need not be in it, because they did not change; but the file must say whose they are.

# %%
figure, axes = drawings.canvas(34, 8)
drawings.box(axes, 0.3, 0.6, 21, 6.8, colour="#ffffff")
owner = [0, 0, 0, 1, 1, 1, 2, 2, 2]
drawings.cache(axes, 1.2, 2.4, owner)
drawings.text(axes, 5.7, 1.5, "keys, values", 10)
drawings.text(axes, 5.7, 6.1, "owner  0 0 0 1 1 1 2 2 2", 9, family="monospace")
drawings.box(axes, 11.6, 2.0, 8.8, 3.6, "next position\nmethod, settings\nfingerprint of the model", size=9)
drawings.text(axes, 17, 7.9, "one file", 9, drawings.NOBODY, ha="right")
drawings.box(axes, 26.6, 2.4, 6.6, 2.8, "the model's\nweights")
drawings.arrow(axes, (26.4, 3.8), (21.5, 3.8), "hash", above=0.6)
plt.show()

# %% [markdown]
# **Predict.** How large is such a file of sixteen demonstrations, in percent of the model's own file?

# %%
my_guess = 5

# %% [markdown]
# The fingerprint is a hash over the config and all weights. A name would not do: it stays the same when somebody trains
# the model further, and keys and values mean something only to the weights that made them.

# %%
def my_fingerprint(model):
    digest = hashlib.sha256(json.dumps(lasting(model.config), sort_keys=True).encode())
    for name, p in sorted(model.named_parameters()):
        stride = p.numel() // 2**20 | 1  # of very large tensors about a million values
        values = p.detach().flatten()[::stride].to(torch.bfloat16)
        digest.update(f"{name} {tuple(p.shape)}".encode() + values.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:12]


assert my_fingerprint(model) == fingerprint(model)
print(my_fingerprint(model))

# %%
def my_save(adapted, path):
    keys, values = adapted.prefix.stack()  # (L, 1, K, P, D) each
    about = dict(model=my_fingerprint(adapted.model), next_position=adapted.prefix.next_position)
    tensors = dict(keys=keys.contiguous(), values=values.contiguous(), owner=adapted.prefix.owner)
    save_file(tensors, path, {"about": json.dumps(about)})


def my_load(path, model):
    with safe_open(path, "pt") as opened:
        about = json.loads(opened.metadata()["about"])
        assert about["model"] == my_fingerprint(model), "this context belongs to another model"
        keys, values, owner = (opened.get_tensor(name) for name in ("keys", "values", "owner"))
    return Adapted(model, prefix=Prefix(list(zip(keys, values)), owner, about["next_position"]))


my_save(context, folder / "mine.safetensors")
print(f"{(folder / 'mine.safetensors').stat().st_size:,} bytes")

# %% [markdown]
# *The same* must mean every bit of every number that the model puts out, and not the same words. So we compare logits:
# those of the first demonstration's answer behind a context, which are what answers are made of.

# %%
def logits_behind(adapted):
    return answer_logits(model, pack_demos(mine, model, adapted.prefix.next_position), adapted.prefix)


def same(a, b):
    """AssertionError unless two contexts give the same bits."""
    a, b = logits_behind(a), logits_behind(b)
    assert torch.equal(a, b), f"the logits are {(a - b).abs().max().item():.2g} apart"


same(my_load(folder / "mine.safetensors", model), context)
print("bit for bit the same")

# %% [markdown]
# The package does it in `runs/contexts.py`, with checks of everything that may be wrong with a file. Its tensors are
# ours, and so are its answers.

# %%
about = dict(template=template, metric=None, max_new_tokens=16)
path = save_adapted(context, folder / "ctx.safetensors", "ct_kv", chosen, k=len(given), tokenizer=tokenizer, **about)
loaded, read_back = load_adapted(path, model, tokenizer)
for a, b in zip(loaded.prefix.stack(), my_load(folder / "mine.safetensors", model).prefix.stack(), strict=True):
    assert torch.equal(a, b), "the two files differ"
same(loaded, context)
model_bytes = ((home or nano.FOLDER / "strings") / "model.safetensors").stat().st_size
share = 100 * path.stat().st_size / model_bytes
print(f"{path.name}: {path.stat().st_size:,} bytes, {share:.1f}% of the model's file; you said {my_guess}%")
print({name: read_back[name] for name in ("method", "k", "model", "template")})

# %% [markdown]
# The share depends on the model. An entry takes a key and a value in every layer, so its size grows with the width,
# and the weights grow with the width squared. Beside a tiny model like our built-in ones a context is a good part of
# it; beside a model of 135M weights it is a hundredth or so.
#
# **Another model refuses it**, or rather, the loader does, because the fingerprint is not the same.

# %%
other = load_model(nano.FOLDER / "facts", "cpu")
try:
    load_adapted(path, other)
except ValueError as error:
    refused = str(error).replace(str(path), path.name)
assert "was tuned on the model" in refused
print(refused)
with breaks("the context was loaded with another model"):
    my_load(folder / "mine.safetensors", other)

# %% [markdown]
# And half of the bytes would do if the numbers were rounded to bfloat16, a common habit. The answers may even stay. The
# numbers do not, so a file that promises *the same* must not do it.

# %%
with breaks("the context was rounded to bfloat16 before it was saved"):
    rounded = context.prefix.of(*(part.bfloat16().float() for part in context.prefix.stack()))
    my_save(Adapted(model, prefix=rounded), folder / "small.safetensors")
    same(my_load(folder / "small.safetensors", model), context)

# %% [markdown]
# # Second half: your method
#
# CT-KV trains every key and every value on its own. That is a lot of freedom: tens of thousands of numbers for ten
# short demonstrations. What if each *channel* of each head had one scale and one shift, the same for all entries? Then
# the cache still says what it said, only with another contrast and another brightness. The picture is one head of one
# layer: columns are entries, rows are channels, and what is trained is blue.

# %%
figure, axes = drawings.canvas(32, 8.4)
for x, said_of, columns in ((1, "CT-KV: every number", range(9)), (16, "scale and shift: two columns", ())):
    for column in range(9):
        for channel in range(6):
            drawings.square(axes, x + column, 1.2 + channel, drawings.OWNERS[0] if columns else "#c9c9c9")
    drawings.text(axes, x + 4.5, 0.4, said_of, 10)
for x, sign in ((26.2, "×"), (28.8, "+")):
    drawings.text(axes, x - 0.5, 4.2, sign, 14)
    for channel in range(6):
        drawings.square(axes, x, 1.2 + channel, drawings.OWNERS[0])
drawings.text(axes, 5.5, 7.9, "9 entries × 6 channels = 54", 9, drawings.NOBODY)
drawings.text(axes, 24, 7.9, "6 scales and 6 shifts = 12, however many entries", 9, drawings.NOBODY)
plt.show()

# %% [markdown]
# In symbols: for the keys K and values V of the demonstrations, with one vector $a$ and one vector $b$ for each layer
# and head, each as long as a key,
#
# $$\theta(a, b) = \left(a_K \odot K + b_K,\; a_V \odot V + b_V\right), \qquad a = 1,\; b = 0 \text{ at the start}$$
#
# and everything else is CT-KV's: its loss, leave-one-out, token dropout, optimiser. A method of this package is a
# `Config` and a function `adapt`.

# %%
from dataclasses import asdict, dataclass
from types import SimpleNamespace

import torch.nn.functional as F

from nanoct.fewshot import encode_context
from nanoct.optimise import optimise
from nanoct.packing import can_leave_one_out, visible
from nanoct.runs import sweep
from nanoct.runs.measure import measure
from nanoct.runs.stats import Setting, difference
from nanoct.runs.table import table


@dataclass
class Config:
    n_step: int = 16  # optimiser steps
    lr: float = 0.1  # of AdamW
    token_dropout: float = 0.05  # as in CT-KV


# %%
def adapt(model, task, config=Config(), seed=0, progress=None):
    """Train a scale and a shift for every channel of the demonstrations' keys and values."""
    demos, generator = task.need_demos("scale and shift"), torch.Generator().manual_seed(seed)
    context = encode_context(model, task.instruction, demos, separator=task.separator)
    row, leave_one_out = pack_demos(task, model, context.next_position), can_leave_one_out(task)
    read = [part.float() for part in context.stack()]  # keys and values, (L, 1, K, P, D)
    scales = [torch.ones_like(part[..., :1, :]).requires_grad_() for part in read]  # (L, 1, K, 1, D)
    shifts = [torch.zeros_like(part[..., :1, :]).requires_grad_() for part in read]

    def theta():
        return context.of(*(scale * part + shift for scale, part, shift in zip(scales, read, shifts)))

    def loss():
        seen = visible(context.owner, len(demos), leave_one_out, config.token_dropout, generator)
        return F.cross_entropy(answer_logits(model, row, theta(), mask=row.mask(seen)), row.target)

    optimise(loss, leaves := [*scales, *shifts], config, progress)
    return Adapted(model, prefix=theta(), n_trained=sum(leaf.numel() for leaf in leaves))


# %% [markdown]
# ## Is it what we say it is?
#
# Three properties need no score. Without a step it is ICL, to the bit. It does not touch a weight. And the numbers that
# it trains do not grow with the demonstrations. From here on the model is the built-in one of strings, whose tasks a
# laptop can run by the dozen.

# %%
WORLD = "strings"
torch.set_num_threads(1)
model, tokenizer = load_model(nano.FOLDER / WORLD, "cpu"), load_tokenizer(nano.FOLDER / WORLD)
pools = nano.WORLDS[WORLD].pools()
mine = nano.make_task(WORLD, pools["validation"][0], tokenizer, seed=0)
before = {name: p.clone() for name, p in model.named_parameters()}
same(adapt(model, mine, Config(n_step=0)), icl.adapt(model, mine))
trained = adapt(model, mine, Config(n_step=2))
assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
longer = nano.make_task(WORLD, pools["validation"][0], tokenizer, seed=0, k=20)
assert adapt(model, longer, Config(n_step=0)).n_trained == trained.n_trained
print(f"it trains {trained.n_trained:,} numbers, with 10 demonstrations and with 20")

# %% [markdown]
# ## A learning rate, honestly chosen
#
# A new method has settings, and if you choose them on the tasks that you report, you report a winner and not a method.
# So: choose on *validation* tasks, report on *held-out* tasks, each once. The rate is what matters most, and nobody
# knows it for a new method. We start with three rates; **while the best of them lies at an edge, we add the next one on
# that side**, because the true best may lie beyond it.

# %%
method = SimpleNamespace(Config=Config, adapt=adapt)
validation = [nano.make_task(WORLD, name, tokenizer, seed=0, n_query=few(None, 4))
              for name in pools["validation"][: few(12, 2)]]


def on_validation(lr):
    config = asdict(Config(n_step=few(16, 1), lr=lr))
    return Setting("scale and shift", config, [
        measure(model, task, "scale and shift", config, 0, module=method)[0] | dict(task=task.name, seed=0)
        for task in validation])


# %%
tried, added = {lr: on_validation(lr) for lr in (0.03, 0.1, 0.3)}, []
start = [setting.config for setting in tried.values()]
for _ in range(few(3, 1)):
    rates = sorted(tried)
    best = max(rates, key=lambda lr: tried[lr].score)  # of equal ones the lowest
    beyond = {rates[0]: rates[0] * rates[1] / rates[2], rates[-1]: rates[-1] * rates[-2] / rates[-3]}  # 1, 3, 10, 30
    following = [float(f"{beyond[best]:.2g}")] if best in beyond else []
    theirs = sweep.neighbours(tried[best].config, [each.config for each in tried.values()], start)
    assert [config["lr"] for config in theirs] == following, "the package tries others"
    for config in theirs:
        tried[config["lr"]] = on_validation(config["lr"])
        added.append(config["lr"])
    if not following:
        break

# %%
rates = sorted(tried)
best = max(rates, key=lambda lr: tried[lr].score)
for lr in rates:
    minus = "the best" if lr == best else difference(tried[lr], tried[best])
    print(f"lr {lr:<6} {tried[lr].cell} % on {len(validation)} validation tasks, {minus}{', added' * (lr in added)}")
figure, axes = plt.subplots(figsize=(8, 2.9))
axes.errorbar(rates, [tried[lr].score for lr in rates], yerr=[tried[lr].error for lr in rates], fmt="o-",
              color="#8c564b", capsize=4)
axes.plot(best, tried[best].score, "*", color="#d1495b", markersize=15)
axes.set(xscale="log", xlabel="learning rate (star: chosen)", ylabel="right, % ± s.e.", ylim=(0, 100))
axes.set_xticks(rates, [f"{lr:g}" for lr in rates], minor=False)
plt.show()

# %% [markdown]
# The package's sweep asks for the same rates, which the cell asserts at every round. Where the difference to the best
# has an interval that holds zero, the two rates are statistically indistinguishable, and the choice between them is a
# matter of luck that costs nothing.
#
# ## Into the table
#
# Now the held-out tasks, which no model was trained on and no setting was chosen on. `measure` takes a method by its
# name, or the module of a new one.

# %%
settings = asdict(Config(n_step=few(16, 1), lr=best))
of_ct_kv = nano.read_settings()[WORLD]["ct_kv"] | few({}, dict(n_step=1))
held_out = [nano.make_task(WORLD, name, tokenizer, seed=0, n_query=few(None, 4))
            for name in pools["held_out"][: few(24, 3)]]
stands = {}
for name, config, module in (("icl", {}, None), ("ct_kv", of_ct_kv, None), ("scale and shift", settings, method)):
    runs = [measure(model, task, name, config, 0, module=module)[0] | dict(task=task.name, seed=0)
            for task in held_out]
    stands[name] = Setting(name, config, runs)


# %% [markdown]
# A verdict is what an interval allows one to say, and no more.

# %%
def verdict(a, b):
    centre, half = a.minus(b)
    return "ahead" if centre > half else "behind" if centre < -half else "statistically indistinguishable"


mine_is = stands["scale and shift"]
rows = [[name, setting.cell, difference(mine_is, setting) if setting is not mine_is else "",
         verdict(mine_is, setting) if setting is not mine_is else "",
         f"{setting.lines[0]['n_trained']:,}"] for name, setting in stands.items()]
print(table(rows, ["method", "score %, ± s.e.", "new method minus it, 95%", "so the new method is", "numbers trained"]))

# %%
ahead, ahead_half = mine_is.minus(stands["icl"])
claim(ahead > 5, f"scale and shift answers more than ICL: {ahead:+.1f} ± {ahead_half:.1f} points")
against, against_half = mine_is.minus(stands["ct_kv"])
claim(against < 1, f"but not more than CT-KV: {against:+.1f} ± {against_half:.1f} points")
share = mine_is.lines[0]["n_trained"] / stands["ct_kv"].lines[0]["n_trained"]
gain = stands["ct_kv"].score - stands["icl"].score
print(f"that is {ahead:.1f} of the {gain:.1f} points that CT-KV gains over ICL, with {100 * share:.1f}% of its trained "
      "numbers (counted on the first task)")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), width_ratios=(1, 1.3))
ours = mine_is.by_task()
for name, mark in (("icl", "o"), ("ct_kv", "s")):
    theirs = stands[name].by_task()
    left.plot([theirs[task] for task in ours], list(ours.values()), mark, color=colour(name), alpha=0.7,
              label=f"the other is {label(name)}")
left.plot([0, 100], [0, 100], color="#999999", linewidth=1)
left.set(xlabel="the other, right %", ylabel="scale and shift, right %", aspect="equal")
left.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 1.25))
for y, name in enumerate(("ct_kv", "icl")):
    centre, half = mine_is.minus(stands[name])
    right.errorbar(centre, y, xerr=half, fmt="so"[y], color=colour(name), capsize=5, markersize=8)
    right.text(centre, y + 0.15, f"{centre:+.1f} ± {half:.1f}", ha="center", color=colour(name))
right.axvline(0, color="#999999", linewidth=1)
right.set_yticks([0, 1], ["minus CT-KV", "minus ICL"])
right.set(ylim=(-0.6, 1.6), xlabel="scale and shift, points ahead, 95% interval")
right.margins(x=0.2)
plt.show()

# %% [markdown]
# A point above the line is a task that the new method wins. It wins many against ICL. Against CT-KV it does not: this
# is a negative result, and it stays in the table. It has a use all the same. A small share of CT-KV's numbers brings
# most of CT-KV's gain, so on these tasks most of what training does could be a change of contrast.
#
# ## Where it fails
#
# On which task is it farthest behind CT-KV? Those are the rules for which contrast is not enough.

# %%
theirs = stands["ct_kv"].by_task()
worst = sorted(ours, key=lambda task: ours[task] - theirs[task])[:3]
for task in worst:
    print(f"{task:32} scale and shift {ours[task]:3.0f}%, CT-KV {theirs[task]:3.0f}%")
lost = next(task for task in held_out if task.name == worst[0])
both = [adapt(model, lost, Config(**settings)), ct_kv.adapt(model, lost, ct_kv.Config(**of_ct_kv))]
print(f"\n{worst[0]:28}{'right':18}{'new':18}CT-KV")
for query in lost.queries[: few(6, 2)]:
    x, y = (tokenizer.decode(ids).rstrip("=;") for ids in (query.x, query.y))
    texts = [answer(one, x, tokenizer, "{input}={output};") for one in both]
    print(f"{x:28}{y:18}" + "".join(f"{text + ' ✗' * (text != y):18}" for text in texts).rstrip())

# %% [markdown]
# ## Exercises
#
# **1. Fewer still.** Train the shifts of the values alone. How many numbers are left, and is it still ahead of ICL?
#
# <details><summary>Solution</summary>
#
# Keep `scales` as ones without a gradient, and give `optimise` the leaf `shifts[1]` alone: a quarter of the numbers. A
# shift of the values adds the same vector to what every head reads, whatever it reads; that is a bias in each layer,
# known as a *steering vector*. The rate must be chosen anew, since it belonged to another method.
#
# </details>
#
# **2. A smaller file.** `save_adapted` writes the whole cache, although four small tensors and the demonstrations as
# text would do. What would the file have to hold, and what would loading it cost?
#
# <details><summary>Solution</summary>
#
# Scales, shifts and the token ids of the demonstrations: kilobytes. Loading reads the demonstrations once with the
# model, one forward pass, and applies $a \odot K + b$. It would be the same to rounding, and not to the bit on another
# machine, because reading rounds differently there.
#
# </details>
#
# **3. Into the package.** Move `Config` and `adapt` to `nanoct/methods/scale_shift.py`, name it in
# `nanoct/methods/__init__.py`, and run `python -m nanoct.reproduce --methods icl ct_kv scale_shift`. What else does the
# package ask of a method whose cost it shall forecast?
#
# <details><summary>Solution</summary>
#
# A `footprint`: how many numbers are trained and which passes a step makes. It is CT-KV's, with
# `4 * n_layer * n_kv_head * head_dim` trained numbers. And a `SWEEP`, the values that are worth trying, so that
# `--sweep` chooses its settings as it does for all methods.
#
# </details>
#
# Choose settings and report scores so that a grader believes them: [A6](assignments/a6_table/handout.md). The method
# that yours starts from, with tests: [A3](assignments/a3_ct_kv/handout.md).
#
# That was the last lesson. [The map](14_a_map_of_in_context_optimisation.ipynb) has more methods that can be written in
# 25 lines, and [the first](01_first_minute.ipynb) is a good one to show to somebody else.
