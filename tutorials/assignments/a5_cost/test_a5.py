"""Grades assignment 5: predictions are held against torch's FLOP counter (5%) and its allocator (20%).

Both look at a real step: nanoct's Llama, frozen, behind P trained entries. FLOPs are counted while a
step of a small model is computed; bytes are what the CPU's allocator gave out in two steps of one.
"""

import math
import os
import random
from contextlib import contextmanager
from functools import cache
from itertools import accumulate
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from grading import as_float, fail, first_line, points, untouched
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from nanoct.model import Llama, LlamaConfig

FLOPS, BYTES = 0.05, 0.20  # what a prediction may be off


def config(V=31, L=8, H=4, K=2, C=48, D=10, F=64):
    return LlamaConfig(vocab_size=V, n_layer=L, n_head=H, n_kv_head=K, n_embd=C, head_dim=D, n_ffn=F, n_position=10**6)


def told(c, P, T, n):
    return (f"L {c.n_layer}, H {c.n_head}, K {c.n_kv_head}, D {c.head_dim}, C {c.n_embd}, F {c.n_ffn}, "
            f"V {c.vocab_size}, P {P}, T {T}, n {n}")


# --- what is measured ---


def step(model, leaves, T, n):
    """One step on T tokens behind the entries of the leaves (L, 1, K, P, D), with a loss at n of them."""
    P = leaves[0].shape[3]
    tokens = torch.zeros(1, T, dtype=torch.int64)
    mask = torch.ones(1, T, P + T, dtype=torch.bool).tril(P)
    prefix = SimpleNamespace(kv=list(zip(*(leaf.unbind() for leaf in leaves))), next_position=P)
    hidden, _ = model(tokens, prefix=prefix, mask=mask)
    loss = F.cross_entropy(model.logits(hidden[0, T - n:]), torch.zeros(n, dtype=torch.int64))
    loss.backward(inputs=leaves)


def prefix_of(c, P):
    return [torch.zeros(c.n_layer, 1, c.n_kv_head, P, c.head_dim, requires_grad=True) for _ in range(2)]


@cache
def counted(c, P, T, n):
    """FLOPs of a step, by torch's counter."""
    model, leaves = Llama(c).requires_grad_(False), prefix_of(c, P)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step(model, leaves, T, n)
    return counter.get_total_flops()


@contextmanager
def quiet():
    """The profiler writes lines of its own to stderr, whoever reads them."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


@cache
def allocated(c, P, T, n):
    """The most bytes that are allocated at a time in two steps of AdamW, beside the weights."""
    model = Llama(c).requires_grad_(False)
    with quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        leaves = prefix_of(c, P)
        optimizer = torch.optim.AdamW(leaves, lr=1e-3, weight_decay=0.0)
        for _ in range(2):
            optimizer.zero_grad()
            step(model, leaves, T, n)
            optimizer.step()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


# --- what is compared ---


def number(value, of, case, section):
    """A number above 0, as a float."""
    found = as_float(value)
    if not (math.isfinite(found) and found > 0):
        fail(f"{of} is no number above 0.", case, repr(value), "a number above 0", f"What does {of} count?", section)
    return found


def near(got, want, limit, broke, case, ask, section, unit):
    if not abs(got - want) <= limit * abs(want):
        scale = 1e6 if max(abs(got), abs(want)) > 1e6 else 1
        fail(broke, case, f"{got / scale:.4g} {'M' if scale > 1 else ''}{unit}, {got / want:.2f} of what was measured",
             f"{want / scale:.4g} {'M' if scale > 1 else ''}{unit}, within {limit:.0%}", ask, section)


def flops(impl, c, P, T, n):
    return number(impl.flops_step(c, P, T, n), "flops_step", told(c, P, T, n), "1")


def held(impl, c, P, T, n):
    return number(impl.peak_bytes(c, P, T, n), "peak_bytes", told(c, P, T, n), "2")


def more(predict, measure, impl, one, two, limit, broke, ask, section, unit):
    """Compares what the second case has more than the first: this tells one term from the others."""
    got, want = predict(impl, *two) - predict(impl, *one), measure(*two) - measure(*one)
    near(got, want, limit, broke, f"from {told(*one)} to {told(*two)}", ask, section, unit)


# 1 FLOPs -----------------------------------------------------------------------------------------------------------

WIDE = config(L=6, H=8, K=2, C=256, D=32, F=700)


@points(2, minutes=10, section="1")
def test_flops_of_the_linear_maps(impl, seed):
    near(flops(impl, WIDE, 1, 64, 1), counted(WIDE, 1, 64, 1), FLOPS,
         "The linear maps of a frozen model cost other FLOPs.", told(WIDE, 1, 64, 1),
         "Of what does a frozen model need gradients, and how wide is each map?", "1", "FLOPs")


@points(1, minutes=5, section="1")
def test_flops_of_the_logits(impl, seed):
    c = config(V=50_000, L=2)
    more(flops, counted, impl, (c, 8, 32, 1), (c, 8, 32, 21), FLOPS, "The logits cost other FLOPs.",
         "Which of the T tokens need logits, and what flows back through them?", "1", "FLOPs")
    got, want = (f(c, 8, 64, 4) - f(c, 8, 32, 4) for f in (lambda *at: flops(impl, *at), counted))
    near(got, want, FLOPS * 2, "Tokens without a loss cost other FLOPs: are they given logits?",
         f"from {told(c, 8, 32, 4)} to T 64", "Which of the T tokens need logits?", "1", "FLOPs")


@points(2, minutes=10, section="1")
def test_flops_of_attention(impl, seed):
    c = config(L=6, H=6, K=2, C=48, D=16)
    more(flops, counted, impl, (c, 300, 50, 1), (c, 700, 50, 1), FLOPS,
         "Attention to the P entries of the prefix costs other FLOPs.",
         "Whom does each new token look at, how many heads do, and how many products does that take in all?", "1",
         "FLOPs")
    more(flops, counted, impl, (c, 50, 300, 1), (c, 50, 700, 1), FLOPS,
         "Attention among the T new tokens costs other FLOPs.", "Are hidden scores computed?", "1", "FLOPs")


def drawn(seed, what):
    """(config, P, T, n) at random, no two sizes alike."""
    g = random.Random(f"{seed} {what}")
    K, G = g.choice([(1, 5), (2, 3), (3, 2), (2, 4)])
    c = config(V=g.choice([101, 1009, 3001]), L=g.choice([5, 6, 7]), H=K * G, K=K, C=g.choice([52, 76, 92]),
               D=2 * g.choice([5, 7, 11]), F=g.choice([99, 153, 201]))
    T = g.choice([59, 83, 113])
    return c, g.choice([31, 127, 401]), T, g.randint(2, T // 2)


@points(2, minutes=5, section="1")
def test_flops_on_random_configs(impl, seed):
    for at in (*(drawn(seed, f"flops {i}") for i in range(2)), (config(L=9, V=997), 3, 40, 40)):
        near(flops(impl, *at), counted(*at), FLOPS, "flops_step is off on a config drawn at random.", told(*at),
             "Which term has the size that is missing?", "1", "FLOPs")


# 2 bytes -----------------------------------------------------------------------------------------------------------


@points(2, minutes=5, section="2")
def test_bytes_of_what_is_trained(impl, seed):
    c = config(L=3, H=8, K=8, C=32, D=32, F=32)
    more(held, allocated, impl, (c, 200, 8, 2), (c, 600, 8, 2), BYTES,
         "An entry of the trained prefix takes other bytes.",
         "What does AdamW keep of each trained number, and what does attention keep until the backward pass?", "2",
         "bytes")


@points(1, minutes=5, section="2")
def test_bytes_of_kv_heads(impl, seed):
    c = config(L=3, H=8, K=2, C=32, D=32, F=32)
    more(held, allocated, impl, (c, 200, 8, 2), (c, 600, 8, 2), BYTES,
         "An entry takes other bytes where query heads share a KV head.", "How many heads does an entry have?", "2",
         "bytes")


@points(1, minutes=3, section="2")
def test_bytes_of_the_logits(impl, seed):
    c = config(V=5003, L=2, C=32, F=32)
    more(held, allocated, impl, (c, 8, 64, 8), (c, 8, 64, 40), BYTES, "The logits take other bytes.",
         "Which tokens have logits, and what else is as large while the loss is computed?", "2", "bytes")
    near(held(impl, c, 8, 64, 8), allocated(c, 8, 64, 8), BYTES * 1.5,
         "Tokens without a loss take other bytes: are they given logits?", told(c, 8, 64, 8),
         "Which tokens have logits?", "2", "bytes")


@points(1, minutes=4, section="2")
def test_bytes_of_the_layers(impl, seed):
    one, two = (config(L=L, H=4, K=2, C=64, D=16, F=176) for L in (3, 7))
    more(held, allocated, impl, (one, 8, 200, 4), (two, 8, 200, 4), BYTES, "A layer takes other bytes.",
         "What of each layer does the backward pass look at again?", "2", "bytes")


FEW = (  # small models in which one term is most of all: a block at work, the mask, logits of all tokens
    (config(L=2, H=3, K=3, C=40, D=8, F=600), 1, 90, 1), (config(L=3, H=2, K=1, C=24, D=4, F=24), 90, 90, 2),
    (config(L=2, H=2, K=2, C=16, D=6, F=24, V=997), 5, 40, 40),
)


@points(1, minutes=3, section="2")
def test_bytes_on_random_configs(impl, seed):
    for at in (*(drawn(seed, f"bytes {i}") for i in range(2)), *FEW):
        near(held(impl, *at), allocated(*at), BYTES, "peak_bytes is off on a config drawn at random.", told(*at),
             "Which term has the size that is missing?", "2", "bytes")


# 3 fit -------------------------------------------------------------------------------------------------------------


def fitted(impl, k, seconds):
    case = f"k {k}, seconds {[float(f'{s:.4g}') for s in seconds]}"
    with untouched("fit", "3", k=k, seconds=seconds):
        got = impl.fit(k, seconds)
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        fail("fit returns two numbers, a and b.", case, repr(got), "(a, b)", "What does fit hand back?", "3")
    return *(number(x, name, case, "3") for x, name in zip(got, "ab")), case


@points(1, minutes=5, section="3")
def test_fit_finds_both_coefficients(impl, seed):
    g = random.Random(f"{seed} fit")
    for a, b in ((g.uniform(2, 5), g.uniform(0.01, 0.05)), (g.uniform(0.01, 0.05), g.uniform(2, 5)), (2e-5, 3e-6)):
        k = g.sample(range(1, 60), 5)
        found = fitted(impl, k, [a * x + b * x * x for x in k])
        for got, want, name in zip(found, (a, b), "ab"):
            near(got, want, 1e-4, f"fit misses {name} where the seconds are a·k + b·k² exactly.",
                 f"{found[2]}, a {a:.4g}, b {b:.4g}", "Is there a constant in the formula, and which power has which "
                 "name?", "3", "")
    for k, seconds in (([1, 2], [2.5, 6.0]), ([7, 3], [38.5, 10.5]), ([2, 8, 2], [6.0, 48.0, 6.0])):
        found = fitted(impl, k, seconds)  # as few as there may be, in any order, one of them twice
        for got, name in zip(found, "ab"):
            want = {"a": 2.0, "b": 0.5}[name]
            near(got, want, 1e-4, f"fit misses {name} where the seconds are a·k + b·k² exactly.",
                 f"{found[2]}, a 2, b 0.5", "How many points do two unknowns need?", "3", "")
    for k, seconds in (([3, 3], [1.0, 1.0]), ([2], [1.0]), ([], []), ([1, 2, 3], [1.0, 2.0]), ([1, 2], [1.0, 2.0, 3.0]),
                       ([0, 1, 2], [1.0, 2.0, 3.0]), ([-1, 1, 2], [1.0, 2.0, 3.0]), ([1, 2, 3], [1.0, 0.0, 3.0]),
                       ([1, 2, 3], [-1.0, 2.0, 3.0]), ([], [1.0]), ([4, 4, 4], [1.0, 2.0, 3.0])):
        try:
            got = impl.fit(k, seconds)
        except ValueError:
            continue
        except NotImplementedError:
            raise
        except Exception as error:
            got = f"{type(error).__name__}: {first_line(error)}"
        fail("fit gives an answer where there is none.", f"k {k}, seconds {seconds}", repr(got), "a ValueError",
             "How many unknowns are there?", "3")


@points(1, minutes=5, section="3")
def test_fit_weighs_errors_in_proportion(impl, seed):
    g = random.Random(f"{seed} noise")
    k, a, b = [1, 2, 4, 8, 16, 32, 64, 4], g.uniform(1, 2), g.uniform(0.02, 0.05)
    noise = (0.02, -0.03, 0.03, -0.02, 0.05, -0.03, 0.06, -0.1)
    seconds = [(a * x + b * x * x) * (1 + off) for x, off in zip(k, noise)]
    found_a, found_b, case = fitted(impl, k, seconds)
    off = lambda a, b: sum(((a * x + b * x * x) / y - 1) ** 2 for x, y in zip(k, seconds))
    best = min(off(found_a * s, found_b * t) for s in (0.995, 1, 1.005) for t in (0.995, 1, 1.005))
    if off(found_a, found_b) > best * 1.0001:
        fail("fit is not the one with the least relative errors.", case,
             f"a sum of squares of {off(found_a, found_b):.4g} at a {found_a:.4g}, b {found_b:.4g}",
             f"{best:.4g} or less, which is near by", "How much does 1 ms matter at 3 ms, and how much at 300?", "3")
