# %% [markdown]
# # 08 · How tuning cheats
#
# CT-KV trains on k demonstrations, and the answers that it trains on also stand in the cache that it trains. So there
# is a short way to a low loss: copy the answer. Leave-one-out closes that way, but it is one line of code, and the loss
# looks fine without it. In this lesson we build a detector that sees such a leak exactly, and we ask when a score would
# have seen it too.
#
# | | |
# |---|---|
# | **You build** | leave-one-out, token dropout, CT-Prompt, and a leak detector |
# | **You see** | exact zeros in a table of gradients, a way around the fence, and what the score shows of each bug |
# | **Time** | forty-five minutes to read, two to run on two cores |
# | **Before** | [07, k pairs, one row](07_k_pairs_one_row.ipynb), for the row and its mask |
# | **Next** | [09, Weights or context](09_weights_or_context.ipynb) |
#
# Run it as `python tutorials/08_how_tuning_cheats.py` from the repository's root, or open the notebook. Nothing is
# downloaded.

# %%
from dataclasses import replace

import drawings
import torch
import torch.nn.functional as F
from lesson import breaks, claim, few, plt  # lesson 01 says what the first three do

from nanoct.benchmarks import nano
from nanoct.fewshot import Adapted, Prefix, concatenate, encode_context
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model
from nanoct.methods import ct_kv, ct_prompt
from nanoct.optimise import optimise
from nanoct.packing import answer_logits, pack, pack_demos, visible
from nanoct.score import evaluate

model, tokenizer = load_model(nano.FOLDER / "strings", "cpu"), load_tokenizer(nano.FOLDER / "strings")
names = nano.pick("strings", "held_out", [few("8", "2")], None)
task = nano.make_task("strings", names[0], tokenizer, seed=0, k=few(10, 4))
owner, k = encode_context(model, task.instruction, task.demos).owner, len(task.demos)
P = len(owner)
print(f"{task.name!r}: {k} demonstrations in {P} entries; the first is "
      f"{tokenizer.decode(task.demos[0].x)} {tokenizer.decode(task.demos[0].y)}")

# %% [markdown]
# ## Two rules, two lines
#
# What a pair may see of the cache is a table with a line for each pair and a column for each entry, as in lesson 07.
# **Token dropout** is the first line of code below: every entry is hidden from every pair with a small probability.
# **Leave-one-out** is the second: pair i does not see the entries that demonstration i owns.

# %%
def table_of_pairs(owner, k, p, generator):
    kept = torch.rand(k, len(owner), generator=generator) >= p  # token dropout
    return kept & (owner != torch.arange(k)[:, None])  # leave-one-out


seen = table_of_pairs(owner, k, 0.05, torch.Generator().manual_seed(0))
assert torch.equal(seen, visible(owner, k, True, 0.05, torch.Generator().manual_seed(0)))
print(f"{tuple(seen.shape)}: {(~seen).sum()} of {seen.numel()} are hidden; equal to the package's")

# %% [markdown]
# Here is the part of the table that belongs to the first four demonstrations. A dashed hole is leave-one-out, a dot is
# token dropout.

# %%
first = int((owner < 4).sum())  # the entries of the first four demonstrations, and the start sign
figure, axes = drawings.canvas(first + 4, 6.2)
letters = [[f"{i}" for i in range(4)], [tokenizer.decode([token]).strip("< ")[0] for token in [
    *task.instruction, *(token for demo in task.demos[:4] for token in (*demo.x, *demo.y))]]]
drawings.mask(axes, 2, 2, seen[:4, :first].tolist(), range(4), owner[:first].tolist(), first, letters,
             dot=0.5)
drawings.text(axes, 0.5, 4, "pair", 9, rotation=90)
plt.show()

# %% [markdown]
# In code a rule is a function that makes the mask of the row. `kept` is what token dropout has left. The two functions
# differ in one condition, and the losses tell how much an answer in sight is worth.

# %%
def own_demo_seen(row, owner, kept):
    return row.mask(kept)


def correct(row, owner, kept):
    return row.mask(kept & (owner != torch.arange(len(kept))[:, None]))


def losses_at_start(see):
    """The loss of each answer token behind the untrained cache (N,), the pair of each, and the leaves."""
    theta = encode_context(model, task.instruction, task.demos)
    row, leaves = pack_demos(task, model, P), [part.requires_grad_() for part in theta.stack()]
    mask = see(row, owner, torch.ones(k, P, dtype=torch.bool))
    logits = answer_logits(model, row, theta.of(*leaves), mask=mask)
    return F.cross_entropy(logits, row.target, reduction="none"), row.pair[row.where], leaves


for see in (own_demo_seen, correct):
    print(f"{see.__name__:15} loss {losses_at_start(see)[0].mean():.3f}, before any training and without dropout")

# %% [markdown]
# ## The detector, one number first
#
# How do we know whether pair 3 makes use of demonstration 3? We ask for a derivative: if the keys and values of
# demonstration 3 change a little, does the loss of pair 3 change? The length of that gradient is one number.

# %%
def gradient_length(loss, leaves, entries):
    """How long the gradient of a loss is in these entries (P,) of leaves (…, P, D)."""
    parts = torch.autograd.grad(loss, leaves, retain_graph=True)
    return torch.sqrt(sum(part[..., entries, :].square().sum() for part in parts))


for see in (own_demo_seen, correct):
    losses, pair, leaves = losses_at_start(see)
    print(f"{see.__name__:15} {gradient_length(losses[pair == 3].sum(), leaves, owner == 3):.4f}")

# %% [markdown]
# One such number for each pair i and each demonstration j makes a table of k × k. Its diagonal is what leave-one-out is
# about.

# %%
def table_of_gradients(losses, pair, leaves):
    """(k, k): how long the gradient of pair i's loss is in what demonstration j owns."""
    table = torch.zeros(k, k)
    for i in range(k):
        parts = torch.autograd.grad(losses[pair == i].sum(), leaves, retain_graph=True)
        for j in range(k):
            table[i, j] = torch.sqrt(sum(part[..., owner == j, :].square().sum() for part in parts))
    return table


with_it, without = (table_of_gradients(*losses_at_start(see)) for see in (correct, own_demo_seen))
diagonal = torch.eye(k, dtype=torch.bool)
print(f"two tables {tuple(with_it.shape)}; without leave-one-out the diagonal is {without[diagonal].mean():.2f} on "
      f"average, the rest {without[~diagonal].mean():.2f}")
assert (without > 0).all()

# %% [markdown]
# **Guess.** With leave-one-out, how many of the k numbers on the diagonal are exactly 0? Not small, but 0. And how many
# beside it?

# %%
my_guess = (5, 0)  # floating point is never exact, so about half of them

# %%
found = (with_it[diagonal] == 0).sum().item(), (with_it[~diagonal] == 0).sum().item()
print(f"you: {my_guess}; in fact {found}, of {k} and of {k * k - k}")
assert found == (k, 0)

# %% [markdown]
# Every one. A hidden entry has an attention weight of exactly 0, so nothing that it holds can reach the loss. That is
# why the detector needs no threshold. In the picture a white cell with a frame is an exact zero.

# %%
def heat(axes, table, title):
    image = axes.imshow(table.log10().numpy(), cmap="YlGnBu", vmin=-2.5, vmax=1)
    for i, j in (table == 0).nonzero().tolist():
        axes.add_patch(plt.Rectangle((j - 0.42, i - 0.42), 0.84, 0.84, facecolor="white", edgecolor="#d1495b"))
    axes.set(xlabel="demonstration j", ylabel="loss of pair i", xticks=[0, k - 1], yticks=[0, k - 1])
    axes.set_title(title, fontsize=11)
    return image


def two_heats(*tables_and_titles):
    figure, panels = plt.subplots(1, 2)
    for axes, (table, title) in zip(panels, tables_and_titles):
        image = heat(axes, table, title)
    figure.colorbar(image, ax=panels, label="log₁₀ of the gradient's length")
    plt.show()


two_heats((without, "CT-KV, own demonstration seen"), (with_it, "CT-KV, left out"))

# %% [markdown]
# ## CT-Prompt
#
# There is a second method of the paper, and it is harder to keep from cheating. **CT-Prompt** trains the input
# *embeddings* of the demonstrations, one vector for each token, and their keys and values follow from them. So the
# prompt must be read anew in every step. To hide demonstration i from pair i it is not enough to hide its entries: the
# demonstrations behind it have *read* it, and their keys and values tell what it said.

# %%
figure, axes = drawings.canvas(46, 13.5, size=8)
tokens_of = [0] * 5 + [1] * 5 + [2] * 5
drawings.text(axes, 9, 0.8, "one pass for all pairs", 11, weight="bold")
drawings.cache(axes, 1.5, 4.5, tokens_of, n_layer=1)
drawings.arrow(axes, (9, 4.3), (14, 4.3), bend=-0.5, colour=drawings.OWNERS[1])
drawings.text(axes, 11, 2.2, "demonstration 2 reads 1", 9, drawings.OWNERS[1])
drawings.box(axes, 5.5, 9.5, 7, 2, "pair 1: x₁ → ?", "#f7dfe2", drawings.OWNERS[1])
drawings.arrow(axes, (14, 5.8), (11, 9.3), colour=drawings.OWNERS[2])
drawings.text(axes, 16.5, 7.8, "and tells\npair 1", 9, drawings.OWNERS[2])
drawings.text(axes, 9, 7.6, "hidden", 9, drawings.NOBODY)
drawings.arrow(axes, (9, 8.2), (9, 9.3), colour=drawings.HIDDEN)
drawings.text(axes, 34, 0.8, "k passes, one for each pair", 11, weight="bold")
for i in range(3):
    drawings.cache(axes, 23.5, 2.6 + 3.4 * i, tokens_of, hidden=(i,), n_layer=1)
    drawings.arrow(axes, (38.8, 3.1 + 3.4 * i), (40.2, 3.1 + 3.4 * i))
    drawings.text(axes, 42.4, 3.1 + 3.4 * i, f"x{'₀₁₂'[i]} → ?", 10, drawings.OWNERS[i])
drawings.text(axes, 32, 12.6, "demonstration i is hidden inside prompt i as well", 9, drawings.NOBODY)
plt.show()

# %% [markdown]
# So CT-Prompt runs the prompt k times, each time with one demonstration hidden from all other tokens. Here it is, pair
# by pair. `k_passes=False` is the cheap variant, which reads the prompt once, and hides demonstration i from pair i
# alone.

# %%
def prompt_losses(embeds, k_passes):
    """The summed loss of each pair (k,) behind a prompt of these embeddings (1, P, C)."""
    losses, itself = [], torch.eye(P, dtype=torch.bool)
    _, kv = model(embeds=embeds)
    for i, demo in enumerate(task.demos):
        seen = owner != i  # (P,)
        if k_passes:
            _, kv = model(embeds=embeds, mask=(seen | itself).tril()[None])  # a hidden token sees itself
        pair = pack([(demo.x, demo.y)], model, P)
        logits = answer_logits(model, pair, Prefix(kv, owner, P), mask=pair.mask(seen[None]))
        losses.append(F.cross_entropy(logits, pair.target, reduction="sum"))
    return torch.stack(losses)


embeds = model.embed(concatenate(model, task.instruction, task.demos)[0]).detach().requires_grad_()  # (1, P, C)
one, many = prompt_losses(embeds, k_passes=False), prompt_losses(embeds, k_passes=True)
print(f"{embeds.numel():,} numbers to train; loss by one pass {one.sum():.2f}, by k passes {many.sum():.2f}")

# %% [markdown]
# The package lays the k prompts side by side and packs the pairs, but the losses are the same.

# %%
row = pack_demos(task, model, P)
for losses, one_pass in ((one, True), (many, False)):
    prefix, seen = ct_prompt.read(model, embeds, owner, visible(owner, k, leave_one_out=True), one_pass)
    theirs = F.cross_entropy(answer_logits(model, row, prefix, mask=row.mask(seen)), row.target, reduction="none")
    assert (torch.zeros(k).index_add(0, row.pair[row.where], theirs) - losses).abs().max() < 1e-4, "the losses differ"
print("equal to methods/ct_prompt.py, with one pass and with k passes")

# %% [markdown]
# Now the detector, with the embeddings as its only leaf. Does one pass leak?

# %%
tables = [table_of_gradients(losses, torch.arange(k), [embeds]) for losses in (one, many)]
print("one pass, the diagonal:", " ".join(f"{x:.2f}" for x in tables[0][diagonal]))
print("k passes, the diagonal:", " ".join(f"{x:.2f}" for x in tables[1][diagonal]))
assert (tables[1][diagonal] == 0).all() and (tables[1][~diagonal] > 0).all()
assert (tables[0][diagonal][:-1] > 0).all() and tables[0][-1, -1] == 0
two_heats((tables[0], "CT-Prompt, one pass"), (tables[1], "CT-Prompt, k passes"))

# %% [markdown]
# One pass leaks from every demonstration but the last. Attention looks back only, so no demonstration has read the last
# one.
#
# ## Does training find the leak?
#
# A gradient says that copying is possible. Whether training does it is another question, and we set a trap to answer
# it. In the world of facts we give each demonstration the answer of *another* one. No fact supports these false
# answers, so if pair i gives its own false answer back, it must have read it in the demonstration that was hidden from
# it.

# %%
facts, words = load_model(nano.FOLDER / "facts", "cpu"), load_tokenizer(nano.FOLDER / "facts")
relation = nano.pick("facts", "held_out", ["4"], None)[2]
true, false = (nano.make_task("facts", relation, words, seed=0, k=few(16, 4), n_query=1, wrong=w) for w in (0.0, 1.0))
for honest, lie in list(zip(true.demos, false.demos))[:4]:
    x, y, z = (words.decode(ids).strip(" =;") for ids in (honest.x, honest.y, lie.y))
    print(f"{relation} of {x}: {y}, but the demonstration says {z}")

# %% [markdown]
# `leak.retrieved` trains the embeddings of demonstration i by pair i alone, and counts the false answers that come
# back, before training and after it:
#
# ```
# for each pair i: read the prompt with demonstration i's embeddings as leaves; hide its entries from pair i
# take gradient steps on these leaves, so that pair i says the false answer of demonstration i
# count the pairs that say their false answer: each of its tokens is the likeliest one in its place
# ```

# %%
from nanoct.runs import leak

config, share = replace(leak.CONFIG, n_step=few(32, 2)), {}
for way in ("one pass", "k passes"):
    share[way] = [100 * part for part in leak.retrieved(facts, false, *leak.HIDDEN[way], config)]
    print("{}: {:.0f}% of the false answers before training, {:.0f}% after".format(way, *share[way]))
assert share["k passes"][0] == share["k passes"][1]  # with no gradient nothing moves

# %% [markdown]
# That was one task. Here are the results of a longer run, which are kept in the repository: four tasks in each world,
# with what training added and its 95% interval over tasks.

# %%
import json

from nanoct.runs import stats


def with_interval(points):
    """The mean of {task: points}, and half the width of its 95% interval over tasks."""
    centre, error = stats.average({(name, 0): value for name, value in points.items()})
    return centre, stats.student(len(points)) * error


lines, added = [json.loads(line) for line in (nano.FOLDER / "results/leak.jsonl").read_text().splitlines()], {}
for world in ("strings", "grids", "lexicon", "facts"):
    of_world = [line for line in lines if line["world"] == world and line["variant"] == "one pass"]
    before = 100 * sum(line["before"] for line in of_world) / len(of_world)
    added[world] = with_interval({line["task"]: 100 * (line["after"] - line["before"]) for line in of_world})
    print("{:8} {:4.1f}% before training, {:+5.1f} ± {:4.1f} points by training".format(world, before, *added[world]))
for world in ("lexicon", "facts"):
    centre, half = added[world]
    claim(centre - half > 0, f"in {world} one pass hands {centre:.1f} ± {half:.1f} points more false answers back")

# %% [markdown]
# So the leak is used where answers are single words, in lexicon and facts. In strings and grids an answer is a whole
# text, and training did not find its way back through the later tokens.
#
# Why does lexicon hand back so many false answers before any training? Its tasks have two labels each, so the answer of
# another demonstration is simply the other label. Half of those are hit by chance. And since *all* demonstrations are
# turned around, the context itself teaches the opposite rule, from which some false answers can be had without reading
# the hidden one. So in lexicon look at what training adds, and not at where it starts.
#
# ## Three bugs, and which one the score shows
#
# Now the usual test: train, and score on new questions. We plant three bugs in CT-KV's mask, each so small that one
# could read over it. You have met the first, `own_demo_seen`. In the second the index is off by one. In the third the
# triangle of the row forgets to ask whether two tokens are of the same pair.

# %%
def wrong_demo_hidden(row, owner, kept):
    pair = torch.arange(len(kept))[:, None]
    return row.mask(kept & (owner != (pair + 1) % len(kept)))


def pairs_meet(row, owner, kept):
    mask, P = correct(row, owner, kept).clone(), len(owner)
    mask[..., P:] = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril()
    return mask


BUGS = own_demo_seen, wrong_demo_hidden, pairs_meet

# %% [markdown]
# **Guess.** Which of the three costs the most points?

# %%
my_guess_bug = "own_demo_seen"  # it copies, so it must answer worst

# %% [markdown]
# Here is CT-KV with the mask as an argument. With `correct` it is the package's method, bit for bit.

# %%
settings = ct_kv.Config(**nano.read_settings()["strings"]["ct_kv"])
settings = replace(settings, n_step=few(settings.n_step, 1))


def tune(task, see, seed=0):
    generator = torch.Generator().manual_seed(seed)
    context = encode_context(model, task.instruction, task.demos)
    row, leaves = pack_demos(task, model, context.next_position), [part.requires_grad_() for part in context.stack()]

    def loss():
        kept = visible(context.owner, len(task.demos), False, settings.token_dropout, generator)
        logits = answer_logits(model, row, context.of(*leaves), mask=see(row, context.owner, kept))
        return F.cross_entropy(logits, row.target)

    optimise(loss, leaves, settings)
    return Adapted(model, prefix=context.of(*leaves))


for a, b in zip(tune(task, correct).prefix.stack(), ct_kv.adapt(model, task, settings).prefix.stack()):
    assert torch.equal(a, b), "the caches differ"

# %% [markdown]
# Each variant does the same tasks with the same demonstrations, so we compare task by task. The interval is over tasks.

# %%
from nanoct.runs import ablations, results

tasks = [nano.make_task("strings", name, tokenizer, seed=0, n_query=few(30, 4)) for name in names]
scores = {see: [100 * evaluate(tune(each, see), each).score for each in tasks] for see in (correct, *BUGS)}
print(f"{len(tasks)} tasks; correct: {sum(scores[correct]) / len(tasks):.1f}% of the answers right")
minus = {}
for see in BUGS:
    points = {each.name: a - b for each, a, b in zip(tasks, scores[see], scores[correct])}
    minus[see] = with_interval(points)
    print("{:18} {:+6.1f} ± {:4.1f} points".format(see.__name__, *minus[see]))
print(f"you: {my_guess_bug}")
centre, half = minus[pairs_meet]
claim(centre + half < -10, f"the score shows that pairs meet: {centre:.1f} ± {half:.1f} points")

# %% [markdown]
# One bug of three is loud: where pairs meet, pair i reads its answer from another pair, and the cache learns to rely on
# something that no question will ever see. The score finds that. It does not find `own_demo_seen` in this world, nor
# `wrong_demo_hidden`, because either they cost little on these tasks or the tasks are too few to say. So a score *can*
# see a leak, but when it sees nothing that proves nothing, and it never says where the bug is.
#
# ## The honest table
#
# How much are the two rules worth, then? *Ablations*, which are runs with one part removed, answer it for the four
# worlds, with 24 tasks each, and for real words with SmolLM2, with 12. Their results are kept in the repository. Each
# row is CT-KV without one rule or without both, minus CT-KV. For scale, the last line is what CT-KV gains over reading
# alone (ICL) on the same real words.

# %%
ROWS = {"no leave-one-out": dict(leave_one_out=False), "no token dropout": dict(token_dropout=0.0),
        "neither": dict(leave_one_out=False, token_dropout=0.0)}
lines = [*results.read(nano.FOLDER / "results/ablations.jsonl"),
         *results.read(nano.FOLDER.parent / "smollm2/results/ablations.jsonl")]
effect = {}
for world, methods in stats.settings([line for line in lines if not line.get("wrong")]).items():
    plain = [each for each in methods[ablations.NAME]
             if each.config["start"] == "demos" and not each.config["values_only"] and not each.config["bf16"]]
    whole = next(each for each in plain if each.config["leave_one_out"] and each.config["token_dropout"])
    for row, change in ROWS.items():
        (without_it,) = [each for each in plain if each.config == whole.config | change]
        effect[world, row] = without_it.minus(whole)
        print("{:8} {:17} {:+5.1f} ± {:3.1f}".format(world, row, *effect[world, row]))
    if world == "words":
        print("{:8} {:17} {:+5.1f} ± {:3.1f}".format(world, "CT-KV minus ICL", *whole.minus(methods["icl"][0])))

# %%
figure, panels = plt.subplots(1, 2, figsize=(8, 3.6), width_ratios=(1, 1.5))
for y, see in enumerate(BUGS):
    panels[0].errorbar(minus[see][0], -y, xerr=minus[see][1], fmt="o", color="#333333", capsize=4)
panels[0].set(yticks=[0, -1, -2], yticklabels=["own demo\nseen", "wrong demo\nhidden", "pairs\nmeet"], ylim=(-2.6, 0.6),
              title="three bugs, strings", xlabel="points minus correct, 95%")
worlds = list(dict.fromkeys(world for world, _ in effect))
for (row, shift), style, ink in zip(zip(ROWS, (0.25, 0, -0.25)), ("o", "s", "D"), ("#2a6fbb", "#d9a021", "#d1495b")):
    centres, halves = zip(*(effect[world, row] for world in worlds))
    panels[1].errorbar(centres, [shift - y for y in range(len(worlds))], xerr=halves, fmt=style, color=ink, label=row)
panels[1].set(yticks=[-y for y in range(len(worlds))], yticklabels=worlds, xlim=(-16, 8),
              title="CT-KV without its rules", xlabel="points minus CT-KV, 95%")
panels[1].legend(frameon=False, fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.45, -0.18))
for axes in panels:
    axes.axvline(0, color="#8d8d8d", linestyle="--", linewidth=1)
plt.show()

# %%
centre, half = effect["words", "neither"]
claim(centre + half < 0, f"on real words CT-KV without both rules loses {-centre:.1f} ± {half:.1f} points")
for (world, row), (centre, half) in effect.items():
    assert abs(centre) < half or (world, row) == ("words", "neither"), f"{row} has an effect in {world}"

# %% [markdown]
# On real words dropping both rules costs, in the mean, as much as CT-KV gains there over reading: compare the last two
# lines of the table. Either rule alone seems to prevent most of it, perhaps because dropout, too, hides parts of a
# pair's own answer. In the built-in worlds neither rule shows an effect, alone or
# together. So both rules are free, and on words they pay together; but these lines do not say that CT-KV cannot work
# without them.
#
# ## Break it
#
# The detector needs one task, one backward pass for each pair, and no training. It catches all three bugs, the two
# quiet ones included, and its message says where to look: pair 0 has no pair before it, so it cannot meet one.

# %%
def check(see):
    """No pair makes use of its own demonstration."""
    leaks = table_of_gradients(*losses_at_start(see))[diagonal].nonzero().flatten().tolist()
    assert not leaks, f"pair i has a gradient in demonstration i for i = {', '.join(map(str, leaks))}"


check(correct)
for see in BUGS:
    with breaks(see.__name__.replace("_", " ")):
        check(see)

# %% [markdown]
# ## Where the detector is blind
#
# It proves one thing: no pair uses its own demonstration. If the targets are shifted by one token, the loss is
# nonsense, and the diagonal is as clean as before.

# %%
def shifted_targets():
    theta, row = encode_context(model, task.instruction, task.demos), pack_demos(task, model, P)
    leaves = [part.requires_grad_() for part in theta.stack()]
    logits = answer_logits(model, row, theta.of(*leaves), mask=correct(row, owner, torch.ones(k, P, dtype=torch.bool)))
    return F.cross_entropy(logits, row.target.roll(1), reduction="none"), row.pair[row.where], leaves


assert (table_of_gradients(*shifted_targets())[diagonal] == 0).all()
print("targets shifted by one: all of the diagonal is 0, and the detector sees nothing")

# %% [markdown]
# A clean diagonal is necessary, but it is not enough. Wrong targets or positions need other checks, such as the slow
# version of lesson 07.
#
# ## Exercises
#
# **1. How did it get there?** `pairs_meet` left leave-one-out in place. How did pair i get at demonstration i?
#
# <details><summary>Solution</summary>
#
# Pair j, which stands before it in the row, may see demonstration i, because i is not j. Pair i now sees pair j. It is
# the same way around the fence that CT-Prompt has with one pass: something else has read the hidden demonstration.
#
# </details>
#
# **2. Traces.** The demonstrations behind demonstration i have read it in CT-KV too, when the cache was made. Is that
# not a leak?
#
# <details><summary>Solution</summary>
#
# A smaller one. Later entries do hold traces of demonstration i, and pair i sees them. It has a gradient in those
# entries, so it can even strengthen the traces that they hold. But they were computed once and are never computed
# again, so pair i cannot make demonstration i say more to them. To have no traces one must read the demonstrations k
# times, as CT-Prompt does. CT-KV, here and in the paper, does not.
#
# </details>
#
# **3. A detector for dropout.** Write a check that token dropout hides the *same* entries from all tokens of a pair.
# Which single line of `packing.py` would break it?
#
# <details><summary>Solution</summary>
#
# Take `mask = row.mask(seen)[0, :, :P]` and assert that `mask[row.pair == i]` has equal lines for each i. The line is
# `visible[self.pair]` in `Row.mask`: it gives a token the line of its pair. A draw for each token would break it.
#
# </details>
#
# Find silent bugs of this kind, and write the test that catches them: [A4](assignments/a4_bug/handout.md).
#
# Next: [09, Weights or context](09_weights_or_context.ipynb), where the demonstrations train weights.
