"""A few-shot task, and what a method makes of it.

    Task --method.adapt--> Adapted(model, adapter, prefix) --score--> accuracy

A demonstration (demo) is an example with its answer; a query is a question to be answered. Every method turns demos
into weights phi (the model and an adapter) and a context theta (a Prefix). Then p_phi(y | theta, x) predicts.

Dimensions: k demos, P prefix entries, T new tokens, L layers, K KV heads, D head_dim.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass
class Demo:
    """An example: token ids of the input x and of the answer y. y ends with the format's terminator, if any."""

    x: Sequence[int]
    y: Sequence[int]

    def __post_init__(self):
        _need_tokens(self)


@dataclass
class Query:
    """A question: input x, expected answer y, and the options to choose y from, if there are any."""

    x: Sequence[int]
    y: Sequence[int]
    options: Sequence[Sequence[int]] | None = None

    def __post_init__(self):
        _need_tokens(self)
        if self.options is not None and not all(len(option) for option in self.options):
            raise ValueError(f"an empty option in {self!r}: it needs at least one token to be scored.")
        if self.options is not None and list(self.y) not in [list(option) for option in self.options]:
            raise ValueError(f"the answer {list(self.y)} is not among the {len(self.options)} options; add it, or "
                             "leave options out and score by ids or text.")


@dataclass
class Text:
    """How token ids become an answer's text, where answers are decoded and compared as text.

    decode       ids -> str
    terminator   the text that ends an answer
    normalise    str -> str, of an answer before it is compared; default: as it is
    ends         ids that end an answer too, such as the end of the sequence
    answers      all possible answers, normalised; without them, those of demos and queries
    """

    decode: Callable
    terminator: str
    normalise: Callable = str
    ends: Collection[int] = ()
    answers: Collection[str] = ()

    def is_over(self, ids):
        """Whether ids end an answer. A tokenizer may merge the terminator with what is before it, so text decides."""
        return ids[-1] in self.ends or self.terminator in self.decode(ids)

    def answer(self, ids):
        """The answer in ids: their text up to the terminator or to a last id of `ends`, normalised."""
        ids = list(ids)
        text = self.decode(ids[:-1] if ids[-1] in self.ends else ids)
        return self.normalise(text.split(self.terminator)[0])


@dataclass
class Task:
    """k demos, the queries, and how answers are judged.

    instruction  token ids at the head of the context, with its BOS (beginning of sequence); nothing else adds a BOS
    separator    token ids before every demo of the context but the first, and before every pair trained or asked
    metric       "accuracy" or "macro_f1" over options; "ids": every token of y by teacher forcing, that is, predicted
                 behind the true ones; "text": decode greedily up to the terminator, normalise, compare
    length       most tokens of a context with a pair behind it, if fewer than the model's
    text         for "text": how ids become text, and where an answer ends
    """

    name: str
    demos: list[Demo]
    queries: list[Query]
    instruction: Sequence[int] = ()
    metric: str = "ids"
    text: Text | None = None
    length: int | None = None
    separator: Sequence[int] = ()

    def need_demos(self, method):
        """The demos. Raises ValueError if there are none."""
        if not self.demos:
            raise ValueError(f"task {self.name!r} has no demos and {method} learns from demos; give at least one, "
                             "or use zero_shot.")
        return self.demos


@dataclass
class Prefix:
    """theta: keys and values of every layer, [(K, V)] of shape (1, n_kv_head, P, head_dim), keys after RoPE.

    owner          (P,) int64: the demo an entry came from, -1 for the instruction and for entries of no demo
    next_position  position of the first token behind the prefix; windows that are read apart share positions, so there
                   can be more entries than that
    log_weight     (P,) float32, added to every score that an entry gets: log 2 counts it twice. None: nothing is added
    """

    kv: list
    owner: torch.Tensor
    next_position: int
    log_weight: torch.Tensor | None = None

    def stack(self):
        """All keys and all values, two tensors (L, 1, K, P, D)."""
        return tuple(torch.stack(part) for part in zip(*self.kv))

    def of(self, keys, values):
        """A prefix of the same entries with other keys and values (L, 1, K, P, D)."""
        return Prefix(list(zip(keys.unbind(), values.unbind())), self.owner, self.next_position, self.log_weight)


@dataclass
class Mixture:
    """theta of several contexts, parts [(weight, Prefix)]: the logits behind each are added with its weight."""

    parts: list

    @property
    def next_position(self):
        """That of the longest context, which says whether a question fits."""
        return max(prefix.next_position for _, prefix in self.parts)


def contexts(theta):
    """[(weight, Prefix or None)] of theta: the parts of a Mixture, or the one context, with weight 1."""
    return theta.parts if isinstance(theta, Mixture) else [(1.0, theta)]


@dataclass
class Adapted:
    """What a method makes of a task: (phi, theta) = (model with adapter, prefix), and how many numbers it trained."""

    model: torch.nn.Module
    adapter: Mapping | None = None
    prefix: Prefix | Mixture | None = None
    n_trained: int = 0


@torch.no_grad()
def encode_context(model, instruction=(), demos=(), adapter=None, separator=()):
    """Read instruction and demos once and keep their KV cache: a Prefix of all P tokens, or None if there are none.

    Cost: one forward over P tokens. Raises ValueError if they do not fit the model's context.
    """
    tokens, owner = concatenate(model, instruction, demos, separator)
    if not len(owner):
        return None
    _, kv = model(tokens, adapter=adapter)
    return Prefix(kv, owner, len(owner))


def concatenate(model, instruction=(), demos=(), separator=()):
    """Join instruction and demos to a context: tokens (1, P), and the demo that owns each (P,), -1 for the instruction.

    The separator stands before every demo but the first, and belongs to that demo.
    Raises ValueError if they do not fit the model's context.
    """
    tokens, owner = list(instruction), [-1] * len(instruction)
    for i, demo in enumerate(demos):
        ids = [*(separator if i else ()), *demo.x, *demo.y]
        tokens += ids
        owner += [i] * len(ids)
    check_fits(model, len(tokens), f"a context of {len(demos)} demos")
    check_ids(model, tokens)
    tensor = lambda values: torch.tensor(values, dtype=torch.int64, device=model.device)
    return tensor([tokens]), tensor(owner)


def is_answer(owner, demos):
    """Which entries of a context are answers, with their terminators: (P,) bool. owner (P,), as of `concatenate`."""
    found = torch.zeros_like(owner, dtype=torch.bool)
    for i, demo in enumerate(demos):
        found[(owner == i).nonzero().flatten()[-len(demo.y) :]] = True
    return found


def groups_of(demos, size):
    """Demos in groups of `size` neighbours. Raises ValueError if `size`, the field of a Config, does not divide."""
    if size < 1 or len(demos) % size:
        divisors = [str(n) for n in range(1, len(demos) + 1) if len(demos) % n == 0]
        raise ValueError(f"size = {size} does not divide the {len(demos)} demos into groups: take one of "
                         f"{', '.join(divisors)}.")
    return [demos[i : i + size] for i in range(0, len(demos), size)]


@torch.no_grad()
def read_on(model, prefix, tokens, adapter=None):
    """Extend a prefix (or None) by the entries of more tokens, such as an instruction; their owner is -1."""
    if not len(tokens):
        return prefix
    start = prefix.next_position if prefix is not None else 0
    check_fits(model, start + len(tokens), f"an instruction of {len(tokens)} tokens behind {start}")
    _, kv = model(torch.tensor([[*tokens]], device=model.device), prefix=prefix, adapter=adapter)
    return grow(prefix, kv)


def grow(prefix, kv):
    """Extend a prefix (or None) by the entries of new tokens, one row per row of the batch; their owner is -1."""
    T, device = kv[0][0].shape[2], kv[0][0].device
    owner = torch.full((T,), -1, device=device)
    if prefix is None:
        return Prefix(kv, owner, T)
    grown = []
    for before, added in zip(prefix.kv, kv):
        before = [part.to(added[0].dtype).expand(len(added[0]), -1, -1, -1) for part in before]
        grown.append(tuple(torch.cat(parts, dim=2) for parts in zip(before, added)))
    weight = prefix.log_weight
    weight = weight if weight is None else torch.cat([weight, torch.zeros(T, device=device)])
    return Prefix(grown, torch.cat([prefix.owner, owner]), prefix.next_position + T, weight)


def first_tokens(model, m):
    """Token ids 0, 1, … m-1, modulo the vocabulary: the start of a prefix that stands for no text.

    Raises ValueError if m is not positive or more than the model's context.
    """
    if m < 1:
        raise ValueError(f"n_prefix = {m} must be at least 1.")
    check_fits(model, m, f"a prefix of {m}")
    return [i % model.config.vocab_size for i in range(m)]


def noise_like(prefix, generator):
    """A prefix of random entries, as many as the given one's and in each layer with its standard deviations.

    They are normal, belong to no demo (owner -1), and are drawn on the CPU.
    """
    noise = lambda part: part.std() * torch.randn(part.shape, generator=generator).to(part)
    kv = [tuple(map(noise, layer)) for layer in prefix.kv]
    return Prefix(kv, torch.full_like(prefix.owner, -1), prefix.next_position)


def check_fits(model, n, what):
    """Raise ValueError if n tokens are more than the model's context."""
    if n > model.config.n_position:
        raise ValueError(f"{what} needs {n} tokens and the model's context is {model.config.n_position}: use fewer or "
                         "shorter demos, or a model with a longer context.")


def check_ids(model, ids):
    """Raise ValueError if the model has no such token id, as may happen with another tokenizer."""
    size = model.config.vocab_size
    if wrong := [i for i in ids if not 0 <= i < size]:
        raise ValueError(f"the token id {wrong[0]} is not one of the model's {size}: the tokenizer belongs to "
                         "another model; encode with this model's own.")


def check_start(start):
    """Raise ValueError unless `start`, the field of a Config, is "tokens" or "noise"."""
    if start not in ("tokens", "noise"):
        raise ValueError(f'start = {start!r} must be "tokens" or "noise".')


def check_dropout(name, p):
    """Raise ValueError unless p, the field `name` of a Config, is a probability below 1."""
    if not 0 <= p < 1:
        raise ValueError(f"{name} = {p} must be at least 0 and less than 1.")


def _need_tokens(pair):
    for part, meaning in (("x", "input"), ("y", "answer")):
        if not len(getattr(pair, part)):
            raise ValueError(f"an empty {meaning} in {pair!r}: it needs a token or more to be learned from or scored.")
