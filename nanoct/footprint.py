"""What a run stores and computes, said before it is run.

    footprint(config, lengths, settings) -> Footprint        of a method's module

A method says how many numbers it trains and which passes a step makes; costs/memory.py adds that up to bytes and FLOPs.

Dimensions: k demos, P tokens of context, T tokens of a row, S keys that they attend to, n logits, C n_embd,
L layers, K KV heads, D head_dim.
"""

from dataclasses import dataclass, field


@dataclass
class Lengths:
    """Tokens of a task, all that memory and time depend on.

    instruction  of the instruction
    demos        [(of x with the separator, of y)] of every demo
    query        of the longest query with its answer
    n_decoded    how many queries are decoded side by side; 0: they are scored by teacher forcing
    n_row        of a row of queries that is scored by teacher forcing
    scored       of all queries, each option anew; answers: of all answers
    """

    instruction: int
    demos: list
    query: int
    n_decoded: int = 0
    n_row: int = 1024
    scored: int = 0
    answers: int = 0

    @property
    def context(self):
        """P: instruction and demos."""
        return self.instruction + sum(x + y for x, y in self.demos)

    @property
    def row(self):
        """T of the k pairs packed into one row: the last token of an answer predicts nothing."""
        return sum(x + y - 1 for x, y in self.demos)

    @property
    def headed_row(self):
        """T where the instruction stands at the head of every pair."""
        return self.row + len(self.demos) * self.instruction

    @property
    def targets(self):
        """n: tokens of all answers."""
        return sum(y for _, y in self.demos)


@dataclass
class Pass:
    """One forward and backward pass of a step."""

    n_row: int  # rows side by side
    n_token: int  # T of each
    n_key: int  # S that each token is held against, hidden ones included
    n_logit: int = 0
    masked: bool = True  # by a mask of its own, not just causally
    kv_only: bool = False  # only its keys and values are used: the last block's output has no backward pass


@dataclass
class LowRank:
    """LoRA, or what stands in for it, on all linears of adapters.TARGETS."""

    kind: type  # of adapters.py
    rank: int
    dropout: float = 0.0
    trained: bool = True


@dataclass
class Footprint:
    """What a method stores and computes on one task.

    The passes of a step run in their order; what one saves for the backward stays while the next ones run.
    """

    n_step: int = 0
    passes: list = field(default_factory=list)  # of one step
    trained: int = 0  # numbers of theta, or of an own adapter
    start: int = 0  # numbers of the context that theta began as, kept beside it
    read: int = 0  # tokens that are read once and not trained on: the demos, to make a cache of them
    prefix: int = 0  # entries of the context that predictions are made behind
    low_rank: LowRank | None = None
    first: "Footprint | None" = None  # of a method that is run before


def entry(config):
    """2·L·K·D: the numbers of a token's keys and values in all layers."""
    return 2 * config.n_layer * config.n_kv_head * config.head_dim
