# %% [markdown]
# # 13 · Why it works, and where it cannot
#
# **A prefix is evidence.** A model that was trained on many tasks takes whatever stands before a question as a hint
# which of these tasks is meant. So a trained prefix can say "this one", and say it more clearly than demonstrations do.
# But it cannot say "tasks are drawn in another way than you have learned", because that is no hint about a task: it is
# the *prior*, what the model believed before it read anything, and the prior lies in the weights. In this lesson we
# test this idea on a game that is so simple that the best possible player is a formula, and look at what the idea does
# not cover.
#
# | | |
# |---|---|
# | **You build** | the game, its best players, their regret, and the training of a prefix and of weights |
# | **You see** | one coin that a prefix reaches, a mixture of two that only weights reach, and where weights fail too |
# | **Time** | twenty minutes to read, one and a half to run on two cores |
# | **Before** | [12, The paper's benchmarks](12_the_papers_benchmarks.ipynb); of 05 only the idea of Bayes |
# | **Next** | [14, A map of in-context optimisation](14_a_map_of_in_context_optimisation.ipynb) |
#
# Run it as `python tutorials/13_why_it_works_and_where_it_cannot.py` from the repository's root, or open the notebook.
# Nothing is downloaded.

# %%
from statistics import mean, stdev

import drawings
import torch
import torch.nn.functional as F
from lesson import breaks, claim, few, plt

# %% [markdown]
# ## A game
#
# Someone takes a coin out of a bag and flips it fifty times. Before each flip you say how probable a 1 is. You know
# what is in the bag, but not which coin was taken. The *bias* of a coin is its probability of a 1.

# %%
figure, axes = drawings.canvas(40, 8.4)
coins = (1.2, 1.6, ".1"), (4.0, 1.2, ".7"), (2.2, 4.2, ".4"), (5.2, 4.4, ".9"), (6.8, 2.2, ".2")
for i, (x, y, bias) in enumerate(coins):
    axes.add_patch(plt.Circle((x + 1, y + 1), 1.1, facecolor=drawings.owner_colour(i), alpha=0.85))
    drawings.text(axes, x + 1, y + 1, bias, 10, "white")
drawings.box(axes, 0.4, 0.6, 9.2, 6.4, colour="none")
drawings.text(axes, 5, 7.7, "the bag, which you know", 9)
drawings.arrow(axes, (10, 3.8), (14.4, 3.8), "one is taken")
axes.add_patch(plt.Circle((15.8, 3.8), 1.1, facecolor=drawings.HIDDEN, edgecolor=drawings.INK))
drawings.text(axes, 15.8, 3.8, "?")
drawings.arrow(axes, (17.3, 3.8), (20.7, 3.8), "flipped")
for column, flip in enumerate("101101?"):
    drawings.square(axes, 21 + 1.5 * column, 3.3, drawings.HIDDEN if flip == "?" else "#d8e4f2", 1.3, 1.3)
    drawings.text(axes, 21.5 + 1.5 * column, 3.8, flip, 11)
drawings.arrow(axes, (31.6, 3.8), (34.4, 3.8))
drawings.text(axes, 37.3, 3.8, "you: a 1 with\nprobability 5/8", 9)
plt.show()

# %% [markdown]
# Three bags matter here. In the **training** bag are coins of every bias, all equally likely. Another holds **one
# coin** of bias 0.2. The third holds **two coins**, 0.2 and 0.8, equally likely. A row of `x` is a game, and `truth`
# holds the bias of its coin.

# %%
T = 50
BAGS = {"training": (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000,  # a fine grid of all biases
        "one coin": torch.tensor([0.2], dtype=torch.float64),
        "two coins": torch.tensor([0.2, 0.8], dtype=torch.float64)}


def play(bag, n, seed):
    """n games of T flips: x (n, T) of 0 and 1, and truth (n, T), the bias of the coin that was taken."""
    generator = torch.Generator().manual_seed(seed)
    truth = bag[torch.randint(len(bag), (n, 1), generator=generator)].expand(n, T)
    return (torch.rand(n, T, generator=generator, dtype=torch.float64) < truth).long(), truth


games = {name: play(bag, few(1024, 64), seed=1) for name, bag in BAGS.items()}
for name, (x, truth) in games.items():
    for flips, bias in zip(x[:2], truth[:2, 0]):
        print(f"{name:10} a coin of {bias:.2f}: ", "".join(map(str, flips.tolist())))

# %% [markdown]
# ## The best player
#
# The best that one can do is to average over the coins of the bag, each weighted by how probable it makes the flips so
# far. A coin of bias $b$ gives $h$ ones in $n$ flips with probability proportional to $b^h (1-b)^{n-h}$, so the player
# says
#
# $$p = \frac{\sum_b b \cdot b^h (1-b)^{n-h}}{\sum_b b^h (1-b)^{n-h}}$$
#
# where the sums run over the coins of the bag. This is *Bayes*, and it is four lines.

# %%
def best_player(bag, x):
    """P(x_t = 1 | x_<t) (n, T) of the player who knows the bag."""
    ones = (x.cumsum(1) - x)[..., None]  # h before each flip, (n, T, 1)
    zeros = torch.arange(x.shape[1])[:, None] - ones
    weight = (ones * bag.log() + zeros * (1 - bag).log()).softmax(-1)  # (n, T, coins)
    return weight @ bag


x = torch.tensor([[1, 0, 1, 1, 0, 1, 1, 1, 0, 1]])
print("flip           ", "    ".join(map(str, x[0].tolist())))
for name, bag in BAGS.items():
    print(f"{name:10}", " ".join(f"{p:.2f}" for p in best_player(bag, x)[0]))

# %% [markdown]
# In the training bag, where all biases are equally likely, the average has a closed form, and it is one that a child
# can play. She counts the ones $h$ and the flips $n$, begins as if she had seen one 1 and one 0 already, and says
# $(h+1)/(n+2)$.

# %%
def by_counting(x, ones=0, zeros=0):
    """The training bag's player. ones, zeros: flips that she was shown before the game."""
    h, n = x.cumsum(1) - x + ones, torch.arange(x.shape[1], dtype=torch.float64) + ones + zeros
    return (h + 1) / (n + 2)


from nanoct.coins.coins import Beta, Coins

x, _ = games["training"]
assert (by_counting(x)[:64] - best_player(BAGS["training"], x[:64])).abs().max() < 1e-5  # a grid, so nearly
assert torch.equal(by_counting(x), Beta().bayes(x))
for name in ("one coin", "two coins"):
    assert torch.allclose(best_player(BAGS[name], x), Coins(BAGS[name].tolist()).bayes(x), atol=1e-12)
print("counting is averaging over all coins, and both are the package's players")

# %% [markdown]
# ## Regret
#
# How good is a player? Her loss at a flip is $-\log p$ of what came, in *nats*, the unit of natural logarithms. Even
# someone who was told the coin has a loss, because flips are random. So we subtract that loss, and add up what remains
# over the flips. This is *regret*, the price of not knowing the coin, and 0 is perfect.

# %%
def my_regret(p, x, truth):
    """Cumulative regret (n, T) in nats."""
    loss = lambda p: -torch.where(x == 1, p, 1 - p).log()
    return (loss(p) - loss(truth)).cumsum(1)


def lost(p, name):
    """Mean regret after each flip (T,) of predictions p of the games from a bag."""
    return my_regret(p, *games[name]).mean(0)


from nanoct.coins.coins import regret

assert torch.allclose(my_regret(by_counting(x), *games["training"]), regret(by_counting(x), *games["training"]))
print(f"{'games from':12}{'player of training':>20}{'player of this bag':>20}")
for name, bag in BAGS.items():
    x = games[name][0]
    print(f"{name:12}{lost(by_counting(x), name)[-1]:20.2f}{lost(best_player(bag, x), name)[-1]:20.2f}")

# %% [markdown]
# With one coin in the bag, the bag's own player knows everything. With two she must find out which one was taken, and
# this costs about $\log 2 \approx 0.69$. The player of the training bag pays more, because she has more coins to
# exclude. Can she be helped without changing who she is?
#
# ## What evidence can say
#
# We can show her flips before the game, a *prefix*. To her they are flips of this coin, so all they can do is to raise
# her counts. The picture shows what each player says after ten flips, depending on how many of them were ones.

# %%
ten = torch.tensor([[1] * h + [0] * (10 - h) + [0] for h in range(11)])  # the last flip is the one to predict
players = {
    "training": (by_counting(ten), "#2a6fbb", "o-"),
    "training, shown 1 one, 9 zeros": (by_counting(ten, 1, 9), "#4a9aa5", "s--"),
    "training, shown 10 of each": (by_counting(ten, 10, 10), "#7b5ea7", "D:"),
    "two coins": (best_player(BAGS["two coins"], ten), "#d1495b", "^-")}
figure, axes = plt.subplots(figsize=(8, 3.6))
places = {"training": (9.3, 0.93), "training, shown 1 one, 9 zeros": (10.2, 0.51),
          "training, shown 10 of each": (10.2, 0.65), "two coins": (10.2, 0.8)}
for name, (p, colour, look) in players.items():
    axes.plot(range(11), p[:, -1], look, color=colour, markersize=5)
    at, height = places[name]
    axes.text(at, height, name, color=colour, va="center", ha="right" if name == "training" else "left", fontsize=9)
axes.set(xlabel="ones among the first ten flips", ylabel="says that a 1 comes, probability", ylim=(0, 1),
         xlim=(-0.3, 14), xticks=range(11))
plt.show()

# %% [markdown]
# Evidence moves her line up, down, or makes it flatter, as she becomes surer of one coin. The player of the two coins
# draws a steep step: below five ones it is surely the coin of 0.2, above five surely that of 0.8. No evidence turns a
# line into a step. So which evidence is best, in ones and zeros, for games from each bag? We try all numbers up to 25.
#
# **Predict.** For one coin of 0.2 it will be many zeros and few ones. And for the two coins?

# %%
my_guess = (10, 10)

# %%
MOST = few(25, 6)
best = {}
for name in ("one coin", "two coins"):
    x, own = games[name][0], lost(best_player(BAGS[name], games[name][0]), name)[-1].item()
    above = {(ones, zeros): lost(by_counting(x, ones, zeros), name)[-1].item() - own
             for ones in range(MOST + 1) for zeros in range(MOST + 1)}
    best[name] = min(above, key=above.get)
    print(f"{name}: no evidence {above[0, 0]:.2f} nats above the bag's own player, "
          f"best (ones, zeros) = {best[name]}: {above[best[name]]:.2f}")
    if name == "two coins":
        print(f"    you: {my_guess}", f"{above[my_guess]:.2f}" if my_guess in above else "")
assert best["two coins"] == (0, 0) and sum(best["one coin"]) > few(20, 3)

# %% [markdown]
# For the two coins the best evidence is none. Evidence for 0.2 is right in half of the games and very wrong in the
# other half; balanced evidence says "near 0.5", which is never right.
#
# ## A network that has become this player
#
# Now a network takes the player's place. It is a small LSTM that was trained on games of the training bag to predict
# the next flip, and nobody told it about Bayes or counting. It says what the counting player says, with a prefix of
# flips and without.

# %%
from nanoct.coins.predictors import Config, shipped

network = shipped(Config("lstm"))
print(f"{sum(weights.numel() for weights in network.parameters()):,} weights")
x, shown = games["training"][0], [0, 0, 1, 0, 0, 0]
prefix = network.embed(F.one_hot(torch.tensor(shown), 2).float())  # (6, 128): a row for each flip
for said, p, exact in (("no prefix", network.predict(x), by_counting(x)),
                       ("behind 001000", network.predict(x, prefix), by_counting(x, sum(shown), shown.count(0)))):
    distance = (p - exact).abs().mean().item()
    claim(distance < 0.02, f"{said}: first flip {p[:, 0].mean():.2f}, exact {exact[:, 0].mean():.2f}; "
                           f"mean distance of the network from the counting player {distance:.3f}")

# %% [markdown]
# ## Training a prefix, training the weights
#
# Six flips make a prefix of six rows of 128 numbers. In prefix tuning the rows are free: they begin as random unit
# vectors and go where the gradient leads, while the network stays as it is. The paper about this game,
# [arXiv 2505.17010](https://arxiv.org/abs/2505.17010), calls that *SoftPT*, for soft prompt tuning. The alternative is
# to train all weights, without a prefix, which it calls *FullWT*, for full weight tuning. One loop serves both, and it
# plays as many new games of the bag as it likes.

# %%
from torch.func import functional_call


def descend(leaves, log_p, bag, generator, n_step, batch, look):
    """Train the leaves in place on games of a bag; log_p(x): log-probabilities (n, T, 2). Returns nats a game."""
    optimizer, losses = torch.optim.Adam(leaves, lr=5e-3), []
    for step in range(n_step):
        look(step)
        x, _ = Coins(bag.tolist()).sample(batch, T, generator)
        loss = F.nll_loss(log_p(x).flatten(0, 1), x.flatten(), reduction="sum") / batch
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        losses.append(loss.item())
    look(n_step)
    return losses


# %%
def train_prefix(bag, n_step, batch, length=6, look=lambda step, log_p: None):
    generator, n_embd = torch.Generator().manual_seed(0), network.embed.out_features
    rows = F.one_hot(torch.randint(n_embd, (length,), generator=generator), n_embd).float().requires_grad_()
    log_p = lambda x: network(x, rows)
    return rows, descend([rows], log_p, bag, generator, n_step, batch, lambda step: look(step, log_p))


def train_weights(bag, n_step, batch, look=lambda step, log_p: None):
    weights = {name: p.clone().requires_grad_() for name, p in network.named_parameters()}
    log_p = lambda x: functional_call(network, weights, (x,))
    generator = torch.Generator().manual_seed(0)
    leaves = list(weights.values())
    return weights, descend(leaves, log_p, bag, generator, n_step, batch, lambda step: look(step, log_p))


# %% [markdown]
# A few steps of each, against the package's.

# %%
from nanoct.coins.tuning import tune

bag, size = BAGS["two coins"], dict(n_step=few(5, 2), batch=8)
theirs = tune(network, Coins(bag.tolist()), "SoftPT", length=6, T=T, **size)
assert torch.equal(train_prefix(bag, **size)[0], theirs.prefix), "the prefix differs from the package's"
theirs = tune(network, Coins(bag.tolist()), "FullWT", T=T, **size)
mine, _ = train_weights(bag, **size)
assert all(torch.equal(mine[name], theirs.weights[name]) for name in mine), "the weights differ from the package's"
print("prefix and weights are the package's, bit for bit")

# %% [markdown]
# Now both on both bags. While they train we measure the regret above the bag's own player, always on the same 1,024
# games.

# %%
LOOKS = few((0, 25, 50, 100, 200), (0, 2))
WAYS = {"a prefix of six rows": train_prefix, "all weights": train_weights}
found, losses, above = {}, {}, {}
for name in ("one coin", "two coins"):
    x = games[name][0]
    own = lost(best_player(BAGS[name], x), name)
    for way, train in WAYS.items():

        def look(step, log_p):
            if step in LOOKS:
                with torch.no_grad():
                    found[name, way] = lost(log_p(x)[..., 1].double().exp(), name)
                above[name, way, step] = (found[name, way] - own)[-1].item()

        _, losses[name, way] = train(BAGS[name], n_step=LOOKS[-1], batch=few(64, 8), look=look)
        print(f"{name:10}{way:22}" + "  ".join(f"{above[name, way, step]:.2f}" for step in LOOKS))
print(f"{'':32}nats above the bag's own player, after {', '.join(map(str, LOOKS))} steps")

# %% [markdown]
# Why do we not print the training loss, as usual? Because each step plays 64 new games, and some games are luckier than
# others. The loss jumps by about half a nat from step to step, which is as much as the prefix gains on the two coins.
# So it may well end higher than it began although the player has become better, as it does there. Regret on fixed games
# has the luck subtracted.

# %%
for (name, way), of_steps in losses.items():
    jumps, gained = stdev(of_steps[-few(50, 2):]), above[name, way, 0] - above[name, way, LOOKS[-1]]
    print(f"{name:10}{way:22}loss of the first step {of_steps[0]:.1f}, of the last {of_steps[-1]:.1f} nats a game; "
          f"it jumps by {jumps:.1f}; gained {gained:.2f}")

# %% [markdown]
# Here is what each player has lost, flip by flip.

# %%
from nanoct.runs.plots import apart

LOOK = {"nothing": ("#555555", ":"), "a prefix of six rows": ("#e07a3f", "-"), "all weights": ("#2f8f5b", "-."),
        "the bag's own player": ("#222222", "--")}
figure, panels = plt.subplots(1, 2, figsize=(8, 3.8), sharey=True)
for axes, name in zip(panels, ("one coin", "two coins")):
    x = games[name][0]
    curves = {"nothing": lost(network.predict(x), name), "the bag's own player": lost(best_player(BAGS[name], x), name)}
    curves |= {way: found[name, way] for way in WAYS}
    upwards = sorted(curves, key=lambda said: curves[said][-1])
    for said, height in zip(upwards, apart([curves[said][-1].item() for said in upwards], 0.12, 0, 9)):
        colour, dash = LOOK[said]
        axes.plot(range(1, T + 1), curves[said], dash, color=colour, linewidth=2)
        axes.text(T + 2, height, said, color=colour, va="center", fontsize=8.5)
    axes.set(title=name, xlabel="flips", xlim=(0, 1.75 * T), xticks=range(0, T + 1, 10))
panels[0].set_ylabel("regret so far, nats")
plt.show()

# %%
last = LOOKS[-1]
claim(above["one coin", "a prefix of six rows", last] < 0.2 * above["one coin", "all weights", 0],
      "one coin: the prefix takes away more than four fifths of what could be gained")
claim(above["two coins", "a prefix of six rows", last] > 0.25, "two coins: the prefix stays a quarter of a nat away")
claim(above["two coins", "all weights", last] < 0.15, "two coins: the weights arrive")

# %% [markdown]
# The moral holds: a prefix reaches the one coin, as "it is 0.2" is something that flips can say. It does not reach the
# mixture, as "it is 0.2 or 0.8 and nothing between" is a prior. Weights can change the prior. Three repetitions with
# more steps, of an LSTM and of a Transformer, say the same ([the page](../weights/coins/README.md)).
#
# **Break it.** A regret below that of the bag's own player would be a sensation, and it is always a bug, because nobody
# beats the one who knows. The usual bug is a prediction that has already seen its flip, one place off.

# %%
def possible(curve, name):
    """AssertionError if a player does better than the bag's own, but for the luck of the draw."""
    better = (lost(best_player(BAGS[name], games[name][0]), name) - curve)[-1].item()
    assert better < 0.1, f"{better:.1f} nats better than possible"


for (name, _), curve in found.items():
    possible(curve, name)
with breaks("the predictions are one flip ahead"):
    p = by_counting(games["one coin"][0])
    possible(lost(torch.cat([p[:, 1:], p[:, -1:]], 1), "one coin"), "one coin")

# %% [markdown]
# ## Where the moral is not enough
#
# **Soft rows are not flips.** On the two coins the best evidence was none, and yet the trained prefix is better than
# none. Its rows are no flips: they push the network into states that no sequence of flips leads to, and some of those
# play the mixture a little better. "A prefix is evidence" is exact for what the network was trained on, and only a
# guide beyond it.
#
# **Few demonstrations are not endless games.** Everything above was trained on as many games as it liked. Context
# Tuning has k demonstrations. So we let its methods play the same game: a Llama of 82,000 weights, trained on coins,
# gets eight demonstrations of 25 flips, in which each demonstration has one of the bag's coins, and is then asked new
# games. Six draws of demonstrations were measured for [the page](../weights/coins/README.md); here are its lines, with
# two exact players beside them.

# %%
from nanoct.coins.bridge import exact
from nanoct.coins.predictors import FOLDER
from nanoct.io.files import read_json_lines

PLAYERS = {"zero_shot": "no demonstrations", "icl": "ICL", "ct_kv": "CT-KV", "ttt": "TTT (trains weights)",
           "PreBayes, demos": "exact: takes all flips for those of one coin",
           "Two coins, demos": "exact: knows that there are two coins, not which"}
regrets = {}
for _, line in read_json_lines(FOLDER / "bridge/bridge.jsonl"):
    if line["k"] in (8, 0):
        regrets.setdefault((line["target"], line["method"]), []).append(line["regret"][-1])
for target in ("single", "mixture"):
    for seed in range(few(6, 1)):
        for player, curve in exact(Coins([0.2] if target == "single" else [0.2, 0.8]), 8, seed).items():
            regrets.setdefault((target, player), []).append(curve[-1])
print(f"{'regret after 50 flips, nats':52}{'one coin':>9}{'two coins':>11}")
for player, said in PLAYERS.items():
    print(f"{said:52}{mean(regrets['single', player]):9.2f}{mean(regrets['mixture', player]):11.2f}")

# %%
ideal = mean(regrets["mixture", "Two coins, demos"])
for player in ("icl", "ct_kv", "ttt"):
    assert mean(regrets["mixture", player]) > 4 * ideal, f"{player} comes near the ideal learner"
assert mean(regrets["single", "icl"]) < 0.1

# %% [markdown]
# On one coin reading is already exact, so there is nothing to gain. On the mixture reading is a disaster: the network
# has learned that all flips of a context are of one coin, takes the eight demonstrations for those of a fair coin, and
# is far worse off than without them. CT-KV repairs less than a third of that. By the moral, weights should do it.
# **They do not**: TTT ends where CT-KV does, six times as far from perfect as a learner who knows that there are two
# coins and finds them in the same eight demonstrations. That weights *can represent* the mixture does not mean that
# eight demonstrations *teach* it to them.
#
# So two things limit Context Tuning, and it is good to keep them apart. The first is what a context can say to this
# model, and the coins show that it is not everything. The second is how much k demonstrations say, and it binds
# weights as well. On real tasks we do not know which of the two it is when a method fails.
#
# ## Exercises
#
# **1. A coin of 0.5.** Train a prefix for a bag that holds one fair coin. What must its rows say, and how many do you
# need?
#
# <details><summary>Solution</summary>
#
# `BAGS["mine"] = torch.tensor([0.5], dtype=torch.float64)`, then `games["mine"] = play(BAGS["mine"], 1024, 2)` and
# `train_prefix(BAGS["mine"], 200, 64, length=12)`. The rows must say "many ones and as many zeros". Real flips raise
# the counts by one each, so a dozen of them leave much doubt; soft rows can be stronger than a flip.
#
# </details>
#
# **2. Three coins.** What does the own player of a bag of 0.1, 0.5 and 0.9 lose, and why about that much?
#
# <details><summary>Solution</summary>
#
# About $\log 3 \approx 1.1$. Before the game she gives each coin a third; after fifty flips she is nearly sure. Her
# regret is the logarithm of what she gives the true coin at the end over what she gave it at the beginning.
#
# </details>
#
# **3. Beyond all coins.** A source that flips to the other side with probability 0.9 is not in any bag. Can a prefix
# tell the network about it?
#
# <details><summary>Solution</summary>
#
# No evidence about a coin says it, so by the moral it cannot. In the study a prefix of six soft rows does bring the
# Transformer from 19.96 to 0.17 nats, and the LSTM only to 17.93. A soft prefix can do more than condition, and how
# much depends on the network: `nanoct coins.study --quick`.
#
# </details>
#
# Predictions that are one flip ahead are a silent bug that a bound brings to light. [A4](assignments/a4_bug/handout.md)
# hides other ones, and asks you for the test.
#
# Next: [14, A map of in-context optimisation](14_a_map_of_in_context_optimisation.ipynb), where the neighbours of
# CT-KV are put side by side.
