# %% [markdown]
# # 07 · k pairs, one row
#
# Every step of CT-KV asks all k demonstrations back as questions, and none of them may look at its own demonstration.
# The obvious way takes k rows, k copies of the cache, and padding. In this lesson we put all k pairs into one row, and
# a mask says who sees what. It gives the same loss and the same gradient, because a mask is all that the copies were
# for.
#
# | | |
# |---|---|
# | **You build** | the packed row, its mask, and the slow padded batch that both are checked against |
# | **You see** | the two masks side by side, the tokens and milliseconds of each, and where the one row loses |
# | **Time** | twenty minutes to read, half a minute to run on two cores |
# | **Before** | [06, CT-KV in thirty lines](06_ct_kv_in_thirty_lines.ipynb), for the loss and leave-one-out |
# | **Next** | [08, How tuning cheats](08_how_tuning_cheats.ipynb) |
#
# Run it as `python tutorials/07_k_pairs_one_row.py` from the repository's root, or open the notebook. Nothing is
# downloaded.

# %%
import time
from types import SimpleNamespace

import drawings
import torch
import torch.nn.functional as F
from lesson import breaks, claim, few, plt

from nanoct.benchmarks import nano
from nanoct.fewshot import Demo, Prefix, Task, encode_context
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model

model, tokenizer = load_model(nano.FOLDER / "strings", "cpu"), load_tokenizer(nano.FOLDER / "strings")

# %% [markdown]
# ## Three demonstrations
#
# The rule is "every letter becomes the next one". Here `=` ends a question x, and `;` ends its answer y. They are
# short, so that we can draw every token, and of different lengths, because that is where padding hurts.

# %%
texts = [("ad", "be"), ("cba", "dcb"), ("f", "g")]
demos = [Demo(*nano.encode(tokenizer, x, y)) for x, y in texts]
task, k = Task("next letter", demos, queries=[], instruction=[tokenizer.bos_id]), len(demos)
for i, demo in enumerate(demos):
    print(f"demonstration {i}: {tokenizer.decode(demo.x)} {tokenizer.decode(demo.y)}")

# %% [markdown]
# The model reads them once, and what it keeps is their cache: a key and a value for each token in each layer. Every
# entry has an *owner*, the demonstration that its token came from. The start sign `s` belongs to none of them and is
# grey.

# %%
prefix = encode_context(model, task.instruction, demos)
P, owners = len(prefix.owner), prefix.owner.tolist()
context = [*task.instruction, *(token for demo in demos for token in (*demo.x, *demo.y))]
letter = lambda token: tokenizer.decode([token]).strip("< ")[0]
figure, axes = drawings.canvas(P + 1, 5, size=7)
drawings.cache(axes, 0.5, 1.2, owners, letters=[letter(token) for token in context])
drawings.text(axes, P / 2, 4.7, "the cache: a column is an entry, a row is a layer", 9, drawings.NOBODY)
plt.show()
print(f"P = {P} entries, their owners {owners}")

# %% [markdown]
# ## One row
#
# Now we ask all three pairs at once, side by side in one row of tokens. Three things are easy to get wrong:
#
# - the positions of each pair start anew, right behind the cache, because each pair stands there as if it were alone;
# - a token predicts the one after it, so the last token of an answer predicts nothing and is not in the row;
# - the loss counts answers only, so we note which tokens of the row predict an answer token, and which one.

# %%
def my_pack(demos, start):
    """The pairs side by side: tokens (1, T), positions (1, T), pair (T,), where (N,) and target (N,)."""
    tokens, positions, pair, where, target = [], [], [], [], []
    for i, demo in enumerate(demos):
        for offset, token in enumerate([*demo.x, *demo.y[:-1]]):
            if offset >= len(demo.x) - 1:  # the last token of x predicts the first of y, and so on
                where.append(len(tokens))
                target.append(demo.y[offset - len(demo.x) + 1])
            tokens.append(token)
            positions.append(start + offset)
            pair.append(i)
    return SimpleNamespace(tokens=torch.tensor([tokens]), positions=torch.tensor([positions]),
                           pair=torch.tensor(pair), where=torch.tensor(where), target=torch.tensor(target))


# %%
row = my_pack(demos, start=P)
T = row.tokens.shape[1]
predicts = {int(t): letter(y) for t, y in zip(row.where, row.target.tolist())}
print("token     ", " ".join(f"{letter(token):>2}" for token in row.tokens[0].tolist()))
print("position  ", " ".join(f"{position:2d}" for position in row.positions[0].tolist()))
print("pair      ", " ".join(f"{i:2d}" for i in row.pair.tolist()))
print("predicts  ", " ".join(f"{predicts.get(t, '.'):>2}" for t in range(T)))

# %% [markdown]
# ## What may a pair see of the cache?
#
# Lesson 06 had two rules, and both only hide entries. **Leave-one-out** hides from pair i the entries that
# demonstration i owns. **Token dropout** hides every entry from every pair with a small probability, drawn anew at each
# step. Together they are a table with a line for each pair and a column for each entry.

# %%
def my_visible(owner, k, p, generator):
    of_others = owner != torch.arange(k)[:, None]  # (k, P): leave-one-out
    kept = torch.rand(k, len(owner), generator=generator) >= p  # (k, P): token dropout
    return of_others & kept


seen = my_visible(prefix.owner, k, 0.15, torch.Generator().manual_seed(7))
for i, line in enumerate(seen):
    print(f"pair {i}   " + "".join("█" if cell else "·" for cell in line))

# %% [markdown]
# ## And what of the row itself?
#
# A pair sees itself, but no token looks ahead, and it sees no other pair. So the whole mask is the line of the table
# that belongs to each token's pair, and to its right a triangle for each pair.

# %%
def my_mask(row, seen):
    """(1, T, P+T): True where a token of the row may look."""
    T = len(row.pair)
    same_pair = row.pair[:, None] == row.pair
    not_ahead = torch.ones(T, T, dtype=torch.bool).tril()
    return torch.cat([seen[row.pair], same_pair & not_ahead], dim=1)[None]


mask = my_mask(row, seen)
print(f"mask {tuple(mask.shape)}: {mask.float().mean():.0%} of it is seen")

# %% [markdown]
# These are the package's row, table and mask.

# %%
from nanoct.packing import pack_demos, visible

theirs = pack_demos(task, model, P)
for name in ("tokens", "positions", "pair", "where", "target"):
    assert torch.equal(getattr(row, name), getattr(theirs, name)), f"{name} of the row differ"
assert torch.equal(seen, visible(prefix.owner, k, True, 0.15, torch.Generator().manual_seed(7)))
assert torch.equal(mask, theirs.mask(seen))
print("tokens, positions, pair, where, target, table and mask: all equal")

# %% [markdown]
# ## Guess
#
# The obvious way is a batch: k rows with one pair each, padded to the longest pair, each behind its own copy of the
# cache. How many tokens go through the model then, for each token of the one row?

# %%
my_guess = 1.0  # the pairs are the same, so the tokens are

# %%
T_max = max(len(demo.x) + len(demo.y) for demo in demos)
print(f"you: {my_guess:.2f}; in fact {k * T_max / T:.2f}, because it is {k * T_max} tokens for {T}")
print(f"and {k * P} entries of cache for {P}")

# %% [markdown]
# ## The picture
#
# Here are both masks at one scale. A line is a token that looks, a column is what it might look at, and a colour is an
# owner. On the left is the one row; on the right are the three padded rows.

# %%
letters_of = lambda ids: [letter(token) for token in ids]
figure, axes = drawings.canvas(2 * P + T + T_max + 8, k * (T_max + 2) + 2)
drawings.text(axes, (P + T) / 2, 0.6, f"one row: {T} tokens, {P} entries", 11, weight="bold")
drawings.mask(axes, 1.5, 3, mask[0].tolist(), row.pair.tolist(), [*owners, *row.pair.tolist()], P,
              (letters_of(row.tokens[0].tolist()), letters_of([*context, *row.tokens[0].tolist()])))
left = P + T + 6
drawings.text(axes, left + (P + T_max) / 2, 0.6, f"{k} padded rows: {k * T_max} tokens, {k * P} entries", 11,
              weight="bold")
for i, demo in enumerate(demos):
    ids = [*demo.x, *demo.y]
    is_pair = [i] * len(ids) + [None] * (T_max - len(ids))
    alone = torch.cat([seen[i].expand(T_max, P), torch.ones(T_max, T_max, dtype=torch.bool).tril()], dim=1)
    names = letters_of(ids) + [""] * (T_max - len(ids))
    drawings.mask(axes, left, 3 + i * (T_max + 2), alone.tolist(), is_pair, [*owners, *is_pair], P,
                  (names, letters_of(context) + names))
drawings.text(axes, 1.5, T + 5, "coloured: seen      dark: the pair itself\ndashed hole: its own demonstration\n"
              "pale: hidden, with a dot by token dropout\nhatched: padding", 9, ha="left", va="top", linespacing=1.6)
plt.show()

# %% [markdown]
# Read the left picture line by line. The blue pair has a hole where demonstration 0 is. A dot runs down a whole pair,
# because one draw holds for all of its tokens. The pale squares on the right of it are the other pairs, which a pair
# does not see. In the padded rows every pair has a cache of its own, and what is hatched is computed for nothing.
#
# ## The slow way, written out
#
# To check the one row we need something that is plainly right: k rows, k copies, padding, and the label -100 where
# there is nothing to learn. The paper's released code does it like this.

# %%
def padded_loss(model, prefix, demos, seen):
    (k, P), T = seen.shape, max(len(demo.x) + len(demo.y) for demo in demos)
    tokens, labels = torch.zeros(k, T, dtype=torch.int64), torch.full((k, T), -100)
    for i, demo in enumerate(demos):
        n = len(demo.x) + len(demo.y)
        tokens[i, :n] = torch.tensor([*demo.x, *demo.y])
        labels[i, len(demo.x) : n] = torch.tensor(demo.y)
    causal = torch.ones(k, T, T, dtype=torch.bool).tril()  # padding stands last, so no real token sees it
    mask = torch.cat([seen[:, None].expand(k, T, P), causal], dim=2)  # (k, T, P+T)
    copies = Prefix([tuple(part.expand(k, -1, -1, -1) for part in layer) for layer in prefix.kv], prefix.owner, P)
    hidden, _ = model(tokens, positions=torch.arange(P, P + T)[None], mask=mask, prefix=copies)
    return F.cross_entropy(model.logits(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def packed_loss(model, prefix, row, mask):
    hidden, _ = model(row.tokens, positions=row.positions, mask=mask, prefix=prefix)
    return F.cross_entropy(model.logits(hidden[0, row.where]), row.target)


with torch.no_grad():
    print(f"padded {padded_loss(model, prefix, demos, seen):.6f}, one row {packed_loss(model, prefix, row, mask):.6f}")

# %% [markdown]
# ## A real task, to ten digits
#
# Six digits could be luck. So we take a task with ten demonstrations, one that the model never saw in training, and
# compute in float64, where rounding is far below what we look for. The package's logits are float32 by design, so this
# one copy gets a head of its own. The keys and values are leaves: tensors that we own and whose gradient we ask for.

# %%
name = nano.WORLDS["strings"].pools()["held_out"][0]
task = nano.make_task("strings", name, tokenizer, seed=0)
exact = load_model(nano.FOLDER / "strings", "cpu", "float64")
exact.logits = lambda hidden: F.linear(hidden, exact.embedding.weight)
start = encode_context(exact, task.instruction, task.demos)
k, P = len(task.demos), len(start.owner)
keys, values = leaves = [part.requires_grad_() for part in start.stack()]  # (L, 1, K, P, D) each
theta = start.of(keys, values)
seen = my_visible(theta.owner, k, 0.05, torch.Generator().manual_seed(0))
slow = padded_loss(exact, theta, task.demos, seen)
slow_gradient = torch.autograd.grad(slow, leaves)
print(f"{name!r}: k = {k} demonstrations, P = {P} entries, keys {tuple(keys.shape)}")
print(f"loss of the padded rows {slow.item():.10f}")

# %%
def check(row, mask):
    """The loss and its gradient in the keys and values are those of the padded rows, to ten digits."""
    loss = packed_loss(exact, theta, row, mask)
    gradient = torch.autograd.grad(loss, leaves)
    wrong = [abs(loss - slow) / slow, *((a - b).norm() / b.norm() for a, b in zip(gradient, slow_gradient))]
    for part, error in zip(("loss", "gradient of the keys", "gradient of the values"), wrong):
        assert error < 1e-10, f"the {part} is off by {error:.1e} of its size"
    return loss, max(wrong)


row = my_pack(task.demos, start=P)
loss, error = check(row, my_mask(row, seen))
print(f"loss of the one row     {loss.item():.10f}; the largest error of all is {error:.0e} of the size")

# %% [markdown]
# Ten digits agree, and so do the gradients in every key and value.
#
# ## Break it
#
# Two mistakes look harmless. In the first, pairs see the pairs before them in the row. In the second, positions run on
# through the row and do not start anew. Both still give a loss, and training on either would lower it.

# %%
T = row.tokens.shape[1]
looks_back = torch.cat([seen[row.pair], torch.ones(T, T, dtype=torch.bool).tril()], dim=1)[None]
with breaks("pairs see the pairs before them"):
    check(row, looks_back)
runs_on = SimpleNamespace(**vars(row) | dict(positions=torch.arange(P, P + T)[None]))
with breaks("positions run on"):
    check(runs_on, my_mask(row, seen))

# %% [markdown]
# ## What the one row saves
#
# Three things can be counted for each k: the tokens that go through the model, the cache entries that are held, and
# the attention scores, one for each token and each thing that it might look at. For the one row the scores include the
# hidden ones, because the usual kernels compute a score before they mask it.

# %%
print(f"{'':4}{'tokens':^15}  {'entries':^15}  {'scores':^17}")
print(f"{'k':>2} {'one row':>8} {'padded':>7} {'one row':>8} {'padded':>7} {'one row':>9} {'padded':>8}")
counts = {}
for n in (2, 4, 8, 16, 32):
    longer = nano.make_task("strings", name, tokenizer, seed=0, k=n, n_query=1)
    lengths = [len(demo.x) + len(demo.y) for demo in longer.demos]
    entries, one, longest = len(longer.instruction) + sum(lengths), sum(lengths) - n, max(lengths)
    counts[n] = (one, n * longest, entries, n * entries, one * (entries + one), n * longest * (entries + longest))
    print("{:2d} {:8,} {:7,} {:8,} {:7,} {:9,} {:8,}".format(n, *counts[n]))
    assert one < n * longest

# %% [markdown]
# The share of tokens saved stays much the same, but the copied entries grow with the square of k, and each is a key and
# a value in every layer. The last two columns tell the other half: from k = 4 on the one row has *more* scores than the
# padded rows, because all of its tokens meet all others, if only to be hidden.
#
# ## Where it loses
#
# So the one row must lose somewhere. We look for it where there is least to save: pairs of one length, which need no
# padding. We measure a forward and a backward pass in CPU milliseconds, which do not count the time that other
# programs take, and let the two ways alternate.

# %%
def milliseconds(ways, repeat=few(5, 1)):
    """The smallest CPU time of each of these functions, called in turn."""
    times = [[] for _ in ways]
    for _ in range(repeat + 1):
        for way, taken in zip(ways, times):
            begin = time.process_time()
            way()
            taken.append(1e3 * (time.process_time() - begin))
    return [min(taken[1:]) for taken in times]  # the first call warms up


def both_ways(task):
    start = encode_context(model, task.instruction, task.demos)
    leaves = [part.requires_grad_() for part in start.stack()]
    theta, row = start.of(*leaves), my_pack(task.demos, len(start.owner))
    seen = my_visible(start.owner, len(task.demos), 0.05, torch.Generator().manual_seed(0))
    mask = my_mask(row, seen)
    return milliseconds([lambda: torch.autograd.grad(packed_loss(model, theta, row, mask), leaves),
                         lambda: torch.autograd.grad(padded_loss(model, theta, task.demos, seen), leaves)])


# %%
LENGTHS, K = few((4, 8, 16, 24, 32, 38), (4, 8)), (2, 4, 8, 16, 32)
equal = []
for length in LENGTHS:
    ids = torch.randint(3, 19, (12, length), generator=torch.Generator().manual_seed(length)).tolist()
    equal.append(both_ways(Task("equal pairs", [Demo(each[:-2], each[-2:]) for each in ids], queries=[])))
    print(f"12 pairs of {length:2d} tokens: one row {equal[-1][0]:5.1f} ms, padded {equal[-1][1]:5.1f} ms")
uneven = [both_ways(nano.make_task("strings", name, tokenizer, seed=0, k=n, n_query=1)) for n in few(K, K[:2])]

# %%
figure, panels = plt.subplots(1, 2)
styles = (("one row", "#d1495b", "o-"), ("padded rows", "#333333", "s--"))
for axes, at, taken in ((panels[0], K, uneven), (panels[1], LENGTHS, equal)):
    for (said, colour, style), line in zip(styles, zip(*taken)):
        axes.plot(at[: len(line)], line, style, color=colour)
        is_upper = line[-1] == max(taken[-1])
        place, shift = (-1, (-10, 0)) if is_upper else (len(line) // 2, (10, -14))
        axes.annotate(said, (at[: len(line)][place], line[place]), xytext=shift, textcoords="offset points",
                      color=colour, ha="right" if is_upper else "left", va="center")
    axes.set(ylabel="CPU ms of a step", ylim=(0, None))
panels[0].set(xlabel="k", xticks=K[2:], title="demonstrations of strings, uneven")
panels[1].set(xlabel="tokens of a pair", title="twelve pairs, all of one length")
plt.show()

# %%
saved, lost = uneven[-1][0] / uneven[-1][1], equal[-1][0] / equal[-1][1]
claim(saved < 0.95, f"with {K[len(uneven) - 1]} uneven pairs one row takes {saved:.2f} of the padded rows' time")
claim(lost > 1.03, f"with twelve equal pairs of {LENGTHS[-1]} tokens it takes {lost:.2f} times as long")

# %% [markdown]
# With uneven pairs the one row is faster. With long pairs of one length it is slower, because it saves no tokens and
# its hidden scores cost. This model is tiny, so attention has a large share in it; in a larger model the linear maps
# take most of the time, and there the one row is at least level on a CPU. On a GPU it has saved memory but no time
# ([the page on costs](../weights/nano/costs.md)).
#
# ## Exercises
#
# **1. The last token.** Why does the last token of an answer stand in the cache, but not in the row?
#
# <details><summary>Solution</summary>
#
# In the row a token is there to predict the next one, and behind the last there is nothing to predict. In the cache a
# token is there to be looked at, and the end of an answer tells the model where the next demonstration begins.
#
# </details>
#
# **2. The mean.** The loss is a mean over answer tokens. Change `packed_loss` so that it is a mean over pairs of the
# mean of each. Which assert fails, and on which tasks would nobody see the difference?
#
# <details><summary>Solution</summary>
#
# `losses = F.cross_entropy(logits, row.target, reduction="none")`, then the mean of `losses[pair == i].mean()` over i,
# with `pair = row.pair[row.where]`. `check` fails at the loss: long answers lose weight and short ones gain it. If all
# answers have one length, the two means are equal, so test on uneven ones.
#
# </details>
#
# **3. Without the T² part.** The prefix part of the scores has T·P cells, all of them useful but for the holes. How
# would you compute the rest without the scores between different pairs?
#
# <details><summary>Solution</summary>
#
# Compute two attentions and merge them: the row against the cache, T·P scores, and each pair against itself as a small
# batch, k·T_max² scores. A softmax over two parts is their weighted mean, and the weights are the exponentials of each
# part's log-sum-exp. The numbers are the same, and no score between two pairs is ever computed.
#
# </details>
#
# Build the row with tests that find its silent mistakes: [A2](assignments/a2_row/handout.md).
#
# Next: [08, How tuning cheats](08_how_tuning_cheats.ipynb), which asks what happens if the hole is forgotten.
