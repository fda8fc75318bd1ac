# %% [markdown]
# # 01 · First minute
#
# Show a language model ten solved examples, and it answers an eleventh. It has learned nothing in doing so: it read the
# examples, kept a memory of them, and answered from that memory. This is called *in-context learning*, ICL. **Context
# Tuning** takes the same memory and improves it by gradient descent, while the model stays as it is. In this lesson we
# take one such step by hand, in five lines, and then see what thirty-two of them do.
#
# | | |
# |---|---|
# | **You build** | a gradient step on a model's memory, in five lines |
# | **You see** | answers before and after tuning side by side: on words, on letters, and on a rule of your own |
# | **Time** | twenty minutes to read, one to run on two cores; two with real words |
# | **Before** | you have trained a neural network once |
# | **Next** | [02, A Llama in eighty lines](02_a_llama_in_eighty_lines.ipynb) |
#
# Run it as `python tutorials/01_first_minute.py` from the repository's root, or open the notebook. A script prints but
# shows no figures; for those read the notebook in the browser, or open it in Jupyter, which `.venv/bin/pip install
# jupyterlab` brings. Nothing is downloaded. If you ran `make smollm2` before, the lesson begins with English words.
#
# Every lesson takes a few helpers from `lesson.py`. `few(a, b)` is a, or b in the quick run of the tests, for which
# `QUICK` is true. `claim` prints what was measured, and fails if it is not so. `breaks` expects the check inside it to
# fail. `colour` and `label` say how a method is drawn in figures.

# %%
import drawings
import torch
import torch.nn.functional as F
from lesson import QUICK, breaks, claim, colour, few, label, plt

from nanoct.benchmarks import nano, words
from nanoct.benchmarks.presets import SETTINGS
from nanoct.demo import answers
from nanoct.io import smollm2
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import fingerprint, load_model
from nanoct.methods import ct_kv, icl
from nanoct.score import evaluate

# %% [markdown]
# ## What it is about
#
# This function asks two memories the same questions. It shows five of them, first those on which the two disagree, and
# then counts all. A ✗ marks a wrong answer.

# %%
def compare(task, memories, tokenizer):
    right = {name: evaluate(memory, task).per_query for name, memory in memories.items()}
    differ = lambda i: len({one[i] for one in right.values()}) > 1
    shown = sorted(range(len(task.queries)), key=lambda i: not differ(i))[:5]
    asked = [task.queries[i] for i in shown]
    rows = [["question", *(tokenizer.decode(query.x) for query in asked)],
            ["right", *(tokenizer.decode(query.y).strip().rstrip(";") for query in asked)]]
    for name, memory in memories.items():
        said = answers(memory, asked, tokenizer)
        rows.append([name, *(text + ("" if right[name][i] else " ✗") for i, text in zip(shown, said))])
    for line in zip(*rows):
        print("".join(f"{cell:16}" for cell in line).rstrip())
    print("; ".join(f"{name}: {sum(one):.0f} of {len(one)} right" for name, one in right.items()))


# %% [markdown]
# SmolLM2 is a public model of 135 million weights. It gets ten demonstrations, that is, solved examples, and then
# fifty questions.

# %%
folder = smollm2.here()
if folder and not QUICK:
    model, tokenizer = load_model(folder, "cpu", torch.float32), load_tokenizer(folder)
    task, _ = words.make_task(None, "opposite_gender", tokenizer, seed=42)
    print("".join(tokenizer.decode([*demo.x, *demo.y]) for demo in task.demos[:3]) + "… and seven more\n")
    config = ct_kv.Config(**SETTINGS["words"]["ct_kv"])
    compare(task, {"ICL": icl.adapt(model, task), "CT-KV": ct_kv.adapt(model, task, config)}, tokenizer)
else:
    print("Without SmolLM2 (`make smollm2` puts it into weights/smollm2) we go on with letters.")

# %% [markdown]
# Both columns come from the same model and the same ten demonstrations. For *ICL* it read them. For *CT-KV*, which is
# Context Tuning of this memory, it read them and then took twenty gradient steps on what it had read.
#
# ## A model small enough for a laptop
#
# To see how, we take a Llama of our own that comes with the repository. It has the layers of a large one, only fewer
# and narrower, and it was trained on strings of letters that follow a rule. Here are ten demonstrations of a rule that
# it never saw in training. **What is the rule?**

# %%
model, tokenizer = load_model(nano.FOLDER / "strings", "cpu"), load_tokenizer(nano.FOLDER / "strings")
unseen = nano.WORLDS["strings"].pools()["held_out"]
task = nano.make_task("strings", unseen[0], tokenizer, seed=0, n_query=few(30, 4))
print(f"{sum(p.numel() for p in model.parameters()):,} weights in {model.config.n_layer} layers")
for demo in task.demos:
    print(tokenizer.decode(demo.x), tokenizer.decode(demo.y))

# %% [markdown]
# Here `=` ends the question and `;` ends the answer. Type your guess before you go on.

# %%
my_guess = "?"

# %%
print(f"you: {my_guess}\nthe rule: {task.name}")

# %% [markdown]
# The name of a task is its rule. *Every other* keeps the first, third and fifth letter; *echo* then says the first
# letter once more at the end. So `kimb` becomes `km`, and `km` becomes `kmk`.
#
# ## The memory
#
# What the model keeps of a text is its **KV cache**: for every letter, in every layer, a *key*, which says when this
# letter matters, and a *value*, which says what it then contributes. We let the model read nine of the demonstrations
# and hold the tenth back, because it will be our question. We know its answer, so we can tell how wrong the model is.
#
# `encode_context` does the reading. Its `task.instruction` is a text before the demonstrations, here only the sign that
# opens every text. What it returns is the cache, which the paper and this book call θ. `theta.stack()` gives all keys
# and all values of it, as two tensors. Their second size is that of the batch, which is 1 because we read one text.

# %%
from nanoct.fewshot import encode_context

*nine, tenth = task.demos
theta = encode_context(model, task.instruction, nine)
keys, values = theta.stack()
print("keys  ", tuple(keys.shape), "= layers, batch, heads, letters and signs of nine demonstrations, numbers in each")
print("values", tuple(values.shape))

# %%
figure, axes = drawings.canvas(41, 9.2)
sample, owners = "kimb=kmk;kndne=kdek;jdjdjd=jjjj;", [0] * 9 + [1] * 11 + [2] * 12
drawings.cache(axes, 0.3, 2.2, owners[:26], letters=sample[:26])
drawings.text(axes, 16, 0.6, "the cache θ: a column is a letter, a row is a layer, a colour is a demonstration", 9)
drawings.text(axes, 27.4, 3.7, "…", 14)
drawings.box(axes, 29, 2.7, 4.4, 2, tokenizer.decode(tenth.x))
drawings.arrow(axes, (33.6, 3.7), (35.8, 3.7))
drawings.box(axes, 36, 2.7, 4.6, 2, tokenizer.decode(tenth.y) + " ?")
drawings.arrow(axes, (38.3, 4.9), (13.2, 5.5), bend=-0.15)
drawings.text(axes, 22, 8.6, "the gradient of the error goes into the keys and values, and nowhere else", 9)
plt.show()

# %% [markdown]
# ## One step, in five lines
#
# The error is the cross-entropy of the right answer: the mean of −log p over its letters, each predicted from the ones
# before it.

# %%
def error(theta, pair):
    hidden, _ = model(torch.tensor([[*pair.x, *pair.y]]), prefix=theta)
    logits = model.logits(hidden[0, len(pair.x) - 1 : -1])  # where a letter of the answer comes next
    return F.cross_entropy(logits, torch.tensor(pair.y))


# %% [markdown]
# And here is the whole idea. Keys and values become leaves, tensors whose gradient we ask for. `theta.of(keys, values)`
# is the way back from `stack`: a cache of the same letters, with these keys and values in it. We compute the error
# behind it, ask for its gradient, and walk one step down. The step size is 1, which is about right here. No weight of
# the model is touched.

# %%
keys, values = keys.requires_grad_(), values.requires_grad_()
loss = error(theta.of(keys, values), tenth)
loss.backward()
with torch.no_grad():
    better = theta.of(keys - keys.grad, values - values.grad)

# %%
with torch.no_grad():
    after = error(better, tenth)
print(f"error on the tenth demonstration: {loss:.2f} -> {after:.2f}")
assert after < loss
assert not any(p.requires_grad for p in model.parameters())

# %% [markdown]
# The package asks many pairs at once, in one row of tokens (lesson 07 shows how). It has to be told where in the text a
# pair begins, and that is `theta.next_position`, the place behind the last letter of the cache. For our one pair it
# must have the same error and the same gradient.

# %%
from nanoct.fewshot import Task
from nanoct.packing import answer_logits, pack_demos

row = pack_demos(Task("one pair", [tenth], queries=[]), model, theta.next_position)
theirs = F.cross_entropy(answer_logits(model, row, theta.of(keys, values)), row.target)
gradients = torch.autograd.grad(theirs, [keys, values])
for mine, of_package in zip((keys.grad, values.grad), gradients):
    assert (mine - of_package).abs().max() < 1e-5
print(f"ours {loss:.6f}, the package's {theirs:.6f}; the gradients agree as well")

# %% [markdown]
# ## From a step to a method
#
# Does the step help with new questions? We ask some that stand in no demonstration. `Adapted` is what every method
# makes of a task: the model together with the memory that it answers from.

# %%
from nanoct.fewshot import Adapted

plain = theta.of(keys.detach(), values.detach())
for what, memory in (("nine demonstrations, read", plain), ("the same after the one step", better)):
    print(f"{what:28} {100 * evaluate(Adapted(model, prefix=memory), task).score:.0f}% of the questions right")

# %% [markdown]
# One step on one pair helps that pair, and here nothing else. Context Tuning of the KV cache, **CT-KV**, makes a method
# of it: it reads all ten demonstrations, asks each of the ten while its own entries are hidden (because its answer
# could be copied from there), and takes 32 steps with the optimiser AdamW. **What percentage of the questions will it
# answer?**

# %%
my_guess_in_percent = 60

# %%
config = ct_kv.Config(**nano.read_settings()["strings"]["ct_kv"])
config.n_step = few(config.n_step, 2)
weights_before = fingerprint(model)
read, tuned = icl.adapt(model, task), ct_kv.adapt(model, task, config)
assert fingerprint(model) == weights_before  # every weight, bit by bit
compare(task, {"ICL": read, "CT-KV": tuned}, tokenizer)
print(f"you said {my_guess_in_percent}%")

# %% [markdown]
# The two memories have the same shape: as many keys, as many values. The second one was read and then improved, on the
# very demonstrations that both have. How far did the error on those fall?

# %%
from nanoct.score import demo_loss

errors = [demo_loss(memory, task) for memory in (read, tuned)]
print(f"error on the ten demonstrations, each without its own entries: {errors[0]:.2f} -> {errors[1]:.2f}")
print(f"numbers trained: {tuned.n_trained:,}, all of them keys and values; weights changed: 0")
assert errors[1] < errors[0]

# %% [markdown]
# ## Every held-out task
#
# One task is an anecdote, so we do the same on all 24 rules that were kept out of training, each read and tuned anew
# from its own ten demonstrations.

# %%
right = {}
for name in unseen[: few(None, 2)]:
    one = nano.make_task("strings", name, tokenizer, seed=0, n_query=few(30, 4))
    memories = {"icl": icl.adapt(model, one), "ct_kv": ct_kv.adapt(model, one, config)}
    right[name] = {method: 100 * evaluate(memory, one).score for method, memory in memories.items()}
print(f"{len(right)} tasks, two memories each")

# %%
names = sorted(right, key=lambda name: right[name]["ct_kv"] - right[name]["icl"])
figure, axes = plt.subplots(figsize=(8, 5.6))
for y, name in enumerate(names):
    axes.plot([right[name]["icl"], right[name]["ct_kv"]], [y, y], color="#c9c9c9", linewidth=2, zorder=1)
for method, shape in (("icl", "o"), ("ct_kv", "D")):
    axes.scatter([right[name][method] for name in names], range(len(names)), marker=shape, color=colour(method), s=34)
    axes.text(right[names[-1]][method], len(names) - 0.35, label(method), color=colour(method), ha="center")
axes.set_yticks(range(len(names)), names, fontsize=8.5)
axes.set(xlabel="new questions answered right, %", xlim=(0, 104), ylim=(-0.7, len(names) + 0.4))
plt.show()

# %% [markdown]
# Tasks differ far more than the two methods do, so we look at the difference within each task, and ask how well its
# mean is known. The interval below would hold the true mean difference in 95 of 100 such studies. It reaches about two
# standard errors to each side; the exact factor is Student's, and lesson 11 derives the interval.

# %%
from statistics import mean

from nanoct.runs.stats import standard_error, student

gains = [score["ct_kv"] - score["icl"] for score in right.values()]
gain, half = mean(gains), student(len(gains)) * standard_error(gains)
claim(gain - half > 3, f"CT-KV answers {gain:.1f} ± {half:.1f} points of a hundred more than ICL")

# %% [markdown]
# With three draws of demonstrations instead of one, [the results page](../weights/nano/README.md) has 14.7 ± 7.7.
#
# ## Where it does not help
#
# Look at the lower end of the picture: on some rules nothing is gained, and where ICL answers everything there is
# nothing to gain. The rule at the bottom is the worst for CT-KV. Here are its demonstrations, and questions on which
# the two differ.

# %%
worst = nano.make_task("strings", names[0], tokenizer, seed=0, n_query=few(30, 4))
print(names[0], "·", " ".join(tokenizer.decode([*demo.x, *demo.y]) for demo in worst.demos[:5]), "…")
memories = {"ICL": icl.adapt(model, worst), "CT-KV": ct_kv.adapt(model, worst, config)}
compare(worst, memories, tokenizer)
errors = [demo_loss(memory, worst) for memory in memories.values()]
print(f"error on its ten demonstrations, each without its own entries: {errors[0]:.2f} -> {errors[1]:.2f}")

# %% [markdown]
# *Low first* moves the letters a to h to the front, with their order kept, and then everything is reversed. The error
# on the ten demonstrations fell here too. So gradient descent found something that fits them, but what it found is not
# the rule: ten demonstrations can be fitted in many ways.
#
# ## Break it
#
# A score is worth what its questions are worth. Suppose that we slip, and ask the very demonstrations that were trained
# on. The score looks splendid, and a check tells us that we measured nothing.

# %%
from dataclasses import replace

from nanoct.fewshot import Demo, Query


def check(task):
    known = [list(demo.x) for demo in task.demos]
    asked = [tokenizer.decode(query.x) for query in task.queries if list(query.x) in known]
    assert not asked, f"{len(asked)} questions stand among the demonstrations, such as {asked[0]}"


check(task)
slip = replace(task, queries=[Query(demo.x, demo.y) for demo in task.demos])
compare(slip, {"ICL": read, "CT-KV": tuned}, tokenizer)
with breaks("the questions are the demonstrations"):
    check(slip)

# %% [markdown]
# ## Your own rule
#
# Now the model is yours to test. Write a rule as a Python function. It gets a string of three to six of the letters `a`
# to `p`, and must return one to twelve of them. Run the next three cells, then change the rule and run them again. Will
# reading be enough for yours?

# %%
def rule(s):
    return s[:3]


# %% [markdown]
# A task is no more than this: pairs of texts as numbers, some as demonstrations and some as questions. We also check
# whether training had your rule under another name.

# %%
strings = nano.WORLDS["strings"]
pairs, questions = replace(strings, primitives={"mine": rule}).examples("mine", seed=0, k=10, n_query=few(50, 4))
my_task = Task("mine", instruction=[tokenizer.bos_id],
               demos=[Demo(*nano.encode(tokenizer, x, y)) for x, y in pairs],
               queries=[Query(*nano.encode(tokenizer, x, y)) for x, y, _ in questions])
check(my_task)
same = [name for name in strings.pools()["train"] if all(strings.apply(name, x) == y for x, y, _ in questions)]
print("  ".join(f"{x} → {y}" for x, y in pairs[:5]))
print(f"seen in training: {', '.join(same) if same else 'no, the rule is new'}")

# %%
compare(my_task, {"ICL": icl.adapt(model, my_task), "CT-KV": ct_kv.adapt(model, my_task, config)}, tokenizer)

# %% [markdown]
# Keeping the first three letters is as easy a rule as there is, but training never had it. So reading is not enough,
# and tuning has something to gain.
#
# ## Exercises
#
# **1. Rules near and far.** Try `s + "a"`, then `"a" + s + "a"`, then `s[0] + s[-1]`. Then a secret alphabet,
# `s.translate(str.maketrans("abcdefgh", "hcfagebd"))`. Which of them can you read off ten demonstrations, and which can
# the model?
#
# <details><summary>Solution</summary>
#
# You can read off all of them, up to letters that did not occur. The model reads the first three badly and is tuned
# to most of the answers, because such rules move letters about, as those of training do. On the secret alphabet it
# answers nothing, before tuning and after it: that takes eight unrelated facts, and no rule of training is like it.
#
# </details>
#
# **2. By heart?** CT-KV trains far more numbers than the demonstrations have letters. Why does it not learn them by
# heart?
#
# <details><summary>Solution</summary>
#
# It could. Two things stand against it. While a demonstration is asked, its own entries are hidden, so that copying
# does not lower the loss. And it starts from a good memory and takes few steps. Multiply `config.n_step` by ten: the
# loss falls by a factor of a hundred, and of the answers at most a few more become right. Lessons 06 and 08 go on here.
#
# </details>
#
# **3. Where is it?** The weights did not change. Where is what was learned, and how does the model know?
#
# <details><summary>Solution</summary>
#
# In the keys and values. Attention reads them as it reads any context, and has no way to know that no text would have
# produced them. Lesson 04 takes such a cache apart.
#
# </details>
#
# The same as this lesson in a terminal: `python -m nanoct.demo`. To build the method yourself against tests that find
# thirteen silent mistakes, take [A3](assignments/a3_ct_kv/handout.md).
#
# Next: [02, A Llama in eighty lines](02_a_llama_in_eighty_lines.ipynb).
