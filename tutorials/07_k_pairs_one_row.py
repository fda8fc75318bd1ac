# %% [markdown]
# # 05 · The step: k pairs, one row
#
# **The claim: one packed row gives the loss and the gradient of k padded rows, to ten digits, for fewer tokens.**
#
# CT-KV trains what a model remembers of k demonstrations. Every step asks all k of them back as questions, and no
# question may look at its own demonstration. The obvious way to do so takes k rows and k copies of the memory. This
# tutorial shows the other way. It fits in one picture, and the picture is a mask.
#
# *One minute on a laptop. You need to know what a KV cache is (tutorial 02). Nothing is downloaded. In Colab: clone the
# repository, run `pip install --no-deps -e .` in it, and open this notebook.*

# %%
from dataclasses import replace

import torch
import torch.nn.functional as F
from lesson import breaks, few, plt
from matplotlib.collections import PatchCollection
from matplotlib.patches import Patch, Rectangle

from nanoct.benchmarks import nano
from nanoct.fewshot import Demo, Prefix, Task, encode_context
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model
from nanoct.methods import ct_kv
from nanoct.packing import answer_logits, pack_demos, visible

model, tokenizer = load_model(nano.FOLDER / "strings", "cpu"), load_tokenizer(nano.FOLDER / "strings")

# %% [markdown]
# ## Four demonstrations
#
# The rule is "every letter becomes the next one". A demonstration, or *demo*, is an input x and an answer y. Here `=`
# ends the input and `;` ends the answer. They are short, so that we can draw every token.

# %%
texts = [("ad", "be"), ("cba", "dcb"), ("f", "g"), ("hb", "ic")]
demos = [Demo(*nano.encode(tokenizer, x, y)) for x, y in texts]
task, k = Task("next letter", demos, queries=[], instruction=[tokenizer.bos_id]), len(demos)
for i, demo in enumerate(demos):
    print(f"demo {i}: {tokenizer.decode(demo.x)} -> {tokenizer.decode(demo.y)}")

# %% [markdown]
# The model reads them once, one after the other. What it keeps is its **prefix**: a key and a value per token and
# layer. Every entry of the prefix has an **owner**, the demo it came from. The start sign `<s>` belongs to no demo and
# has owner -1.

# %%
prefix = encode_context(model, task.instruction, demos)
P = len(prefix.owner)
context = [*task.instruction, *(t for d in demos for t in (*d.x, *d.y))]
print(f"P = {P} entries, keys of one layer", tuple(prefix.kv[0][0].shape))
print("token ", " ".join(tokenizer.decode([t]).strip()[0] for t in context))
print("owner ", " ".join("-" if j < 0 else str(j) for j in prefix.owner.tolist()))

# %% [markdown]
# ## One row
#
# Now all four pairs lie side by side in one row of tokens. Three things in it are easy to get wrong:
#
# - the positions of each pair start anew, right behind the prefix;
# - a token predicts the one after it, so the last token of an answer predicts nothing and is not in the row;
# - the loss counts answers only.

# %%
row = pack_demos(task, model, prefix.next_position)
T = row.tokens.shape[1]
predicts = {int(t): tokenizer.decode([y]) for t, y in zip(row.where, row.target.tolist())}
print("token     ", " ".join(f"{tokenizer.decode([t]):>2}" for t in row.tokens[0].tolist()))
print("position  ", " ".join(f"{p:2d}" for p in row.positions[0].tolist()))
print("pair      ", " ".join(f"{i:2d}" for i in row.pair.tolist()))
print("predicts  ", " ".join(f"{predicts.get(t, '.'):>2}" for t in range(T)))

# %% [markdown]
# ## What may a pair see of the prefix?
#
# Two rules make CT-KV work, and both only hide entries.
#
# - **Leave-one-out**: pair i is not shown the entries that demo i owns, or it could learn to copy.
# - **Token dropout**: every entry is hidden from every pair with a small probability, drawn anew at each step.
#
# That is a table with a line for each pair and a column for each entry. *Write it before you read on.* Four lines do.

# %%
def my_visible(owner, k, p, generator):
    pair = torch.arange(k)[:, None]  # (k, 1)
    of_others = owner != pair  # (k, P): leave-one-out
    kept = torch.rand(k, len(owner), generator=generator) >= p  # (k, P): token dropout
    return of_others & kept


mine = my_visible(prefix.owner, k, 0.15, torch.Generator().manual_seed(7))
print(tuple(mine.shape), f"and {(~mine).sum()} of {mine.numel()} are hidden")

# %% [markdown]
# Yours above, the package's below. Look first, then compare.

# %%
seen = visible(prefix.owner, k, leave_one_out=True, token_dropout=0.15, generator=torch.Generator().manual_seed(7))
for name, table in (("mine", mine), ("nanoct", seen)):
    for i, line in enumerate(table):
        print(f"{name:7} pair {i}   " + "".join("█" if cell else "·" for cell in line))
    print()
assert torch.equal(mine, seen)

# %% [markdown]
# ## Guess
#
# The obvious way is a batch: k rows with one pair each, padded to the longest, each behind its own copy of the prefix.
# How many tokens go through the model then, for each token of the one row? Type your guess.

# %%
my_guess = 1.0  # the pairs are the same, so the tokens are
T_max = max(len(d.x) + len(d.y) for d in demos)
print(f"my guess {my_guess:.2f}; in fact {k * T_max / T:.2f}: {k * T_max} tokens for {T}")
print(f"and {k * P} entries of context for {P}")

# %% [markdown]
# ## The picture
#
# Here are both masks at one scale. A line is a token. A column is what that token might look at. A colour is an owner.
# First three small tools: a darker colour, many little squares, and letters beside them.

# %%
OWNER, START, SOFT = ["#2a6fbb", "#d1495b", "#2f8f5b", "#d9a021"], "#8d8d8d", "#ebebeb"
of_entry = [START if owner < 0 else OWNER[owner] for owner in prefix.owner.tolist()]  # P colours


def darker(colour):
    return "#" + "".join(f"{int(0.6 * int(colour[i : i + 2], 16)):02x}" for i in (1, 3, 5))


def squares(axes, cells, size=0.86):
    """cells: (column, line, colour)."""
    boxes = [Rectangle((x + (1 - size) / 2, y + (1 - size) / 2), size, size) for x, y, _ in cells]
    axes.add_collection(PatchCollection(boxes, facecolors=[colour for *_, colour in cells], linewidths=0))


def letters(axes, ids, colours, places):
    for token, colour, (x, y) in zip(ids, colours, places):
        axes.text(x + 0.5, y + 0.5, tokenizer.decode([token])[0], color=colour, ha="center", va="center", fontsize=7,
                  family="monospace", fontweight="bold")


# %% [markdown]
# Now one pair. It sees the prefix but for its own demo, which leaves a **hole**, and but for the **speckles** of token
# dropout. It sees itself as a triangle, as no token looks ahead.

# %%
def draw_pair(axes, i, top, left, n):
    """The n lines of pair i from line `top` on: the prefix from column 0, the pair itself from column `left` on."""
    lines, own = range(top, top + n), (prefix.owner == i).nonzero().flatten().tolist()
    for column, (colour, is_seen) in enumerate(zip(of_entry, seen[i].tolist())):
        if column not in own:
            squares(axes, [(column, t, colour if is_seen else SOFT) for t in lines])
            squares(axes, [(column, t, colour) for t in lines if not is_seen], size=0.32)
    squares(axes, [(left + u, t, darker(OWNER[i])) for t in lines for u in range(t - top + 1)])
    hole = Rectangle((own[0] + 0.2, top + 0.2), len(own) - 0.4, n - 0.4, facecolor="none", edgecolor=OWNER[i])
    axes.add_patch(hole).set(linestyle=(0, (3, 2)), linewidth=1.2)
    axes.text(own[0] + len(own) / 2, top + n / 2, i, color=OWNER[i], ha="center", va="center", fontweight="bold")


# %% [markdown]
# The one row puts its pairs on a staircase. The batch puts each pair into a box of its own, and fills up.

# %%
def packed(axes):
    squares(axes, [(P + 1 + u, t, SOFT) for t in range(T) for u in range(T)])
    for i in range(k):
        (at,) = (row.pair == i).nonzero(as_tuple=True)
        draw_pair(axes, i, int(at[0]), P + 1 + int(at[0]), len(at))
    ids, colours = row.tokens[0].tolist(), [darker(OWNER[i]) for i in row.pair.tolist()]
    letters(axes, ids, colours, [(-1.4, t) for t in range(T)])
    letters(axes, ids, colours, [(P + 1 + t, -1.2) for t in range(T)])


def padded(axes, gap=1):
    hatch = dict(facecolor="none", edgecolor="#c4c4c4", hatch="//////", linewidth=0)
    for i, demo in enumerate(demos):
        top, n = i * (T_max + gap), len(demo.x) + len(demo.y)
        squares(axes, [(P + 1 + u, top + t, SOFT) for t in range(n) for u in range(n)])
        axes.add_patch(Rectangle((0, top + n), P + 1 + T_max, T_max - n, **hatch))
        axes.add_patch(Rectangle((P + 1 + n, top), T_max - n, n, **hatch))
        draw_pair(axes, i, top, P + 1, n)
        letters(axes, [*demo.x, *demo.y], [darker(OWNER[i])] * n, [(-1.4, top + t) for t in range(n)])


# %%
figure, panels = plt.subplots(1, 2, figsize=(8, 4.1), width_ratios=(P + T + 3, P + T_max + 3))
figure.get_layout_engine().set(w_pad=0.02, wspace=0)
for axes, draw, n in zip(panels, (packed, padded), (T, T_max)):
    draw(axes)
    letters(axes, context, of_entry, [(column, -1.2) for column in range(P)])
    axes.set(xlim=(-1.6, P + 1 + n), ylim=(k * (T_max + 1), -1.4), aspect="equal", anchor="N")
    axes.axis("off")
panels[0].set_title(f"one row: {T} tokens, {P} entries", fontsize=11, fontweight="bold")
panels[1].set_title(f"{k} padded rows: {k * T_max} tokens, {k * P} entries", fontsize=11, fontweight="bold")
signs = [Patch(facecolor=colour, label=f"seen: an entry of demo {i}") for i, colour in enumerate(OWNER)]
signs += [Patch(facecolor=darker(OWNER[0]), label="seen: the pair itself"),
          Patch(facecolor="white", edgecolor=OWNER[1], linestyle="--", label="hole: its own demo"),
          Patch(facecolor=SOFT, label="hidden; with a dot, by dropout"),
          Patch(facecolor="white", edgecolor="#c4c4c4", hatch="//////", label="padding")]
panels[0].legend(handles=signs, loc="lower left", ncols=2, fontsize=8.5, frameon=False, columnspacing=1.2)
plt.show()

# %% [markdown]
# Read the left picture line by line. The blue pair has a hole where demo 0 is. The speckles run down a whole pair, as
# one draw holds for all of its tokens. The pale squares are hidden: the pairs do not see each other.
#
# Is the left picture what the package computes with? We rebuild it by its three rules and compare.

# %%
mask = row.mask(seen)[0]  # (T, P+T), True where a token may look
same_pair = row.pair[:, None] == row.pair
not_ahead = torch.arange(T)[:, None] >= torch.arange(T)
assert torch.equal(mask, torch.cat([seen[row.pair], same_pair & not_ahead], dim=1))
print(f"mask {tuple(mask.shape)}: {mask.float().mean():.0%} of it is seen")

# %% [markdown]
# ## The slow way, written out
#
# To check the one row we need something that is plainly right. Here is the batch: k rows, k copies, padding, and the
# label -100 where there is nothing to learn. The authors' code does it like this.

# %%
def padded_loss(model, prefix, task, seen):
    (k, P), T = seen.shape, max(len(d.x) + len(d.y) for d in task.demos)
    tokens, labels = torch.zeros(k, T, dtype=torch.int64), torch.full((k, T), -100)
    for i, d in enumerate(task.demos):
        n = len(d.x) + len(d.y)
        tokens[i, :n] = torch.tensor([*d.x, *d.y])
        labels[i, len(d.x) : n] = torch.tensor(d.y)
    causal = torch.ones(k, T, T, dtype=torch.bool).tril()  # padding stands last, so no real token sees it
    mask = torch.cat([seen[:, None].expand(k, T, P), causal], dim=2)  # (k, T, P+T)
    copies = Prefix([tuple(part.expand(k, -1, -1, -1) for part in layer) for layer in prefix.kv], prefix.owner, P)
    hidden, _ = model(tokens, positions=torch.arange(P, P + T)[None], mask=mask, prefix=copies)
    return F.cross_entropy(model.logits(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


# %% [markdown]
# ## A real task, to ten digits
#
# Now a task with ten demos, one that no embedded model was trained on. We compute in float64, where rounding is far
# below what we look for. The package's logits are float32 by design, so this one copy gets a head of its own.

# %%
name = nano.WORLDS["strings"].pools()["held_out"][0]
task = nano.make_task("strings", name, tokenizer, seed=0)
exact = load_model(nano.FOLDER / "strings", "cpu", "float64")
exact.logits = lambda hidden: F.linear(hidden, exact.embedding.weight)
start = encode_context(exact, task.instruction, task.demos)
seen = visible(start.owner, len(task.demos), True, 0.05, torch.Generator().manual_seed(0))
print(f"{name!r}: k = {len(task.demos)} demos, P = {len(start.owner)} entries")

# %% [markdown]
# The keys and values are leaves: tensors that we own, and whose gradient we ask for.

# %%
keys, values = leaves = [part.requires_grad_() for part in start.stack()]  # (L, 1, K, P, D) each
theta = start.of(keys, values)
row = pack_demos(task, exact, theta.next_position)


def packed_loss(row, mask):
    return F.cross_entropy(answer_logits(exact, row, theta, mask=mask), row.target)


slow = padded_loss(exact, theta, task, seen)
slow_gradient = torch.autograd.grad(slow, leaves)
print("keys", tuple(keys.shape), f"loss of the padded rows {slow.item():.10f}")

# %%
def check(row, mask):
    """The loss and its gradient in the keys and values are those of the padded rows, to ten digits."""
    loss = packed_loss(row, mask)
    gradient = torch.autograd.grad(loss, leaves)
    wrong = [abs(loss - slow) / slow, *((a - b).norm() / b.norm() for a, b in zip(gradient, slow_gradient))]
    for part, error in zip(("loss", "gradient of the keys", "gradient of the values"), wrong):
        assert error < 1e-10, f"the {part} is off by {error:.1e} of its size"
    return loss


print(f"loss of the one row     {check(row, row.mask(seen)).item():.10f}")

# %% [markdown]
# Ten digits agree, and so does the gradient in every key and value. What did the one row save?

# %%
print(f"{'k':>3} {'one row':>8} {'padded':>8} {'times':>6} {'copied entries':>15}")
for n in (2, 4, 8, 16, 32):
    longer = nano.make_task("strings", name, tokenizer, seed=0, k=n, n_query=1)
    lengths = [len(d.x) + len(d.y) for d in longer.demos]
    one, many, entries = sum(lengths) - n, n * max(lengths), 1 + sum(lengths)  # 1: the start sign
    print(f"{n:3d} {one:8d} {many:8d} {many / one:6.2f} {(n - 1) * entries:15d}")
    assert one < many

# %% [markdown]
# The share of tokens saved stays much the same. The copies saved grow with the square of k, and each copied entry is a
# key and a value in every layer.
#
# ## Break it
#
# Two mistakes that look harmless. In the first, pairs see the pairs before them in the row. In the second, positions
# run on through the row and do not start anew. Both still give a loss, and training on either would lower it.

# %%
T, P = row.tokens.shape[1], len(theta.owner)
looks_back = torch.cat([seen[row.pair], torch.ones(T, T, dtype=torch.bool).tril()], dim=1)[None]
with breaks("pairs see the pairs before them"):
    check(row, looks_back)
runs_on = replace(row, positions=torch.arange(P, P + T)[None])
with breaks("positions run on"):
    check(runs_on, row.mask(seen))

# %% [markdown]
# ## The loop
#
# The rest of a method is a loop that you know: AdamW, a learning rate that falls along a cosine to 0, and a gradient
# that is clipped to norm 1. Only the leaves move. The model never does.

# %%
def my_optimise(loss, leaves, config):
    optimizer = torch.optim.AdamW(leaves, lr=config.lr, betas=(0.9, 0.999), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.n_step)
    for _ in range(config.n_step):
        now = loss()
        optimizer.zero_grad()
        now.backward(inputs=leaves)
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        schedule.step()
        print(f"{now.item():.3f}", end=" ")


# %% [markdown]
# And around it CT-KV itself: read, pack, take the leaves, and at every step draw what is seen.

# %%
def my_ct_kv(model, task, config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    context = encode_context(model, task.instruction, task.demos)
    row = pack_demos(task, model, context.next_position)
    keys, values = leaves = [part.requires_grad_() for part in context.stack()]

    def loss():
        seen = my_visible(context.owner, len(task.demos), config.token_dropout, generator)
        logits = answer_logits(model, row, context.of(keys, values), mask=row.mask(seen))
        return F.cross_entropy(logits, row.target)

    my_optimise(loss, leaves, config)
    return context.of(keys.detach(), values.detach())


# %% [markdown]
# It must give the package's numbers, bit for bit.

# %%
config = ct_kv.Config(**nano.read_settings()["strings"]["ct_kv"] | dict(n_step=few(16, 2), leave_one_out=True))
ours, theirs = my_ct_kv(model, task, config), ct_kv.adapt(model, task, config).prefix
for a, b in zip(ours.stack(), theirs.stack(), strict=True):
    assert torch.equal(a, b)
print(f"\n{sum(part.numel() for part in theirs.stack()):,} trained numbers, all of them equal")

# %% [markdown]
# ## Three questions
#
# **1. Why does the last token of an answer stand in the prefix, but not in the row?**
#
# <details><summary>Answer</summary>
#
# In the row a token is there to predict the next one, and behind the last there is nothing to predict. In the prefix a
# token is there to be looked at, and the end of an answer tells the model where the next demo begins.
#
# </details>
#
# **2. The loss is a mean over answer tokens. What changes if it is a mean over pairs of the mean of each?**
#
# <details><summary>Answer</summary>
#
# Long answers lose weight and short ones gain it. The loss still falls. On a task whose answers all have one length
# nobody would see the difference, so test on uneven ones. The four demos above are uneven for that reason.
#
# </details>
#
# **3. The scores between two pairs are computed and then hidden. When does that cost more than the copies saved?**
#
# <details><summary>Answer</summary>
#
# The hidden part of the mask has about T² cells, so it grows with the square of k. The copies of the batch do too, with
# a larger factor, as k·P entries have keys and values in every layer. With many long pairs both are too much. Then one
# computes the part behind the prefix and the pair's own part apart, and merges them.
#
# </details>
#
# ## Change next
#
# - Set the dropout of the picture to 0, then to 0.5, and draw it again.
# - Give the four demos a longer instruction. Where does it stand in the mask, and who may see it?
# - Hide demo i + 1 from pair i in `my_visible`. Which assert fires? The next tutorial asks whether the score would.
# - Read `nanoct/methods/ct_kv.py`. It is `my_ct_kv` with an adapter and its error messages.
