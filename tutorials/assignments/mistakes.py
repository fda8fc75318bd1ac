"""What usually goes wrong in a step of CT-KV, as sentences: a wrong number is looked up here before it is reported.

A test that finds a wrong loss compares it with what each of these mistakes would give. Where one fits, the message says
which property broke; where none does, it says that the loss is off.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class Way:
    """How a loss is made. The defaults are the specification, pair by pair; each other value is a mistake."""

    owner_seen: str = "others"  # "others", "all", "next", "last": what leave-one-out leaves to see
    start: str = "P"  # a pair's first position: "0", "P-1", "P", "P+1", "on": behind the pair before, "gap": closed up
    part: str = "y"  # "y", "xy", "y less last", "y less first", "x"
    target: int = 1  # how far ahead a token predicts
    place: str = "y"  # "x": the tokens that should predict y predict what is `target` ahead of them
    mean: str = "tokens"  # "tokens", "pairs", "sum", "all tokens"
    instruction: str = "as all"  # "as all", "hidden", "exempt", "dropped apart"
    draw: str = "each"  # "each", "first", "none", "turned"
    scale: str = ""  # "", "values", "both": what is rescaled
    by: str = "pair"  # kept share of the "pair" or of "all" pairs, or of what "leave" leaves as well
    only: object = None  # the number of the one pair that counts
    ahead: str = ""  # "y", "all": a pair looks ahead, at what is read of it with or without the last token


def loss(model, keys, values, owner, demos, dropped, way=Way()):  # noqa: B008
    k, P = dropped.shape
    pairs, counted, n_all, first = [], 0, 0, P
    drop = {"each": dropped, "first": dropped[:1].expand(k, P), "none": torch.zeros_like(dropped),
            "turned": dropped.roll(1, 0)}[way.draw]
    if way.instruction == "exempt":
        drop = drop & (owner >= 0)
    for i, (x, y) in enumerate(demos):
        if way.only not in (None, i):
            continue
        hidden = drop[i].clone()
        if k > 1 and way.owner_seen != "all":
            hidden |= owner == {"others": i, "next": (i + 1) % k, "last": (i - 1) % k}[way.owner_seen]
        if way.instruction == "hidden":
            hidden |= owner < 0
        share = {"pair": 1 - drop[i].double().mean(), "all": 1 - drop.double().mean(),
                 "leave": 1 - hidden.double().mean()}[way.by]
        scaled = lambda part, on: part / share if on else part
        ids = [*x, *y]
        at = {"0": 0, "P-1": P - 1, "P": P, "P+1": P + 1, "on": first, "gap": P - int(hidden.sum())}[way.start]
        T = len(ids)
        own = torch.ones(T, T, dtype=torch.bool)
        own = own if way.ahead == "all" else own.tril()
        if way.ahead == "y":
            own[:-1, :-1] = True
        mask = torch.cat([~hidden[None].expand(T, P), own], 1)[None]
        logits, _, _ = model(torch.tensor([ids]), torch.arange(at, at + T)[None], mask,
                             scaled(keys, way.scale == "both"), scaled(values, way.scale != ""))
        first += T - 1
        a = way.target
        every = F.cross_entropy(logits[0, : T - a], torch.tensor(ids[a:]), reduction="none")  # of ids[a:]
        from_y = max(len(x) - a, 0) if way.place == "y" else len(x) - 1
        every = every if way.place == "y" else every[: T - 1]
        losses = {"y": every[from_y:], "xy": every, "x": every[:from_y], "y less last": every[from_y:-1],
                  "y less first": every[from_y + 1 :]}[way.part]
        n_all += T
        counted += len(losses)
        if len(losses):
            pairs.append(losses.mean() if way.mean == "pairs" else losses.sum())
    if not pairs:
        return torch.tensor(torch.nan)
    return sum(pairs) / {"tokens": counted, "pairs": len(pairs), "sum": 1, "all tokens": n_all}[way.mean]


LOOK = {  # sentence: (ways to come there, the question)
    "Pair i sees its own demo: leave-one-out does not hide it.":
        ([Way(owner_seen="all")], "From where could pair i copy its answer?"),
    "The wrong demo is hidden: pair i does not see another demo, and sees its own.":
        ([Way(owner_seen="next"), Way(owner_seen="last")], "Which entries does demo i own, and for which pair?"),
    "The loss counts tokens of x, the question.":
        ([Way(part="xy"), Way(part="x")], "Which tokens is the model asked to produce?"),
    "The loss does not count every token of y.":
        ([Way(part="y less last"), Way(part="y less first")], "Which token predicts the first of y, and the last?"),
    "The target is shifted: a token does not predict the one behind it.":
        ([Way(target=a, place=at) for a in (0, 2) for at in "yx"], "Where do the logits for y's first token stand?"),
    "The positions of a pair restart at 0, as if no prefix stood before it.":
        ([Way(start="0")], "How many tokens has the model read before a pair?"),
    "The positions of a pair are off: its first token does not stand right behind the prefix.":
        ([Way(start="P-1")], "Which position has the prefix's last entry, and which one comes next?"),
    "The positions close the gap: a pair does not stand right behind the prefix when an entry is hidden.":
        ([Way(start="gap")], "Where does the next token stand while demo i is hidden?"),
    "The positions run on from pair to pair: a later pair does not stand right behind the prefix.":
        ([Way(start="on")], "What stands before a pair when it is asked alone?"),
    "The loss is a mean over pairs, not one mean over all answer tokens.":
        ([Way(mean="pairs")], "How much does one token of a long answer weigh, and one of a short answer?"),
    "The loss is a sum, or divided by the wrong number of tokens.":
        ([Way(mean="sum"), Way(mean="all tokens")], "How many answer tokens are there in all pairs?"),
    "The instruction is hidden from the pairs.":
        ([Way(instruction="hidden")], "Whose are the entries with owner -1?"),
    "The instruction is exempt from token dropout.":
        ([Way(instruction="exempt")], "Which entries can token dropout hide?"),
    "One draw of token dropout serves all pairs.":
        ([Way(draw="first")], "Which row of dropped belongs to pair i?"),
    "Token dropout hides nothing.":
        ([Way(draw="none")], "What does True in dropped mean?"),
    "Token dropout of another pair is used.":
        ([Way(draw="turned")], "Which row of dropped belongs to pair i?"),
    "Token dropout is rescaled: what is kept counts for more.":
        ([Way(scale=scale, by=by) for scale in ("values", "both") for by in ("pair", "all", "leave")],
         "What does the softmax do with the weight of a hidden entry?"),
    "Only the first pair counts.":
        ([Way(only=0)], "How many pairs does a step train on?"),
    "A token looks ahead at the answer that it has to predict.":
        ([Way(ahead="all"), Way(ahead="y")], "What may a token see of its own pair?"),
}


@torch.no_grad()
def named(got, arguments, atol=1e-5):
    """(sentence, question) of the mistakes that give this loss instead of the right one; None if none does."""
    right = loss(*arguments)
    for sentence, (ways, question) in LOOK.items():
        for way in ways:
            made = loss(*arguments, way)
            if abs(made - got) < atol < abs(made - right) / 3:
                return sentence, question
    return None
