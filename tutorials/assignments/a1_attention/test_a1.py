"""Grades assignment 1. Numbers are compared to 5e-5: float32 inside is fine, what comes back has the input's dtype."""

import math
from functools import cache
from types import SimpleNamespace

import reference
import torch
from grading import fail, points, primes, rng, same, several, shaped, untouched

TOL = 5e-5
normal = lambda g, *shape: torch.randn(*shape, generator=g, dtype=torch.float64)


def places(g, B, T):
    """Positions as no arange has them: (B, T), all rows different, in no order."""
    return torch.stack([torch.randperm(40, generator=g)[:T] + 1 for _ in range(B)])


def sizes(seed):
    """All sizes differ and are primes, but for D, which is even, and H = K·G."""
    n = primes(seed, "B", "K", "G", among=(2, 3, 5))
    m = primes(seed, "T", "P", among=(7, 11))
    return SimpleNamespace(**vars(n), **vars(m), D=26, H=n.K * n.G, C=17, F=19, V=23)


def fresh(value):
    """A copy: an implementation that changes what it is given must not spoil the next test."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, (tuple, dict)):
        return tuple(map(fresh, value)) if isinstance(value, tuple) else {k: fresh(v) for k, v in value.items()}
    return SimpleNamespace(**fresh(vars(value))) if isinstance(value, SimpleNamespace) else value


KINDS = {  # what attend is given: sizes, and whether one past serves all rows
    "as drawn": {}, "one past for all rows": dict(rows=1), "one new token": dict(T=1), "a past of one entry": dict(P=1),
    "one row": dict(B=1), "more new tokens than past": dict(T=5, P=2), "one KV head": dict(K=1, G=3),
    "a KV head for each head": dict(K=3, G=1), "one of everything": dict(B=1, K=1, G=1, T=1, P=1),
    "float32": dict(dtype=torch.float32), "one past, float32": dict(rows=1, dtype=torch.float32, T=1),
}
SMALL = dict(B=2, K=2, G=3, T=3, P=4, D=6)


def attention(seed, kind="as drawn"):
    """Inputs of attend. By its mask a token sees an entry at least, not always itself, and some that are ahead."""
    return fresh(_attention(seed, kind))


@cache
def _attention(seed, kind):
    first = dict(vars(sizes(seed)), T=3) if kind == "as drawn" else SMALL
    n, g = SimpleNamespace(**first | dict(rows=0, dtype=torch.float64) | KINDS[kind]), rng(seed, f"attend {kind}")
    n.H = n.K * n.G
    draw = lambda B, heads, T: normal(g, B, heads, T, n.D).to(n.dtype)
    q, k, v = draw(n.B, n.H, n.T), draw(n.B, n.K, n.T), draw(n.B, n.K, n.T)
    past = draw(n.rows or n.B, n.K, n.P), draw(n.rows or n.B, n.K, n.P)
    mask = torch.rand(n.B, n.T, n.P + n.T, generator=g) < 0.5
    mask[:, 0, -1] = True  # ahead: what a mask allows is allowed
    mask[:, 0, n.P] = n.T == 1  # not itself, unless there is no other
    mask[:, -1, n.P] = True  # the last sees the first, and of the past what was drawn
    return SimpleNamespace(q=q, k=k, v=v, past=past, mask=mask | ~mask.any(-1, keepdim=True), **vars(n))


def slow(c, past, mask):
    """attend by the reference: a query, a head, a key at a time."""
    P = 0 if past is None else past[0].shape[2]
    if mask is None:
        mask = torch.ones(c.B, c.T, P + c.T, dtype=torch.bool).tril(P)
    out = torch.zeros_like(c.q)
    for b in range(c.B):
        for h in range(c.H):
            j = h // (c.H // c.K)
            at = lambda old, new: [*(old[min(b, len(old) - 1), j].double() if P else []), *new[b, j].double()]
            keys, values = (at(old, new) for old, new in zip(past or (None, None), (c.k, c.v)))
            for t in range(c.T):
                out[b, h, t] = reference.attend_one(c.q[b, h, t].double(), keys, values, mask[b, t].tolist())
    return out


def given_to(c, with_past, with_mask):
    """(past, mask) of a case; the mask has no columns for a past that is not there."""
    mask = c.mask if with_past else c.mask[:, :, c.P :] | torch.eye(c.T, dtype=torch.bool)
    return c.past if with_past else None, mask if with_mask else None


@cache
def slow_once(seed, kind, with_past, with_mask):
    c = attention(seed, kind)
    return slow(c, *given_to(c, with_past, with_mask))


def attended(impl, seed, kind, with_past, with_mask, broke, ask, section):
    """Wrong unless attend is the reference's, and leaves alone what it is given."""
    c = attention(seed, kind)
    past, mask = given_to(c, with_past, with_mask)
    case = (f"{kind}: " + told(q=c.q, k=c.k) + (f", past {tuple(past[0].shape)}" if past else ", no past")
            + (f", mask {tuple(mask.shape)}" if with_mask else ", no mask"))
    with untouched("attend", "2.5", q=c.q, k=c.k, v=c.v, past=past, mask=mask):
        got = impl.attend(c.q, c.k, c.v, past, mask)
    same(got, slow_once(seed, kind, with_past, with_mask), broke, case, ask, section, TOL)


def told(**tensors):
    return ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())


# 1 rope ------------------------------------------------------------------------------------------------------------

def turned(x, positions, theta):
    """rope by the reference: a vector at a time, in float64."""
    rows = [torch.stack([torch.stack([reference.rope(v, p, theta) for v, p in zip(head, at)]) for head in row])
            for row, at in zip(x.double(), positions.tolist())]
    return torch.stack(rows).to(x.dtype)


@points(2, minutes=10, section="1")
def test_rope_turns_each_vector_by_its_position(impl, seed):
    n, g = sizes(seed), rng(seed, "rope")
    x, positions, theta = normal(g, n.B, n.K, n.T, 2 * n.G), places(g, n.B, n.T), 100.0
    zero = torch.zeros_like(positions)
    with untouched("rope", "1", x=x, positions=positions):
        same(impl.rope(x, zero, theta), x, "rope changes a vector at position 0.", told(x=x) + ", all positions 0",
             "By what angle does position 0 turn?", "1", TOL)
    rows = [[5, 5, 0, 9], [7, 2, 2, 30]]  # in no order, with repeats
    far = [[64, 5000, 255, 1024], [2048, 1, 511, 100]]  # no table is that long: angles are computed
    cases = (  # x, positions, theta, the least difference that counts
        (x, positions * 0 + positions[:, :1] + 3, theta, TOL), (x, positions, theta, TOL),
        (normal(g, 2, 1, 4, 2), torch.tensor(rows), 10.0, TOL), (normal(g, 1, 3, 1, 8), torch.tensor([[4]]), 1e4, TOL),
        (normal(g, 2, 3, 4, 6).float(), torch.tensor(rows), 500.0, TOL),
        (normal(g, 2, 2, 4, 10), torch.tensor(far), 1e4, 3e-3),
    )
    for x, positions, theta, tol in cases:
        with untouched("rope", "1", x=x, positions=positions):
            got = impl.rope(x, positions, theta)
        same(got, turned(x, positions, theta), "rope does not turn by the positions it is given.",
             f"x {tuple(x.shape)} of {x.dtype}, positions of row 0 {positions[0].tolist()}, theta {theta:g}",
             "Which tokens should be turned alike, and by how much? Does the order or the size of a position matter?",
             "1", tol)


def like_x(y, x, case):
    return shaped(y, x, "rope returns a tensor like x, without NaN.", case, "What shape and dtype does x have?", "1")


@points(2, minutes=10, section="1")
def test_rope_pairs_the_right_components(impl, seed):
    D, theta = 2 * primes(seed, "half", among=(3, 5, 7)).half, 10.0
    place, turned = torch.full((1, 1), 3), torch.zeros(D, D, dtype=torch.float64)
    for d in range(D):
        x = torch.zeros(1, 1, 1, D, dtype=torch.float64)
        x[..., d] = 1
        turned[d] = like_x(impl.rope(x, place, theta), x, f"x is 1 at component {d} of {D}, position 3").flatten()
        found = sorted(turned[d].abs().gt(1e-6).nonzero().flatten().tolist())
        if found != sorted({d, (d + D // 2) % D}):
            fail("rope turns a pair of components that is no pair in this layout.",
                 f"x is 1 at component {d} and 0 elsewhere, D = {D}, position 3", f"numbers at components {found}",
                 f"at {sorted({d, (d + D // 2) % D})}", f"Which component is the partner of {d}?", "1")
    for d in range(D // 2):
        angle = 3 * theta ** (-2 * d / D)
        same(turned[d, [d, d + D // 2]], torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64),
             "A pair of components turns at another frequency, or the other way.",
             f"x is 1 at component {d} of {D}, position 3, theta {theta:g}; read at {d} and {d + D // 2}",
             "What does the frequency of a pair depend on, and which way does a positive angle turn?", "1", TOL)


@points(1, minutes=5, section="1")
def test_rope_keeps_scores_that_depend_on_distance_alone(impl, seed):
    g = rng(seed, "distance")
    q, k = normal(g, 1, 1, 1, 10), normal(g, 1, 1, 1, 10)
    at = lambda x, p: like_x(impl.rope(x, torch.tensor([[p]]), 50.0), x, f"x {tuple(x.shape)}, position {p}")
    score = lambda p, s: (at(q, p) * at(k, s)).sum().reshape(1)
    for near, far in ((5, 2), (2, 9)):
        same(score(near + 23, far + 23), score(near, far), "A common shift of all positions changes a score.",
             f"query at {near}, key at {far}, and both 23 further on",
             "Where does the score keep the distance of the two?", "1", TOL)
    if abs(score(5, 2) - score(5, 3)).item() < 1e-3:
        fail("A score does not depend on the distance of query and key.", "query at 5, key at 2 and at 3",
             "equal scores", "two scores", "Is the position used at all?", "1")


# 2 attend ----------------------------------------------------------------------------------------------------------

@points(2, minutes=10, section="2.1")
def test_attend_divides_scores_by_the_right_width(impl, seed):
    n, g = primes(seed, "K", "G", "D"), rng(seed, "scale")
    q, k = torch.zeros(1, n.K * n.G, 1, n.D, dtype=torch.float64), torch.zeros(1, n.K, 1, n.D, dtype=torch.float64)
    past = torch.zeros(1, n.K, 1, n.D, dtype=torch.float64), torch.ones(1, n.K, 1, n.D, dtype=torch.float64)
    gap = 0.5 + torch.rand(1, generator=g).double()
    q[..., 0], past[0][..., 0] = 1, gap  # scores gap and 0; values 1 and 0: the weight of the past comes out
    out = impl.attend(q, k, torch.zeros_like(k), past, None)
    want = torch.sigmoid(gap / math.sqrt(n.D)).expand_as(q)
    same(out, want, "The scale of the scores is off.",
         f"H = {n.K * n.G} heads, head_dim {n.D}, one past entry of score {gap.item():.3f} and one new one of score 0",
         "How does the size of a dot product grow with the number of its terms?", "2.1", TOL)


@points(2, minutes=5, section="2.2")
def test_attend_gives_each_query_head_its_kv_head(impl, seed):
    for K, G in ((sizes(seed).K, sizes(seed).G), (3, 1), (1, 2)):  # grouped, one KV head each, one for all
        q = torch.zeros(2, K * G, 2, 3, dtype=torch.float64)
        v = torch.arange(K).double()[None, :, None, None].expand(2, K, 2, 3).contiguous()  # values name their head
        want = torch.tensor([h // G for h in range(K * G)]).double()[None, :, None, None].expand_as(q).contiguous()
        same(impl.attend(q, torch.zeros_like(v), v, None, None), want, "A query head reads another KV head.",
             f"H = {K * G}, K = {K}; the values of KV head j are all j",
             "Which query heads share a KV head: neighbours, or every K-th?", "2.2", TOL)


@points(2, minutes=10, section="2.3")
def test_attend_reads_the_past_before_the_new(impl, seed):
    for kind in KINDS:
        attended(impl, seed, kind, True, False,
                 "Without a mask a token does not see all of the past and the new tokens up to itself.",
                 "Which entries may the first new token see, and which the last?", "2.3")
        attended(impl, seed, kind, False, False,
                 "Without mask and past a token does not see the new tokens up to itself.",
                 "What does causal mean for the first token?", "2.3")


@points(1, minutes=5, section="2.4")
def test_attend_weights_what_is_seen_with_a_sum_of_one(impl, seed):
    c = attention(seed)
    for value in (1.0, -3.0):
        v, past = torch.full_like(c.v, value), (c.past[0], torch.full_like(c.past[1], value))
        for name, mask in (("half of the entries hidden", c.mask), ("no mask", None)):
            same(impl.attend(c.q, c.k, v, past, mask), torch.full_like(c.q, value),
                 "The weights of the entries that are seen do not sum to 1.", f"all values are {value:g}, {name}",
                 "What is divided by what, and does the sum count entries that are hidden?", "2.4", TOL)


@points(2, minutes=5, section="2.4")
def test_attend_ignores_what_is_hidden(impl, seed):
    c = attention(seed)
    c.mask[:, :, [0, 2]], c.mask[:, :, 1] = False, True  # nobody sees past entries 0 and 2, all see entry 1
    quiet = shaped(impl.attend(c.q, c.k, c.v, c.past, c.mask), c.q, "attend returns a tensor like q, without NaN.",
                   told(q=c.q, mask=c.mask), "What shape and dtype does q have?", "2")

    def loud(how, *entries):
        keys, values = c.past[0].clone(), c.past[1].clone()
        keys[:, :, entries] = how * c.q[:, :: c.G, :1]  # keys that a query falls for
        values[:, :, entries] = 1e3
        return impl.attend(c.q, c.k, c.v, (keys, values), c.mask)

    for how in (40, 1e9, -1e9):
        same(loud(how, 0, 2), quiet, "What is hidden still changes the result.",
             f"past entries 0 and 2 are hidden from every token; with keys {how:g} times a query in them, and without",
             "How much of a hidden entry is left after the softmax, if its score is very large?", "2.4", TOL)
    if (loud(40, 1) - quiet).abs().amax() < 1:
        fail("What is seen changes nothing.", "past entry 1 is seen by every token; with another key and value in it",
             "the same result", "another", "Is the past read at all?", "2.4")
    only = torch.zeros_like(c.mask)
    only[:, :, 1] = True
    keys = -60 * c.q[:, :: c.G, :1].expand_as(c.past[0])  # what is seen has a very low score, and is all there is
    value = c.past[1][:, :, 1:2].repeat_interleave(c.G, 1).expand_as(c.q)
    same(impl.attend(c.q, c.k, c.v, (keys, c.past[1]), only), value,
         "A token that sees one entry alone does not get the value of that entry.",
         "every token sees past entry 1 alone", "What is the softmax of a single score?", "2.4", TOL)


@points(1, minutes=5, section="2.4")
def test_attend_lets_the_mask_alone_decide(impl, seed):
    for kind in KINDS:
        for with_past in (True, False):
            attended(impl, seed, kind, with_past, True, "A token does not see exactly what the mask allows.",
                     "Who decides what is seen, if there is a mask?", "2.4")


@points(1, minutes=5, section="2.5")
def test_attend_leaves_its_arguments_alone(impl, seed):
    c = attention(seed)
    for with_past in (True, False):
        for with_mask in (True, False):
            past, mask = given_to(c, with_past, with_mask)
            with untouched("attend", "2.5", q=c.q, k=c.k, v=c.v, past=past, mask=mask):
                impl.attend(c.q, c.k, c.v, past, mask)
    out = impl.attend(c.q, c.k, c.v, c.past, None)
    same(out, slow_once(seed, "as drawn", True, False), "A second call gives another result.",
         "two calls with the same past", "What did the first call leave behind?", "2.5", TOL)


# 3 read ------------------------------------------------------------------------------------------------------------

BLOCKS = {  # what read is given
    "as drawn": {}, "one row, one KV head": dict(B=1, K=1, G=2, D=4), "a KV head for each head": dict(K=3, G=1, D=2),
    "float32": dict(dtype=torch.float32, eps=1e-5, theta=1e4),
}


def block(seed, kind="as drawn"):
    """Weights of a block, short texts at positions of their own, and what the reference reads."""
    return fresh(_block(seed, kind))


@cache
def _block(seed, kind):
    first = dict(vars(sizes(seed)), B=2, T=7, D=6) if kind == "as drawn" else dict(C=7, F=5, V=11, B=2, K=2, G=2, T=4)
    n = SimpleNamespace(**first | dict(dtype=torch.float64, eps=0.1, theta=30.0, D=6) | BLOCKS[kind])
    g, C, K, H = rng(seed, f"block {kind}"), n.C, n.K, n.K * n.G
    w = dict(embed=normal(g, n.V, C), norm_1=1 + 0.3 * normal(g, C), norm_2=1 + 0.3 * normal(g, C),
             q_proj=0.4 * normal(g, H * n.D, C), k_proj=0.4 * normal(g, K * n.D, C),
             v_proj=0.4 * normal(g, K * n.D, C), o_proj=0.3 * normal(g, C, H * n.D), gate_proj=0.4 * normal(g, n.F, C),
             up_proj=0.4 * normal(g, n.F, C), down_proj=0.3 * normal(g, C, n.F))
    w = {name: weight.to(n.dtype) for name, weight in w.items()} | dict(head_dim=n.D, theta=n.theta, eps=n.eps)
    tokens, positions = torch.randint(n.V, (n.B, n.T), generator=g), places(g, n.B, n.T)
    tokens[:, 1], tokens[:, 2] = 0, n.V - 1  # the first and the last word there is
    tokens[:, 3] = tokens[:, 0]  # and one twice
    exact = {name: part.double() if isinstance(part, torch.Tensor) else part for name, part in w.items()}
    texts = [reference.read(exact, t, None, p) for t, p in zip(tokens.tolist(), positions.tolist())]
    stack = lambda parts: torch.stack(list(parts)).to(n.dtype)
    return SimpleNamespace(w=w, tokens=tokens, positions=positions, name=kind, hidden=stack(h for h, _ in texts),
                           keys=stack(kv[0] for _, kv in texts), values=stack(kv[1] for _, kv in texts))


def read(impl, c, past, at):
    """The student's read of the tokens in a slice, taken apart and with its arguments watched."""
    tokens, positions = c.tokens[:, at].clone(), c.positions[:, at].clone()
    with untouched("read", "3", tokens=tokens, positions=positions, past=past, weights=c.w):
        hidden, new = several(impl.read(c.w, tokens, past, positions), ("hidden", "(keys, values)"), "read", "3")
    return hidden, *several(new, ("keys", "values"), "read", "3")


case_of = lambda c: f"{c.name}: tokens {tuple(c.tokens.shape)}, positions of row 0 {c.positions[0].tolist()}, no past"


@points(1, minutes=5, section="3")
def test_read_gives_the_values_of_the_new_tokens(impl, seed):
    for c in (block(seed, kind) for kind in BLOCKS):
        *_, values = read(impl, c, None, slice(None))
        same(values, c.values, "The values of the new tokens are others.", case_of(c),
             "What goes through norm_1, and is a value turned to a position?", "3.1", TOL)


@points(1, minutes=5, section="3.1")
def test_read_keeps_keys_that_later_tokens_can_use(impl, seed):
    for c in (block(seed, kind) for kind in BLOCKS):
        _, keys, _ = read(impl, c, None, slice(None))
        same(keys, c.keys, "The keys that read hands back are not the ones it attended to, turned to their positions.",
             case_of(c), "Which position will a later call know: that of an old key, or only its own?", "3.1", TOL)


@points(1, minutes=5, section="3.2")
def test_read_is_the_block(impl, seed):
    for c in (block(seed, kind) for kind in BLOCKS):
        hidden, *_ = read(impl, c, None, slice(None))
        first = lambda t, c=c: t[:, :1] if getattr(t, "shape", None) == c.hidden.shape else t  # other shapes: below
        if first(hidden) is not hidden:
            same(first(hidden), first(c.hidden),
                 "The hidden state of the first token, which sees itself alone, is off.", case_of(c),
                 "Two norms, two residual sums, one silu: is one of them missing?", "3.2", TOL)
        same(hidden, c.hidden, "The hidden states behind the first token are others.", case_of(c),
             "The first token is right. What do later ones do that it does not?", "3.2", TOL)


@points(1, minutes=5, section="3.3")
def test_read_in_two_parts_is_read_at_once(impl, seed):
    parts = (0, 1), (1, 2), (3, None), (2, None)  # one token without a past, one behind it, several
    for c, (n, end) in ((block(seed, kind), part) for kind in BLOCKS for part in parts):
        then, new = slice(n, end), c.tokens[:, n:end].shape[1]
        past = (c.keys[:, :, :n].clone(), c.values[:, :, :n].clone()) if n else None
        hidden, keys, values = read(impl, c, past, then)
        case = f"{c.name}: {n} tokens as the past and {new} new, positions of row 0 {c.positions[0].tolist()}"
        same(keys, c.keys[:, :, then], "Behind a past, the new keys are not those of the new tokens alone.", case,
             "Whose keys does read hand back, and at which positions?", "3.3", TOL)
        same(values, c.values[:, :, then], "Behind a past, the new values are not those of the new tokens alone.",
             case, "Whose values does read hand back?", "3.3", TOL)
        same(hidden, c.hidden[:, then], "Reading a text in two parts gives another result than reading it at once.",
             case, "The past holds keys that were turned already. What happens to them in the second call?", "3.3",
             TOL)
