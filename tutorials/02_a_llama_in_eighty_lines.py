# %% [markdown]
# # 02 · A Llama in eighty lines
#
# Everything in this book happens inside one kind of network, the Llama, because almost every open language model of
# today is one or differs from one in a line or two. It is small enough to write down. In this lesson we write it from
# nothing, follow one token and one attention head through it with numbers that you can check on a calculator, and end
# with a model whose logits are those of the package and of `transformers`, and which writes text with a KV cache.
#
# | | |
# |---|---|
# | **You build** | embedding, RMSNorm, RoPE, grouped-query attention with a cache, SwiGLU, head, greedy decoding |
# | **You see** | one number followed through a block, what a cache saves, and where the model breaks down |
# | **Time** | fifty minutes to read, one to run on two cores |
# | **Before** | [01, First minute](01_first_minute.ipynb); what a softmax and a matrix product are |
# | **Next** | [03, Where in-context learning comes from](03_where_in_context_learning_comes_from.ipynb) |
#
# Run it as `python tutorials/02_a_llama_in_eighty_lines.py` from the repository's root, or open the notebook. Nothing
# is downloaded.

# %%
import inspect
import json
import math
import time

import drawings
import torch
import torch.nn.functional as F
from lesson import breaks, claim, few, plt  # lesson 01 says what the first three do
from safetensors.torch import load_file

from nanoct.benchmarks import nano
from nanoct.io.tokenizer import load_tokenizer

# %% [markdown]
# ## The weights
#
# A model on a disk is two files: a table of named tensors, and a few sizes. These are of the *strings* model, which was
# trained on rules that transform short strings of letters. The names are those that every public Llama has.

# %%
folder = nano.FOLDER / "strings"
tokenizer = load_tokenizer(folder)
weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
for name in ("model.embed_tokens.weight", *[name for name in weights if ".layers.0." in name], "model.norm.weight"):
    print(f"{name:52} {tuple(weights[name].shape)}")
print(f"{sum(tensor.numel() for tensor in weights.values()):,} numbers in all")

# %% [markdown]
# Letters for the sizes, which all lessons share: L layers, C numbers for each token (the *width*), H query heads, K
# key-value heads, D numbers in a head, V tokens in the vocabulary. T will be the number of tokens that are read. The
# vocabulary is larger than an alphabet because the package's four built-in worlds share one, and this model needs only
# the letters a to p of it and some signs.
#
# Two more letters mean two things. F is the wider size inside SwiGLU, but in code it is `torch.nn.functional`, so there
# the size has no letter. And k stands for keys in this lesson, but in later ones for the number of demonstrations.

# %%
config = json.loads((folder / "config.json").read_text())
L, C, V = config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]
H, K, D = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
EPS, BASE = config["rms_norm_eps"], config["rope_theta"]
print(f"L = {L}, C = {C}, H = {H}, K = {K}, D = {D}, V = {V}; F would be {config['intermediate_size']}")

# %% [markdown]
# We shall read two solved examples of a rule and then a question. What is the rule, and what should the model write
# after the last `=`?

# %%
said = "abc=cba;dab=bad;hgfe="
tokens = torch.tensor([tokenizer.bos_id, *tokenizer.encode(said)])
T = len(tokens)
letters = ["<s>", *said]
print(f"T = {T} tokens:", tokens.tolist())


def part(layer, name):
    """A weight of a layer, such as part(0, "self_attn.q_proj"). Linear maps are (out, in)."""
    return weights[f"model.layers.{layer}.{name}.weight"]


# %% [markdown]
# ## Embedding
#
# A token is a row of a table. That row is the start of the *residual stream*: C numbers for each token, to which every
# layer adds something. We follow the last token, the `=` that has to be answered, and of its C numbers number 41. Why
# this one, we see in the next section.

# %%
x = weights["model.embed_tokens.weight"][tokens]  # (T, C)
c = 41
print("stream", tuple(x.shape), f"and number {c} of the last token is {x[-1, c]:.4f}")

# %% [markdown]
# ## RMSNorm
#
# Before a layer reads the stream, each token is divided by its own size, the *root of the mean of the squares*, and
# multiplied by one learned weight for each of the C places. So however much has been added to the stream, layers read
# numbers of about the same size:
#
# $$\mathrm{norm}(x)_c = w_c \, \frac{x_c}{\sqrt{\frac{1}{C}\sum_{j} x_j^2 + \varepsilon}}$$
#
# In the first layer the largest of these weights is that of number 41, which is why we follow it.

# %%
def rms_norm(x, weight):
    """x (…, C) -> (…, C)."""
    return weight * x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + EPS)


normed = rms_norm(x, part(0, "input_layernorm"))
assert part(0, "input_layernorm").abs().argmax() == c
number, mean, w = x[-1, c].item(), x[-1].pow(2).mean().item(), part(0, "input_layernorm")[c].item()
root = math.sqrt(mean + EPS)
print(f"by hand {w:.4f} * {number:.4f} / {root:.4f} = {w * number / root:.4f}, rms_norm says {normed[-1, c]:.4f}")
assert abs(w * number / root - normed[-1, c]) < 1e-6

# %% [markdown]
# ## Queries, keys, values
#
# Three linear maps of the normed stream. A **query** says what a token looks for, a **key** says when a token is worth
# looking at, and a **value** says what it then hands over. Each is cut into heads of D numbers. In *grouped-query
# attention* several query heads share one pair of key and value heads. That makes the cache smaller, because only keys
# and values are kept.

# %%
def heads(y, n):
    """Cut y (T, n·D) into n heads, (n, T, D)."""
    return y.view(-1, n, D).transpose(0, 1)


q = heads(normed @ part(0, "self_attn.q_proj").T, H)
k = heads(normed @ part(0, "self_attn.k_proj").T, K)
v = heads(normed @ part(0, "self_attn.v_proj").T, K)
print("queries", tuple(q.shape), "keys", tuple(k.shape), "values", tuple(v.shape))

# %%
figure, axes = drawings.canvas(26, 6.2)
for head in range(H):
    group, at = head // (H // K), 2 + 5.6 * head
    tint = drawings.mix(drawings.OWNERS[group], "#ffffff", 0.8)
    drawings.box(axes, at, 0.6, 4.4, 1.5, f"query head {head}", tint, drawings.OWNERS[group])
    drawings.arrow(axes, (at + 2.2, 2.2), (5.4 + 11.2 * group + 3.2 * (head % 2), 4.1), colour=drawings.OWNERS[group])
for group in range(K):
    tint = drawings.mix(drawings.OWNERS[group], "#ffffff", 0.8)
    drawings.box(axes, 3.7 + 11.2 * group, 4.2, 6.6, 1.5, f"key and value head {group}", tint, drawings.OWNERS[group])
plt.show()

# %% [markdown]
# ## RoPE: where a token stands
#
# Nothing so far knows the order of the tokens. RoPE (*rotary position embedding*) puts it in by turning: number d of a
# head and number d + D/2 are the two coordinates of an arrow, and at position p that arrow is turned by the angle
# $p \cdot \mathrm{base}^{-2d/D}$. The first pair turns by one radian for each position, the last ones hardly at all.
# (The base is a constant of the model. Its file calls it `rope_theta`, which has nothing to do with the cache θ.)

# %%
def rope(x, positions):
    """Turn x (n, T, D) to positions (T,)."""
    frequency = BASE ** (-torch.arange(0, D, 2) / D)  # (D/2,), radians for each position
    angle = positions[:, None] * frequency  # (T, D/2)
    a, b = x[..., : D // 2], x[..., D // 2 :]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


positions = torch.arange(T)
turned_q, turned_k = rope(q, positions), rope(k, positions)
head = 3  # of the four query heads the one that we follow
a, b, p = q[head, -1, 0].item(), q[head, -1, D // 2].item(), T - 1
print(f"head {head}, last token, first pair: ({a:.3f}, {b:.3f}), to be turned by {p} radians")
print(f"its first number by hand {a * math.cos(p) - b * math.sin(p):.3f}, rope says {turned_q[head, -1, 0]:.3f}")
assert abs(a * math.cos(p) - b * math.sin(p) - turned_q[head, -1, 0]) < 1e-5

# %% [markdown]
# The picture shows three pairs of this query as arrows, turned to the positions 0 to 5 (the fainter, the earlier).

# %%
figure, axes = plt.subplots(1, 3, figsize=(8, 2.9))
line = rope(q[head : head + 1, -1:].expand(1, 6, D), torch.arange(6))[0]  # the same query at six positions
for axis, d in zip(axes, (0, 3, 6)):
    pair = line[:, [d, d + D // 2]] / line[0, [d, d + D // 2]].norm()
    for at, (a, b) in enumerate(pair.tolist()):
        colour = drawings.mix("#ffffff", drawings.OWNERS[0], 0.25 + 0.15 * at)
        axis.annotate("", (a, b), (0, 0), arrowprops=dict(arrowstyle="-|>", color=colour, lw=1.6, shrinkA=0, shrinkB=0))
        if d == 0:
            axis.text(1.2 * a, 1.2 * b, at, color=colour, ha="center", va="center")
    axis.add_patch(plt.Circle((0, 0), 1, fill=False, color="#dddddd"))
    axis.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal", xticks=[], yticks=[])
    axis.set_title(f"d = {d}: {BASE ** (-2 * d / D):.3f} radians a position", fontsize=9)
    axis.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# Why turn? Because the dot product of two arrows depends on the angle between them, and that angle depends on the
# *distance* of the two positions alone. So a head can learn "the token three places back" once, for all places. We
# try it with the query of the last token, at position 21, and the key of the `;` at position 16, behind which its own
# question begins. Then we move both on by 300.

# %%
one_query, one_key = q[head : head + 1, -1:], k[head // 2 : head // 2 + 1, 16:17]  # (1, 1, D) each
near = rope(one_query, torch.tensor([21])) @ rope(one_key, torch.tensor([16])).mT
far = rope(one_query, torch.tensor([321])) @ rope(one_key, torch.tensor([316])).mT
print(f"positions 21 and 16: {near.item():.4f}, positions 321 and 316: {far.item():.4f}")
assert abs(near - far) < 1e-3

# %% [markdown]
# ## Attention, one head by hand
#
# The last token asks: its query is multiplied with the key of every token that it may see. Divided by $\sqrt D$ these
# are the *scores*. A softmax makes weights of them that sum to 1, and what comes out is the mean of the values, taken
# with those weights. Query heads 0 and 1 read key head 0, query heads 2 and 3 read key head 1.

# %%
group = head // (H // K)
scores = turned_k[group] @ turned_q[head, -1] / math.sqrt(D)  # (T,)
weight = scores.exp() / scores.exp().sum()
by_hand = (weight[:, None] * v[group]).sum(dim=0)  # (D,)
print("token  position   score   weight   first number of its value")
for t in weight.argsort(descending=True)[:6].tolist():
    print(f"{letters[t]:>5} {t:9d} {scores[t]:7.2f} {weight[t]:8.3f} {v[group, t, 0]:12.3f}")
print(f"… {T} weights that sum to {weight.sum():.4f}; the mean begins with {by_hand[0]:.4f}")
assert weight.argmax() == 16 and letters[16] == ";"

# %% [markdown]
# Nine tenths of its weight are on one token, the `;` behind which its own question begins. This head, in the very first
# layer, has learned to find that place, and hands over what stands there.
#
# Now for all tokens and heads at once. The *mask* says who may look at whom: a token sees itself and what stands before
# it, and never what follows, because that is what it has to predict.

# %%
def attend(q, k, v, mask):
    """q (H, T, D), k and v (K, S, D), mask (T, S) bool, True where a token may look -> (T, H·D)."""
    k = k.repeat_interleave(H // K, dim=0)  # (H, S, D): every query head beside its key head
    v = v.repeat_interleave(H // K, dim=0)
    scores = q @ k.mT / math.sqrt(D)  # (H, T, S)
    weight = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
    return (weight @ v).transpose(0, 1).flatten(1)


mask = torch.ones(T, T, dtype=torch.bool).tril()
seen = attend(turned_q, turned_k, v, mask)
ours = seen[-1, head * D : (head + 1) * D]  # of the last token what head 3 brought
print(f"{tuple(seen.shape)}; head {head} of the last token begins with {ours[0]:.4f}, by hand {by_hand[0]:.4f}")
assert torch.allclose(ours, by_hand, atol=1e-5)

# %% [markdown]
# A **cache** is nothing more than the keys and values of tokens that were read before. They are put in front of the new
# ones, and the mask gets as many columns more. In the drawing five tokens (blue) were read before; three new ones (red)
# see all of them, and each other only backwards. A row is a new token, which the red mark at its left stands for, and a
# column is what it may look at. Pale squares are what it may not see, because it comes later.

# %%
figure, axes = drawings.canvas(19, 4.4)
behind_a_cache = torch.ones(3, 8, dtype=torch.bool).tril(5)
drawings.mask(axes, 8, 1, behind_a_cache.tolist(), [1] * 3, [0] * 5 + [1] * 3)
drawings.text(axes, 10.5, 0.5, "in the cache", 9, drawings.OWNERS[0])
drawings.text(axes, 14.5, 0.5, "new", 9, drawings.OWNERS[1])
drawings.text(axes, 6.4, 2.5, "new tokens look →", 9, drawings.OWNERS[1], ha="right")
plt.show()

# %%
def attention(x, layer, positions, mask, past=None):
    """x (T, C) behind past, (keys, values) of this layer or None -> (T, C), and all keys and values (K, S, D)."""
    q = rope(heads(x @ part(layer, "self_attn.q_proj").T, H), positions)
    k = rope(heads(x @ part(layer, "self_attn.k_proj").T, K), positions)
    v = heads(x @ part(layer, "self_attn.v_proj").T, K)
    if past is not None:
        k, v = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
    return attend(q, k, v, mask) @ part(layer, "self_attn.o_proj").T, (k, v)


read, (keys, values) = attention(normed, 0, positions, mask)
print("attention adds", tuple(read.shape), "and keeps keys", tuple(keys.shape), "and values", tuple(values.shape))

# %% [markdown]
# ## SwiGLU: what a token does with what it has read
#
# The second half of a layer works on each token alone. Two maps go up to a wider space. The first is a *gate*: after
# $\mathrm{silu}(g) = g / (1 + e^{-g})$ it is about 0 where g is negative and about g where it is positive, so it
# decides how much of the second map passes. A third map comes down again. Here is one of the wide units by hand.

# %%
def swiglu(x, layer):
    gate, up = x @ part(layer, "mlp.gate_proj").T, x @ part(layer, "mlp.up_proj").T  # (T, 256) each
    return (F.silu(gate) * up) @ part(layer, "mlp.down_proj").T


middle = x + read
normed = rms_norm(middle, part(0, "post_attention_layernorm"))
g, u = (normed[-1] @ part(0, f"mlp.{name}")[0] for name in ("gate_proj", "up_proj"))
passed = g / (1 + math.exp(-g))
print(f"unit 0 of the last token: gate {g:.3f}, silu {passed:.3f}, up {u:.3f}, product {passed * u:.4f}")

# %% [markdown]
# ## The block, and the stream through it
#
# Both halves read a normed copy of the stream and *add* what they found. The stream itself runs straight through.

# %%
figure, axes = drawings.canvas(44, 11)
drawings.arrow(axes, (0.5, 9), (43.5, 9))
drawings.text(axes, 2.6, 10, "stream (T, C)", 9)
for at, name, made in ((5, "attention", 0), (25, "SwiGLU", 1)):
    tint = drawings.mix(drawings.OWNERS[made], "#ffffff", 0.8)
    drawings.arrow(axes, (at, 9), (at, 5.1))
    drawings.box(axes, at - 2, 3, 5.4, 2, "RMSNorm")
    drawings.arrow(axes, (at + 3.6, 4), (at + 6, 4))
    drawings.box(axes, at + 6.2, 3, 6.4, 2, name, tint, drawings.OWNERS[made])
    drawings.arrow(axes, (at + 9.4, 5.2), (at + 9.4, 8.2))
    drawings.box(axes, at + 8.7, 8.3, 1.4, 1.4, "+", "#ffffff", "#333333")
drawings.arrow(axes, (14.4, 2.8), (14.4, 1.3), colour=drawings.OWNERS[0])
drawings.text(axes, 14.4, 0.6, "keys and values: the cache of this layer", 9, drawings.OWNERS[0])
plt.show()

# %%
def block(x, layer, positions, mask, past=None):
    read, kv = attention(rms_norm(x, part(layer, "input_layernorm")), layer, positions, mask, past)
    x = x + read
    return x + swiglu(rms_norm(x, part(layer, "post_attention_layernorm")), layer), kv


after, _ = block(x, 0, positions, mask)
print(f"the followed number: {x[-1, c]:.4f} in, {middle[-1, c]:.4f} after attention, {after[-1, c]:.4f} after SwiGLU")

# %% [markdown]
# ## The model
#
# L blocks one behind the other, a last norm, and the *head*, which gives each token of the vocabulary a score, its
# *logit*. This model uses the embedding table itself as head (its weights are *tied*): the logit of a token is the dot
# product of the stream with that token's row.

# %%
def llama(tokens, cache=None):
    """tokens (T,) behind a cache, [(keys, values)] for each layer or None -> logits (T, V), and the longer cache."""
    P, T = (cache[0][0].shape[1] if cache else 0), len(tokens)
    positions = torch.arange(P, P + T)
    mask = torch.ones(T, P + T, dtype=torch.bool).tril(P)  # all of the past, and the new ones up to oneself
    x, longer = weights["model.embed_tokens.weight"][tokens], []
    for layer in range(L):
        x, kv = block(x, layer, positions, mask, cache[layer] if cache else None)
        longer.append(kv)
    return rms_norm(x, weights["model.norm.weight"]) @ weights["model.embed_tokens.weight"].T, longer


logits, cache = llama(tokens)
best = logits[-1].topk(3)
print("after the last =:", "  ".join(f"{tokenizer.decode([t])} {s:.2f}" for s, t in zip(best.values, best.indices)))

# %%
def greedy(tokens, n, cache=None, end=tokenizer.encode(";")[0]):
    """Write at most n tokens behind tokens (T,), always the likeliest, up to the end sign; with a cache."""
    written = []
    while len(written) < n and end not in written:
        logits, cache = llama(tokens, cache)
        tokens = logits[-1:].argmax(dim=-1)
        written.append(tokens.item())
    return written


print(said, "->", tokenizer.decode(greedy(tokens, 8)))
parts = (part, rms_norm, heads, rope, attend, attention, swiglu, block, llama, greedy)
file = "\n\n\n".join(inspect.getsource(each).strip() for each in parts)
print(len(file.splitlines()), "lines as a file, beside the six that load the weights and their sizes")

# %% [markdown]
# ## Is it the same?
#
# The package's Llama computes many rows at once, takes arbitrary masks and an adapter (lesson 09), and calls faster
# routines of torch. The numbers must be the same. As a check we take a long row of examples and compare all of its
# logits.

# %%
from nanoct.io.weights import load_model

package = load_model(folder, "cpu")


def row_of(name, n):
    """n tokens of solved examples of one task, (n,), and where answers stand in them, (n,) bool."""
    row, is_answer = [tokenizer.bos_id], [False]
    for x, y in nano.WORLDS["strings"].examples(name, 0, 1 + n // 6, 0)[0]:
        x, y = nano.encode(tokenizer, x, y)
        row, is_answer = row + x + y, is_answer + [False] * len(x) + [True] * len(y)
    return torch.tensor(row[:n]), torch.tensor(is_answer[:n])


row, _ = row_of("reverse", few(200, 40))
expected = package.logits(package(row[None])[0][0])


def check(model):
    off = (model(row)[0] - expected).abs().max() / expected.abs().max()
    assert off < 1e-5, f"logits are off by {off:.2g} of the largest"
    return off


print(f"{expected.numel():,} logits of both, the largest {expected.abs().max():.1f}; off by {check(llama):.1e} of it")

# %%
try:
    import transformers
except ImportError:
    print("transformers is not installed, so the comparison with it is skipped; `pip install transformers` brings it")
else:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        off = (llama(row)[0] - theirs(row[None]).logits[0]).abs().max() / expected.abs().max()
    assert off < 1e-5, f"logits are off from those of transformers by {off:.1e}"
    print(f"the logits of transformers {transformers.__version__}: off by {off:.1e} of the largest")

# %% [markdown]
# ## With and without the cache
#
# To write a token the model needs the keys and values of all tokens before it. Without a cache it computes them all
# anew for every token that it writes.
#
# **Predict.** A context of 40 tokens has been given, and 60 tokens are written. How many times as many tokens go
# through the model without a cache as with one?

# %%
my_guess = 10

# %%
given, written = 40, 60
with_cache = given + (written - 1)  # the context once, then each written token but the last
without = sum(given + i for i in range(written))
print(f"you: {my_guess} times; in fact {without} tokens against {with_cache}, {without / with_cache:.0f} times as many")

# %% [markdown]
# But are the answers the same? We read a row of 200 tokens in one forward pass, and once more token by token behind a
# growing cache.

# %%
def token_by_token(row):
    cache, pieces = None, []
    for t in range(len(row)):
        logits, cache = llama(row[t : t + 1], cache)
        pieces.append(logits)
    return torch.cat(pieces)


whole, cached = llama(row)[0], token_by_token(row)
print(f"largest difference of two logits: {(cached - whole).abs().max():.1e}")

# %% [markdown]
# Is that difference rounding, or a small mistake? In float32, with logits of this size, nobody can tell. So we compute
# both in float64, where rounding is a billion times smaller: a mistake would stay, and rounding goes away.

# %%
single = weights
weights = {name: tensor.double() for name, tensor in single.items()}
off = (token_by_token(row) - llama(row)[0]).abs().max()
weights = single
claim(off < 1e-6, f"cached and full forward agree to 1e-6: in float64 they differ by {off:.0e}")
assert off < 1e-6, "the cache changes the logits"
assert torch.equal(cached.argmax(dim=-1), whole.argmax(dim=-1))

# %% [markdown]
# And the time? For contexts of growing length, the milliseconds of one more token, as the best of a few tries, because
# other work on the machine can only make it slower.

# %%
def milliseconds(run, tries=few(9, 1)):
    times = []
    for _ in range(tries):
        start = time.process_time()
        run()
        times.append(1000 * (time.process_time() - start))
    return min(times)


lengths = few([16, 64, 128, 256, 384, 512], [16, 64])
row, _ = row_of("reverse", lengths[-1])
again = [milliseconds(lambda: llama(row[:n])) for n in lengths]
caches = [llama(row[: n - 1])[1] for n in lengths]
cached = [milliseconds(lambda: llama(row[n - 1 : n], cache)) for n, cache in zip(lengths, caches)]
for n, slow, fast in zip(lengths, again, cached):
    print(f"token {n:3d}: {slow:6.1f} ms read anew, {fast:5.1f} ms behind the cache")

# %%
figure, axes = plt.subplots(figsize=(8, 3))
for times, name, style, colour in ((again, "all tokens read anew", "o-", "#d1495b"),
                                   (cached, "one token behind the cache", "s--", "#2a6fbb")):
    axes.plot(lengths, times, style, color=colour)
    axes.annotate(name, (lengths[-2], times[-2]), (-12, 6), textcoords="offset points", ha="right", color=colour)
axes.set(xlabel="tokens before and with the new one", ylabel="milliseconds for it", ylim=(0, None))
plt.show()

# %% [markdown]
# The cache is also what the rest of this book is about: it holds all that the model knows of its context, L · 2 · K · D
# numbers for each token, and it can be taken apart, and trained.
#
# ## Break it
#
# Two mistakes that leave a model that runs and writes letters. In the first all tokens are at position 0, so RoPE turns
# nothing. In the second tokens look ahead. Comparing logits finds both.

# %%
rope_of_mine, attend_of_mine = rope, attend
row, _ = row_of("reverse", few(200, 40))
rope = lambda x, positions: rope_of_mine(x, 0 * positions)
print(said, "->", tokenizer.decode(greedy(tokens, 8)), "(positions are ignored)")
with breaks("positions are ignored"):
    check(llama)
rope = rope_of_mine
attend = lambda q, k, v, mask: attend_of_mine(q, k, v, torch.ones_like(mask))
wrong_and_right = tokenizer.decode(greedy(tokens, 8))
print(said, "->", wrong_and_right, "(the mask looks ahead)")
assert wrong_and_right == "efgh;"
with breaks("the mask looks ahead"):
    check(llama)

# %% [markdown]
# The second mistake even answers this question right. It is the more dangerous one, because in training it would look
# like success: the answer stands in sight, so the loss falls to almost nothing. There is a test that needs no other
# implementation. Change the last token, and nothing before it may change.

# %%
def looks_back_only(model):
    changed = row.clone()
    changed[-1] = tokenizer.encode("a")[0] if row[-1] != tokenizer.encode("a")[0] else tokenizer.encode("b")[0]
    off = (model(row)[0] - model(changed)[0])[:-1].abs().max()
    assert off == 0, f"the last token changed logits before it by up to {off:.2f}"


with breaks("the mask looks ahead"):
    looks_back_only(llama)
attend = attend_of_mine
looks_back_only(llama)
print(f"and with everything repaired: off by {check(llama):.1e}")

# %% [markdown]
# ## Where it fails
#
# RoPE is a formula, so it turns to any position, and nothing stops us from reading a row of 1,200 tokens. But this
# model was trained on rows of at most 512. We measure the loss of answers along rows of one task each. Later answers
# have more examples before them, so they ought to be easier. The loss of a token is −ln of the probability that the
# model gave it. With the natural logarithm its unit is the *nat*: 0.10 nats are a probability of 90%, and a blind guess
# among all V tokens has ln V nats.

# %%
names = ["reverse", "drop_last", "double", "swap_halves then echo", "low_first then swap_pairs"][: few(5, 1)]
n, step = few(1200, 240), 60
total, count = torch.zeros(n // step), torch.zeros(n // step)
for name in names:
    row, is_answer = row_of(name, n)
    loss = F.cross_entropy(llama(row[:-1])[0], row[1:], reduction="none")
    bins = torch.arange(n - 1)[is_answer[1:]] // step
    total.index_add_(0, bins, loss[is_answer[1:]])
    count.index_add_(0, bins, torch.ones(len(bins)))
by_place = (total / count).tolist()
inside, beyond = by_place[1 : 480 // step], by_place[600 // step :] or [0]
print(f"positions 60 to 480: {sum(inside) / len(inside):.2f} nats an answer token")
print(f"positions from 600 on: {sum(beyond) / len(beyond):.2f}")
claim(min(beyond) > max(inside) + 1, "beyond the context of its training the model has lost the rule")

# %%
figure, axes = plt.subplots(figsize=(8, 3))
axes.plot([step * (i + 0.5) for i in range(len(by_place))], by_place, "o-", color="#333333")
axes.axvline(config["max_position_embeddings"], color="#d1495b", linestyle="--")
axes.axhline(math.log(V), color="#8d8d8d", linestyle=":")
axes.text(config["max_position_embeddings"] - 10, 2.5, "the longest row\nof its training", color="#d1495b", ha="right")
axes.text(0, math.log(V) + 0.15, "a guess among all tokens", color="#8d8d8d", va="bottom")
axes.set(xlabel="position in the row, tokens", ylabel="loss, nats an answer token", ylim=(0, None))
plt.show()

# %% [markdown]
# Up to 512 the answers are nearly certain. Beyond it the loss rises to about that of a blind guess, and towards the
# end above it. The model is not unsure, it is confidently wrong: an even guess among the letters a to p and the `;`
# alone would have only ln 17, about 2.8 nats. The reason is that its heads meet angles that they were never trained at.
# The package therefore refuses a context that does not fit.
#
# The other border is the kind of text. The model was trained on letters from a to p under rules, and on nothing else.
# Other text has no tokens, and a row without any rule gets an answer all the same.

# %%
try:
    tokenizer.encode("yes=no;")
except ValueError as error:
    print(str(error).replace(str(folder), folder.name))
for nonsense in ("abc=p;fd=ooo;kk=a;gh=", "aa=b;ca=d;pp=p;eo="):
    row = torch.tensor([tokenizer.bos_id, *tokenizer.encode(nonsense)])
    sure = llama(row)[0][-1].softmax(-1).max()
    print(f"{nonsense} -> {tokenizer.decode(greedy(row, 8))} (first letter with probability {sure:.2f})")

# %% [markdown]
# ## Exercises
#
# **1. Count the parameters.** Write the number of weights of one layer in terms of C, H, K, D and the width F of the
# SwiGLU, and check that six layers, the embedding and the last norm give the number printed at the start.
#
# <details><summary>Solution</summary>
#
# Attention has C·H·D for the queries, 2·C·K·D for keys and values and H·D·C for the way back; SwiGLU has 3·C·F; the
# norms have 2·C. With C = 128, H·D = 128, K·D = 64 and F = 256 that is 147,712 a layer. Six of them are 886,272, and
# with 267·128 = 34,176 for the embedding and 128 for the last norm there are 920,576.
#
# </details>
#
# **2. A cache in two pieces.** Read the first seven tokens, keep the cache, then read the rest in one call. Which lines
# of `llama` make the positions and the mask right? Break each of the two and say what `check` would have to do to see
# it.
#
# <details><summary>Solution</summary>
#
# `positions` starts at P, and `tril(P)` opens all columns of the past. `check` reads the row in one piece, with P = 0,
# so it cannot see either; it has to compare `llama(row[7:], llama(row[:7])[1])[0]` with `expected[7:]`. With `tril()`
# in place of `tril(P)` the first new token sees only the first token of the past.
#
# </details>
#
# **3. All keys one place on.** Add 100 to all positions, of context and question alike. What happens to the logits?
#
# <details><summary>Solution</summary>
#
# Nothing but rounding: scores depend on distances. That stays true far beyond 512, where the model was never trained.
# It is not the position that breaks it above, but the distance.
#
# </details>
#
# Build attention behind a cache yourself, with tests that find what comparing answers would not:
# [A1](assignments/a1_attention/handout.md).
#
# Next: [03, Where in-context learning comes from](03_where_in_context_learning_comes_from.ipynb), where such a model is
# trained, and learns to read.
