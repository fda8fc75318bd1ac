# %% [markdown]
# # 04 · A cache you can take apart
#
# Lesson 01 trained a cache, and lesson 02 built a model that keeps one. Now we open it. We hide parts of it, delete
# some, swap others and shift all of it, and each time we say beforehand what must change and what must not. Once you
# know what lies in a cache, you know what can be trained, and why a demonstration is not so easily taken out of it.
#
# | | |
# |---|---|
# | **You build** | a cache by hand; entries hidden, deleted, swapped and shifted; attention, step by step |
# | **You see** | that the cache is the context, where the model looks as it answers, and what deletion does not undo |
# | **Time** | thirty-five minutes to read, seconds to run |
# | **Before** | [02](02_a_llama_in_eighty_lines.ipynb); [03](03_where_in_context_learning_comes_from.ipynb) may wait |
# | **Next** | [05, Reading is not learning](05_reading_is_not_learning.ipynb) |
#
# Run it as `python tutorials/04_a_cache_you_can_take_apart.py` from the repository's root, or open the notebook.
# Nothing is downloaded. We compute in float64, so that what ought to be equal is equal to ten digits and more.

# %%
import drawings
import torch
from lesson import breaks, claim, plt  # lesson 01 says what the first two do

from nanoct.benchmarks import nano
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model

model, tokenizer = load_model(nano.FOLDER / "strings", "cpu").double(), load_tokenizer(nano.FOLDER / "strings")
task = nano.make_task("strings", "reverse", tokenizer, seed=0, k=4, n_query=20)
demos, question = task.demos, task.queries[0]
for demo in demos:
    print(tokenizer.decode(demo.x), tokenizer.decode(demo.y))
print(tokenizer.decode(question.x), "?")

# %% [markdown]
# ## The cache
#
# The model reads the demonstrations in one pass and keeps a key and a value for each token, in every layer. One token's
# keys and values in all layers are an **entry**. We note for each entry its **owner**, the demonstration that it came
# from. The start sign, which opens every text, belongs to none and has owner -1. The package's `Prefix` keeps these
# together: keys and values of every layer, the owners, and the position at which the next token will stand.

# %%
from nanoct.fewshot import Adapted, Prefix, encode_context

context, owner = list(task.instruction), [-1] * len(task.instruction)
for i, demo in enumerate(demos):
    context += [*demo.x, *demo.y]
    owner += [i] * (len(demo.x) + len(demo.y))
with torch.no_grad():
    _, kv = model(torch.tensor([context]))
theta = Prefix(kv, torch.tensor(owner), next_position=len(context))
P = len(context)
print(f"{P} entries in {len(kv)} layers; the keys of a layer: {tuple(kv[0][0].shape)}")

# %%
theirs = encode_context(model, task.instruction, demos)
for mine, of_package in zip(theta.stack(), theirs.stack()):
    assert torch.equal(mine, of_package)
assert theta.owner.tolist() == theirs.owner.tolist() and theta.next_position == theirs.next_position
print("bit for bit the package's")

# %% [markdown]
# Here it is. A column is an entry, a row is a layer (three of the six are drawn), and a colour is an owner.

# %%
letters = ["", *(tokenizer.decode([token]) for token in context[1:])]  # the start sign is named below


def draw(title, owner, letters=letters, hidden=(), from_position=0):
    figure, axes = drawings.canvas(46, 7)
    drawings.text(axes, 1, 0.5, title, 10, ha="left")
    drawings.cache(axes, 1, 2.3, owner, hidden=hidden, letters=letters)
    for each in dict.fromkeys(owner):
        columns = [column for column, found in enumerate(owner) if found == each]
        said = f"demonstration {each}" if each >= 0 else "start"
        drawings.text(axes, 1.5 + sum(columns) / len(columns), 5.9, said, 9, drawings.owner_colour(each))
    plt.show()


draw("the cache θ, as read", owner)

# %% [markdown]
# ## The cache is the context
#
# We run the whole text in one pass, demonstrations and question. Then we run the question alone, behind the cache. What
# the model computes at the question must be the same: the demonstrations act through their entries and through nothing
# else.

# %%
asked = [*question.x, *question.y[:-1]]  # the question with its answer, but for the last sign
T = len(asked)
with torch.no_grad():
    hidden, _ = model(torch.tensor([[*context, *asked]]))
whole = hidden[:, P:]


def behind(prefix, **how):
    """What the model computes at each token of the question behind a prefix: (1, T, C)."""
    with torch.no_grad():
        return model(torch.tensor([asked]), prefix=prefix, **how)[0]


def apart(a, b):
    return (a - b).abs().max().item()


assert apart(behind(theta), whole) < 1e-10
print(f"numbers of about {whole.abs().mean():.1f}; in two parts they differ by {apart(behind(theta), whole):.0e}")

# %% [markdown]
# For each experiment below we print two things: how far the model's numbers are from those of the whole text, and how
# many of twenty questions are answered right.

# %%
from nanoct.score import evaluate


def report(what, prefix):
    right = evaluate(Adapted(model, prefix=prefix), task).per_query
    print(f"{what:38} apart by {apart(behind(prefix), whole):7.0e}   {sum(right):.0f} of {len(right)} right")


report("as read", theta)

# %% [markdown]
# ## Hide
#
# A mask says which entries a token may look at. We hide demonstration 1.

# %%
draw("demonstration 1 is hidden: it is there, but no token of the question may look at it", owner, hidden=(1,))

# %% [markdown]
# **Predict.** Now we fill the hidden entries with noise, a thousand times as large as the entries were. How far will
# the numbers that the model computes at the question move?

# %%
my_guess = 0.1

# %%
from nanoct.fewshot import noise_like

mask = torch.ones(1, T, P + T, dtype=torch.bool).tril(P)
mask[:, :, :P] &= theta.owner != 1
noise = noise_like(theta, torch.Generator().manual_seed(0))
mixed = [torch.where((theta.owner == 1)[:, None], 1000 * n, part) for part, n in zip(theta.stack(), noise.stack())]
spoiled = theta.of(*mixed)
assert torch.equal(behind(theta, mask=mask), behind(spoiled, mask=mask))
print(f"you: {my_guess}; in fact {apart(behind(theta, mask=mask), behind(spoiled, mask=mask))}, not by one bit")

# %% [markdown]
# A hidden entry has the weight 0, and 0 times anything is 0. CT-KV builds on this: while it asks demonstration 1, it
# hides what demonstration 1 owns.
#
# ## Delete
#
# Now we take the entries out of the cache. `take` keeps some entries, in the order in which we name them.

# %%
def take(prefix, entries):
    keys, values = (part[:, :, :, entries] for part in prefix.stack())
    return Prefix(list(zip(keys, values)), prefix.owner[entries], prefix.next_position)


start, *owned = [torch.where(theta.owner == i)[0] for i in range(-1, 4)]  # owned[i]: entries of demonstration i
kept = torch.cat([start, owned[0], owned[2], owned[3]])
draw("demonstration 1 is deleted", theta.owner[kept].tolist(), [letters[i] for i in kept])

# %%
deleted = take(theta, kept)
report("demonstration 1 deleted", deleted)
assert apart(behind(deleted), behind(theta, mask=mask)) < 1e-10
print("to be deleted and to be hidden is the same, up to rounding")

# %% [markdown]
# Much has changed, as it should: the model has lost a demonstration. And deleting is the same as hiding, because the
# weighted sum of attention runs over the same entries in both.
#
# ## Swap
#
# Next the entries of the first two demonstrations change places in the cache.

# %%
order = torch.cat([start, owned[1], owned[0], owned[2], owned[3]])
draw("demonstrations 0 and 1 have changed places", theta.owner[order].tolist(), [letters[i] for i in order])

# %%
report("entries of the first two swapped", take(theta, order))
assert apart(behind(take(theta, order)), whole) < 1e-10
first, second, *others = demos
report("text of the first two swapped", encode_context(model, task.instruction, [second, first, *others]))

# %% [markdown]
# Swapping entries changes nothing. Attention is a weighted sum, and a sum does not depend on the order of its terms, so
# **the cache is a set**. Swapping the *text* is another matter, because then each demonstration is read at another
# place and behind other demonstrations.
#
# How does the model know the order, if the cache has none? It stands inside the keys.
#
# ## Shift
#
# RoPE turns the key of a token by an angle that grows with its position: number d and number d + D/2 of a head form a
# pair, and each pair turns at its own speed. Queries are turned as well, so their product with a key depends on how far
# apart the two stand. Therefore we can move the whole cache by 100 positions without reading anything again: we turn
# its keys a little further.

# %%
from nanoct.model import rope_frequencies

frequency = rope_frequencies(model.config)  # (D/2,) radians per position


def turn(x, by):
    """Turn keys or queries x (…, T, D) by the positions `by` (T,)."""
    angle = by[:, None] * frequency  # (T, D/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


keys, values = theta.stack()
shifted = Prefix(list(zip(turn(keys, torch.full((P,), 100)), values)), theta.owner, P + 100)

# %%
figure, axes = drawings.canvas(46, 8.6)
small = [-1, *[0] * 5, *[1] * 5]
for x, y, first, said in ((1, 1.4, 0, "θ"), (27, 1.4, 100, "its keys turned on by 100 positions")):
    drawings.cache(axes, x, y, small, letters=[""] * len(small))
    drawings.text(axes, x + 5.5, 0.5, said, 10)
    for column in range(0, 11, 5):
        drawings.text(axes, x + column + 0.5, y + 3.6, first + column, 8)
    drawings.box(axes, x + 12, y + 0.7, 5, 1.6, f"at {first + 11}")
    drawings.arrow(axes, (x + 14.5, y + 4.6), (x + 3.5, y + 4.6), "11 back" if not first else "11 back too", above=-0.9)
drawings.arrow(axes, (19.2, 2.9), (26, 2.9), "+ 100")
plt.show()

# %% [markdown]
# The question stands 100 positions further on, and so do the entries that it looks at. Every distance is what it was.
# We compare with the question behind the old cache, and with a text that was really read from position 100 on.

# %%
with torch.no_grad():
    _, read_there = model(torch.tensor([context]), positions=torch.arange(100, 100 + P)[None])
for mine, theirs in zip(shifted.kv, read_there):
    assert apart(mine[0], theirs[0]) < 1e-3 and apart(mine[1], theirs[1]) < 1e-3
assert apart(behind(shifted), whole) < 1e-3
print(f"the question stood at {theta.next_position} and now stands at {shifted.next_position}")
report("all shifted by 100", shifted)

# %% [markdown]
# The last digits differ, because the package computes angles in float32. **Positions are distances.**
#
# ## Break it
#
# A popular mistake: the question is new, so its positions start again at 0. No error is raised, and an answer comes.
# The check that cached and whole are equal finds it at once.

# %%
def check(positions=None):
    by = apart(behind(theta, positions=positions), whole)
    assert by < 1e-10, f"behind its cache the question differs from the whole text by {by:.1f}"


check()
with breaks("positions start again at 0"):
    check(positions=torch.arange(T)[None])
report("the question starts again at 0", Prefix(theta.kv, theta.owner, 0))

# %% [markdown]
# ## Where does it look?
#
# To see which entries an answer comes from, we need the weights of attention, which the model does not return. We have
# all parts but one: the queries. The model's argument `adapter` is a table of functions, each of which takes the place
# of the linear map that it is named after. (It is made for LoRA, lesson 09.) We use it to listen: our function notes
# what goes in and what comes out, and computes what the map would have computed.

# %%
heard = {}


def listen(name):
    def linear(x, weight):
        heard[name] = x, x @ weight.T
        return x @ weight.T
    return linear


with torch.no_grad():
    _, own = model(torch.tensor([asked]), prefix=theta, adapter={name: listen(name) for name in model.linears})
x, y = heard["layers.0.self_attn.q_proj"]
print(f"{len(heard)} linear maps were heard; q_proj of layer 0: {tuple(x.shape)} in, {tuple(y.shape)} out")

# %% [markdown]
# The output of `q_proj` holds the queries of all heads side by side. We cut it into heads and turn each query to its
# position, with the function from above.

# %%
H, K, D = model.config.n_head, model.config.n_kv_head, model.config.head_dim


def queries(layer):
    """(H, T, D)."""
    _, y = heard[f"layers.{layer}.self_attn.q_proj"]  # (1, T, H·D)
    return turn(y[0].unflatten(-1, (H, D)).transpose(0, 1), torch.arange(P, P + T))


print("queries of a layer", tuple(queries(0).shape))

# %% [markdown]
# The keys and values are those of the cache, followed by the question's own. There are fewer of them than queries
# (grouped attention, lesson 02), so each serves H / K query heads.

# %%
def entries(layer, part):
    """Keys (part 0) or values (part 1) of the cache and of the question: (H, P+T, D)."""
    both = torch.cat([theta.kv[layer][part], own[layer][part]], dim=2)[0]  # (K, P+T, D)
    return both.repeat_interleave(H // K, dim=0)


print("keys of a layer", tuple(entries(0, 0).shape))

# %% [markdown]
# Now the weights, in three lines: products, no look ahead, softmax. Are they what the model used? Weights times values
# must be what it handed to the next map, `o_proj`.

# %%
def weights(layer):
    """(H, T, P+T): how much each token of the question looks at each entry; a row sums to 1."""
    scores = queries(layer) @ entries(layer, 0).transpose(1, 2) / D**0.5
    ahead = ~torch.ones(T, P + T, dtype=torch.bool).tril(P)
    return scores.masked_fill(ahead, -torch.inf).softmax(-1)


for layer in range(len(theta.kv)):
    heads = weights(layer) @ entries(layer, 1)  # (H, T, D)
    handed_on, _ = heard[f"layers.{layer}.self_attn.o_proj"]
    assert apart(heads.transpose(0, 1).flatten(1), handed_on[0]) < 1e-10
print("every head of every layer: by hand and in the package, equal")

# %% [markdown]
# Whom do they look at while the answer is written? We add up the weights by owner, for each layer, over its heads and
# over the tokens that predict the answer.

# %%
writing = slice(len(question.x) - 1, None)  # the tokens that predict the answer
names = ["start", *(f"demo {i}" for i in range(4)), "question"]
groups = [start, *owned, torch.arange(P, P + T)]
share = torch.stack([torch.stack([weights(layer)[:, writing][..., group].sum(-1).mean() for group in groups])
                     for layer in range(len(theta.kv))])  # (L, 6)
assert (share.sum(1) - 1).abs().max() < 1e-10
print("layer " + "".join(f"{name:>10}" for name in names))
for layer, line in enumerate(share.tolist()):
    print(f"{layer:5} " + "".join(f"{each:10.0%}" for each in line))

# %%
figure, axes = plt.subplots(figsize=(8, 3.4))
colours, left = [drawings.NOBODY, *drawings.OWNERS[:4], "#d8d8d8"], torch.zeros(len(share))
for name, part, each in zip(names, 100 * share.T, colours):
    axes.barh(range(len(share)), part, left=left, color=each, edgecolor="white")
    for layer in range(len(share)):
        if part[layer] > 8:
            ink = "#333333" if name == "question" else "white"
            axes.text(left[layer] + part[layer] / 2, layer, name, ha="center", va="center", color=ink, fontsize=8)
    left = left + part
axes.set(xlabel="attention of the tokens that write the answer, %", ylabel="layer", ylim=(5.5, -0.5), xlim=(0, 100))
plt.show()

# %% [markdown]
# The layers divide the work. Some hardly look at the demonstrations and some take most of what they use from there.
# Layer 0 looks at them most of all, but its entries have read nothing yet: each knows its own letter and its place and
# no more, so the layer can collect letters, but not what a demonstration says about the rule. We leave it aside, and of
# the single heads of the other layers we draw the one that looks most at the demonstrations. A row is a step of the
# answer, a column an entry, in the colour of its owner. More ink is more weight. (The ink grows with the square root,
# because otherwise only the largest weights could be seen.)

# %%
from matplotlib.colors import to_rgb

to_demos = torch.stack([weights(layer)[:, writing, 1:P].sum(-1).mean(-1) for layer in range(len(share))])  # (L, H)
layer, head = divmod(int(to_demos[1:].argmax()) + H, H)
by_column = [drawings.owner_colour(each) for each in owner] + ["#555555"] * T
ink = torch.tensor([to_rgb(each) for each in by_column])  # (P+T, 3)
seen = weights(layer)[head, writing]
figure, axes = plt.subplots(figsize=(8, 2.6))
axes.imshow((1 - seen[..., None].sqrt() * (1 - ink)).clamp(0, 1).numpy(), aspect="auto")
axes.set_xticks(range(P + T), [*letters, *(tokenizer.decode([token]) for token in asked)], fontsize=8)
for tick, each in zip(axes.get_xticklabels(), by_column):
    tick.set_color(each)
steps = zip(asked[writing], question.y)
axes.set_yticks(range(len(question.y)), [f"{tokenizer.decode([a])} then {tokenizer.decode([b])}" for a, b in steps])
axes.set(title=f"layer {layer}, head {head}: {to_demos[layer, head]:.0%} of it on demonstrations",
         ylabel="token read, then written")
axes.tick_params(length=0)
plt.show()

# %% [markdown]
# Read it from top to bottom: this head walks through the answers of all demonstrations in step with its own answer.
# The letters that stand there are not the ones it needs, so it may be that it keeps track of how far the answer has
# come. The weights alone cannot tell.
#
# ## What deletion does not undo
#
# Is a deleted demonstration as good as one that was never read? The entries behind it were computed by a model that
# had already read it. To see how much of it they hold, we read the context once more with another answer in
# demonstration 1, as long as the right one, and look at which entries change.

# %%
from dataclasses import replace

n, end = len(demos[1].y) - 1, demos[1].y[-1]
other = replace(demos[1], y=[*(demos[0].y[:-1] * 6)[:n], end])
lied_to = encode_context(model, task.instruction, [demos[0], other, *demos[2:]])
print("demonstration 1:", tokenizer.decode([*demos[1].x, *demos[1].y]), "now", tokenizer.decode([*other.x, *other.y]))
before, after = (prefix.stack()[1][:, 0].transpose(1, 2).flatten(2) for prefix in (theta, lied_to))  # (L, P, K·D)
change = (after - before).norm(dim=-1) / before.norm(dim=-1)  # (L, P)
for layer in range(len(change)):
    print(f"layer {layer}: " + "  ".join(f"demo {i} {change[layer, owned[i]].mean():4.0%}" for i in range(4)))

# %%
figure, axes = drawings.canvas(46, 10)
drawings.text(axes, 23, 0.5, "how far values move if demonstration 1 has another answer: white 0, full colour 60%", 9)
for column, each in enumerate(owner):
    drawings.text(axes, 1.5 + column, 1.7, letters[column], 8, drawings.owner_colour(each), family="monospace")
    for layer in range(len(change)):
        strength = min(1.0, change[layer, column].item() / 0.6)
        colour = drawings.mix("#ffffff", drawings.owner_colour(each), strength)
        drawings.square(axes, 1 + column, 2.3 + layer, colour, linewidth=0.4, edgecolor="#c9c9c9")
drawings.text(axes, 0.4, 2.8, "0", 8)
drawings.text(axes, 0.4, 7.8, "5", 8)
drawings.text(axes, 23, 9.2, "rows: layers 0 to 5; columns: entries in the colour of their owner", 9)
plt.show()

# %%
lied = torch.tensor([a != b for a, b in zip([*demos[1].x, *demos[1].y], [*other.x, *other.y])])
first_lie = int(owned[1][lied][0])
assert (change[:, :first_lie] == 0).all()  # nothing before it changes, in any layer
assert (change[0, owned[2]] == 0).all() and (change[0, owned[3]] == 0).all()  # layer 0 has read no other token yet
later = change[-1, torch.cat([owned[2], owned[3]])].mean().item()
claim(later > 0.3, f"in the last layer later demonstrations move by {later:.0%} of their size; their text is the same")

# %% [markdown]
# What stands before the changed answer cannot change, because no token looks ahead. In layer 0 an entry depends on its
# own token alone. From layer 1 on, later entries may hold something of what was read before them. Here one can see it
# from layer 2 on, and in the last layer most of all. So deletion takes a demonstration's own entries away and leaves
# its traces in the others:

# %%
report("demonstration 1 deleted", deleted)
never = encode_context(model, task.instruction, [demos[0], *demos[2:]])
report("demonstration 1 never read", never)
print(f"the two are apart by {apart(behind(deleted), behind(never)):.1f}")
assert apart(behind(deleted), behind(never)) > 0.01

# %% [markdown]
# This matters for CT-KV, because its leave-one-out hides a demonstration's own entries and no others. Lesson 08 asks
# whether such traces are a leak.
#
# ## Exercises
#
# **1. Keys after RoPE.** The package caches keys after they were turned. What would it gain and lose by caching them
# before?
#
# <details><summary>Solution</summary>
#
# A cached demonstration could then be moved without turning anything. But every pass would have to turn all keys
# again, and one would have to keep the position of every entry. After RoPE an entry is complete: nothing need be known
# about where its token stood, and training may change the key freely.
#
# </details>
#
# **2. Caches side by side.** Read each demonstration alone, `encode_context(model, (), [demo])`, turn its keys to the
# place where it stood in θ, join the entries, put the start sign's in front, and `report` the result. What is lost?
#
# <details><summary>Solution</summary>
#
# ```
# keys, values, at = [theta.stack()[0][:, :, :, start]], [theta.stack()[1][:, :, :, start]], len(start)
# for i, demo in enumerate(demos):
#     k, v = encode_context(model, (), [demo]).stack()
#     keys.append(turn(k, torch.full((len(owned[i]),), at)))
#     values.append(v)
#     at += len(owned[i])
# joined = Prefix(list(zip(torch.cat(keys, 3), torch.cat(values, 3))), theta.owner, P)
# report("read apart, joined", joined)
# ```
#
# The positions are right, but no demonstration has read the others, and none has read the start sign. The numbers are
# far from those of the whole text, and no question is answered any more. An entry of θ is no copy of its token, but the
# outcome of reading all that stands before it.
#
# </details>
#
# **3. Another task.** Take `"rotate"` or `"sort"` in place of `"reverse"`. Is it the same head that looks at the
# demonstrations?
#
# <details><summary>Solution</summary>
#
# Change the name in the first cell. A few heads of layers 3 and 4 look at the demonstrations whatever the rule is, and
# the other heads of these layers hardly do. For `rotate` the first of them is the one drawn above, for `sort` it is
# head 1 of layer 3. Where inside a demonstration they look depends on the rule.
#
# </details>
#
# Build attention behind a prefix against tests: [A1](assignments/a1_attention/handout.md).
#
# Next: [05, Reading is not learning](05_reading_is_not_learning.ipynb).
