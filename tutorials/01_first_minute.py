# %% [markdown]
# # 01 · First minute: tune what the model remembers
#
# Show a language model ten solved examples and ask it an eleventh. It reads the examples, keeps a memory of them, and
# answers from that memory. This is *in-context learning*, ICL. Nothing is learned: the examples are only read.
#
# Context Tuning does one thing more. It **improves that memory with a few steps of gradient descent**, and leaves the
# model as it is. The variant that we use is called CT-KV.
#
# **The claim.** On tasks that the model was never trained on, the tuned memory answers more questions than the memory
# as it was read.
#
# | | |
# |---|---|
# | time | ten minutes to read, about one to run on two cores |
# | needed | this repository, installed; no GPU |
# | download | nothing is downloaded: the model, under 2 MB, comes with the repository |
#
# *In Colab:* upload this notebook, and run this before its first cell, with the address of the repository in place of
# ADDRESS:
#
# ```
# !git clone ADDRESS nanoct && pip install -q --no-deps -e nanoct
# import sys; sys.path[:0] = ["nanoct", "nanoct/tutorials"]
# ```

# %% [markdown]
# ## A model, small enough to see through
# It is a Llama, as the large ones are: the same layers, only fewer and narrower. It knows one kind of text, strings of
# letters that follow a rule.

# %%
from lesson import breaks, claim, colour, few, label, plt

from nanoct.benchmarks import nano
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import fingerprint, load_model

folder = nano.FOLDER / "strings"
model, tokenizer = load_model(folder, "cpu"), load_tokenizer(folder)
print(f"{sum(p.numel() for p in model.parameters()):,} weights in {model.config.n_layer} layers")

# %% [markdown]
# ## Ten examples
# Every task hides one rule. The tasks below are *held out*: the model saw none of these rules in training. Here are the
# ten examples of the first one, which the code calls *demos*. **What is the rule?**

# %%
unseen = nano.WORLDS["strings"].pools()["held_out"]
task = nano.make_task("strings", unseen[0], tokenizer, seed=0, n_query=few(50, 4))


def text(ids):
    return tokenizer.decode(ids).strip().rstrip("=;")


for demo in task.demos:
    print(f"{text(demo.x):>8} → {text(demo.y)}")

# %% [markdown]
# Type your guess before you go on. A task is named after its rule, so the name tells whether you are right.

# %%
my_guess = "every other letter, and then?"
print(f"you: {my_guess}\nthe rule: {task.name}")

# %% [markdown]
# ## Reading
# ICL runs the ten examples through the model once. What it keeps is the *KV cache*: for every letter, in every layer, a
# *key* that says when this letter matters and a *value* that says what it adds. That cache is the memory. Questions are
# answered from it. A ✗ marks a wrong answer.

# %%
from nanoct.demo import answers
from nanoct.methods import ct_kv, icl
from nanoct.score import demo_loss, evaluate


def compare(task, memories):
    said = {name: answers(one, task.queries[:5], tokenizer) for name, one in memories.items()}
    right = {name: evaluate(one, task).per_query for name, one in memories.items()}
    print("".join(f"{head:15}" for head in ("question", "right", *memories)).rstrip())
    for i, query in enumerate(task.queries[:5]):
        marked = [said[name][i] + ("" if right[name][i] else " ✗") for name in memories]
        print("".join(f"{cell:15}" for cell in (text(query.x), text(query.y), *marked)).rstrip())
    print("; ".join(f"{name}: {sum(r)} of {len(r)} right" for name, r in right.items()))


read = icl.adapt(model, task)
compare(task, {"ICL": read})

# %% [markdown]
# ## Tuning
# CT-KV starts from the same cache and asks the examples themselves. Each of them becomes a question: its own entries
# are hidden, the others must do. The gradient of the error goes into the keys and values, and into nothing else.
#
# The model will not change by one bit.

# %%
config = ct_kv.Config(**nano.read_settings()["strings"]["ct_kv"])
config.n_step = few(config.n_step, 2)
print(config)

before = fingerprint(model)
tuned = ct_kv.adapt(model, task, config)
assert fingerprint(model) == before  # every weight, bit by bit
print(f"loss on the examples, without dropout: {demo_loss(read, task):.2f} read, {demo_loss(tuned, task):.2f} tuned")

# %% [markdown]
# The same questions again. **How many of them will the tuned memory get right?** Type a number.

# %%
my_guess = 30

compare(task, {"ICL": read, "CT-KV": tuned})
print(f"you said {my_guess}")

# %% [markdown]
# ## What was tuned
# Both memories have the same shape. One has been read, the other has been improved. Without a step, they are one.

# %%
from dataclasses import replace

import torch

keys, values = read.prefix.stack()
print(f"keys {tuple(keys.shape)}: layers, 1, heads, letters and signs of the ten examples, numbers in each")
print(f"keys and values are {tuned.n_trained:,} numbers, and all of them were tuned")

untouched = ct_kv.adapt(model, task, replace(config, n_step=0))
assert all(torch.equal(a, b) for a, b in zip(untouched.prefix.stack(), (keys, values)))

# %% [markdown]
# ## One task is an anecdote
# So we take all the held-out tasks. Each is read and tuned anew, on its own ten examples. **On how many of the first
# six will CT-KV be ahead?** Type a number.

# %%
my_guess = 3

share = {}
for name in unseen[: few(None, 2)]:
    one = nano.make_task("strings", name, tokenizer, seed=0, n_query=few(50, 4))
    memories = {"icl": icl.adapt(model, one), "ct_kv": ct_kv.adapt(model, one, config)}
    share[name] = {method: 100 * evaluate(memory, one).score for method, memory in memories.items()}
six = list(share)[:6]

# %%
print(f"{'right answers, %':30}{'ICL':>8}{'CT-KV':>8}")
for name in six:
    print(f"{name:30}{share[name]['icl']:8.0f}{share[name]['ct_kv']:8.0f}")
ahead = sum(share[name]["ct_kv"] > share[name]["icl"] for name in six)
print(f"CT-KV is ahead on {ahead} of {len(six)}; you said {my_guess}")

# %% [markdown]
# Tasks differ more than methods do. So we take the **difference on each task**, and ask how sure its mean is: that is a
# *paired* comparison. Its *interval* would hold the true mean in 95 of 100 such studies. With six tasks it is wide.
# Four times as many tasks halve it, or nearly.

# %%
from nanoct.runs.stats import interval

gains = [of["ct_kv"] - of["icl"] for of in share.values()]
for some in (gains[:6], gains):
    gain, half = interval(some)
    print(f"{len(some):2} tasks: CT-KV minus ICL {gain:+.1f} points, 95% from {gain - half:+.1f} to {gain + half:+.1f}")
claim(gain > 3, f"CT-KV answers more than ICL, on average {gain:.1f} points of a hundred")

# %% [markdown]
# ## The picture
# The first six tasks. Under each pair of bars stand two of its examples. Which rules can you read off? Which can the
# model?

# %%
figure, axes = plt.subplots(figsize=(8, 4))
for shift, method in ((-0.2, "icl"), (0.2, "ct_kv")):
    bars = axes.bar([i + shift for i in range(len(six))], [share[name][method] for name in six], 0.38,
                    color=colour(method), label=label(method))
    axes.bar_label(bars, fmt="%.0f", fontsize=8, color=colour(method))
drawn = {name: nano.WORLDS["strings"].examples(name, 0, 2, 0)[0] for name in six}
under = ["\n".join([*(f"{x} → {y}" for x, y in drawn[name]), name.replace(" then ", "\nthen ")]) for name in six]
axes.set_xticks(range(len(six)), under, fontsize=7.5)
axes.set(ylim=(0, 108), ylabel="right answers, %")
axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## Break it
# A score is worth what its questions are worth. Suppose that we slip, and ask the very examples that were tuned on.
# Look at the score, and then at the check: it tells us that we measured nothing.

# %%
from nanoct.fewshot import Demo, Query, Task


def check(task):
    known = [list(demo.x) for demo in task.demos]
    asked = [text(query.x) for query in task.queries if list(query.x) in known]
    assert not asked, f"{len(asked)} questions stand among the examples, such as {asked[0]!r}"


check(task)
slip = replace(task, queries=[Query(demo.x, demo.y) for demo in task.demos])
compare(slip, {"ICL": read, "CT-KV": tuned})
with breaks("the questions are the examples"):
    check(slip)

# %% [markdown]
# ## Your own rule
# Now the model is yours to test. Write a rule as a Python function. It gets a short string of the letters `a` to `p`,
# and must return one to twelve of them. Run the next three cells, then change the rule and run them again.

# %%
def rule(s):
    return s[:3]


my_guess = "ICL will be right on most, for it is an easy rule"

# %% [markdown]
# A task is no more than this: pairs of texts as numbers, the examples and the questions. We also look whether training
# had your rule under some other name.

# %%
strings = nano.WORLDS["strings"]
mine = replace(strings, primitives={"mine": rule})
examples, questions = mine.examples("mine", seed=0, k=10, n_query=few(50, 4))
my_task = Task("mine", instruction=[tokenizer.bos_id],
               demos=[Demo(*nano.encode(tokenizer, x, y)) for x, y in examples],
               queries=[Query(*nano.encode(tokenizer, x, y)) for x, y, _ in questions])
check(my_task)

same = [name for name in strings.pools()["train"] if all(strings.apply(name, x) == y for x, y, _ in questions)]
print("  ".join(f"{x} → {y}" for x, y in examples[:5]))
print(f"seen in training: {', '.join(same) if same else 'no, the rule is new'}")

# %% [markdown]
# Both memories answer.

# %%
compare(my_task, {"ICL": icl.adapt(model, my_task), "CT-KV": ct_kv.adapt(model, my_task, config)})
print(f"you said: {my_guess}")

# %% [markdown]
# ## Three questions
#
# <details><summary>CT-KV trains on the ten examples. Why does it not simply learn them by heart?</summary>
#
# It could: the memory holds far more numbers than the examples hold letters. Two things stand against it. While an
# example is asked, its own entries are hidden, so copying does not lower the loss. And the steps are few, from a start
# that is a good memory already. Tutorial 05 shows the first, tutorial 04 the second.
# </details>
#
# <details><summary>The weights did not change. Where is what was learned?</summary>
#
# In the keys and values. Attention reads them as it reads any context, and does not know that no text would have
# produced them. Tutorial 02 looks inside.
# </details>
#
# <details><summary>Why is the difference taken task by task, and not between the two averages?</summary>
#
# Some tasks are easy for both, some are hard for both. In the difference this cancels, so it is known more precisely
# than either average. The same number of questions on more tasks says more than more questions on the same tasks.
# </details>

# %% [markdown]
# ## Change next
# - **Rules near and far.** Try `s + "a"`, then `"a" + s + "a"`, then `s[0] + s[-1]`. Then try a secret alphabet:
#   `s.translate(str.maketrans("abcdefgh", "hcfagebd"))`. A person reads most of it off ten examples. Does the model?
# - **Fewer examples.** `nano.make_task(..., k=3)` draws three. Who suffers more, the reader or the tuner?
# - **More steps.** Multiply `config.n_step` by ten. The loss falls further. Do the answers get better?
#
# Then go on with [02, a Llama you can see into](02_a_llama_you_can_see_into.ipynb). The same as this tutorial in a
# terminal: `python -m nanoct.demo`.
