# %% [markdown]
# # 09 · Weights or context: LoRA and TTT
#
# There are two places to put what ten demonstrations teach. CT-KV puts it into the context. Test-time training (TTT),
# its strongest rival, puts it into small matrices beside the weights, and then reads the demonstrations again under the
# new weights. In this lesson we write LoRA and TTT, and then we compare what one waits for: seconds and tokens, first
# as the methods are used, then as they grow with the number of demonstrations.
#
# | | |
# |---|---|
# | **You build** | LoRA in ten lines; TTT's random orders, its loss and its loop; bit for bit the package's |
# | **You see** | seconds and scores of CT-KV and TTT, where TTT wins, and how both grow with k |
# | **Time** | twenty minutes to read, one to run on two cores |
# | **Before** | [08, How tuning cheats](08_how_tuning_cheats.ipynb), and 06 for the loop |
# | **Next** | [10, Where to start](10_where_to_start.ipynb) |
#
# Run it as `python tutorials/09_weights_or_context.py` from the repository's root, or open the notebook. Nothing is
# downloaded.

# %%
import json
import math
import time
from statistics import median

import drawings
import torch
import torch.nn.functional as F
from lesson import breaks, claim, colour, few, label, plt  # few(in a full run, in a quick test)

from nanoct.benchmarks import nano
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model
from nanoct.score import evaluate

model, tokenizer = load_model(nano.FOLDER / "strings", "cpu"), load_tokenizer(nano.FOLDER / "strings")
names = nano.pick("strings", "held_out", ["3"], None)  # the first three held-out tasks
task = nano.make_task("strings", names[0], tokenizer, seed=0)
demos, k = task.demos, len(task.demos)
before = [weight.detach().clone() for weight in model.parameters()]
print(f"{sum(weight.numel() for weight in before):,} weights; {task.name!r}, {k} demonstrations")

# %% [markdown]
# ## LoRA
#
# A linear map of the model computes $Wx$, with a weight $W$ of out × in numbers. LoRA (low-rank adaptation) leaves $W$
# as it is and adds a product of two thin matrices:
#
# $$\left(W + \frac{\alpha}{r}\, B A\right) x$$
#
# $A$ has r rows and $B$ has r columns, where r, the *rank*, is small. So r · (in + out) numbers are trained and not
# in · out. The factor α/r keeps the change about as large when one tries another rank.

# %%
figure, axes = drawings.canvas(40, 13)
drawings.box(axes, 1, 2.5, 9, 9, "W\nout × in\nfrozen", "#e6e6e6")
drawings.text(axes, 12.2, 7, "+   α/r ·", 13)
for x in (0.4, 14.9):
    drawings.text(axes, x, 7, "out", 10, drawings.OWNERS[0] if x > 1 else drawings.INK, rotation=90)
drawings.text(axes, 5.5, 1.5, "in", 10)
drawings.box(axes, 15.5, 2.5, 2, 9, "B", "#dbe7f5", drawings.OWNERS[0], 12)
drawings.box(axes, 18.5, 2.5, 9, 2, "A", "#dbe7f5", drawings.OWNERS[0], 12)
drawings.text(axes, 16.5, 1.5, "r", 10, drawings.OWNERS[0])
drawings.text(axes, 23, 1.5, "in", 10, drawings.OWNERS[0])
drawings.text(axes, 18.6, 9.5, "B starts at zero, so training\nstarts at the model", 9, drawings.NOBODY, ha="left")
drawings.text(axes, 29.5, 5, "B·A has the shape of W,\nbut it is computed as two\nthin maps, and never\nadded to W", 9,
              ha="left", linespacing=1.5)
plt.show()

# %% [markdown]
# In code it is an object that takes the place of the linear map. In training, dropout sets some of its inputs to 0.

# %%
class MyLoRA:
    def __init__(self, weight, rank, alpha, dropout, generator):
        n_out, n_in = weight.shape
        bound = 1 / math.sqrt(n_in)
        self.a = torch.zeros(rank, n_in).uniform_(-bound, bound, generator=generator).requires_grad_()
        self.b = torch.zeros(n_out, rank).requires_grad_()
        self.scale, self.dropout, self.generator = alpha / rank, dropout, generator

    def __call__(self, x, weight):
        y = F.linear(x, weight)
        dropped = x * (torch.rand(x.shape, generator=self.generator) >= self.dropout) / (1 - self.dropout)
        return y + self.scale * F.linear(F.linear(dropped, self.a), self.b)


def my_adapter(model, config, seed):
    """A LoRA for every linear map but the keys', as in the paper: {name of the linear map: LoRA}."""
    generator = torch.Generator().manual_seed(seed)
    return {name: MyLoRA(linear.weight, config.rank, config.alpha, config.dropout, generator)
            for name, linear in model.linears.items() if not name.endswith("k_proj")}


# %% [markdown]
# **Why does B start at zero?** So that training starts at the model itself: the logits are the same to the last bit.
# But A must not be zero as well. The gradient of each of the two matrices has the other as a factor, so with both at
# zero neither would ever move.

# %%
from nanoct.methods import ttt

config = ttt.Config(**nano.read_settings()["strings"]["ttt"])
adapter = my_adapter(model, config, seed=0)
tokens = torch.tensor([[*demos[0].x, *demos[0].y]])
plain, with_lora = (model.logits(model(tokens, adapter=each)[0]) for each in (None, adapter))
assert torch.equal(plain, with_lora)
part = adapter["layers.0.self_attn.q_proj"]
of_a, of_b = torch.autograd.grad(with_lora.logsumexp(-1).sum(), [part.a, part.b])
print(f"A {tuple(part.a.shape)}, B {tuple(part.b.shape)}; {len(adapter)} linear maps, "
      f"{sum(part.a.numel() + part.b.numel() for part in adapter.values()):,} numbers to train")
print(f"largest gradient at the start: of A {of_a.abs().max():.3f}, of B {of_b.abs().max():.3f}")
assert of_a.abs().max() == 0 < of_b.abs().max()

# %% [markdown]
# ## What TTT trains on
#
# TTT trains on the demonstrations as a text, one behind the other, and asks for *all* answers of that text. An answer
# is predicted from the demonstrations before it, so the first one has nothing to go by, and the last one has all the
# others. That is why every step draws new **random orders**, `batch` of them.

# %%
figure, axes = drawings.canvas(40, 10.5)
for line, order in enumerate(([2, 0, 3, 1], [1, 3, 2, 0], [0, 2, 1, 3])):
    for at, i in enumerate(order):
        drawings.box(axes, 1 + 6.5 * at, 1.6 + 2.8 * line, 6, 1.8, f"x{'₀₁₂₃'[i]} → y{'₀₁₂₃'[i]}",
                     drawings.mix(drawings.OWNERS[i], "#ffffff", 0.75), drawings.OWNERS[i])
drawings.text(axes, 3.9, 0.7, "nothing before it", 9, drawings.NOBODY)
drawings.text(axes, 23.5, 0.7, "all others before it", 9, drawings.NOBODY)
drawings.text(axes, 34, 5.2, "a row is an order;\nin each row only the\nlast answer has all\nothers in sight", 9)
plt.show()

# %%
def row_of(task, order):
    """The tokens of the demonstrations in this order (1, P), and which of them are answers (P,)."""
    tokens, is_answer = list(task.instruction), [False] * len(task.instruction)
    for i in order:
        x, y = task.demos[i].x, task.demos[i].y
        tokens += [*x, *y]
        is_answer += [False] * len(x) + [True] * len(y)
    return torch.tensor([tokens]), torch.tensor([is_answer])


def loss_of(model, task, orders, adapter=None):
    """Mean loss of all answer tokens of these orders; all rows are equally long, so there is no padding."""
    tokens, is_answer = (torch.cat(parts) for parts in zip(*(row_of(task, order) for order in orders)))
    hidden, _ = model(tokens[:, :-1], adapter=adapter)
    targets = is_answer[:, 1:]  # a token is predicted by the one before it
    return F.cross_entropy(model.logits(hidden[targets]), tokens[:, 1:][targets])


with torch.no_grad():
    print(f"loss of two orders before training: {loss_of(model, task, [range(k), range(k)[::-1]]):.3f}")

# %% [markdown]
# ## The loop
#
# The optimiser is that of lesson 06: AdamW, a cosine, gradients clipped at norm 1. What is new is what comes after it:
# the demonstrations are **read again** under the trained weights, and their cache stands before every question. TTT is
# in-context learning with a model that was trained to do it on these demonstrations.

# %%
def my_ttt(model, task, config, seed=0):
    """Returns the trained adapter, and the keys and values of the demonstrations read with it."""
    order, k = torch.Generator().manual_seed(seed), len(task.demos)
    adapter = my_adapter(model, config, seed)
    leaves = [leaf for part in adapter.values() for leaf in (part.a, part.b)]
    optimizer = torch.optim.AdamW(leaves, lr=config.lr, betas=(0.9, 0.999), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.n_step)
    for _ in range(config.n_step):
        orders = [torch.randperm(k, generator=order).tolist() for _ in range(config.batch)]
        loss = loss_of(model, task, orders, adapter)
        optimizer.zero_grad()
        loss.backward(inputs=leaves)
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        schedule.step()
    for part in adapter.values():
        part.dropout = 0.0
    with torch.no_grad():
        tokens, _ = row_of(task, range(k))
        _, kv = model(tokens, adapter=adapter)
    return adapter, kv


# %% [markdown]
# Is it the package's? We compare every matrix and every entry of the cache.

# %%
config.n_step = few(config.n_step, 2)  # two steps, since the first leaves A as it is
adapter, kv = my_ttt(model, task, config)
theirs = ttt.adapt(model, task, config)
for name, part in theirs.adapter.items():
    assert torch.equal(adapter[name].a, part.a) and torch.equal(adapter[name].b, part.b), f"{name} differs"
for mine, their in zip(kv, theirs.prefix.kv):
    assert torch.equal(mine[0], their[0]) and torch.equal(mine[1], their[1]), "the caches differ"
print(f"{theirs.n_trained:,} trained numbers and {len(theirs.prefix.owner)} entries, all of them equal; {config}")
some = [torch.randperm(k, generator=torch.Generator().manual_seed(s)).tolist() for s in range(100, 108)]
with torch.no_grad():
    losses = [loss_of(model, task, some, each).item() for each in (None, adapter)]
print("loss of eight other orders, without dropout: {:.3f} before, {:.3f} after".format(*losses))
assert losses[1] < losses[0]

# %% [markdown]
# ## Break it: merge the adapter
#
# Many programs *merge* a LoRA: they add $\frac{\alpha}{r} BA$ to $W$, because that is faster to serve. Then the model
# is no longer the model, and taking the product away again does not bring it back, since every sum rounds. So the
# package never merges, and the check below holds for TTT and for CT-KV.

# %%
def check_untouched():
    for weight, was in zip(model.parameters(), before):
        assert torch.equal(weight, was), "a weight of the model has changed"


check_untouched()
part, weight = adapter["layers.3.self_attn.q_proj"], model.linears["layers.3.self_attn.q_proj"].weight
kept = weight.detach().clone()
with torch.no_grad():
    weight += part.scale * part.b @ part.a
    weight -= part.scale * part.b @ part.a
with breaks("an adapter was merged, and taken away again"):
    check_untouched()
with torch.no_grad():
    weight.copy_(kept)
check_untouched()

# %% [markdown]
# ## As one waits for it
#
# How long does each of the two take at its chosen settings, that is, those that scored best on other tasks? **Guess:**
# TTT's time on a task of strings, as a multiple of CT-KV's.

# %%
my_guess = 1.5

# %%
from nanoct.methods import ct_kv, icl

quick = few({}, dict(n_step=2))
chosen = {"ct_kv": ct_kv.Config(**nano.read_settings()["strings"]["ct_kv"] | quick),
          "ttt": ttt.Config(**nano.read_settings()["strings"]["ttt"] | quick)}
seconds = {"ct_kv": [], "ttt": []}
for name in names[1 : few(3, 2)]:
    asked = nano.make_task("strings", name, tokenizer, seed=0, n_query=few(30, 4))
    print(f"{name}: ICL {100 * evaluate(icl.adapt(model, asked), asked).score:.0f}%", end="")
    for method, adapt in (("ct_kv", ct_kv.adapt), ("ttt", ttt.adapt)):
        begin = time.process_time()
        adapted = adapt(model, asked, chosen[method])
        seconds[method].append(time.process_time() - begin)
        print(f", {label(method)} {100 * evaluate(adapted, asked).score:.0f}% in {seconds[method][-1]:.1f} s", end="")
    print()
times = sum(seconds["ttt"]) / sum(seconds["ct_kv"])
print(f"you: {my_guess}; in fact {times:.1f} times")
claim(times > 2, f"at the chosen settings for strings TTT takes {times:.1f} times CT-KV's CPU seconds")

# %% [markdown]
# The tokens explain it. Both make as many steps here, but a step of CT-KV is one row of all pairs, and a step of TTT is
# `batch` rows of all demonstrations.

# %%
lengths = [len(demo.x) + len(demo.y) for demo in demos]
P = len(task.instruction) + sum(lengths)
tokens_of_step = {"ct_kv": sum(lengths) - k, "ttt": config.batch * (P - 1)}  # the last token predicts nothing
for method, n in tokens_of_step.items():
    n_step = nano.read_settings()["strings"][method]["n_step"]
    print(f"{label(method):6} {n_step} steps of {n:4d} tokens, {n_step * n:6,} tokens in all")

# %% [markdown]
# Two tasks are few. These are the committed lines of all held-out tasks, 24 a world with three seeds of demonstrations,
# and of the real words with SmolLM2. The difference is paired by task, with its 95% interval.

# %%
from nanoct.runs import results, stats

lines = results.read(nano.FOLDER / "results/full.jsonl")
words = results.read(nano.FOLDER.parent / "smollm2/results/results.jsonl")
groups = stats.settings([*lines, *words])
timed = results.read(nano.FOLDER.parent / "smollm2/results/timing.jsonl")
print(f"{'':8} {'CT-KV':>6} {'TTT':>6}  {'CT-KV - TTT':>13}  {'CT-KV s':>8} {'TTT s':>6}")
minus = {}
for world, methods in groups.items():
    settings = nano.read_settings().get(world, {})
    pick = lambda method: [each for each in methods[method] if each.config.items() >= settings.get(method, {}).items()]
    (ours,), (theirs,) = pick("ct_kv"), pick("ttt")
    taken = [ours.seconds, theirs.seconds]
    if world == "words":  # their seconds are of a quiet run of its own
        taken = [median(line["seconds"] for line in timed if line["method"] == each) for each in ("ct_kv", "ttt")]
    minus[world] = ours.minus(theirs)
    assert world not in ("strings", "grids") or 3.5 < taken[1] / taken[0] < 5
    print("{:8} {:6.1f} {:6.1f}  {:+6.1f} ± {:4.1f}  {:8.2f} {:6.2f}".format(
        world, ours.score, theirs.score, *minus[world], *taken))

# %% [markdown]
# ## Where TTT wins
#
# In strings and grids TTT at its full number of steps is ahead, by an interval that excludes zero, and it takes about
# four times the seconds. In lexicon and on words the two are statistically indistinguishable, and in facts CT-KV is far
# ahead. In lexicon and facts they also take about the same seconds, because CT-KV was given more steps there.

# %%
for world in ("strings", "grids"):
    centre, half = minus[world]
    claim(centre + half < 0, f"in {world} TTT is ahead of CT-KV by {-centre:.1f} ± {half:.1f} points")

# %% [markdown]
# But nobody has to wait for all the steps. Both methods also ran with fewer, **each number of steps at the rate that
# was best for it on validation tasks**, since two steps want a larger rate than 32. So we can ask which of the two is
# ahead after the same seconds. Beside each run of TTT we put the longest run of CT-KV that takes at most a tenth more.

# %%
WORLDS = "strings", "grids", "lexicon", "facts"
by_steps = {at: sorted(groups[at[0]][at[1]], key=lambda each: each.config["n_step"])
            for at in [(world, method) for world in WORLDS for method in ("ct_kv", "ttt")]}
said = "{:3} steps at {:<6g}{:5.2f} s {:5.1f} %"
ahead = {}
for world in WORLDS:
    for theirs in by_steps[world, "ttt"]:
        ours = [each for each in by_steps[world, "ct_kv"] if each.seconds <= 1.1 * theirs.seconds][-1]
        centre, half = ours.minus(theirs)
        ahead[world, theirs.config["n_step"]] = "nobody" if abs(centre) < half else "CT-KV" if centre > 0 else "TTT"
        both = (said.format(each.config["n_step"], each.config["lr"], each.seconds, each.score)
                for each in (theirs, ours))
        print("{:8}TTT {}   CT-KV {}   {:+5.1f} ± {:.1f}".format(world, *both, centre, half))
for world in WORLDS:
    print(f"ahead in {world}: " + ", ".join(ahead[world, n] for n in (2, 8, 32)))
assert [ahead["strings", n] for n in (2, 8, 32)] == ["TTT", "nobody", "TTT"]
assert [ahead["grids", n] for n in (2, 8, 32)] == ["nobody", "nobody", "TTT"]
assert [ahead["lexicon", n] for n in (2, 8, 32)] == ["CT-KV", "CT-KV", "nobody"]
assert [ahead["facts", n] for n in (2, 8, 32)] == ["CT-KV"] * 3

# %%
figure, panels = plt.subplots(1, 2, figsize=(8, 3.8))
for axes, world in zip(panels, ("strings", "facts")):
    for method, style, below in (("ct_kv", "o-", world == "strings"), ("ttt", "s--", False)):
        at = [(each.seconds, each.score) for each in by_steps[world, method]]
        axes.plot(*zip(*at), style, color=colour(method))
        for each, place in zip(by_steps[world, method], at):
            axes.annotate(each.config["n_step"], place, xytext=(0, -13) if below else (-4, 7), fontsize=8,
                          textcoords="offset points", color=colour(method), ha="center")
        axes.annotate(label(method), at[-1], xytext=(9, 0), textcoords="offset points", va="center",
                      color=colour(method), weight="bold")
    (read,) = groups[world]["icl"]
    axes.axhline(read.score, color=colour("icl"), linestyle=":")
    axes.text(0.98, read.score - 0.5, "ICL", color=colour("icl"), ha="right", va="top",
              transform=axes.get_yaxis_transform())
    axes.set(xscale="log", xlabel="seconds a task (log scale)", ylabel="answers right, %", title=world)
    axes.set_xlim(0.035, 16)
    axes.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
panels[0].set_ylim(56, 82)
panels[1].set_ylim(15, 105)
plt.show()

# %% [markdown]
# The numbers at the points are the steps. In strings two steps of either method bring most of its gain, and two of TTT
# are worth 32 of CT-KV, so TTT is ahead early and late, and in between the two are statistically indistinguishable. In
# grids they are so until TTT's 32 steps, which take longest. In facts CT-KV is ahead at every number of seconds, and in
# lexicon too, until TTT's 32 steps bring it level. (In strings CT-KV's 8 steps are no better than its 2, although
# validation tasks preferred them: one more reason not to read much into a single point.)
#
# Was TTT stopped too early in facts? The sweep goes on to 128 steps only where more steps had paid, and TTT with 128
# was not tried. Its nearest relative was, LoRA on single pairs:

# %%
of_lora = stats.settings(results.read(nano.FOLDER / "results/sweep.jsonl"))["facts"]["lora"]
short, long = (stats.chosen(of_lora, dict(n_step=n, lr=0.003)) for n in (32, 128))
centre, half = long.minus(short)
print(f"LoRA in facts, validation tasks: 128 steps minus 32: {centre:+.1f} ± {half:.1f} points")
assert centre + half < 0

# %% [markdown]
# Those steps did harm, so there is no sign that more would help TTT. All settings that were tried stand in [the
# sweep](../weights/nano/results/sweep.md).
#
# ## How it grows with k
#
# Steps of two methods are not alike, so for the question of growth one compares a **pass**: every demonstration is a
# target once, with all the others in its context. CT-KV's step is such a pass. In TTT's row only the last answer has
# all the others before it, so its pass takes k rows, each of all k demonstrations. TTT *as it is used* never runs such
# a pass, because it draws `batch` orders a step, four here, whatever k is. So the pass says how the two compare at
# equal work for each demonstration, and not how long one waits.
#
# **Guess.** From 16 demonstrations to 32, what are the tokens of TTT's pass multiplied by? And its seconds?

# %%
my_guess_pass = (2.0, 2.0)

# %%
passes = [json.loads(line) for line in (nano.FOLDER / "results/passes.jsonl").read_text().splitlines()]
ms = {"ct_kv": {}, "ttt": {}}
for line in passes:
    if line["model"] == "random, 24M" and line["method"] in ms:
        ms[line["method"]][line["k"]] = 1000 * line["seconds"]
n_token = dict(ct_kv=lambda k: k * 11, ttt=lambda k: k * (12 * k - 1))  # demonstrations of twelve tokens
print(f"{'k':>3} {'CT-KV tokens':>13} {'ms':>6} {'TTT tokens':>12} {'ms':>8}")
for n in ms["ttt"]:
    print(f"{n:3d} {n_token['ct_kv'](n):13,} {ms['ct_kv'][n]:6.0f} {n_token['ttt'](n):12,} {ms['ttt'][n]:8,.0f}")
for method, of_k in ms.items():
    more = n_token[method](32) / n_token[method](16)
    print(f"{label(method)}, from k = 16 to 32: tokens times {more:.2f}, seconds times {of_k[32] / of_k[16]:.2f}")
print(f"you, for TTT: {my_guess_pass}")

# %% [markdown]
# These lines are of a random Llama of 24 million weights on one core, large enough that its matrices take the time. The
# slope of a line on two logarithmic axes is the power of k. Beside it stands what one waits for in strings, at the
# chosen settings, with the same four tasks at each k.

# %%
def slope(of_k):
    """The power of k, between k = 4 and k = 32; at k = 2 what a step costs at any length takes most of the time."""
    return math.log(of_k[32] / of_k[4]) / math.log(32 / 4)


waits = {"ct_kv": {}, "ttt": {}}
for line in results.read(nano.FOLDER / "results/scaling.jsonl"):
    if line["world"] == "strings" and line["method"] in waits:
        waits[line["method"]].setdefault(line["k"], []).append(line["seconds"])
waits = {method: {n: median(taken) for n, taken in of_k.items()} for method, of_k in waits.items()}
powers = {method: slope(of_k) for method, of_k in ms.items()}
print("a pass:  " + ", ".join(f"{label(method)} grows with k^{power:.2f}" for method, power in powers.items()))
print("as used: " + ", ".join(f"{label(method)} grows with k^{slope(of_k):.2f}" for method, of_k in waits.items()))
times = ms["ttt"][32] / ms["ct_kv"][32]
print(f"a pass of TTT takes {times:.0f} times CT-KV's at k = 32")
print(f"as used, TTT takes {waits['ttt'][2] / waits['ct_kv'][2]:.1f} times CT-KV's seconds at k = 2, "
      f"{waits['ttt'][32] / waits['ct_kv'][32]:.1f} times at k = 32")
claim(powers["ct_kv"] < 1.3 and powers["ttt"] > 1.7,
      f"a pass of CT-KV grows with k (power {powers['ct_kv']:.2f}), one of TTT with k² (power {powers['ttt']:.2f})")
assert 45 < times < 55

# %%
figure, panels = plt.subplots(1, 2)
for axes, of_method in zip(panels, (ms, waits)):
    for method, style, shift in (("ct_kv", "o-", (8, -14)), ("ttt", "s--", (-8, 12))):
        at = sorted(of_method[method])
        axes.plot(at, [of_method[method][n] for n in at], style, color=colour(method))
        axes.annotate(label(method), (8, of_method[method][8]), xytext=shift, textcoords="offset points", va="center",
                      color=colour(method), weight="bold", ha="left" if method == "ct_kv" else "right")
    axes.set(xscale="log", yscale="log", xlabel="k, demonstrations")
    axes.set_xticks(at, at)
panels[0].set(title="a pass, random model of 24M", ylabel="milliseconds")
panels[1].set(title="as used, strings", ylabel="seconds a task")
panels[0].set_yticks([100, 1000, 10000], ["100", "1,000", "10,000"])
panels[1].set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
for axes in panels:
    axes.minorticks_off()
plt.show()

# %% [markdown]
# On the left the lines part: at 32 demonstrations a pass of TTT takes about fifty times as long as CT-KV's. On the
# right they run side by side, because TTT as used draws four orders a step at every k. What one pays for that is
# coverage: with 32 demonstrations in four orders, a step has only four answers that saw all the others.
#
# ## Exercises
#
# **1. Count.** How many multiplications and additions does a step of TTT take, in N weights, P tokens and `batch` rows,
# and one of CT-KV?
#
# <details><summary>Solution</summary>
#
# 4·N·batch·P and 4·N·T, where T is about P: 2·N a token forward and 2·N for the gradient of the inputs. The gradient of
# the frozen weights, another 2·N, is never computed. LoRA's own matrices add a share of about 2·rank/width. So a step
# of TTT costs about `batch` times as much, here four. [A5](assignments/a5_cost/handout.md) asks for all of it.
#
# </details>
#
# **2. Two zeros.** Let A start at zero as well. Which assert fails first, and what is the loss after 32 steps?
#
# <details><summary>Solution</summary>
#
# The one on the gradients: `of_b` is 0 too. The gradient of B has A as a factor and that of A has B, so both stay 0,
# and the loss after 32 steps is the loss before them. If only B were random and A zero, training would start at the
# model as well; that B is the zero one is a convention.
#
# </details>
#
# **3. LoRA alone.** The method that the tables call *LoRA* trains on each pair by itself and does not read the
# demonstrations again. Which two changes make it of `my_ttt`, and why is it so far behind TTT in strings?
#
# <details><summary>Solution</summary>
#
# Each row is one pair, `[[i] for i in range(k)]` instead of orders (with padding, as pairs differ in length), and the
# function returns no cache. The rule must then be learned into the weights from ten pairs, while the model's own skill,
# reading a rule off demonstrations, is never used. On the 24 tasks it answers 52.7% and TTT 77.5%, and the difference,
# paired by task, is 24.8 ± 4.9 points ([the page](../weights/nano/README.md)).
#
# </details>
#
# Build CT-KV itself with tests that find its silent mistakes: [A3](assignments/a3_ct_kv/handout.md).
#
# Next: [10, Where to start](10_where_to_start.ipynb), which trains the same context from other starts.
