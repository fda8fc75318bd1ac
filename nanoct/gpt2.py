"""GPT-2 in the frame of model.py: learned positions, LayerNorm, biases, and a GELU where Llama has SwiGLU.

    hidden, kv = model(tokens, prefix=prefix, mask=mask, adapter=adapter)

Positions are a table of n_position rows, added to the embeddings of tokens (and to `embeds`), so no token can stand
further back. Parameters carry their Hugging Face names. Public files store the linear maps as (in, out); weights.py
transposes them on reading and writing, so that an adapter meets the same (out, in) as in Llama.

Dimensions as in model.py; K = H. Reference: Radford et al. 2019.
"""

from dataclasses import dataclass

import torch.nn as nn
import torch.nn.functional as F

from nanoct.model import Decoder, attend, linear


@dataclass(frozen=True)
class GPT2Config:
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    n_ffn: int
    n_position: int
    norm_eps: float = 1e-5
    tied: bool = True  # the head is the embedding

    n_kv_head = property(lambda self: self.n_head)
    head_dim = property(lambda self: self.n_embd // self.n_head)

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd = {self.n_embd} must be a multiple of n_head = {self.n_head}.")


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.n_head, self.head_dim = c.n_head, c.head_dim
        self.c_attn = nn.Linear(c.n_embd, 3 * c.n_embd)
        self.c_proj = nn.Linear(c.n_embd, c.n_embd)

    def forward(self, x, mask, past, adapter):
        B, T, _ = x.shape
        qkv = linear(x, self.c_attn, adapter).view(B, T, 3, self.n_head, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        return linear(attend(q, k, v, mask, past), self.c_proj, adapter), (k, v)


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c_fc = nn.Linear(c.n_embd, c.n_ffn)
        self.c_proj = nn.Linear(c.n_ffn, c.n_embd)

    def forward(self, x, adapter):
        return linear(F.gelu(linear(x, self.c_fc, adapter), approximate="tanh"), self.c_proj, adapter)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.ln_1 = nn.LayerNorm(c.n_embd, c.norm_eps)
        self.attn = Attention(c)
        self.ln_2 = nn.LayerNorm(c.n_embd, c.norm_eps)
        self.mlp = MLP(c)

    def forward(self, x, turn, mask, past, adapter):
        y, kv = self.attn(self.ln_1(x), mask, past, adapter)
        x = x + y
        return x + self.mlp(self.ln_2(x), adapter), kv


class GPT2(Decoder):
    def __init__(self, config):
        body = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.n_position, config.n_embd),
            h=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            ln_f=nn.LayerNorm(config.n_embd, config.norm_eps),
        ))
        super().__init__(config, body)
        self.transformer = body
        if not config.tied:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    embedding = property(lambda self: self.transformer.wte)
    blocks = property(lambda self: self.transformer.h)
    norm = property(lambda self: self.transformer.ln_f)

    def place(self, x, positions):
        """Add the embeddings of positions (B or 1, T) to x (B, T, C). Raises ValueError on a position that has none."""
        if (last := int(positions.max())) >= self.config.n_position:
            raise ValueError(f"position {last} is behind the {self.config.n_position} that this GPT-2 has learned: use "
                             "fewer or shorter demos.")
        return x + self.transformer.wpe(positions), None
