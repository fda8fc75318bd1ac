"""What a run will store and compute, counted before it starts.

    footprint(model_config, lengths, config) -> Footprint        of a method's module; config: the method's

A method says how many numbers it trains and which passes a step makes. costs/memory.py turns that into bytes and FLOPs.

Dimensions: k demos, P tokens of context, T tokens of a row, S keys that they attend to, n logits, C n_embd,
L layers, K KV heads, D head_dim.
"""

from dataclasses import dataclass, field


@dataclass
class Lengths:
    """Numbers of tokens in a task: all that memory and time depend on.

    instruction  tokens of the instruction
    demos        [(tokens of x with the separator, tokens of y)] of every demo
    query        tokens of the longest query with its answer
    n_decoded    how many queries are decoded side by side; 0: they are scored by teacher forcing
    n_row        tokens of a row of queries scored by teacher forcing
    scored       tokens of all queries, with x once and every option; answers: tokens of all answers
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
        """T of the k pairs in one row, without the last token of each answer: that predicts nothing."""
        return sum(x + y - 1 for x, y in self.demos)

    @property
    def headed_row(self):
        """T where the instruction stands at the head of every pair."""
        return self.row + len(self.demos) * self.instruction

    @property
    def targets(self):
        """n: the tokens of all answers."""
        return sum(y for _, y in self.demos)


@dataclass
class Pass:
    """One forward and backward pass of a step; a forward pass alone if nothing in it is trained."""

    n_row: int  # rows side by side
    n_token: int  # T of each
    n_key: int  # S, keys for each token, hidden ones included
    n_logit: int = 0
    masked: bool = True  # by a mask of its own and not just causally
    kv_only: bool = False  # only its keys and values are used: the last block's output has no backward pass
    trains: bool = True  # False: no backward pass


@dataclass
class LowRank:
    """LoRA, or another kind in its place, on all linears of adapters.TARGETS."""

    kind: type  # of adapters.py
    rank: int
    dropout: float = 0.0
    trained: bool = True


@dataclass
class Footprint:
    """What a method stores and computes on one task.

    The passes of a step run in their order. What one saves for the backward pass stays while the next ones run.
    """

    n_step: int = 0
    passes: list = field(default_factory=list)  # of one step
    trained: int = 0  # numbers of theta, or of an adapter of its own
    start: int = 0  # numbers of the context that theta starts from, kept beside theta
    read: int = 0  # tokens that are read once without training, such as the demos for their cache
    prefix: int = 0  # entries of the context when predictions are made
    low_rank: LowRank | None = None
    first: "Footprint | None" = None  # the Footprint of a method that runs before


def entry(model_config):
    """2·L·K·D: the numbers of a token's keys and values in all layers."""
    return 2 * model_config.n_layer * model_config.n_kv_head * model_config.head_dim
