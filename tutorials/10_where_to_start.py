# %% [markdown]
# # 04 · A context is a parameter
#
# To the model a context is keys and values, numbers that it attends to. It does not ask whether a text stands behind
# them. So they can be set to anything and be optimised from there. Then the first question of every optimisation comes
# up: **where to start?**
#
# **The claim.** The start decides, and no start is best everywhere. Where the task must be read off the examples, the
# examples are the best start. Where the answer lies in the weights, they are a poor one.
#
# | | |
# |---|---|
# | time | fifteen minutes to read, about one to run on two cores |
# | needed | this repository, no GPU; best read after 01 and 02 |
# | download | nothing is downloaded |
#
# *In Colab:* upload this notebook, and run this before its first cell, with the address of the repository in place of
# ADDRESS:
#
# ```
# !git clone ADDRESS nanoct && pip install -q --no-deps -e nanoct
# import sys; sys.path[:0] = ["nanoct", "nanoct/tutorials"]
# ```

# %% [markdown]
# ## Two worlds
# In *strings* a task is a rule, and the examples show it. In *facts* the model knows people by heart: who is whose
# friend, boss, doctor. A task asks for one of these relations and does not name it. The examples need only tell which.

# %%
import torch
from lesson import breaks, claim, colour, few, plt

from nanoct.benchmarks import nano
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model

WORLDS = "strings", "facts"
models = {world: load_model(nano.FOLDER / world, "cpu") for world in WORLDS}
tokenizer = load_tokenizer(nano.FOLDER / "facts")  # the worlds share one vocabulary
for world, model in models.items():
    print(f"{world}: {sum(p.numel() for p in model.parameters()):,} weights")

# %% [markdown]
# The first held-out task of each world, and four of its examples:

# %%
text = lambda ids: tokenizer.decode(ids).strip().rstrip("=;")

tasks = {}
for world in WORLDS:
    names = nano.WORLDS[world].pools()["held_out"][: few(8, 2)]
    tasks[world] = [nano.make_task(world, name, tokenizer, seed=0, n_query=few(None, 2)) for name in names]
    task = tasks[world][0]
    print(f"{task.name}: " + ", ".join(f"{text(demo.x)} → {text(demo.y)}" for demo in task.demos[:4]), "…")

# %% [markdown]
# ## One idea, as a diff
# *Prefix tuning* optimises keys and values that begin as nothing in particular: the cache of 32 tokens of no meaning.
# CT-KV begins as the cache of the examples. Here is all that differs between the two functions, `-` prefix tuning, `+`
# CT-KV. Look for two lines: the one that sets `context`, and the one that sets `seen`.

# %%
import difflib
import inspect

from nanoct.methods import ct_kv, icl, prefix_tuning


def body(method):
    """The lines of a method's adapt, from its first statement on."""
    return inspect.getsource(method.adapt).split('"""')[2].splitlines()


for line in list(difflib.unified_diff(body(prefix_tuning), body(ct_kv), lineterm="", n=0))[2:]:
    if line[1:].strip() and not line.startswith("@@"):
        print(line[:110])

# %% [markdown]
# The first is the start. The second follows from it: the start holds the answers, so each example hides its own entries
# while it is asked. Tutorials 05 and 06 are about that. The rest are options, and the sign that opens a text.
#
# ## Four starts
# - **its own examples**: CT-KV.
# - **another task's examples**: a text of the right form that says the wrong thing.
# - **noise**: random numbers, as many and as large as those of the examples.
# - **32 tokens**: prefix tuning.
#
# Each is tuned with the same steps on the same examples. Nothing else differs but the rate, which was chosen for each
# method on other tasks.

# %%
from nanoct.runs import ablations

settings = nano.read_settings()
STARTS = {"its own examples": "demos", "another task's examples": "others", "noise": "noise", "32 tokens": None}
for world in WORLDS:
    for task, other in zip(tasks[world], tasks[world][1:] + tasks[world][:1]):
        task.others = other.demos
print({task.name: text(task.others[0].x) + " → " + text(task.others[0].y) for task in tasks["facts"][:2]})

# %% [markdown]
# One function tunes from any of the four.

# %%
def tuned(world, task, start, n_step):
    """What the model of a world makes of a task after n_step steps from a start."""
    if start == "32 tokens":
        config = prefix_tuning.Config(**settings[world]["prefix_tuning"] | dict(n_step=n_step))
        return prefix_tuning.adapt(models[world], task, config)
    config = ablations.Config(**settings[world]["ct_kv"] | dict(n_step=n_step, start=STARTS[start]))
    return ablations.adapt(models[world], task, config)


for start in STARTS:
    keys, values = tuned("strings", tasks["strings"][0], start, 0).prefix.stack()
    print(f"{start:26}keys and values {tuple(keys.shape)}, spread {keys.std():.2f} and {values.std():.2f}")

# %% [markdown]
# The same kind of thing four times. Without a step, its own examples are what ICL reads, to the last bit.

# %%
def check(task, adapted):
    """The start of CT-KV is ICL's context."""
    read = icl.adapt(adapted.model, task).prefix.stack()
    by = max((a - b).abs().max().item() for a, b in zip(read, adapted.prefix.stack()))
    assert by == 0, f"the start is not what ICL reads: the numbers differ by up to {by:.1f}"


for world in WORLDS:
    check(tasks[world][0], tuned(world, tasks[world][0], "its own examples", 0))
print("no step: CT-KV is ICL, bit by bit")

# %% [markdown]
# ## The race
# Now more and more steps from each start. **Which start wins in which world, after 16 steps?** Type your guesses.

# %%
from statistics import mean

from nanoct.score import evaluate

my_guess = {"strings": "its own examples", "facts": "its own examples"}

steps, some = few((0, 4, 16, 64), (0, 1)), few(4, 1)
score = lambda world, *how: 100 * mean(evaluate(tuned(world, t, *how), t).score for t in tasks[world][:some])
curves = {(world, start): [score(world, start, n) for n in steps] for world in WORLDS for start in STARTS}
print(f"{'right answers, %':35}" + "".join(f"{n:4} steps" for n in steps))
for (world, start), curve in curves.items():
    print(f"{world:9}{start:26}" + "".join(f"{percent:10.1f}" for percent in curve))

# %%
i, ahead = few(2, -1), {}
for world in WORLDS:
    after = {start: curves[world, start][i] for start in STARTS}
    own = after.pop("its own examples")
    best = max(after, key=after.get)
    ahead[world] = own - after[best]
    print(f"{world}, {steps[i]} steps: its own examples {own:.1f}%, best of the others {after[best]:.1f}% ({best})")
    print(f"    you said {my_guess[world]}")
claim(ahead["strings"] > 10 and ahead["facts"] < -10,
      f"its own examples are {ahead['strings']:+.1f} points from the best other start in strings, "
      f"{ahead['facts']:+.1f} in facts")

# %% [markdown]
# ## The picture

# %%
LOOKS = {"its own examples": "-", "another task's examples": "--", "noise": ":", "32 tokens": "-"}
figure, panels = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True)
for axes, world in zip(panels, WORLDS):
    for start, look in LOOKS.items():
        method = "prefix_tuning" if start == "32 tokens" else "ct_kv"
        axes.plot(range(len(steps)), curves[world, start], look, color=colour(method), marker="o", markersize=4,
                  linewidth=2, label=f"CT-KV from {start}" if method == "ct_kv" else f"prefix tuning: {start}")
    axes.set_xticks(range(len(steps)), steps)
    axes.set(title=world, xlabel="optimiser steps", ylim=(-3, 103))
panels[0].set_ylabel("right answers, %")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# A rule must be *built* out of the examples, and the examples are most of the building. A relation must only be
# *found*: the answers are in the weights. There a context full of people stands in the way, and a blank one is free to
# become the name of the relation.
#
# ## How small can a context be?
# The name of a relation is short. **How many entries does it take?** We let prefix tuning have *m* of them, in facts.

# %%
my_guess = 16

for m in few((1, 4, 16, 64), (1, 4)):
    config = prefix_tuning.Config(**settings["facts"]["prefix_tuning"] | dict(n_step=steps[i], n_prefix=m))
    found = [prefix_tuning.adapt(models["facts"], task, config) for task in tasks["facts"][:some]]
    right = 100 * mean(evaluate(one, task).score for one, task in zip(found, tasks["facts"]))
    print(f"m = {m:3}: {found[0].n_trained:7,} numbers, {right:5.1f}% right")
print(f"you said {my_guess}")

# %% [markdown]
# ## Break it
# A start can be wrong and look right. Suppose that each example is read alone and the caches are laid side by side. It
# saves time, all shapes fit, the training runs. But each example stands at the same positions and has read no other.
# The check from above finds it: without a step, CT-KV must be ICL.

# %%
from nanoct.fewshot import Adapted, Prefix, encode_context

task, model = tasks["strings"][0], models["strings"]
alone = [encode_context(model, task.instruction), *(encode_context(model, (), [demo]) for demo in task.demos)]
keys, values = (torch.cat(parts, dim=3) for parts in zip(*(one.stack() for one in alone)))
whole = encode_context(model, task.instruction, task.demos)
side_by_side = Prefix(whole.kv, whole.owner, whole.next_position).of(keys, values)

unstepped = Adapted(model, prefix=side_by_side)  # all that CT-KV makes of it without a step
print(f"shapes {tuple(keys.shape)} and {tuple(whole.stack()[0].shape)}")
print(f"no step: ICL {evaluate(icl.adapt(model, task), task).score:.0%}, side by side "
      f"{evaluate(unstepped, task).score:.0%}")
with breaks("each example was read alone"):
    check(task, unstepped)

# %% [markdown]
# ## Three questions
#
# <details><summary>Given enough steps, would all starts end at the same place?</summary>
#
# No. The loss has many minima, and the rate sinks to zero with the last step. A start is also a prior: of all contexts
# that fit ten examples, tuning finds one near to where it began. A good neighbourhood generalises.
# </details>
#
# <details><summary>Noise has as many numbers as the examples, and as large ones. What does it lack?</summary>
#
# Structure that attention can use. Nothing in it says "this is an input, that is its answer". The model would have to
# find the form of the task by gradient before it finds the task.
# </details>
#
# <details><summary>Another task's examples have the right form. Why are they not as good in strings?</summary>
#
# They say something definite that is wrong, and tuning must unlearn it. But compare their curve with that of noise. The
# form is there already, and only the content has to change.
# </details>

# %% [markdown]
# ## Change next
# - **A start of your own.** `adapt` in `nanoct/runs/ablations.py` is CT-KV's loop with other starts. Give it one more:
#   the tuned context of another task, say, or the mean of two. Does a related task help?
# - **m in strings.** Give prefix tuning as few entries there. Is a rule as short as a relation?
# - **Other worlds.** Put `"grids"` or `"lexicon"` into `WORLDS`. Guess first: built, or found?
#
# Next: tutorial 05, the step: k pairs in one row.
