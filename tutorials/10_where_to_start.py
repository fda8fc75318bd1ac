# %% [markdown]
# # 10 · Where to start
#
# To the model a cache is nothing but numbers that it attends to, and it never asks whether a text stands behind them.
# So gradient descent could begin at any cache. CT-KV begins at the cache of the demonstrations; prefix tuning, the
# older method, begins at tokens that mean nothing. In this lesson we find that the two methods differ in three lines,
# and race four starts against each other, because the question is when those lines matter.
#
# | | |
# |---|---|
# | **You build** | prefix tuning as a three-line change of CT-KV, and caches of noise and of another task |
# | **You see** | four starts in two worlds: where the demonstrations are the best one, and where they are not |
# | **Time** | twenty minutes to read, two to run on two cores |
# | **Before** | [09, Weights or context](09_weights_or_context.ipynb); CT-KV's loop from 06, the packed row from 07 |
# | **Next** | [11, CT-KV against TTT on real words](11_ct_kv_against_ttt_on_real_words.ipynb) |
#
# Run it as `python tutorials/10_where_to_start.py` from the repository's root, or open the notebook. Nothing is
# downloaded.

# %%
import difflib
import inspect
from statistics import mean, stdev

import drawings
import torch
import torch.nn.functional as F
from lesson import breaks, claim, few, plt  # few(in a full run, in a quick test); claim: assert it and say it

from nanoct.benchmarks import nano
from nanoct.fewshot import Adapted, Prefix, encode_context, read_on
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model
from nanoct.optimise import optimise
from nanoct.packing import answer_logits, pack_demos, visible
from nanoct.score import evaluate

WORLDS = "strings", "facts"
models = {world: load_model(nano.FOLDER / world, "cpu") for world in WORLDS}
tokenizer = load_tokenizer(nano.FOLDER / "facts")  # the worlds share one vocabulary
settings = nano.read_settings()

# %% [markdown]
# ## Two worlds
#
# We need two kinds of tasks. In *strings* a task is a rule for letters, and only the demonstrations show it. In *facts*
# the model knows people by heart: who is whose friend, boss or doctor. A task asks for one of these relations without
# naming it, so the demonstrations need only tell which one is meant. We take every fifth of the 24 tasks of each world
# that were held out, that is, that the model never saw in training.

# %%
text = lambda ids: tokenizer.decode(ids).strip().rstrip("=;")

tasks = {}
for world in WORLDS:
    names = nano.WORLDS[world].pools()["held_out"]
    tasks[world] = [nano.make_task(world, name, tokenizer, seed=0) for name in names[:: few(5, 23)]]
    for name, task in zip(names[:: few(5, 23)], tasks[world]):
        before = names[names.index(name) - 1]
        task.others = nano.make_task(world, before, tokenizer, seed=0).demos  # of another task, for later
    task = tasks[world][0]
    print(f"{world}, {task.name}: " + ", ".join(f"{text(demo.x)} → {text(demo.y)}" for demo in task.demos[:4]), "…")

# %% [markdown]
# ## One idea, three lines
#
# The part that both methods share is the loop of [lesson 06](06_ct_kv_in_thirty_lines.ipynb): keys and values are
# leaves, the k pairs lie in one row, and AdamW lowers the loss of their answers. It takes a cache `theta` and a
# function `seen` that says what each pair may see in this step. It also takes `head`, tokens that stand before every
# pair. A question must find them too, so in the end `read_on` reads them behind the trained cache and adds their
# entries. `look` is shown the cache after every step, so that we can plot curves.

# %%
def tune(model, task, theta, head, seen, config, seed, look):
    generator = torch.Generator().manual_seed(seed)
    row = pack_demos(task, model, theta.next_position, head)
    keys, values = leaves = [part.requires_grad_() for part in theta.stack()]  # (L, 1, K, P, D) each

    def loss():
        logits = answer_logits(model, row, theta.of(keys, values), mask=row.mask(seen(generator)))
        return F.cross_entropy(logits, row.target)

    def cache_now():
        return read_on(model, theta.of(keys.detach().clone(), values.detach().clone()), head)

    look(0, cache_now())
    optimise(loss, leaves, config, lambda step, _: look(step + 1, cache_now()))
    return cache_now()


# %% [markdown]
# Now CT-KV and, under it, prefix tuning. Both have five lines. Read the second with the first in mind: which lines are
# new?

# %%
def my_ct_kv(model, task, config, seed=0, look=lambda step, theta: None):
    k = len(task.demos)
    theta = encode_context(model, task.instruction, task.demos)
    head = []
    seen = lambda generator: visible(theta.owner, k, True, config.token_dropout, generator)
    return tune(model, task, theta, head, seen, config, seed, look)


def my_prefix_tuning(model, task, config, seed=0, look=lambda step, theta: None):
    k = len(task.demos)
    theta = encode_context(model, range(config.n_prefix))
    head = task.instruction
    seen = lambda generator: visible(theta.owner, k)
    return tune(model, task, theta, head, seen, config, seed, look)


# %%
lines = [inspect.getsource(method).splitlines()[1:] for method in (my_ct_kv, my_prefix_tuning)]
changes = [line for line in difflib.ndiff(*lines) if line[0] in "-+"]
print("\n".join(changes))
assert len(changes) == 2 * 3

# %% [markdown]
# 1. **The start.** CT-KV reads the demonstrations. Prefix tuning reads the tokens 0, 1, …, 31 of the vocabulary, which
#    are *uninformative tokens*: they say nothing about any task.
# 2. **The head.** The start sign opens every text, so CT-KV's cache already holds it, as the text's own beginning. The
#    cache of prefix tuning is no text: its first token, number 0, happens to be the start sign as well, but its entry
#    is trained into something else, as all others are. So a fresh sign stands before each pair, and is read behind
#    the cache in the end.
# 3. **What is hidden.** The demonstrations hold the answers, so CT-KV must hide demonstration i from pair i, and it
#    hides single entries at random as well. Uninformative tokens hold no answer, so nothing needs to be hidden.
#
# The second and the third follow from the first, so the paper's idea is the start. Are these the package's methods? We
# compare all trained numbers after a few steps.

# %%
from nanoct.methods import ct_kv, icl, prefix_tuning


def config_of(method, world, **changes):
    """The settings that were chosen for a method on validation tasks of a world, each method its own."""
    name = method.__name__.split(".")[-1]
    return method.Config(**settings[world][name] | changes)


def same(mine, theirs):
    return all(torch.equal(a, b) for a, b in zip(mine.stack(), theirs.stack(), strict=True))


model, task = models["strings"], tasks["strings"][0]
for build, method in ((my_ct_kv, ct_kv), (my_prefix_tuning, prefix_tuning)):
    config = config_of(method, "strings", n_step=few(8, 2))
    mine, theirs = build(model, task, config), method.adapt(model, task, config).prefix
    assert same(mine, theirs), f"{method.LABEL} differs from the package's"
    print(f"{method.LABEL}: P = {len(mine.owner)} entries, all their keys and values are equal")

# %% [markdown]
# ## Two more starts
#
# If the start is the idea, what is it about the demonstrations that makes a good start? Two more caches help to find
# out. The first holds **another task's demonstrations**: text of the right form that says the wrong thing. The second
# is **noise**, with as many entries as the demonstrations have, and as large in every layer. Neither holds an answer of
# this task, so its entries have owner -1, and leave-one-out finds nothing to hide.

# %%
def demonstrations(model, task, seed):
    return encode_context(model, task.instruction, task.demos)


def of_nobody(kv, like):
    return Prefix(kv, torch.full_like(like.owner, -1), like.next_position)


def another_task(model, task, seed):
    theta = encode_context(model, task.instruction, task.others)
    return of_nobody(theta.kv, theta)


def noise(model, task, seed):
    theta, generator = demonstrations(model, task, seed), torch.Generator().manual_seed(seed + 1)
    normal = lambda part: part.std() * torch.randn(part.shape, generator=generator)
    return of_nobody([(normal(key), normal(value)) for key, value in theta.kv], theta)


# %% [markdown]
# CT-KV from any of these starts is `my_ct_kv` with another line for `theta`. Again it is the package's.

# %%
def my_ct_kv_from(start, model, task, config, seed=0, look=lambda step, theta: None):
    k = len(task.demos)
    theta = start(model, task, seed)
    seen = lambda generator: visible(theta.owner, k, True, config.token_dropout, generator)
    return tune(model, task, theta, [], seen, config, seed, look)


# %%
from nanoct.runs import ablations

for start, name in ((demonstrations, "demos"), (another_task, "others"), (noise, "noise")):
    config = config_of(ct_kv, "strings", n_step=few(8, 2))
    mine = my_ct_kv_from(start, model, task, config)
    theirs = ablations.adapt(model, task, ablations.Config(**vars(config), start=name)).prefix
    assert same(mine, theirs), f"CT-KV from {name} differs from the package's"
    keys, values = start(model, task, 0).stack()
    print(f"{name:7} P = {keys.shape[3]:3}, spread of keys {keys.std():.2f}, of values {values.std():.2f}, equal")

# %% [markdown]
# Here are the first 18 entries of each of the four. A column is an entry, a row a layer; we draw three of the six.

# %%
show = lambda ids: [tokenizer.decode([token]).strip()[:1] for token in ids][:18]
lay = lambda demos: [(token, i) for i, demo in enumerate(demos) for token in (*demo.x, *demo.y)]
own, other = lay(task.demos), lay(task.others)
figure, axes = drawings.canvas(40, 12.6)
drawings.cache(axes, 0.5, 2.2, [-1, *(i for _, i in own)][:18], letters=["·", *show(t for t, _ in own)][:18])
drawings.cache(axes, 21, 2.2, [-1, *(3 + i for _, i in other)][:18], letters=["·", *show(t for t, _ in other)][:18])
shades = torch.rand(18, 3, generator=torch.Generator().manual_seed(0)).tolist()
for column, shade_of in enumerate(shades):
    for layer, shade in enumerate(shade_of):
        drawings.square(axes, 0.5 + column, 8.8 + layer, drawings.mix(drawings.INK, "#ffffff", 0.85 * shade))
drawings.cache(axes, 21, 8.8, [-1] * 18, letters=["·", *show(range(1, 19))][:18])
for x, y, said in ((9.5, 0.6, "the demonstrations"), (30, 0.6, "another task's demonstrations"), (9.5, 7.2, "noise"),
                   (30, 7.2, "uninformative tokens 0, 1, 2, …")):
    drawings.text(axes, x, y, said, 10, weight="bold")
plt.show()

# %% [markdown]
# A colour says which demonstration a token comes from, and grey is no demonstration. Over an entry stands its token,
# which noise does not have; · is the start sign. For leave-one-out the entries of another task belong to nobody,
# although we colour them, so that one sees where each demonstration begins.
#
# **Predict.** Each start is now trained with all the steps of its method. Which one answers most questions in strings,
# and which in facts? Type one of "demonstrations", "another task", "noise", "tokens" for each.

# %%
my_guess = {"strings": "demonstrations", "facts": "demonstrations"}

# %% [markdown]
# ## The race
#
# The rates and the numbers of steps are **not the same for all**. Those of CT-KV and prefix tuning are the package's,
# each method's own, chosen on validation tasks. Nothing was swept for the two additional starts. They have CT-KV's, and
# in strings more than that: four times the steps, and noise a larger rate besides, so that if they stay behind, they
# were not stopped early. The rate falls to 0 with the last step, so a curve ends where its method ends. We look at the
# cache now and then and let it answer the questions of the task.

# %%
STARTS = {"demonstrations": demonstrations, "another task": another_task, "noise": noise, "tokens": None}
OWN = {("strings", "another task"): dict(n_step=128), ("strings", "noise"): dict(n_step=128, lr=0.1)}  # else CT-KV's
LOOKS = few((0, 1, 2, 4, 8, 16, 32, 64, 128), (0, 2))


def race(world, task, name):
    """{step: percent of the questions answered right} of one run, and its last cache."""
    found, model = {}, models[world]

    def look(step, theta):
        if step in LOOKS:
            found[step] = 100 * evaluate(Adapted(model, prefix=theta), task).score

    change = few(OWN.get((world, name), {}), dict(n_step=2))
    if name == "tokens":
        theta = my_prefix_tuning(model, task, config_of(prefix_tuning, world, **change), look=look)
    else:
        theta = my_ct_kv_from(STARTS[name], model, task, config_of(ct_kv, world, **change), look=look)
    return found, theta


# %%
runs, final = {}, {}
for world in WORLDS:
    for name in STARTS:
        raced = [race(world, task, name) for task in tasks[world]]
        runs[world, name] = [found for found, _ in raced]
        final[world, name] = raced[0][1]  # the cache of the first task

# %%
curves = {}
for (world, name), found in runs.items():
    curves[world, name] = {step: mean(run[step] for run in found) for step in found[0]}
print(f"{'right answers, %':24}" + "".join(f"{step:6}" for step in LOOKS) + "  steps")
for (world, name), curve in curves.items():
    print(f"{world:9}{name:15}" + "".join(f"{curve[step]:6.0f}" if step in curve else "      " for step in LOOKS))

# %% [markdown]
# How sure are the differences at the end? Tasks differ far more than methods do, so we subtract the scores task by task
# and only then ask how much the differences scatter. This is a *paired* difference; its 95% interval is their standard
# error times Student's t. [Lesson 11](11_ct_kv_against_ttt_on_real_words.ipynb) is about it.

# %%
from nanoct.runs.stats import student


def paired(a, b):
    """Mean of a - b over the tasks of two dicts {task: score}, and the half width of its 95% interval."""
    differences = [a[task] - b[task] for task in sorted(a.keys() & b.keys())]
    return mean(differences), student(len(differences)) * stdev(differences) / len(differences) ** 0.5


def ends(world, name):
    return {task.name: list(run.values())[-1] for task, run in zip(tasks[world], runs[world, name])}


lead = {}
for world in WORLDS:
    best = max(STARTS, key=lambda name: mean(ends(world, name).values()))
    print(f"{world}: best after all steps is {best!r}, you said {my_guess[world]!r}")
    for name in list(STARTS)[1:]:
        lead[world, name] = paired(ends(world, "demonstrations"), ends(world, name))
        print("    demonstrations minus {}: {:+.1f} ± {:.1f}".format(name, *lead[world, name]))

# %%
from nanoct.runs.plots import apart

LOOK = {"demonstrations": ("#d1495b", "o", "-"), "another task": ("#7b5ea7", "s", "--"),
        "noise": ("#555555", "^", ":"), "tokens": ("#e07a3f", "D", "-.")}
figure, panels = plt.subplots(1, 2, figsize=(8, 3.8), sharey=True)
for axes, world in zip(panels, WORLDS):
    end = {name: list(curves[world, name].values())[-1] for name in LOOK}
    upwards = sorted(LOOK, key=end.get)
    for name, height in zip(upwards, apart([end[name] for name in upwards], 7, 0, 100)):
        colour, marker, dash = LOOK[name]
        at = [LOOKS.index(step) for step in curves[world, name]]
        axes.plot(at, curves[world, name].values(), color=colour, marker=marker, linestyle=dash, markersize=5)
        axes.text(len(LOOKS) - 0.7, height, name, color=colour, va="center", fontsize=9)
    axes.set_xticks(range(len(LOOKS)), LOOKS)
    axes.set(title=world, xlabel="optimiser steps", ylim=(-4, 104), xlim=(-0.4, len(LOOKS) + 3.2))
panels[0].set_ylabel("questions answered right, %")
plt.show()

# %% [markdown]
# In strings the curve of the demonstrations is the highest from the first step to the last. A rule must be *built* out
# of the demonstrations, and their cache has done most of the building before training begins. In facts a relation must
# only be *found*, because the answers lie in the weights. There the uninformative tokens are the quickest, and after 8
# steps one would call the demonstrations a poor start. With more steps they come most of the way.
#
# With five tasks, though, only noise in strings is decided: every other interval above holds zero. The 24 tasks below
# decide the rest.

# %%
centre, half = lead["strings", "noise"]
claim(centre - half > 50, f"in strings the demonstrations are {centre:.1f} ± {half:.1f} points ahead of noise")
sooner = {name: curves["facts", name][few(8, 2)] for name in ("tokens", "demonstrations")}
claim(sooner["tokens"] > sooner["demonstrations"] + 20,
      f"in facts, after 8 steps, {sooner['tokens']:.0f}% are right from the tokens and "
      f"{sooner['demonstrations']:.0f}% from the demonstrations")
decided = [at for at, (centre, half) in lead.items() if abs(centre) > half]
print("intervals that exclude zero:", decided)
assert few(decided, [("strings", "noise")]) == [("strings", "noise")]  # two tasks of a quick run decide nothing

# %% [markdown]
# How much of that is the start? The tokens ran at a rate of 0.1 and CT-KV at 0.03, the first with 32 steps in all and
# the second with 128. The sweep that chose these settings also has both methods at both rates with 8 steps in all, on
# validation tasks of facts.

# %%
from nanoct.runs.results import read
from nanoct.runs.stats import chosen
from nanoct.runs.stats import settings as by_world

swept = by_world(read(nano.FOLDER / "results/sweep.jsonl"))["facts"]
gaps = {}
for rates in ((0.1, 0.03), (0.1, 0.1), (0.03, 0.03)):
    of_tokens, of_demos = (chosen(swept[name], dict(n_step=8, lr=lr))
                           for name, lr in zip(("prefix_tuning", "ct_kv"), rates))
    assert [(each.config["n_step"], each.config["lr"]) for each in (of_tokens, of_demos)] == [(8, lr) for lr in rates]
    gaps[rates] = of_tokens.minus(of_demos)
    print("tokens at {}: {:.1f}%, demonstrations at {}: {:.1f}%, difference {:+.1f} ± {:.1f}".format(
        rates[0], of_tokens.score, rates[1], of_demos.score, *gaps[rates]))
own_rates, *equal_rates = (gap for gap, _ in gaps.values())
assert all(0 < gap < 0.7 * own_rates for gap in equal_rates)

# %% [markdown]
# At equal rates the order is the same, but only a third to two thirds of the gap is left. So about half of what the
# race shows at 8 steps is the rate, and not the start. Facts has only four validation tasks, which is why the intervals
# are so wide: at equal rates both hold zero.
#
# ## More tasks
#
# So we need more tasks. The repository holds the results of all 24 tasks of both worlds: three draws of demonstrations
# for the two methods, and one for the other two starts, which there ran with CT-KV's settings. We give them the same
# treatment.

# %%
committed = by_world(read(nano.FOLDER / "results/full.jsonl"))
variants = ablations.groups(read(nano.FOLDER / "results/ablations.jsonl"))
ROWS = {"another task": "start: another task's demos", "noise": "start: noise"}
ahead = {}
for world in WORLDS:
    of = {name: chosen(committed[world][name], settings[world][name]) for name in ("ct_kv", "prefix_tuning")}
    ahead[world, "tokens"] = paired(of["ct_kv"].by_task(), of["prefix_tuning"].by_task())
    rows = variants[world][0]
    for name, row in ROWS.items():
        ahead[world, name] = paired(rows["CT-KV"].by_task(), rows[row].by_task())
    for name in ("tokens", *ROWS):
        print("{:8} demonstrations minus {:13}{:+6.1f} ± {:.1f}".format(world, name, *ahead[world, name]))

# %%
for name in ("tokens", *ROWS):
    centre, half = ahead["strings", name]
    assert centre - half > 20, f"in strings the demonstrations are not far ahead of {name}"
for name in ("tokens", "another task"):
    centre, half = ahead["facts", name]
    assert abs(centre) < half, f"in facts the demonstrations and {name} are told apart"
centre, half = ahead["facts", "noise"]
assert centre + half < 0, "in facts noise is not ahead of the demonstrations"
in_noise, in_demos = (variants["facts"][0][row].score for row in ("start: noise", "CT-KV"))
print(f"in facts noise reaches {in_noise:.1f}%, and the demonstrations {in_demos:.1f}%")

# %% [markdown]
# In strings the demonstrations are far ahead of all three. Another task's demonstrations can do better than these lines
# say, because in our race they had four times the steps and came nearer; they have the right form, and training has to
# replace what they say. In facts two of the starts meet CT-KV: uninformative tokens and another task's demonstrations
# are statistically indistinguishable from it. Noise ends about ten points above. One reading is that a context full of
# people, whoever they are, is a little in the way where only the name of a relation is needed; no line here tests it.
# In any case the demonstrations are no better a start there than the others.
#
# The page of the built-in worlds has [grids and lexicon](../weights/nano/README.md#which-parts-of-ct-kv-matter) too:
# grids is like strings, and lexicon like facts except from noise, which there is 6.0 ± 6.0 points behind the
# demonstrations.
#
# ## Where it fails
#
# Noise has as many numbers as the demonstrations, they are as large, and in facts it does well. In strings it answers
# nothing. One would think that training does not get off the ground, so we look at the loss of one task, without
# dropout, at the beginning and at the end, and at a few answers.

# %%
from nanoct.demo import answers

model, task = models["strings"], tasks["strings"][0]
first, last = noise(model, task, 0), final["strings", "noise"]
row = pack_demos(task, model, first.next_position)
with torch.no_grad():
    for said, theta in (("before", first), ("after", last)):
        print(f"{said:7} loss {F.cross_entropy(answer_logits(model, row, theta), row.target):.2f} nats a token")
print(f"        a guess among 16 letters and the end sign costs {torch.tensor(17.0).log():.2f}")
asked = task.queries[:4]
for query, said in zip(asked, answers(Adapted(model, prefix=last), asked, tokenizer)):
    print(f"{text(query.x):9} right {text(query.y):9} from noise {said}")
learned = mean(ends("strings", "noise").values())
claim(learned < 10, f"in strings CT-KV from noise answers {learned:.1f}% of the questions")

# %% [markdown]
# Training has not failed at all: the loss is nearly zero. But what it has learned are the ten demonstrations by heart,
# which a cache of so many numbers can hold, and nothing of the rule: its first answer, `kmk`, is that of the first
# demonstration at the top, and belongs to another question. Nothing in the noise says "this is a question, and its
# answer is made from it", and gradient descent takes the nearest way down. So a start is also a *prior*: of all caches
# that fit the ten demonstrations, training finds one that is near to where it began, and only near a good start lie
# those that generalise. In facts a pointer to a relation is all that is needed, and that is near to any start.
#
# ## Break it
#
# A start can be wrong and look right. Suppose that each demonstration is read alone and the caches are laid side by
# side. It saves time, all shapes fit and training runs, but all demonstrations stand at the same positions, and none
# has read another. One check finds it: without a step, CT-KV must be ICL.

# %%
def check(theta, task):
    """The start of CT-KV is the cache that ICL reads."""
    by = max((a - b).abs().max().item() for a, b in zip(theta.stack(), icl.adapt(model, task).prefix.stack()))
    assert by == 0, f"the start is not what ICL reads: numbers differ by up to {by:.1f}"


check(demonstrations(model, task, 0), task)
alone = [encode_context(model, task.instruction), *(encode_context(model, (), [demo]) for demo in task.demos)]
keys, values = (torch.cat(parts, dim=3) for parts in zip(*(theta.stack() for theta in alone)))
side_by_side = demonstrations(model, task, 0).of(keys, values)
for said, theta in (("one after the other", demonstrations(model, task, 0)), ("side by side", side_by_side)):
    print(f"{said:20} keys {tuple(theta.stack()[0].shape)}, right without a step "
          f"{evaluate(Adapted(model, prefix=theta), task).score:.0%}")
with breaks("each demonstration was read alone"):
    check(side_by_side, task)

# %% [markdown]
# ## Exercises
#
# **1. How small?** The name of a relation is short. How many entries does prefix tuning need in facts, 1, 4, 16 or 64?
#
# <details><summary>Solution</summary>
#
# `config_of(prefix_tuning, "facts", n_prefix=m)` and the rest as in the race. One entry, 768 numbers, answers about
# half of the questions, where chance is a quarter; four entries already do as well as 32.
#
# </details>
#
# **2. Two lines back.** Take `my_prefix_tuning` and change back its start and its head, so that it reads the
# demonstrations but hides nothing. What does its loss do in the first steps, and what its score?
#
# <details><summary>Solution</summary>
#
# The loss begins near 0, because every pair finds its own answer in the cache and copies it. One would expect that
# nothing is learned from it, and yet the score is about CT-KV's: this is CT-KV without leave-one-out and dropout, and
# over 24 tasks of strings the two are statistically indistinguishable. [Lesson 08](08_how_tuning_cheats.ipynb) looks at
# the gradient instead, and at words, where the two rules do matter.
#
# </details>
#
# **3. A better neighbour.** Another task's demonstrations were of an arbitrary task. Start from the *trained* cache of
# another task, or choose the other task by the loss of this task's demonstrations without a step. Does it help?
#
# <details><summary>Solution</summary>
#
# `start = lambda model, task, seed: of_nobody(theta.kv, theta)` with the cache `theta` of your choice, and
# `my_ct_kv_from(start, …)`. Choose on some tasks and report on others, or the gain is the luck of the choice;
# [A6](assignments/a6_table/handout.md) is about that. Starting from other tasks' contexts is a method of its own, which
# [lesson 14](14_a_map_of_in_context_optimisation.ipynb) puts on the map.
#
# </details>
#
# Build CT-KV with tests that know its silent mistakes: [A3](assignments/a3_ct_kv/handout.md).
#
# Next: [11, CT-KV against TTT on real words](11_ct_kv_against_ttt_on_real_words.ipynb), where a paired interval decides
# between two methods.
