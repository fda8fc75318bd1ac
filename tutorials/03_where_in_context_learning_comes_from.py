# %% [markdown]
# # 03 · Where in-context learning comes from
#
# Give a language model a few solved examples and it answers the next question like them, although nobody told it to.
# Where does that come from? In this lesson we train a small Llama from random weights on a task that it can only do by
# reading its own context. For a long time it does not read. Then, within a hundred steps or so, it begins to, and we
# look at what it reads.
#
# | | |
# |---|---|
# | **You build** | rows of word-label pairs, and a pretraining loop in 25 lines |
# | **You see** | the plateau of the loss and its fall, how far back the model then reads, and what it looks at |
# | **Time** | fifteen minutes to read, two to run on two cores |
# | **Before** | [02, A Llama in eighty lines](02_a_llama_in_eighty_lines.ipynb) |
# | **Next** | [04, A cache you can take apart](04_a_cache_you_can_take_apart.ipynb) |
#
# Run it as `python tutorials/03_where_in_context_learning_comes_from.py` from the repository's root, or open the
# notebook. Nothing is downloaded.

# %%
import json
import math
from copy import deepcopy

import drawings
import torch
import torch.nn.functional as F
from lesson import breaks, claim, few, plt

from nanoct.benchmarks import nano
from nanoct.model import Llama, LlamaConfig, rotate

# %% [markdown]
# ## A language of pairs
#
# A row of training is `word label word label …`. A row uses few of the words, so each comes up several times. In one
# row a word always has the same label, but **each row draws the labels anew**. So nothing about them can be learned by
# heart: in this row *dog* is C, in the next it may be A.

# %%
WORDS = "ant bat bee cat cod cow dog eel elk emu fox gnu hen owl pig rat".split()
LABELS = "ABCDEFGH"
N = 24  # pairs in a row
V = len(WORDS) + len(LABELS)


def rows(n, generator, shown=4, mixed=False):
    """n rows with `shown` words each -> tokens (n, 2N), and which words stood earlier in their row (n, N) bool.

    mixed: all pairs but the last carry the label of another word of their row.
    """
    words = torch.rand(n, len(WORDS), generator=generator).argsort(dim=1)[:, :shown]
    labels = len(WORDS) + torch.randint(len(LABELS), (n, shown), generator=generator)
    drawn = torch.randint(shown, (n, N), generator=generator)  # which of its words stands where in the row
    label = labels.gather(1, drawn)
    if mixed:
        label[:, :-1] = labels.roll(1, dims=1).gather(1, drawn[:, :-1])
    seen = (drawn[:, :, None] == drawn[:, None]).tril(-1).any(dim=2)
    return torch.stack([words.gather(1, drawn), label], dim=2).flatten(1), seen


# %%
def text(tokens):
    return [(WORDS + list(LABELS))[t] for t in tokens]


tokens, seen = rows(3, torch.Generator().manual_seed(1))
for row in tokens.tolist():
    print(" ".join(text(row[:24])), "…")
print(f"tokens {tuple(tokens.shape)}; of all words {seen.float().mean():.0%} stood in their row before")

# %% [markdown]
# At its first occurrence a label can only be guessed, one of eight. Later it can be *read*: find where the word stood
# before, and copy what followed. The picture shows this for the last word of a row. The earlier pairs are its
# demonstrations, the word is the question, and the label is the answer.

# %%
shown_pairs = [("fox", "B", 0), ("dog", "C", 1), ("hen", "A", 2), ("fox", "B", 0), ("dog", "?", 1)]
figure, axes = drawings.canvas(31, 7)
for i, (word, label, owner) in enumerate(shown_pairs):
    tint = drawings.mix(drawings.OWNERS[owner], "#ffffff", 0.8)
    drawings.box(axes, 0.5 + 6.1 * i, 3.4, 2.9, 1.6, word, tint, drawings.OWNERS[owner])
    drawings.box(axes, 3.5 + 6.1 * i, 3.4, 1.7, 1.6, label, "#ffffff", drawings.OWNERS[owner])
drawings.arrow(axes, (26.2, 3.2), (8.0, 3.2), "1. find the same word", drawings.OWNERS[1], bend=0.22, above=2.3)
drawings.arrow(axes, (10.5, 5.2), (28.8, 5.2), "2. copy what followed it", drawings.OWNERS[1], bend=0.15, above=-1)
plt.show()

# %% [markdown]
# The textbook's way to do this is an *induction circuit*: one layer writes into each label's place which word stood
# before it, and the next layer looks for the label with the right word. Neither half is of any use without the other,
# which is why such a circuit is slow to begin. Whether our model takes that way we shall see.
#
# ## The model and its loss
#
# The Llama of lesson 02 with two layers, a width of 64 and random weights. Its RoPE turns faster than usual
# (`rope_theta` is 50), because rows are short. The loss is the mean cross-entropy of the labels alone, each predicted
# at its word:
#
# $$-\frac{1}{N} \sum_{i=1}^{N} \log p\left(y_i \mid x_1, y_1, \dots, x_{i-1}, y_{i-1}, x_i\right)$$
#
# Pair i is thus a question with i - 1 demonstrations before it, and one row trains all numbers of demonstrations at
# once.

# %%
def new_model():
    config = LlamaConfig(vocab_size=V, n_layer=2, n_head=2, n_kv_head=2, n_embd=64, head_dim=32, n_ffn=128,
                         n_position=2 * N, rope_theta=50.0)
    return Llama(config).init_weights(torch.Generator().manual_seed(0))


def label_logits(model, tokens):
    """The logits at each word, where its label is predicted: (n, N, V)."""
    hidden, _ = model(tokens)
    return model.logits(hidden[:, ::2])


model = new_model()
logits, target = label_logits(model, tokens), tokens[:, 1::2]
print(f"{sum(p.numel() for p in model.parameters()):,} weights; loss {F.cross_entropy(logits.mT, target):.2f}")
print(f"a blind guess among {V} tokens has {math.log(V):.2f}, among {len(LABELS)} labels {math.log(len(LABELS)):.2f}")

# %% [markdown]
# It is the loss that the package trains its own models with. There a batch says for each token which answer it belongs
# to, or -1.

# %%
from nanoct.pretrain import answer_logits

answer = torch.stack([torch.full((N,), -1), torch.arange(N)], dim=1).flatten().expand_as(tokens)
theirs, their_target = answer_logits(model, tokens, answer)
assert torch.equal(their_target, target.flatten())
assert torch.allclose(theirs, logits.flatten(0, 1), atol=1e-5), "not the loss of nanoct.pretrain"
print(f"{len(their_target)} labels, the same logits as nanoct.pretrain's")

# %% [markdown]
# ## The loop
#
# Draw rows, predict, step. A row is never seen twice. The rate rises over the first 50 steps, because early gradients
# of random weights point anywhere. We note the loss and the share of labels that are right, apart for words that are
# new in their row and for words seen before.

# %%
def pretrain(model, n_step, draw=rows, keep=()):
    """Train on draw(n, generator), 64 rows a step -> the log, and {step: a copy of the model} for the steps in keep."""
    generator, log, kept = torch.Generator().manual_seed(0), [], {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(n_step):
        if step in keep:
            kept[step] = deepcopy(model)
        tokens, seen = draw(64, generator)
        target = tokens[:, 1::2]
        logits = label_logits(model, tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 50)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        right = (logits.argmax(dim=-1) == target).float()
        log.append((loss.item(), right[~seen].mean().item(), right[seen].mean().item()))
    return torch.tensor(log), kept


# %% [markdown]
# **Predict.** Chance is 12.5%. After 150 steps, how many percent of the labels of words seen before will be right?

# %%
my_guess = 12.5

# %%
n_step = few(450, 12)
before = n_step // 3
log, kept = pretrain(model, n_step, keep=(before,))


def average(log, start, end):
    """Loss, and percent of labels right of first and of later occurrences, over the steps from start to end."""
    loss, first, later = log[start:end].mean(dim=0).tolist()
    return loss, 100 * first, 100 * later


window = few(50, 4)
for end in range(window, n_step + 1, window):
    loss, first, later = average(log, end - window, end)
    print(f"steps {end - window:3d} to {end:3d}   loss {loss:.3f}   first {first:4.1f} %   seen before {later:4.1f} %")
print(f"you: {my_guess} %; in fact {average(log, before - window, before)[2]:.1f} % at step {before}")

# %% [markdown]
# So there is a plateau, but it is not at chance. Has the model read its context after all? Here is a rule that does not
# look at words: say the label that has occurred most often in this row so far.

# %%
tokens, seen = rows(2000, torch.Generator().manual_seed(1))
one_hot = F.one_hot(tokens[:, 1::2] - len(WORDS), len(LABELS))
so_far = one_hot.cumsum(dim=1) - one_hot  # without the label itself
commonest = so_far.argmax(dim=-1) == tokens[:, 1::2] - len(WORDS)
plateau = 100 * commonest[seen].float().mean().item()
print(f"the commonest label of the row is right for {plateau:.1f} % of the words seen before")

# %% [markdown]
# On the plateau the model is about as good as this rule: it has learned *which labels this row uses*, and not which
# word has which. Averaging over what stands there is the simplest thing that attention can do, so gradient descent
# finds it first.

# %%
figure, (left, right) = plt.subplots(1, 2)
middles = [end - window / 2 for end in range(window, n_step + 1, window)]
curves = list(zip(*(average(log, end - window, end) for end in range(window, n_step + 1, window))))
left.plot(middles, curves[0], "o-", color="#333333")
left.set(xlabel="steps", ylabel="loss, nats a label", ylim=(0, None))
right.plot(middles, curves[2], "o-", color="#2a6fbb")
right.plot(middles, curves[1], "s--", color="#d1495b")
right.text(middles[-1], curves[2][-1] + 4, "word seen before in the row", color="#2a6fbb", ha="right")
right.text(middles[-1], curves[1][-1] + 4, "first time in the row", color="#d1495b", ha="right")
right.axhline(plateau, color="#8d8d8d", linestyle=":")
right.text(middles[-1], plateau - 2, "the row's commonest label", color="#8d8d8d", ha="right", va="top")
right.set(xlabel="steps", ylabel="labels right, %", ylim=(0, 100))
plt.show()

# %% [markdown]
# When does it fall? We take the first step at which the labels of words seen before, averaged over 25 steps, are ten
# points above the plateau. Labels at a first occurrence stay at chance for ever, because nothing tells them.

# %%
smooth = 100 * log[:, 2].unfold(0, few(25, 2), 1).mean(dim=1)
above = (smooth > plateau + 10).nonzero().flatten().tolist()
fall = above[0] + few(25, 2) if above else None
print(f"ten points above the plateau at step {fall}" if fall else "it has not begun")

# %% [markdown]
# ## Do demonstrations help?
#
# Accuracy alone does not say *why* a label is right. So we take rows whose last word has been seen, and ask for its
# label twice: once as the row is, and once with the labels of the demonstrations **mixed**, so that each word carries
# the label of another word of the row. The same labels occur as often as before; only who has which is wrong. What the
# right demonstrations gain over the mixed ones is what is read from them.

# %%
def gain(model, shown=4, n=few(2000, 100)):
    """What right demonstrations gain over mixed ones, points, with the half width of its 95% interval; and both."""
    right = []
    for mixed in (False, True):
        tokens, seen = rows(n, torch.Generator().manual_seed(2), shown, mixed)
        with torch.no_grad():
            said = label_logits(model, tokens)[:, -1].argmax(dim=-1)
        right.append(100 * (said == tokens[:, -1])[seen[:, -1]].float())
    more = right[0] - right[1]
    return more.mean().item(), 1.96 * more.std().item() / len(more) ** 0.5, [each.mean().item() for each in right]


gains = [gain(kept[before]), gain(model)]
for step, (more, half, (plain, mixed)) in zip((before, n_step), gains):
    print(f"step {step:3d}: right demonstrations {plain:.1f} %, mixed {mixed:.1f} %; a gain of {more:.1f} ± {half:.1f}")
claim(abs(gains[0][0]) < 6 and gains[1][0] > 12, "before the fall the right demonstrations gain next to nothing: "
      f"{gains[0][0]:.1f} ± {gains[0][1]:.1f} points; after it they gain {gains[1][0]:.1f} ± {gains[1][1]:.1f}")

# %% [markdown]
# ## Where it fails: how far back it reads
#
# The curve levels off far below 100%. So let us ask how far back the word stood last: distance 1 is the pair just
# before, distance 2 the one before that, and so on.

# %%
tokens, seen = rows(few(2000, 50), torch.Generator().manual_seed(3))
words, labels = tokens[:, ::2], tokens[:, 1::2]
same = (words[:, :, None] == words[:, None]).tril(-1)
place = torch.arange(1, N + 1)
distance = (place - (same * place).amax(dim=-1)) * seen  # 0: never before


@torch.no_grad()
def by_distance(model, mask=None):
    """Labels right, %, for words whose last occurrence is 1, 2, … 8 pairs back."""
    hidden, _ = model(tokens, mask=mask)
    right = 100 * (model.logits(hidden[:, ::2]).argmax(dim=-1) == labels).float()
    return [right[distance == d].mean().item() for d in range(1, 9)]


early, late = by_distance(kept[before]), by_distance(model)
for step, each in ((before, early), (n_step, late)):
    print(f"step {step:3d}:", "  ".join(f"{d} back {share:.0f} %" for d, share in enumerate(each, 1)))
claim(late[0] > 90 and max(late[2:]) < 65, f"one pair back it reads nearly all ({late[0]:.0f} %), from three on little")

# %%
figure, axes = plt.subplots(figsize=(8, 3))
axes.plot(range(1, 9), late, "o-", color="#2a6fbb")
axes.plot(range(1, 9), early, "s--", color="#8d8d8d")
axes.text(1.15, late[0], f"step {n_step}", color="#2a6fbb", va="center")
axes.text(1, early[0] - 12, f"step {before}", color="#8d8d8d")
axes.axhline(100 / len(LABELS), color="#8d8d8d", linestyle=":")
axes.text(8, 100 / len(LABELS) + 3, "chance", color="#8d8d8d", ha="right")
axes.set(xlabel="pairs since the word stood there last", ylabel="labels right, %", ylim=(0, 105))
plt.show()

# %% [markdown]
# Here is what the fall was. The model has not learned to search its context: it has learned to look **one pair back**,
# and to copy that label if the word is the same. If it is not, it falls back on the labels of the row, of which one is
# now excluded. That is the first reading that pays, since a quarter of all words repeat the one before them, and it
# needs no circuit of two layers. Compare it with the rule written out.

# %%
repeats = words[:, 1:] == words[:, :-1]
one_hot = F.one_hot(labels - len(WORDS), len(LABELS))
commonest = len(WORDS) + (one_hot.cumsum(dim=1) - one_hot).argmax(dim=-1)
one_back = torch.where(repeats, labels[:, :-1], commonest[:, 1:])
as_a_rule = 100 * (one_back == labels[:, 1:])[seen[:, 1:]].float().mean().item()
print(f"words seen before: the rule {as_a_rule:.1f} %, the model {average(log, n_step - window, n_step)[2]:.1f} %")

# %% [markdown]
# ## What it looks at
#
# If that is so, attention must show it. We repeat the attention weights of lesson 02 for all heads of the first layer,
# and measure how much a word looks at the label just before it, and at the word of that pair.

# %%
@torch.no_grad()
def attention_of(model, tokens):
    """Weights of the heads of the first layer: (n, H, T, T), as in lesson 02."""
    T, first = tokens.shape[1], model.blocks[0]
    x, turn = model.place(model.embed(tokens), torch.arange(T)[None])
    mine, normed = first.self_attn, first.input_layernorm(x)
    q = rotate(mine.heads(mine.q_proj(normed)), *turn)
    k = rotate(mine.heads(mine.k_proj(normed)), *turn)
    ahead = torch.ones(T, T, dtype=torch.bool).triu(1)
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(ahead, -math.inf).softmax(dim=-1)


for step, each in ((before, kept[before]), (n_step, model)):
    weight = attention_of(each, tokens[:200])
    on_label = weight.diagonal(-1, dim1=-2, dim2=-1)[..., 1::2].mean(dim=(0, 2))
    on_word = weight.diagonal(-2, dim1=-2, dim2=-1)[..., ::2].mean(dim=(0, 2))
    print(f"step {step:3d}: a word looks at the last label", [round(w, 2) for w in on_label.tolist()], end=", ")
    print("at the last word", [round(w, 2) for w in on_word.tolist()], "(by head)")

# %%
figure, panels = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
row, names = tokens[:1, :24], text(tokens[0, :24].tolist())
head = on_label.argmax()  # of the trained model
for axes, step, each in ((panels[0], before, kept[before]), (panels[1], n_step, model)):
    axes.imshow(attention_of(each, row)[0, head, ::2], cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i in range(1, 12):
        axes.add_patch(plt.Rectangle((2 * i - 1.5, i - 0.5), 1, 1, fill=False, edgecolor="#d1495b"))
    axes.set_title(f"step {step}; red: the label just before", fontsize=9)
    axes.set_xticks(range(24), names, rotation=90, fontsize=8)
    axes.set_yticks(range(12), names[::2], fontsize=8)
panels[0].set_ylabel("word that asks")
plt.show()

# %% [markdown]
# Looking is not using, so we make the test: hide from each word the one label just before it, with a mask, and count
# again. What was nearly always right must fall, and the rest hardly change.

# %%
mask = torch.ones(2 * N, 2 * N, dtype=torch.bool).tril()
mask[range(2, 2 * N, 2), range(1, 2 * N - 1, 2)] = False
hidden = by_distance(model, mask[None])
print("with the last label hidden:", "  ".join(f"{d} back {share:.0f} %" for d, share in enumerate(hidden, 1)))

# %% [markdown]
# ## The same in a larger model
#
# The package's *lexicon* model, with six layers, was trained in this way on sentences that a task labels. Half of its
# tasks have labels that name what they mean, so it can learn those by heart; the other half draw labels anew. Its log
# is committed. We look at the share of right answers behind sixteen demonstrations.

# %%
lines = [json.loads(line) for line in (nano.FOLDER / "lexicon" / "log.jsonl").read_text().splitlines()]
steps = [line["step"] for line in lines]
share = [100 * line["train"]["16"] for line in lines]
figure, axes = plt.subplots(figsize=(8, 2.8))
axes.plot(steps, share, "o-", color="#2a6fbb")
axes.axvspan(1800, 2200, color="#f0e6d2")
axes.text(2000, 52, "the fall", ha="center")
axes.set(xlabel="steps", ylabel="answers right\nbehind 16 demonstrations, %", ylim=(50, 102))
plt.show()
plateaus = [[s for step, s in zip(steps, share) if a <= step <= b] for a, b in ((500, 1700), (2200, 3000))]
means = [sum(each) / len(each) for each in plateaus]
print(f"steps 500 to 1700: {means[0]:.0f} %; from 2200 on: {means[1]:.0f} %")
assert max(plateaus[0]) < min(plateaus[1])

# %% [markdown]
# For more than a thousand steps nothing moves, and somebody who stopped there would say that such a model cannot learn
# from demonstrations.
#
# ## Break it
#
# What if labels are *not* drawn anew, but each word keeps its label in all rows? The task looks the same, and the loss
# falls much faster. We train on that and ask the same question as above.

# %%
def fixed_rows(n, generator):
    tokens, seen = rows(n, generator)
    tokens[:, 1::2] = len(WORDS) + (5 * tokens[:, ::2] + 3) % len(LABELS)  # a table that never changes
    return tokens, seen


def reads_its_context(model):
    more, half, _ = gain(model)
    assert more - half > 5, f"right demonstrations gain {more:.1f} ± {half:.1f} points over mixed ones"


by_heart = new_model()
fixed_log, _ = pretrain(by_heart, few(120, 4), fixed_rows)
_, first, later = average(fixed_log, few(100, 2), few(120, 4))
print(f"labels that never change: first occurrence {first:.1f} % right, seen before {later:.1f} %")
with breaks("labels are the same in every row"):
    reads_its_context(by_heart)

# %% [markdown]
# Its training looks perfect, at the first occurrence too, and that gives it away: the labels are in the weights. In a
# row with labels of its own it goes on saying what it learned by heart. In-context learning comes from data that cannot
# be memorised.
#
# Whether and when reading begins is also a matter of luck. [How the package's models were
# trained](../weights/nano/training.md) tells of variants of lexicon that had not begun after 1,800 steps, for no more
# than a sign between word and label.
#
# ## Exercises
#
# **1. What is the least possible loss?** Words seen before can be known for certain, the others have ln 8 nats. Compute
# the number from `seen`, and compare it with the last line of the log.
#
# <details><summary>Solution</summary>
#
# `(~seen).float().mean() * math.log(8)`. With four words in a row 3.996 of 24 occurrences are the first of their word:
# a share of 0.167, and a loss of 0.35. The model is still far above that, because it reads one pair only.
#
# </details>
#
# **2. Eight words a row.** Train with `lambda n, generator: rows(n, generator, shown=8)` and ask `gain(model,
# shown=8)`. Does reading begin as early?
#
# <details><summary>Solution</summary>
#
# Only an eighth of the words repeat the one before them, so the first reading pays half as often, and it begins later
# or, in a run of this length, not at all. With four heads and `rope_theta=10000` we saw no gain by step 400 (1.8 ± 2.2
# points).
#
# </details>
#
# **3. Other luck.** Change the seed in `new_model`, or take four heads of 16 and `rope_theta=10000`, and plot the curve
# again. Is the fall later, or slower? What does that say about a comparison of two architectures by one run each?
#
# <details><summary>Solution</summary>
#
# With those four heads our curve was ten points above the plateau at step 449 only, and rose slowly. A run that ends
# before it looks like a model that cannot do it. So such a comparison needs several seeds, and runs that are long
# enough for all of them.
#
# </details>
#
# How the trained attention is computed, and what tests would find wrong in it:
# [A1](assignments/a1_attention/handout.md).
#
# Next: [04, A cache you can take apart](04_a_cache_you_can_take_apart.ipynb). The model reads its context now. What
# exactly does it keep of it?
