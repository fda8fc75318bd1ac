# %% [markdown]
# # 03 · Reading is not learning
#
# ICL only reads. How well could anyone read? For the small worlds of nanoct this has an exact answer, and so "falls
# short" becomes a number.
#
# **The claim.** On rules of its training, ICL comes close to the best that is possible. On rules that it has never
# seen, it falls well short. The gap is room to optimise.
#
# | | |
# |---|---|
# | time | fifteen minutes to read, about two to run on two cores |
# | needed | this repository, no GPU |
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
# ## All rules there are
# In the world of strings a rule is one of a few *primitives*, such as `reverse`, or one primitive after another. Some
# rules were trained on. Others were *held out*: the model never saw them.

# %%
from lesson import breaks, claim, colour, few, label, plt

from nanoct.benchmarks import nano
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model

folder = nano.FOLDER / "strings"
model, tokenizer = load_model(folder, "cpu"), load_tokenizer(folder)
world = nano.WORLDS["strings"]
pools = world.pools()
print(f"{len(world.primitives)} primitives;", ", ".join(f"{pool}: {len(names)} rules" for pool, names in pools.items()))

# %% [markdown]
# ## An ideal reader
# It has the list of all rules. At each example it strikes those that contradict it. What remains is the *posterior*:
# the rules that are still possible, each with its probability. This is *Bayes*. No reader of the same list does better.
#
# **How many examples does it take until one rule is left?** Type a number.

# %%
from nanoct.benchmarks.nano import bayes

my_guess = 5

name = pools["held_out"][1]
demos, queries = world.examples(name, seed=0, k=16, n_query=few(40, 4))
for k in range(1, few(9, 3)):
    left = bayes.posterior(world, demos[:k], "all")
    assert name in left  # the true rule is never struck
    x, y = demos[k - 1]
    print(f"{x:>8} → {y:12} {len(left):3} left: {', '.join(sorted(left)[:3])}{' …' if len(left) > 3 else ''}")
print(f"the rule: {name}; you said {my_guess} examples")

# %% [markdown]
# Asked a question, it lets the rules that are left vote, each with its weight. After one example they disagree. Below
# are the likeliest answers with their probabilities.

# %%
for (x, y, _), p in zip(queries[:3], bayes.predictives(world, demos[:1], queries[:3], "all")):
    best = sorted(p, key=p.get, reverse=True)[:3]
    print(f"{x:>8} → {y:12} Bayes after one example: " + ", ".join(f"{p[answer]:.0%} {answer}" for answer in best))

# %% [markdown]
# ## Two lists
# What an ideal reader expects is called its *prior*. We give it two:
# - **training**: the rules of training, as often as training had them. It is what the model could know.
# - **all**: every rule alike, the held-out ones among them. It is all that anyone could know.

# %%
for which in bayes.PRIORS:
    prior = world.prior(which)
    print(f"{which:9} {len(prior)} rules, {name!r} {'is' if name in prior else 'is not'} among them")

# %% [markdown]
# ## ICL beside Bayes
# We ask the same questions of the model and of the ideal readers, after the same examples. Rules of training are drawn
# as training drew them.

# %%
import random
from statistics import mean

from nanoct.methods import icl
from nanoct.score import evaluate

rng, of_training = random.Random(0), {}
while len(of_training) < few(24, 1):
    of_training[world.draw_name(rng, pools["train"])] = None
rules = {"training": list(of_training), "unseen": pools["held_out"][: few(None, 1)]}
for pool, names in rules.items():
    print(f"{len(names)} {pool} rules: {', '.join(names[:3])} …")

# %% [markdown]
# One function asks all three readers: ICL, and Bayes with either list.

# %%
def scores(name, k, wrong=0.0):
    """Right answers of ICL and of both ideal readers, in percent; wrong: the share of examples with a false answer."""
    task = nano.make_task("strings", name, tokenizer, seed=0, k=k, n_query=few(40, 4), wrong=wrong)
    demos, queries = world.examples(name, 0, k, few(40, 4))
    demos = nano.mislabel(demos, wrong, random.Random(f"wrong/{name}/0"))  # the same as those of the task
    found = {"icl": evaluate(icl.adapt(model, task), task).score}
    for which in bayes.PRIORS:
        predicted = bayes.predictives(world, demos, queries, which)
        found[f"bayes_{which}"] = bayes.evaluate(world, predicted, queries).score
    return {who: 100 * score for who, score in found.items()}


print({who: round(score) for who, score in scores(name, few(4, 2)).items()}, "for", name)

# %% [markdown]
# **How many points will ICL lie below the ideal reader, with sixteen examples?** On rules of training the reader with
# the training list is the one to beat. On unseen rules it is the one with the full list.

# %%
my_guess = {"training": 10, "unseen": 20}

ks = few((1, 2, 4, 8, 16), (2, 3))
curves = {}
for pool, names in rules.items():
    for k in ks:
        found = [scores(name, k) for name in names]
        for who in found[0]:
            curves.setdefault((pool, who), []).append(mean(one[who] for one in found))
for (pool, who), curve in curves.items():
    print(f"{pool:10}{label(who):30}" + "".join(f"{score:7.1f}" for score in curve))

# %%
ideal = {"training": "bayes_training", "unseen": "bayes_all"}
gap = {pool: curves[pool, who][-1] - curves[pool, "icl"][-1] for pool, who in ideal.items()}
for pool, points in gap.items():
    print(f"{pool:10}{points:5.1f} points below the ideal reader at k = {ks[-1]}; you said {my_guess[pool]}")
claim(gap["unseen"] > gap["training"] + 5, f"unseen rules leave {gap['unseen'] - gap['training']:.1f} points more room")

# %% [markdown]
# ## Some of the room, taken
# CT-KV starts from what ICL has read, and optimises it. We let it do so on the unseen rules.

# %%
from nanoct.methods import ct_kv

config = ct_kv.Config(**nano.read_settings()["strings"]["ct_kv"])
config.n_step, at = few(config.n_step, 1), ks[-2]
tasks = [nano.make_task("strings", name, tokenizer, 0, k=at, n_query=few(40, 4)) for name in rules["unseen"]]
tuned = 100 * mean(evaluate(ct_kv.adapt(model, task, config), task).score for task in tasks)
print(f"unseen rules, k = {at}: ICL {curves['unseen', 'icl'][-2]:.1f}%, CT-KV {tuned:.1f}%")

# %% [markdown]
# ## The picture
# The shaded area is the room between reading and the ideal.

# %%
figure, panels = plt.subplots(1, 2, figsize=(8, 3.8), sharey=True)
for axes, pool in zip(panels, rules):
    for who in ("bayes_all", "bayes_training", "icl"):
        axes.plot(ks, curves[pool, who], color=colour(who), marker="o", markersize=4, linewidth=2, label=label(who))
    axes.fill_between(ks, curves[pool, "icl"], curves[pool, ideal[pool]], color=colour(ideal[pool]), alpha=0.12)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, ks)
    axes.set(title=f"{pool} rules", xlabel="k, examples", ylim=(0, 103))
panels[1].plot([at], [tuned], "*", color=colour("ct_kv"), markersize=13, label=label("ct_kv"))
panels[0].set_ylabel("right answers, %")
figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# ## Liars
# Now a quarter of the examples get a wrong answer. An ideal reader seeks the rule that contradicts the fewest of them.
# **What is left of its score, and of ICL's?**

# %%
my_guess = "both lose a quarter"

k, some = ks[-1], rules["unseen"][: few(8, 1)]
for wrong in (0.0, 0.25):
    found = [scores(name, k, wrong) for name in some]
    means = ", ".join(f"{label(who)} {mean(one[who] for one in found):.0f}%" for who in ("icl", "bayes_all"))
    print(f"{wrong:.0%} of {k} examples wrong: {means}")
print(f"you said: {my_guess}")

# %% [markdown]
# ## Break it
# "Unseen" must mean unseen as a *function*. Names lie: `reverse then sort` is no name of training, but whoever sorts
# does not care what was reversed before. The check below compares what rules do, not what they are called. With such
# rules among the held-out ones, this tutorial would measure memory and call it learning.

# %%
probes = [x for x, _ in world.examples("reverse", seed=1, k=60, n_query=0)[0]]
does = lambda name: tuple(world.apply(name, x) for x in probes)
known = {does(name): name for name in pools["train"]}


def check(names):
    twins = {name: known[does(name)] for name in names if does(name) in known}
    assert not twins, "not unseen: " + ", ".join(f"{name!r} is {twin!r}" for name, twin in twins.items())


check(pools["held_out"])
assert "reverse then sort" not in pools["train"]
with breaks("a rule with a new name, and nothing else new"):
    check([*pools["held_out"], "reverse then sort"])

# %% [markdown]
# ## Three questions
#
# <details><summary>On unseen rules ICL lies above Bayes with the training list. How can it beat the ideal?</summary>
#
# That reader is ideal *for its list*, and the true rule is not on it. It believes in the known rule that fits least
# badly. The model has learned parts, not a list, and it puts parts together in new ways. It generalises further than
# its training made it.
# </details>
#
# <details><summary>With one example, why is the training list the better one on rules of training?</summary>
#
# One example leaves several rules. Who knows which of them training has, and how often, guesses better. With more
# examples the evidence decides, and both lists come to the same answer.
# </details>
#
# <details><summary>Does the gap say that the information is not in the examples?</summary>
#
# The opposite. The ideal reader has the same examples, so the information is there. ICL does not use it. That is what
# tuning is for: it asks the examples again and again, instead of reading them once.
# </details>

# %% [markdown]
# ## Change next
# - **More examples.** Put 24 into `ks`. Does the gap close with more reading?
# - **Fewer liars, more liars.** Change the 0.25. When does the ideal reader give in?
# - **Does tuning help against liars?** Give `ct_kv.adapt` the tasks with `wrong=0.25`.
#
# Next: [04, a context is a parameter](04_a_context_is_a_parameter.ipynb).
