# %% [markdown]
# # 06 · How tuning cheats
#
# **The claim: a question that peeks at its own answer is seen exactly in a gradient, and hardly in the score.**
#
# CT-KV trains on k demonstrations, and the answers that it trains on also stand in the context that it trains. So there
# is a short way to a low loss: copy. Who copies has learned nothing. Yet the loss falls, and the score may look fine.
# This tutorial builds a detector that answers with a zero or with no zero.
#
# *Two minutes on a laptop. You need to know the row and its mask (tutorial 05). Nothing is downloaded. In Colab: clone
# the repository, run `pip install --no-deps -e .` in it, and open this notebook.*

# %%
from dataclasses import replace

import torch
import torch.nn.functional as F
from lesson import breaks, claim, colour, few, plt

from nanoct.benchmarks import nano
from nanoct.fewshot import Adapted, concatenate, encode_context
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model
from nanoct.methods import ct_kv, ct_prompt
from nanoct.optimise import optimise
from nanoct.packing import answer_logits, pack_demos, visible
from nanoct.runs import leak
from nanoct.runs.stats import interval
from nanoct.score import evaluate

load = lambda world: (load_model(nano.FOLDER / world, "cpu"), load_tokenizer(nano.FOLDER / world))
model, tokenizer = load("strings")
pool = nano.WORLDS["strings"].pools()["held_out"]
task = nano.make_task("strings", pool[0], tokenizer, seed=0)
print(f"{task.name!r}, {len(task.demos)} demos; the first is "
      f"{tokenizer.decode(task.demos[0].x)}{tokenizer.decode(task.demos[0].y)}")

# %% [markdown]
# ## Who may look at what
#
# Pair i is the question x_i with its answer y_i. A **see** function makes the mask of the row: a line for each token, a
# column for each entry of the context and for each token of the row. Two of them to begin with: nothing is hidden, or
# pair i is not shown what demo i owns. The second is leave-one-out. `kept` is what token dropout has left.

# %%
def own_demo_seen(row, owner, kept):
    return row.mask(kept)


def correct(row, owner, kept):
    pair = torch.arange(len(kept))[:, None]
    return row.mask(kept & (owner != pair))


owner = encode_context(model, task.instruction, task.demos).owner
print(f"{len(owner)} entries of the context; demo 0 owns {(owner == 0).sum()} of them")

# %% [markdown]
# ## The detector
#
# How do we know whether pair i makes use of demo i? We ask for a derivative: if the keys and values of demo i change a
# little, does the loss of pair i? The answer is a gradient, and we keep its length. One number for each pair i and each
# demo j makes a table of k × k.
#
# A leaf is a tensor that we train. Its last dimension but one counts the entries.

# %%
def lengths(losses, pair, leaves, owner, k):
    """(k, k): how long the gradient of pair i's loss is in what demo j owns. losses: of all answer tokens."""
    table = torch.zeros(k, k)
    for i in range(k):
        gradients = torch.autograd.grad(losses[pair == i].sum(), leaves, retain_graph=True)
        square = sum(g.pow(2).movedim(-2, 0).flatten(1).sum(1) for g in gradients)  # (P,)
        table[i] = torch.stack([square[owner == j].sum() for j in range(k)]).sqrt()
    return table


def gradients(see):
    """The table of CT-KV's step on the task: its leaves are all keys and values."""
    theta, k = encode_context(model, task.instruction, task.demos), len(task.demos)
    row = pack_demos(task, model, theta.next_position)
    keys, values = leaves = [part.requires_grad_() for part in theta.stack()]  # (L, 1, K, P, D)
    mask = see(row, theta.owner, visible(theta.owner, k))
    logits = answer_logits(model, row, theta.of(keys, values), mask=mask)
    losses = F.cross_entropy(logits, row.target, reduction="none")  # (N,)
    return lengths(losses, row.pair[row.where], leaves, theta.owner, k)


# %% [markdown]
# ## Guess
#
# With leave-one-out, how many of the k numbers on the diagonal will be exactly 0? Not small, but 0. And how many beside
# it? Type your guess.

# %%
my_guess = (5, 0)  # floating point is never exact, so about half of them
with_it, without = gradients(correct), gradients(own_demo_seen)
k, diagonal = len(with_it), torch.eye(len(with_it), dtype=torch.bool)
found = (with_it[diagonal] == 0).sum().item(), (with_it[~diagonal] == 0).sum().item()
print(f"my guess {my_guess}; in fact {found}, of {k} and of {k * k - k}")
assert found == (k, 0)

# %% [markdown]
# Every one. A hidden entry has an attention weight of exactly 0, so nothing that it holds can reach the loss. No
# threshold is needed. Without leave-one-out there is no zero at all:

# %%
print(f"without: the diagonal is {without[diagonal].mean():.2f} on average, the rest {without[~diagonal].mean():.2f}")
assert (without > 0).all()

# %% [markdown]
# ## A way around the fence
#
# CT-Prompt trains the input embeddings of the demos in place of their keys and values. To hide demo i from pair i looks
# just as easy. But the demos *behind* demo i have read it, and their keys and values tell what it said. So CT-Prompt
# runs the prompt k times, each time without one demo. Running it once is k times cheaper. The detector can tell whether
# one pass will do.

# %%
def prompt_gradients(one_pass):
    tokens, owner = concatenate(model, task.instruction, task.demos)
    embeds = model.embed(tokens).detach().requires_grad_()  # (1, P, C)
    row = pack_demos(task, model, len(owner))
    prefix, seen = ct_prompt.read(model, embeds, owner, visible(owner, k, leave_one_out=True), one_pass)
    logits = answer_logits(model, row, prefix, mask=row.mask(seen))
    losses = F.cross_entropy(logits, row.target, reduction="none")
    return lengths(losses, row.pair[row.where], [embeds], owner, k)


one_pass, k_passes = prompt_gradients(True), prompt_gradients(False)
print("one pass, the diagonal:", " ".join(f"{x:.2f}" for x in one_pass[diagonal]))
print("k passes, the diagonal:", " ".join(f"{x:.2f}" for x in k_passes[diagonal]))
assert (k_passes[diagonal] == 0).all() and (k_passes[~diagonal] > 0).all()

# %% [markdown]
# One pass leaks everywhere but at the last demo. Attention looks back only, and no demo stands behind the last.

# %%
assert (one_pass[diagonal][:-1] > 0).all() and one_pass[-1, -1] == 0
print(f"one pass leaks from {(one_pass[diagonal] > 0).sum()} of {k} demos")

# %% [markdown]
# ## Is it a leak that matters?
#
# A gradient says that copying is possible. Does training find it? Here is a trap. In the world of facts we give each
# demo the answer of *another* demo. No fact supports these false answers. Who gives many of them back must have read
# them in the hidden demos.

# %%
facts, words = load("facts")
names = nano.WORLDS["facts"].pools()["held_out"][: few(4, 1)]
size = few(16, 4)
trap = lambda name, wrong: nano.make_task("facts", name, words, seed=0, k=size, n_query=1, wrong=wrong)
for true, false in zip(trap(names[0], 0.0).demos[:4], trap(names[0], 1.0).demos):
    x, y, z = (words.decode(ids).strip(" =;") for ids in (true.x, true.y, false.y))
    print(f"{names[0]} of {x}: {y}, but the demo says {z}")

# %% [markdown]
# `leak.retrieved` trains the embeddings of demo i by pair i alone. Then it counts the false answers that come back, in
# full and as the model's first choice. It does so three times: demo i in plain sight, hidden with one pass, hidden with
# k passes.

# %%
config = replace(leak.CONFIG, n_step=few(32, 2))
back = {way: [leak.retrieved(facts, trap(name, 1.0), *hidden, config) for name in names]
        for way, hidden in leak.HIDDEN.items()}
share = {way: [100 * sum(part) / len(names) for part in zip(*pairs)] for way, pairs in back.items()}
for way, (before, after) in share.items():
    print(f"{way:9} {before:5.1f}% of the false answers before training, {after:5.1f}% after")
assert all(before == after for before, after in back["k passes"])  # with no gradient nothing moves

# %%
gain = share["one pass"][1] - share["k passes"][1]
claim(gain > 5, f"one pass hands {gain:.1f} points more false answers back than k passes")

# %% [markdown]
# ## The picture
#
# Three tables of gradients, and what the leak hands back. A white cell with a frame is an exact zero.

# %%
def heat(axes, table, title):
    image = axes.imshow(table.log10(), cmap="YlGnBu", vmin=-2.5, vmax=1)
    for i, j in (table == 0).nonzero().tolist():
        axes.add_patch(plt.Rectangle((j - 0.42, i - 0.42), 0.84, 0.84, facecolor="white", edgecolor=colour("ct_kv")))
    axes.set_title(title, fontsize=10)
    axes.set(xlabel="demo j", xticks=[0, k - 1], yticks=[0, k - 1])
    return image


# %%
figure, panels = plt.subplots(1, 4, figsize=(8, 3.2), width_ratios=(1, 1, 1, 0.9))
titles = "CT-KV, all seen", "CT-KV, left out", "CT-Prompt, one pass"
for axes, table, title in zip(panels, (without, with_it, one_pass), titles):
    image = heat(axes, table, title)
panels[0].set_ylabel("loss of pair i")
figure.colorbar(image, ax=panels[:3], orientation="horizontal", shrink=0.6, label="log₁₀ of the gradient's length")
ways = [way.replace(" ", "\n") for way in share]
before, after = zip(*share.values())
panels[3].bar(ways, after, color=[colour("icl"), colour("ct_prompt"), colour("ct_prompt")], width=0.7)
panels[3].bar(ways, before, width=0.4, color="#c9c9c9", label="before training")
panels[3].set_title("false answers back, %", fontsize=10)
panels[3].set_ylim(0, 1.3 * max(after) + 1)
panels[3].legend(fontsize=9, frameon=False, loc="upper right")
plt.show()

# %% [markdown]
# ## Three bugs, and which one the score shows
#
# Now the plain test: train, and score on questions that were never trained on. We plant three bugs in CT-KV's mask.
# Each is so small that one could read over it.
#
# - **own demo seen**: leave-one-out is forgotten;
# - **wrong demo hidden**: demo i + 1 is hidden from pair i, an index off by one;
# - **pairs meet**: pair i sees the pairs before it in the row.

# %%
def wrong_demo_hidden(row, owner, kept):
    pair = torch.arange(len(kept))[:, None]
    return row.mask(kept & (owner != (pair + 1) % len(kept)))


def pairs_meet(row, owner, kept):
    mask, P = correct(row, owner, kept).clone(), len(owner)
    mask[..., P:] = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril()
    return mask


BUGS = own_demo_seen, wrong_demo_hidden, pairs_meet
my_guess = "own_demo_seen"  # it copies, so it must answer worst
print(f"my guess: the score shows {my_guess}")

# %% [markdown]
# CT-KV with the mask as an argument. With `correct` it is the package's method, bit for bit.

# %%
settings = ct_kv.Config(**nano.read_settings()["strings"]["ct_kv"] | dict(leave_one_out=True))
settings = replace(settings, n_step=few(settings.n_step, 1))


def tune(task, see, seed=0):
    generator = torch.Generator().manual_seed(seed)
    context = encode_context(model, task.instruction, task.demos)
    row = pack_demos(task, model, context.next_position)
    keys, values = leaves = [part.requires_grad_() for part in context.stack()]

    def loss():
        kept = visible(context.owner, len(task.demos), False, settings.token_dropout, generator)
        logits = answer_logits(model, row, context.of(keys, values), mask=see(row, context.owner, kept))
        return F.cross_entropy(logits, row.target)

    optimise(loss, leaves, settings)
    return Adapted(model, prefix=context.of(keys, values))


for a, b in zip(tune(task, correct).prefix.stack(), ct_kv.adapt(model, task, settings).prefix.stack()):
    assert torch.equal(a, b)

# %% [markdown]
# Each variant does the same tasks with the same demos, so we compare task by task. The interval is over tasks. If 0
# lies inside, the score cannot tell the bug from the correct code.

# %%
tasks = [nano.make_task("strings", name, tokenizer, seed=0) for name in pool[: few(24, 1)]]
score = {see.__name__: [100 * evaluate(tune(t, see), t).score for t in tasks] for see in (correct, *BUGS)}
print(f"{len(tasks)} tasks; correct: {sum(score['correct']) / len(tasks):.1f}% of the answers right\n")
minus = {}
for see in BUGS:
    minus[see] = interval([a - b for a, b in zip(score[see.__name__], score["correct"])])
    centre, half = minus[see]
    seen = "seen" if abs(centre) > half else "not seen"
    print(f"{see.__name__:18} {centre:+6.1f} ± {half:4.1f} points   {seen} by the score")

# %%
claim(sum(minus[own_demo_seen]) > 0, "the score does not show that its own demo was seen")
claim(sum(minus[pairs_meet]) < 0, "the score shows that pairs meet")

# %% [markdown]
# So the score found the loud bug and missed the forgotten leave-one-out. Either that bug costs little on these tasks,
# or there are too few of them: the score cannot tell which. It took a training run for each task to say as much. More
# tasks would narrow the interval, and would still not say *where* the bug is.
#
# ## Break it
#
# The detector needs one task, one backward pass for each pair, and no training. All three bugs are caught.

# %%
def check(see):
    """No pair makes use of its own demo."""
    leaks = gradients(see)[diagonal].nonzero().flatten().tolist()
    assert not leaks, f"pair i has a gradient in demo i for i = {', '.join(map(str, leaks))}"


check(correct)
for see in BUGS:
    with breaks(see.__name__.replace("_", " ")):
        check(see)

# %% [markdown]
# Look at the last line. Pair 0 has no pair before it, so it cannot leak that way, and the message says so. An exact
# check tells you where to look.
#
# ## Three questions
#
# **1. "Pairs meet" left leave-one-out in place. How did pair i get at demo i?**
#
# <details><summary>Answer</summary>
#
# Pair j, which stands before it in the row, is allowed to see demo i, as i is not j. Pair i now sees pair j. It is the
# same way around the fence that CT-Prompt has with one pass: something else has read the hidden demo.
#
# </details>
#
# **2. Would a zero diagonal prove that the code is right?**
#
# <details><summary>Answer</summary>
#
# No. It proves one thing, that no pair uses its own demo. A mask that hides everything would pass too, which is why the
# tutorial also asserts that nothing *beside* the diagonal is 0. Wrong positions or shifted targets need other checks:
# tutorial 05 compares with a slow version.
#
# </details>
#
# **3. The demos behind demo i have read it in CT-KV too, when the cache was made. Is that not a leak?**
#
# <details><summary>Answer</summary>
#
# A smaller one. Later entries do hold traces of demo i, and pair i sees them. But they are a fixed start and no path:
# pair i cannot change what demo i says to the others, as its gradient there is 0. To have no traces one must read the
# demos k times, as CT-Prompt does. CT-KV, here and in the paper, does not.
#
# </details>
#
# ## Change next
#
# - Plant a fourth bug: targets shifted by one token. Does the detector see it? Does the score?
# - Move the demos of the trap so that another one is last. Which false answer can no longer come back?
# - Set the number of tasks to three, as many a first experiment does. Which bugs does the score show now?
# - `tests/test_packing.py` holds the detector as a test. Read how it asks for the same zeros.
