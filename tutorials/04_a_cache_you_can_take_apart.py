# %% [markdown]
# # 02 · A Llama you can see into
#
# Tutorial 01 tuned a *memory*, the KV cache of ten examples. This one opens it. When you know what lies in it, you know
# what can be tuned, hidden, deleted, moved and swapped.
#
# **The claim.** The cache *is* the context. Behind it, the model computes what it would compute on the whole text.
# Hidden entries change nothing, bit for bit. And positions count only as distances.
#
# | | |
# |---|---|
# | time | fifteen minutes to read, seconds to run |
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
# ## The model and a text
# We compute in *float64*, numbers of sixteen digits. So what ought to be equal is equal to ten digits and more.

# %%
import torch
from lesson import breaks, colour, plt

from nanoct.benchmarks import nano
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model

folder = nano.FOLDER / "strings"
model, tokenizer = load_model(folder, "cpu").double(), load_tokenizer(folder)
print(model.config)

# %% [markdown]
# The task is `reverse`, with four examples. A *token* is what the model reads at once: here a letter, `=` or `;`. The
# sign `<s>` opens every text.

# %%
task = nano.make_task("strings", "reverse", tokenizer, seed=0, k=4, n_query=20)
context = [*task.instruction, *(i for demo in task.demos for i in (*demo.x, *demo.y))]
query = task.queries[0]
asked = [*query.x, *query.y[:-1]]  # the question with its answer, but for the last sign
print(tokenizer.decode(context), "|", tokenizer.decode(asked))

# %% [markdown]
# ## The whole text at once
# A forward pass gives two things. `hidden` is what the model knows at each token, and the next token follows from it.
# `kv` is what later tokens may read: a key and a value for each token, in each layer.

# %%
row = lambda ids: torch.tensor([ids])
with torch.no_grad():
    hidden, kv = model(row([*context, *asked]))
whole = hidden[:, len(context) :]  # of the question alone
print("hidden", tuple(hidden.shape), " keys of a layer", tuple(kv[0][0].shape))

said = model.logits(whole[0]).argmax(-1)[len(query.x) - 1 :].tolist()
print(f"{tokenizer.decode(query.x)} {tokenizer.decode(said)}")

# %% [markdown]
# ## The same in two parts
# Now the context alone, then the question behind its cache. The cache is a `Prefix`: keys and values, the *owner* of
# each entry, and the position that comes next. Owner 0 is the first example, −1 is the sign that opens the text.

# %%
from nanoct.fewshot import Adapted, Prefix, encode_context

theta = encode_context(model, task.instruction, task.demos)
for mark, cells in (("token", map(tokenizer.decode, row(context).T.tolist())), ("owner", theta.owner.tolist())):
    print(mark, "".join(f"{cell:>4}" for cell in cells).replace("-1", "–"))
print("next position", theta.next_position)

# %%
def behind(prefix, **how):
    """What the model knows at each token of the question, behind a prefix."""
    with torch.no_grad():
        return model(row(asked), prefix=prefix, **how)[0]


def apart(a, b):
    return (a - b).abs().max().item()


assert apart(behind(theta), whole) < 1e-10
print(f"numbers of about {whole.abs().mean():.1f}; read in two parts, they differ by {apart(behind(theta), whole):.0e}")

# %% [markdown]
# So an entry has all that its token will ever say. Whoever owns the cache owns the context.
#
# ## Hiding
# A *mask* says which entries a token may look at. We hide the second example, owner 1. Then we fill its entries with
# noise a thousand times too large. **Will the question notice?** Type a guess.

# %%
from nanoct.fewshot import noise_like

my_guess = "a little"
T, P = len(asked), len(theta.owner)
mask = torch.ones(1, T, P + T, dtype=torch.bool).tril(P)
mask[:, :, :P] &= theta.owner != 1

noise = noise_like(theta, torch.Generator().manual_seed(0))
mixed = [torch.where((theta.owner == 1)[:, None], 1000 * n, part) for part, n in zip(theta.stack(), noise.stack())]
spoiled = theta.of(*mixed)
assert torch.equal(behind(theta, mask=mask), behind(spoiled, mask=mask))
print(f"you: {my_guess}. Not by one bit: a hidden entry gets the weight 0, and 0 times anything is 0.")

# %% [markdown]
# This is what CT-KV builds on. While it asks example 1, it hides what example 1 owns, and no trace of it is left.
#
# ## Deleting and swapping
# Next we touch the cache itself. `take` keeps some entries, in the order that we name. `report` says how far the
# numbers behind a prefix are from those of the whole text, and how many of twenty questions it gets right.

# %%
from nanoct.score import evaluate


def take(prefix, entries):
    keys, values = (part[:, :, :, entries] for part in prefix.stack())
    return Prefix(list(zip(keys, values)), prefix.owner[entries], prefix.next_position)


def report(what, prefix):
    right = evaluate(Adapted(model, prefix=prefix), task).per_query
    print(f"{what:34} apart by {apart(behind(prefix), whole):7.0e}   {sum(right)} of {len(right)} right")


report("as read", theta)

# %% [markdown]
# We delete the second example. Then we swap the entries of the first two. **Which of the two changes what the model
# computes?**

# %%
my_guess = "both"

of = [torch.where(theta.owner == i)[0] for i in range(-1, 4)]  # of[0]: the opening sign, of[1]: example 0, …
without = take(theta, torch.cat([of[0], of[1], of[3], of[4]]))
report("without the second example", without)
swapped = take(theta, torch.cat([of[0], of[2], of[1], of[3], of[4]]))
report("entries of the first two swapped", swapped)
assert apart(behind(without), behind(theta, mask=mask)) < 1e-10  # as if it were hidden
assert apart(behind(swapped), whole) < 1e-10
print(f"you: {my_guess}")

# %% [markdown]
# Swapping changes nothing. Attention is a weighted sum over entries, and a sum does not care for order. **The cache is
# a set.** Where a token stood is written into its key, which has been turned by an angle that grows with the position.
# That is *RoPE*.
#
# To swap the examples in the *text* is another thing. Each is then read at another place, behind other examples.

# %%
first, second, *others = task.demos
report("text of the first two swapped", encode_context(model, task.instruction, [second, first, *others]))

# %% [markdown]
# ## Positions are distances
# Keys and queries are both turned, so their product depends on how far apart they stand, and on nothing else. We move
# the whole text on by 100. The angles are numbers of seven digits, so the results are equal to a few less.

# %%
def moved(by):
    """The context, read as if it began at position `by`."""
    with torch.no_grad():
        kv = model(row(context), positions=torch.arange(by, by + P)[None])[1]
    return Prefix(kv, theta.owner, by + P)


assert apart(behind(moved(100)), whole) < 1e-3
print(f"all moved by 100: apart by {apart(behind(moved(100)), whole):.0e}")

# %% [markdown]
# ## Break it
# A popular mistake: the question is new, so its positions start again at 0. No error is raised, and an answer comes.
# The check that cached and whole are equal finds it at once.

# %%
def check(positions=None):
    by = apart(behind(theta, positions=positions), whole)
    assert by < 1e-10, f"behind its cache the question differs from the whole text by {by:.1f}"


check()
with breaks("positions start again at 0"):
    check(positions=torch.arange(T)[None])
report("the cache ends at position 0", Prefix(theta.kv, theta.owner, 0))

# %% [markdown]
# ## Looking inside
# In nanoct an *adapter* stands in for a linear map: it gets the input and the weight, and returns an output. We use it
# as a spy. It notes what it gets and computes what the map would have computed.

# %%
noted = {}
spy = lambda name: lambda x, weight: noted.setdefault(name, x) @ weight.T
spies = {name: spy(name) for name in model.linears if name.endswith(("q_proj", "o_proj"))}
with torch.no_grad():
    seen, own = model(row(asked), prefix=theta, adapter=spies)
assert apart(seen, whole) < 1e-10
name, heard = next(iter(noted.items()))
print(f"{len(noted)} linear maps were listened to, such as {name}: {tuple(heard.shape)}")

# %% [markdown]
# From these notes we build attention by hand, once. A query is a map of the input, turned by its position. Its products
# with the keys become weights that sum to 1. The output is the weighted sum of the values.

# %%
from nanoct.model import rotate

D, per_kv = model.config.head_dim, model.config.n_head // model.config.n_kv_head


def attention(layer, head):
    """Weights (T, P+T) of a head, and its output (T, D)."""
    name = f"layers.{layer}.self_attn.q_proj"
    q = (noted[name] @ model.linears[name].weight.T)[..., head * D : (head + 1) * D]  # (1, T, D)
    _, turn = model.place(q, torch.arange(P, P + T)[None])
    q = rotate(q[None], *turn)[0, 0]
    k, v = (torch.cat([theta.kv[layer][i], own[layer][i]], dim=2)[0, head // per_kv] for i in (0, 1))
    future = ~torch.ones(T, P + T, dtype=torch.bool).tril(P)
    weights = (q @ k.T / D**0.5).masked_fill(future, -torch.inf).softmax(-1)
    return weights, weights @ v


for layer in range(model.config.n_layer):
    for head in range(model.config.n_head):
        theirs = noted[f"layers.{layer}.self_attn.o_proj"][0, :, head * D : (head + 1) * D]
        assert apart(attention(layer, head)[1], theirs) < 1e-10
print("all heads, by hand and in the package: equal")

# %% [markdown]
# How much of its attention does each head give to the examples while the answer is written?

# %%
writing = slice(len(query.x) - 1, None)  # the tokens that predict the answer
to_demos = torch.tensor([[attention(layer, head)[0][writing, :P][:, theta.owner >= 0].sum(1).mean()
                          for head in range(model.config.n_head)] for layer in range(model.config.n_layer)])
for layer, share in enumerate(to_demos.tolist()):
    print(f"layer {layer}: " + "  ".join(f"{100 * s:3.0f}%" for s in share))

# %% [markdown]
# ## The picture
# We draw the head that looks most at the examples. A line is a token of the question or the answer, and below it stands
# what comes next. A column is a token that it may look at, in the colour of its owner; the question itself is grey. The
# deeper the colour, the greater the weight; the root of it is drawn, so that small weights show.
# Where does the head look while it writes the first letter of the answer?

# %%
from matplotlib.colors import to_rgb

layer, head = divmod(int(to_demos.argmax()), model.config.n_head)  # or choose your own
weights = attention(layer, head)[0][writing]
owners = [colour(name) for name in ("zero_shot", "ct_kv", "ttt", "prefix_tuning", "bayes_all")]
by_column = [owners[i + 1] for i in theta.owner.tolist()] + [colour("icl")] * T
ink = torch.tensor([to_rgb(c) for c in by_column])  # (P+T, 3)
letters = [tokenizer.decode([i]).replace("<s>", "s") for i in (*context, *asked)]

figure, axes = plt.subplots(figsize=(8, 2.6))
axes.imshow((1 - weights[..., None].sqrt() * (1 - ink)).clamp(0, 1).numpy(), aspect="auto")
axes.set_xticks(range(P + T), letters, fontsize=8)
for tick, c in zip(axes.get_xticklabels(), by_column):
    tick.set_color(c)
steps = zip(letters[P:][writing], query.y)
axes.set_yticks(range(len(query.y)), [f"{now}  then {tokenizer.decode([then])}" for now, then in steps], fontsize=8)
axes.set(title=f"layer {layer}, head {head}: who is looked at", xlabel="the context by examples, then the question")
axes.tick_params(length=0)
plt.show()

# %% [markdown]
# ## Three questions
#
# <details><summary>Deleting an example and hiding it from every token: is that the same?</summary>
#
# Yes, up to rounding: both leave a sum over the other entries. Bit for bit it need not be, as the sums have other
# lengths. But the entries of *later* examples were read while it was still there. Something of it lives on in them,
# in both cases. Tutorial 06 shows when that matters.
# </details>
#
# <details><summary>Why does nanoct cache keys after RoPE, and not before?</summary>
#
# So that an entry is complete. Nothing need be known of where its token stood, and tuning may change the key freely.
# The price: a cached example cannot simply be moved. Its keys would have to be turned.
# </details>
#
# <details><summary>Each example could be cached alone, and the caches laid side by side. What would be lost?</summary>
#
# Two things. Every example would start at position 0, so they would lie on top of one another. And no example would
# have read those before it. Try it below.
# </details>

# %% [markdown]
# ## Change next
# - **Another head.** Set `layer, head` by hand. One in the last layers may read the question backwards: find it.
# - **Another task.** `"rotate"`, or `"sort"`, in place of `"reverse"`. Does the same head look at the examples?
# - **Caches side by side.** Read each example alone with `encode_context(model, (), [demo])`, join the entries, and
#   `report` it.
#
# Next: [03, reading is not learning](03_reading_is_not_learning.ipynb).
