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


def attention(seed, one_past=False):
    """Inputs of attend."""
    return fresh(_attention(seed, one_past))


@cache
def _attention(seed, one_past):
    n, g = sizes(seed), rng(seed, "attend")
    n.T = 3
    q, k, v = normal(g, n.B, n.H, n.T, n.D), normal(g, n.B, n.K, n.T, n.D), normal(g, n.B, n.K, n.T, n.D)
    rows = 1 if one_past else n.B
    past = normal(g, rows, n.K, n.P, n.D), normal(g, rows, n.K, n.P, n.D)
    mask = torch.rand(n.B, n.T, n.P + n.T, generator=g) < 0.5
    mask[:, torch.arange(n.T), n.P + torch.arange(n.T)] = True  # itself
    mask[:, 0, -1] = True  # ahead: what a mask allows is allowed
    return SimpleNamespace(q=q, k=k, v=v, past=past, mask=mask, **vars(n))


def slow(c, past, mask):
    """attend by the reference: a query, a head, a key at a time."""
    P = 0 if past is None else past[0].shape[2]
    if mask is None:
        mask = torch.ones(c.B, c.T, P + c.T, dtype=torch.bool).tril(P)
    out = torch.zeros_like(c.q)
    for b in range(c.B):
        for h in range(c.H):
            j = h // (c.H // c.K)
            at = lambda old, new: [*(old[min(b, len(old) - 1), j] if P else []), *new[b, j]]
            keys, values = (at(old, new) for old, new in zip(past or (None, None), (c.k, c.v)))
            for t in range(c.T):
                out[b, h, t] = reference.attend_one(c.q[b, h, t], keys, values, mask[b, t, -len(keys):].tolist())
    return out


@cache
def slow_once(seed, what, one_past=False):
    c = attention(seed, one_past)
    return slow(c, None if what == "alone" else c.past, c.mask if what == "mask" else None)


def told(**tensors):
    return ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())


# 1 rope ------------------------------------------------------------------------------------------------------------

@points(2, minutes=10, section="1")
def test_rope_turns_each_vector_by_its_position(impl, seed):
    n, g = sizes(seed), rng(seed, "rope")
    x, positions, theta = normal(g, n.B, n.K, n.T, 2 * n.G), places(g, n.B, n.T), 100.0
    zero = torch.zeros_like(positions)
    with untouched("rope", "1", x=x, positions=positions):
        same(impl.rope(x, zero, theta), x, "rope changes a vector at position 0.", told(x=x) + ", all positions 0",
             "By what angle does position 0 turn?", "1", TOL)
    case = f"x {tuple(x.shape)}, positions of row 0 {positions[0].tolist()}, theta {theta:g}"
    late = positions * 0 + positions[:, :1] + 3
    want = torch.stack([torch.stack([torch.stack([reference.rope(v, p, theta) for v, p in zip(head, at)])
                                     for head in row]) for row, at in zip(x, late.tolist())])
    same(impl.rope(x, late, theta), want, "rope does not turn by the positions it is given.",
         f"x {tuple(x.shape)}, all positions of row 0 are {int(late[0, 0])}",
         "Which tokens of this row should be turned alike, and by how much?", "1", TOL)
    want = torch.stack([torch.stack([torch.stack([reference.rope(v, p, theta) for v, p in zip(head, at)])
                                     for head in row]) for row, at in zip(x, positions.tolist())])
    same(impl.rope(x, positions, theta), want, "rope does not turn by the positions it is given.", case,
         "Do two rows with other positions turn alike? Does the order of the positions matter?", "1", TOL)


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
    for one_past in (False, True):
        c = attention(seed, one_past)
        case = told(q=c.q, k=c.k) + f", past {tuple(c.past[0].shape)}, no mask"
        same(impl.attend(c.q, c.k, c.v, c.past, None), slow_once(seed, "past", one_past),
             "Without a mask a token does not see all of the past and the new tokens up to itself.", case,
             "Which entries may the first new token see, and which the last?", "2.3", TOL)
    c = attention(seed)
    same(impl.attend(c.q, c.k, c.v, None, None), slow_once(seed, "alone"),
         "Without mask and past a token does not see the new tokens up to itself.", told(q=c.q, k=c.k),
         "What does causal mean for the first token?", "2.3", TOL)


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

    def loud(*entries):
        keys, values = c.past[0].clone(), c.past[1].clone()
        keys[:, :, entries] = 40 * c.q[:, :: c.G, :1]  # keys that a query falls for
        values[:, :, entries] = 1e3
        return impl.attend(c.q, c.k, c.v, (keys, values), c.mask)

    same(loud(0, 2), quiet, "What is hidden still changes the result.",
         "past entries 0 and 2 are hidden from every token; with other keys and values in them, and without",
         "How much of a hidden entry is left after the softmax, if its score is very large?", "2.4", TOL)
    if (loud(1) - quiet).abs().amax() < 1:
        fail("What is seen changes nothing.", "past entry 1 is seen by every token; with another key and value in it",
             "the same result", "another", "Is the past read at all?", "2.4")


@points(1, minutes=5, section="2.4")
def test_attend_lets_the_mask_alone_decide(impl, seed):
    c = attention(seed)
    same(impl.attend(c.q, c.k, c.v, c.past, c.mask), slow_once(seed, "mask"),
         "A token does not see exactly what the mask allows.",
         told(q=c.q, mask=c.mask) + "; the first token of each row may see the last one, which stands ahead of it",
         "Who decides what is seen, if there is a mask?", "2.4", TOL)


@points(1, minutes=5, section="2.5")
def test_attend_leaves_its_arguments_alone(impl, seed):
    c = attention(seed)
    copies = {name: getattr(c, name).clone() for name in ("q", "k", "v", "mask")}
    past = tuple(part.clone() for part in c.past)
    with untouched("attend", "2.5", **copies, past=past):
        impl.attend(copies["q"], copies["k"], copies["v"], past, copies["mask"])
    with untouched("attend", "2.5", **copies, past=past):
        out = impl.attend(copies["q"], copies["k"], copies["v"], past, None)
    same(out, slow_once(seed, "past"), "A second call gives another result.", "two calls with the same past",
         "What did the first call leave behind?", "2.5", TOL)


# 3 read ------------------------------------------------------------------------------------------------------------

def block(seed):
    """Weights of a block, two short texts at positions of their own, and what the reference reads."""
    return fresh(_block(seed))


@cache
def _block(seed):
    n, g = sizes(seed), rng(seed, "block")
    D, C, K, H, B, T = 6, n.C, n.K, n.H, 2, 7
    w = dict(embed=normal(g, n.V, C), norm_1=1 + 0.3 * normal(g, C), norm_2=1 + 0.3 * normal(g, C),
             q_proj=0.4 * normal(g, H * D, C), k_proj=0.4 * normal(g, K * D, C), v_proj=0.4 * normal(g, K * D, C),
             o_proj=0.3 * normal(g, C, H * D), gate_proj=0.4 * normal(g, n.F, C), up_proj=0.4 * normal(g, n.F, C),
             down_proj=0.3 * normal(g, C, n.F), head_dim=D, theta=30.0, eps=0.1)
    tokens = torch.randint(n.V, (B, T), generator=g)
    positions = places(g, B, T)
    split = lambda read: (torch.stack([h for h, _ in read]), *(torch.stack([kv[i] for _, kv in read]) for i in (0, 1)))
    whole = split([reference.read(w, t, None, p) for t, p in zip(tokens.tolist(), positions.tolist())])
    return SimpleNamespace(w=w, tokens=tokens, positions=positions, hidden=whole[0], keys=whole[1], values=whole[2])


def read(impl, c, past, at):
    """The student's read of the tokens in a slice, taken apart and with its arguments watched."""
    tokens, positions = c.tokens[:, at], c.positions[:, at]
    weights = [weight for weight in c.w.values() if isinstance(weight, torch.Tensor)]
    with untouched("read", "3", tokens=tokens, positions=positions, past=past or (), weights=weights):
        hidden, new = several(impl.read(c.w, tokens, past, positions), ("hidden", "(keys, values)"), "read", "3")
    return hidden, *several(new, ("keys", "values"), "read", "3")


case_of = lambda c: f"tokens {tuple(c.tokens.shape)}, positions of row 0 {c.positions[0].tolist()}, no past"


@points(1, minutes=5, section="3")
def test_read_gives_the_values_of_the_new_tokens(impl, seed):
    c = block(seed)
    *_, values = read(impl, c, None, slice(None))
    same(values, c.values, "The values of the new tokens are others.", case_of(c),
         "What goes through norm_1, and is a value turned to a position?", "3.1", TOL)


@points(1, minutes=5, section="3.1")
def test_read_keeps_keys_that_later_tokens_can_use(impl, seed):
    c = block(seed)
    _, keys, _ = read(impl, c, None, slice(None))
    same(keys, c.keys, "The keys that read hands back are not the ones it attended to, turned to their positions.",
         case_of(c), "Which position will a later call know: that of an old key, or only its own?", "3.1", TOL)


@points(1, minutes=5, section="3.2")
def test_read_is_the_block(impl, seed):
    c = block(seed)
    hidden, *_ = read(impl, c, None, slice(None))
    first = lambda t: t[:, :1] if getattr(t, "shape", None) == c.hidden.shape else t  # another shape is said below
    if first(hidden) is not hidden:
        same(first(hidden), first(c.hidden), "The hidden state of the first token, which sees itself alone, is off.",
             case_of(c), "Two norms, two residual sums, one silu: is one of them missing?", "3.2", TOL)
    same(hidden, c.hidden, "The hidden states behind the first token are others.", case_of(c),
         "The first token is right. What do later ones do that it does not?", "3.2", TOL)


@points(1, minutes=5, section="3.3")
def test_read_in_two_parts_is_read_at_once(impl, seed):
    c = block(seed)
    first, then = slice(0, 3), slice(3, None)
    hidden, keys, values = read(impl, c, None, first)
    past = (c.keys[:, :, first].clone(), c.values[:, :, first].clone())
    hidden, keys, values = read(impl, c, past, then)
    case = f"3 tokens as the past and {c.tokens.shape[1] - 3} new ones, positions of row 0 {c.positions[0].tolist()}"
    same(keys, c.keys[:, :, then], "Behind a past, the new keys are not those of the new tokens alone.", case,
         "Whose keys does read hand back, and at which positions?", "3.3", TOL)
    same(values, c.values[:, :, then], "Behind a past, the new values are not those of the new tokens alone.", case,
         "Whose values does read hand back?", "3.3", TOL)
    same(hidden, c.hidden[:, then], "Reading a text in two parts gives another result than reading it at once.", case,
         "The past holds keys that were turned already. What happens to them in the second call?", "3.3", TOL)
