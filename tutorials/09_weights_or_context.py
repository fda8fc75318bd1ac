# %% [markdown]
# # 07 · Weights or context: TTT, LoRA, and the bill
#
# **The claim: no method changes a bit of the model, and the bill of each is known before it runs. For a pass over k
# demonstrations TTT runs tokens in proportion to k², CT-KV to k.**
#
# There are two places to put what a task teaches. TTT and LoRA put it into weights, CT-KV puts it into the context.
# Both leave the model alone, and you will check that by a hash of all of its bits. Then you read two bills, one in
# points and one in milliseconds, and predict the last line of the second before the machine prints it.
#
# *Two minutes on a laptop, most of them in two cells. You need to know what CT-KV trains (tutorial 05). Nothing is
# downloaded. In Colab: clone the repository, run `pip install --no-deps -e .` in it, and open this notebook.*

# %%
import hashlib
import os
from dataclasses import asdict, fields

import torch
from lesson import breaks, claim, colour, few, label, plt
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanoct.benchmarks import nano
from nanoct.costs.memory import Lengths, estimate, measure
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model
from nanoct.methods import METHODS
from nanoct.runs.scaling import fit, pass_seconds
from nanoct.runs.stats import interval
from nanoct.score import evaluate

model, tokenizer = load_model(nano.FOLDER / "strings", "cpu"), load_tokenizer(nano.FOLDER / "strings")
pool, settings = nano.WORLDS["strings"].pools()["held_out"], nano.read_settings()["strings"]
task = nano.make_task("strings", pool[0], tokenizer, seed=0)
print(f"{sum(p.numel() for p in model.parameters()):,} weights; {task.name!r}, {len(task.demos)} demos")

# %% [markdown]
# ## Not a bit
#
# A hash turns all bits of the weights into one short word. Change one bit of one weight, and it is another word.

# %%
def bits(model):
    digest = hashlib.sha256()
    for p in model.parameters():
        digest.update(p.detach().numpy().tobytes())
    return digest.hexdigest()[:16]


before = bits(model)
print("before:", before)

# %% [markdown]
# Now every method of the package adapts to the task, for a step or two. What it trains is a tensor of its own. It comes
# back as an **adapter**, which stands in for linear maps, or as a **prefix**, the keys and values of a context. Some
# methods return both.

# %%
def config_of(method, **changes):
    """The method's settings in this world, changed where it has such a field."""
    Config = METHODS[method].Config
    names = {field.name for field in fields(Config)}
    return Config(**settings.get(method, {}) | {name: value for name, value in changes.items() if name in names})


print(f"{'':14} {'adapter':>8} {'prefix':>7} {'trained':>9}   hash of the model")
for method in METHODS:
    adapted = METHODS[method].adapt(model, task, config_of(method, n_step=1, ttt_n_step=1))
    entries = len(adapted.prefix.owner) if adapted.prefix else 0
    print(f"{method:14} {len(adapted.adapter or {}):8d} {entries:7d} {adapted.n_trained:9,}   {bits(model)}")
    assert bits(model) == before

# %% [markdown]
# Read the columns. LoRA changes linear maps and keeps no demos. CT-KV keeps every demo and changes no linear map. TTT
# changes linear maps *and* reads the demos. TTT+CT-KV trains both.
#
# ## Break it
#
# Many a LoRA is merged: B A is added to the weight, as that is faster to serve. Then the model is no longer the model,
# and the next task starts from the last one's. Does the hash see it? We add one rank-1 product to one of the weights, a
# small one, and take it back.

# %%
weight = model.linears["layers.3.self_attn.q_proj"].weight
kept = weight.detach().clone()
generator = torch.Generator().manual_seed(0)
a, b = torch.randn(1, weight.shape[1], generator=generator), torch.randn(weight.shape[0], 1, generator=generator)
with torch.no_grad():
    weight += 1e-3 * b @ a
with breaks("an adapter was merged into the model"):
    assert bits(model) == before, f"the model is {bits(model)}, it was {before}"
with torch.no_grad():
    weight -= 1e-3 * b @ a
print("taken back by subtraction:", "the same bits" if bits(model) == before else "not the same bits")
with torch.no_grad():
    weight.copy_(kept)
assert bits(model) == before

# %% [markdown]
# Subtraction does not bring the bits back, as it rounds once more. So nanoct never merges.
#
# ## The bill in points
#
# Which place is better? We score on questions that were not trained on, and pair the methods by task: each difference
# is between two scores on the same questions. The interval is over tasks. *Guess first.* Is CT-KV above TTT, below, or
# level?

# %%
my_guess = "level"  # both see all demos
tasks = [nano.make_task("strings", name, tokenizer, seed=0) for name in pool[: few(12, 1)]]
SHOWN = ("icl", "lora", "ttt", "ct_kv", "ttt_ct_kv")
quick = few({}, dict(n_step=1, ttt_n_step=1))
score = {}
for method in SHOWN:
    config = config_of(method, **quick)
    score[method] = [100 * evaluate(METHODS[method].adapt(model, t, config), t).score for t in tasks]
    print(f"{label(method):10} {sum(score[method]) / len(tasks):5.1f}% of the answers right, {len(tasks)} tasks")

# %%
def minus(a, b):
    """Mean of the differences in points, paired by task, and half the width of its 95% interval."""
    return interval([x - y for x, y in zip(score[a], score[b])])


for a, b in (("ct_kv", "icl"), ("ttt", "icl"), ("ct_kv", "ttt"), ("ct_kv", "lora"), ("ttt_ct_kv", "ttt")):
    centre, half = minus(a, b)
    verdict = "above" if centre > half else "below" if centre < -half else "level"
    print(f"{label(a):10} - {label(b):6} {centre:+6.1f} ± {half:4.1f}   {verdict}")
print(f"my guess for CT-KV and TTT: {my_guess}")

# %%
centre, half = minus("ct_kv", "lora")
claim(centre - half > 0, f"CT-KV is {centre:.1f} ± {half:.1f} points above LoRA, which never sees two demos together")

# %% [markdown]
# An interval of one world says nothing of another. On real words the order may differ; tutorial 09 measures it.
#
# ## The bill in FLOPs
#
# A FLOP is one multiplication or one addition. A frozen model of N weights costs 2N of them per token forward, and 2N
# more for the gradient of the inputs. The gradient of the weights, which would be another 2N, is never computed. Each
# method's `footprint` says which tokens it runs, and `nanoct.costs.memory` adds up. Is the sum right? PyTorch can count
# while it runs.

# %%
lengths = Lengths(len(task.instruction), [(len(d.x), len(d.y)) for d in task.demos], query=1)


def flops(method):
    """(by formula, counted) FLOPs of one step: two steps less one step."""
    said, counted = [], []
    for n in (1, 2):
        config = config_of(method, n_step=n, ttt_n_step=n, rank=1)  # the formula leaves the adapter's own work out
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the one it can count
            METHODS[method].adapt(model, task, config)
        counted.append(counter.get_total_flops())
        said.append(estimate(model.config, method, asdict(config), lengths).flops)
    return said[1] - said[0], counted[1] - counted[0]


for method in few([name for name in METHODS if hasattr(METHODS[name].Config, "n_step")], ["ttt", "ct_kv"]):
    said, counted = flops(method)
    off = said / counted - 1
    print(f"{method:14} {said / 1e6:6,.0f} million by formula, {counted / 1e6:6,.0f} counted, {off:+.1%}")
    assert abs(off) < 0.05, f"{method}: {off:+.1%}"

# %% [markdown]
# ## A pass
#
# Steps of two methods are not alike, so we compare a **pass**: every demo is the target once, with the others in
# context. CT-KV's pass is one row of all pairs. In TTT's row only the last demo has all the others before it, so its
# pass takes k rows, each of all demos. Count the tokens of k demos of twelve tokens each.

# %%
def of_pass(method, k):
    """The Estimate of a step that is a pass over k demos of twelve tokens, two of them the answer."""
    config = asdict(config_of(method, batch=k))
    return estimate(model.config, method, config, Lengths(0, [(10, 2)] * k, query=1))


tokens = dict(ct_kv=lambda k: k * 11, ttt=lambda k: k * (12 * k - 1))  # the last token of a row predicts nothing
print(f"{'':6}{'tokens':^18}{'million FLOPs':^22}")
print(f"{'k':>3} {'CT-KV':>9} {'TTT':>9} {'CT-KV':>10} {'TTT':>10}")
for k in (4, 8, 16, 32):
    ours, theirs = (of_pass(method, k).flops_step / 1e6 for method in ("ct_kv", "ttt"))
    print(f"{k:3d} {tokens['ct_kv'](k):9,} {tokens['ttt'](k):9,} {ours:10,.0f} {theirs:10,.0f}")

# %% [markdown]
# Twice the demos are twice the tokens for CT-KV and four times the tokens for TTT. FLOPs grow a little faster than
# tokens, as each token also looks at a longer context. In a large model that part is small, and here it is not.

# %%
for method, n in tokens.items():
    flop = of_pass(method, 32).flops_step / of_pass(method, 16).flops_step
    print(f"{label(method):6} from k = 16 to 32: tokens times {n(32) / n(16):.2f}, FLOPs times {flop:.2f}")
    assert flop > 4 if method == "ttt" else flop < 3.5

# %% [markdown]
# ## The bill in milliseconds and gigabytes
#
# Now the clock, for all k but the last. Beside it stands the memory that a pass needs beside the weights, by formula.

# %%
K, LAST = few(((4, 8, 16, 24), 32), ((2, 3), 4))
ms = {method: [1e3 * pass_seconds(model, method, k) for k in K] for method in tokens}
print(f"{'':6}{'milliseconds':^18}{'GB':^22}")
print(f"{'k':>3} {'CT-KV':>9} {'TTT':>9} {'CT-KV':>10} {'TTT':>10}")
for i, k in enumerate(K):
    ours, theirs = (of_pass(method, k).beside / 1e9 for method in ("ct_kv", "ttt"))
    print(f"{k:3d} {ms['ct_kv'][i]:9.0f} {ms['ttt'][i]:9.0f} {ours:10.4f} {theirs:10.4f}")

# %% [markdown]
# **Predict the last line.** How many times the milliseconds and the gigabytes of the line above will it be? Type two
# numbers for each method. The clock is noisy, so come within a third.

# %%
my_guess = {"ct_kv": (1.3, 1.3), "ttt": (1.3, 1.3)}  # a third more demos, so a third more of everything
curve = {method: fit(K, ms[method]) for method in ms}  # (a, b) of a·k + b·k²
for method, (a, b) in curve.items():
    said = my_guess[method][0] * ms[method][-1], my_guess[method][1] * of_pass(method, K[-1]).beside / 1e9
    print(f"{label(method):6} I say {said[0]:6.0f} ms and {said[1]:.4f} GB; "
          f"{a:.2f} k {b:+.3f} k² says {a * LAST + b * LAST**2:6.0f} ms")

# %% [markdown]
# And now we run it.

# %%
os.environ["KINETO_LOG_LEVEL"] = "6"  # the profiler, which sees the bytes, keeps quiet
last, ratio = {}, {}
for method in tokens:
    last[method] = 1e3 * pass_seconds(model, method, LAST)
    guess, measured = measure(method, model, k=LAST, context=12 * LAST, **({"batch": LAST} if method == "ttt" else {}))
    ratio[method] = guess / measured
    print(f"{label(method):6} {last[method]:6.0f} ms, {measured / 1e9:.4f} GB; the formula said {guess / 1e9:.4f} GB")
claim(all(0.8 < r < 1.25 for r in ratio.values()), "the formula knows the peak of memory to a fifth")

# %%
first, end = ms["ttt"][0] / ms["ct_kv"][0], last["ttt"] / last["ct_kv"]
claim(end > 1.5 * first, f"TTT takes {first:.1f} times CT-KV's time at k = {K[0]}, {end:.1f} times at k = {LAST}")

# %% [markdown]
# ## The picture
#
# To the left the bill in points, each method against ICL. To the right the bill in milliseconds. The rings are what the
# curves predicted, the large dots what came.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), width_ratios=(1, 1.25))
for y, method in enumerate(reversed(SHOWN[1:])):
    centre, half = minus(method, "icl")
    left.errorbar(centre, y, xerr=half, color=colour(method), marker="o", markersize=8, capsize=4, linewidth=2)
left.axvline(0, color=colour("icl"), linestyle="--", linewidth=1)
left.set(yticks=range(len(SHOWN) - 1), yticklabels=[label(m) for m in reversed(SHOWN[1:])], ylim=(-0.6, 3.6))
left.set(xlabel="points above ICL, paired by task, 95%", title=f"{len(tasks)} tasks of strings")
at = torch.linspace(K[0], LAST, 60)
for method, (a, b) in curve.items():
    right.plot(K, ms[method], "o", color=colour(method), markersize=5)
    right.plot(at, a * at + b * at**2, color=colour(method), linewidth=1.5)
    right.plot(LAST, a * LAST + b * LAST**2, "o", markersize=13, markerfacecolor="none", color=colour(method))
    right.plot(LAST, last[method], "o", color=colour(method), markersize=7)
    above = method == "ttt"
    right.annotate(f"{label(method)}: {a:.2g} k {b:+.2g} k²", (at[24], (a * at + b * at**2)[24]), color=colour(method),
                   xytext=(-8, 12) if above else (0, -22), textcoords="offset points", ha="right" if above else "left",
                   fontweight="bold")
right.set(xscale="log", yscale="log", xlabel="k, demos", ylabel="milliseconds a pass", title="a pass over k demos")
right.set_xticks([*K, LAST], [*K, LAST])
right.minorticks_off()
plt.show()

# %% [markdown]
# On these log axes a straight line of slope two is k², of slope one k. TTT's is the steeper. CT-KV flattens at the
# small end: there a pass is so short that the clock sees Python and not the model. The fit has no term for that, and
# none for TTT's attention, which grows with k³. So a coefficient may come out below 0.
#
# ## Three questions
#
# **1. When would you take TTT, and when CT-KV?**
#
# <details><summary>Answer</summary>
#
# Contexts of many tasks can be served in one batch, as the model is the same for all and a context is an input like any
# other. Adapters take more: a product per task in every layer. With many demos CT-KV is also the cheaper one to tune.
# Where only the last points count, TTT+CT-KV trains both. Look at its interval, and not at its mean.
#
# </details>
#
# **2. A step of pretraining costs 6N FLOPs a token, and the formula here says 4N. Where did 2N go?**
#
# <details><summary>Answer</summary>
#
# Backward is two products for each linear map: the gradient of its input and the gradient of its weight. The weights
# are frozen, so the second is not computed. LoRA needs it for its two thin matrices alone. The check above used rank 1,
# where that is next to nothing.
#
# </details>
#
# **3. Why is the memory of TTT's pass so much larger, when its adapter is no larger than CT-KV's theta?**
#
# <details><summary>Answer</summary>
#
# What fills it is not what is trained. The backward pass needs the numbers that every token left in every layer, and
# TTT's pass has k times as many tokens. TTT may take fewer orders in a step and more steps, and then it pays in time.
#
# </details>
#
# ## Change next
#
# - Run the points on `facts`. The order of the methods is another one there.
# - Set `rank=16` in `flops` and see by how much the formula falls short. Then add the missing products.
# - Merge an adapter in place and run a second task on the merged model. How many points does it lose?
# - `nanoct memory` checks the bytes of every method, `nanoct speed` the seconds.
