"""Llama by hand, with its KV cache as an argument and a result.

    hidden, kv = model(tokens, prefix=prefix, mask=mask, adapter=adapter)

Nothing is hidden inside attention. What the model is conditioned on comes in as `prefix` (the keys
and values of every layer) and `adapter` (what replaces a linear map), and what it computed goes out
as `kv`. The model itself is never changed, so code that tunes a context or a weight owns the tensor
that it tunes, and many adaptations of one model live side by side.

Dimensions: B batch, T new tokens, P prefix, S = P + T, H heads, K KV heads, D head_dim, C n_embd,
V vocab, L layers. Parameters carry their Hugging Face names, so public files load unrenamed.

Cost of a forward over T tokens behind a prefix of P, with N weights outside the embedding:
2·N·T FLOPs for the linear maps and 4·L·H·D·T·S for attention. The backward pass of the linear maps
costs as much again for the inputs (what CT-KV needs) and once more for the weights (what pretraining
needs), that of attention twice its forward pass.

References: Llama (arXiv 2302.13971), RoPE (2104.09864), GQA (2305.13245), SwiGLU (2002.05202), Qwen2 (2407.10671),
Qwen3 (2505.09388), OLMo 2 (2501.00656).
"""

import math
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

HEAD = 16384  # rows of the vocabulary at a time, for logits of a bfloat16 model


@dataclass(frozen=True)
class LlamaConfig:
    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int  # n_head: multi-head attention; 1: multi-query
    n_embd: int
    head_dim: int  # need not be n_embd / n_head
    n_ffn: int  # width of the SwiGLU
    n_position: int  # the longest context the model was made for
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None  # of type "llama3", or None
    norm_eps: float = 1e-5
    tied: bool = True  # the head is the embedding
    # where the Llama's relatives differ from it
    attention_bias: bool = False  # q, k and v have biases: Qwen2
    output_bias: bool = False  # o has one
    qk_norm: str | None = None  # RMSNorm of q and k before RoPE: "head" by head (Qwen3), "width" all at once (OLMo-2)
    norm_after: bool = False  # attention and MLP are normed behind them and not before: OLMo-2
    no_rope: tuple = ()  # numbers of the layers without RoPE: SmolLM3

    def __post_init__(self):
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head = {self.n_head} must be a multiple of n_kv_head = {self.n_kv_head}.")
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} must be even: RoPE rotates pairs.")
        if not 0 < self.norm_eps < 1 <= self.rope_theta:
            raise ValueError(f"norm_eps = {self.norm_eps} must be above 0 and below 1, and "
                             f"rope_theta = {self.rope_theta} 1 or more.")


class RMSNorm(nn.Module):
    def __init__(self, n_embd, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.eps = eps

    def forward(self, x):
        return self.fused(x) if x.is_cuda else self.plain(x)

    def fused(self, x):
        """One kernel on a GPU, where a step waits for the processor that starts each; plain() takes six."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def plain(self, x):
        y = x.to(torch.promote_types(x.dtype, torch.float32))  # bf16 is too coarse for the mean of squares
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


def rope_frequencies(config):
    """Rotation frequency of each of the D/2 pairs, in radians per position, float32 (D/2,).

    With `rope_scaling` of type llama3, wavelengths longer than the original context are stretched by
    `factor`, short ones kept, and those between interpolated (Llama 3.1, section 3.4.2 of arXiv 2407.21783).
    """
    D = config.head_dim
    frequency = 1.0 / config.rope_theta ** (torch.arange(0, D, 2).float() / D)
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)  # in the original context
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # 1: short wavelength, left as it is
    return frequency * (keep + (1 - keep) / scaling["factor"])


def rotate(x, cos, sin):
    """RoPE in the half-split layout: component d is paired with d + D/2. x (B, H, T, D)."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


def linear(x, layer, adapter):
    """Put x through a linear layer, or through what the adapter has in its place."""
    if adapter and layer.name in adapter:
        y = adapter[layer.name](x, layer.weight)
        return y if layer.bias is None else y + layer.bias
    return layer(x)


def attend(q, k, v, mask, past):
    """Attention of new queries (B, H, T, D) to past and new keys and values (B, K, T, D): (B, T, H·D)."""
    B, H, T, _ = q.shape
    if past is not None:  # cast: a tuned prefix is float32 even if the model computes in bf16
        behind = lambda past, new: torch.cat([past.to(q.dtype).expand(B, -1, -1, -1), new], dim=2)
        k, v = behind(past[0], k), behind(past[1], v)  # (B, K, S, D)
    if mask is not None and q.is_cuda and not has_fused_groups(q):
        k, v = alike(k, H), alike(v, H)
    causal = mask is None and T > 1
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=H != k.shape[1])
    return y.transpose(1, 2).reshape(B, T, -1)


def alike(x, n_head):
    """Keys or values (B, K, S, D) with every KV head repeated for the H / K query heads that read it: (B, H, S, D).

    For masked calls on CUDA: a kernel that takes a mask and fewer KV heads stores all B·H·T·S scores there, but for
    those of has_fused_groups (weights/nano/costs.md has the numbers).
    """
    return x.repeat_interleave(n_head // x.shape[1], dim=1)


def has_fused_groups(q):
    """Whether torch has a kernel for these CUDA queries that takes a mask and fewer KV heads and stores no scores.

    That is cuDNN's, in 16 bits, which torch prefers from compute capability 9 (H100) on.
    """
    return q.dtype in (torch.bfloat16, torch.float16) and torch.cuda.get_device_capability(q.device) >= (9, 0)


class Attention(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        self.head_dim, self.has_rope = c.head_dim, layer not in c.no_rope
        n_q, n_kv = c.n_head * c.head_dim, c.n_kv_head * c.head_dim
        self.q_proj = nn.Linear(c.n_embd, n_q, bias=c.attention_bias)
        self.k_proj = nn.Linear(c.n_embd, n_kv, bias=c.attention_bias)
        self.v_proj = nn.Linear(c.n_embd, n_kv, bias=c.attention_bias)
        self.o_proj = nn.Linear(n_q, c.n_embd, bias=c.output_bias)
        if c.qk_norm:
            self.q_norm = RMSNorm(c.head_dim if c.qk_norm == "head" else n_q, c.norm_eps)
            self.k_norm = RMSNorm(c.head_dim if c.qk_norm == "head" else n_kv, c.norm_eps)
        else:
            self.q_norm = self.k_norm = None

    def forward(self, x, turn, mask, past, adapter):
        q = self.heads(linear(x, self.q_proj, adapter), self.q_norm)  # (B, H, T, D)
        k = self.heads(linear(x, self.k_proj, adapter), self.k_norm)  # (B, K, T, D)
        v = self.heads(linear(x, self.v_proj, adapter))  # (B, K, T, D)
        if self.has_rope:
            q, k = rotate(q, *turn), rotate(k, *turn)
        return linear(attend(q, k, v, mask, past), self.o_proj, adapter), (k, v)

    def heads(self, y, norm=None):
        """Cut (B, T, n·D) into n heads, (B, n, T, D); norm is over D, or over all of n·D."""
        if norm is not None:
            y = norm(y.unflatten(-1, (-1, len(norm.weight)))).flatten(-2)
        return y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.n_embd, c.n_ffn, bias=False)
        self.up_proj = nn.Linear(c.n_embd, c.n_ffn, bias=False)
        self.down_proj = nn.Linear(c.n_ffn, c.n_embd, bias=False)

    def forward(self, x, adapter):
        gated = F.silu(linear(x, self.gate_proj, adapter)) * linear(x, self.up_proj, adapter)
        return linear(gated, self.down_proj, adapter)


class Block(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        self.norm_after = c.norm_after
        if not c.norm_after:
            self.input_layernorm = RMSNorm(c.n_embd, c.norm_eps)
        self.self_attn = Attention(c, layer)
        self.post_attention_layernorm = RMSNorm(c.n_embd, c.norm_eps)
        self.mlp = MLP(c)
        if c.norm_after:
            self.post_feedforward_layernorm = RMSNorm(c.n_embd, c.norm_eps)

    def forward(self, x, turn, mask, past, adapter):
        if self.norm_after:
            y, kv = self.self_attn(x, turn, mask, past, adapter)
            x = x + self.post_attention_layernorm(y)
            return x + self.post_feedforward_layernorm(self.mlp(x, adapter)), kv
        y, kv = self.self_attn(self.input_layernorm(x), turn, mask, past, adapter)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x), adapter), kv


class Decoder(nn.Module):
    """The frame around the blocks, which Llama (below) and GPT-2 (gpt2.py) share.

    Each names its parts: body (all but the head), embedding, blocks and norm. Its `place` puts positions in.
    checkpoint = True keeps only the input of every block for the backward pass and computes the rest again: it saves
    memory, the activations of all blocks but one, and costs one more forward pass.
    graphs = {} lets CT-KV and prefix tuning keep their step there as a CUDA graph, used again for the next task: see
    optimise.py. All other methods run as without. Off by default, as it has never run on a GPU.
    """

    checkpoint = False
    graphs = None

    def __init__(self, config, body):
        super().__init__()
        self.config = config
        self.linears = {}  # the names an adapter may use, such as "layers.3.self_attn.q_proj"
        for name, module in body.named_modules():
            if isinstance(module, nn.Linear):
                module.name = name
                self.linears[name] = module

    @property
    def device(self):
        return self.embedding.weight.device

    @property
    def dtype(self):
        return self.embedding.weight.dtype

    def init_weights(self, generator):
        """Random weights for pretraining: embeddings N(0, .1²), linear maps N(0, 1/n_in).

        So values keep their scale through a map of any width. The two maps of a block that write to the residual
        stream are divided by sqrt(2L).
        """
        for name, p in self.named_parameters():
            if p.dim() == 2:
                std = 0.1 if name.endswith(("embed_tokens.weight", "wte.weight", "wpe.weight")) else p.shape[1] ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight")):
                    std /= math.sqrt(2 * self.config.n_layer)
                nn.init.normal_(p, std=std, generator=generator)
        return self

    def embed(self, tokens):
        """Token ids (B, T) -> input embeddings (B, T, C)."""
        return self.embedding(tokens)

    def forward(self, tokens=None, *, embeds=None, positions=None, mask=None, prefix=None, adapter=None):
        """Run T new tokens behind a prefix.

        tokens     (B, T) int64, or embeds (B, T, C)
        positions  (B or 1, T) int64; default: prefix.next_position, +1, +2, …
        mask       (B or 1, T, P+T) bool, True = may attend; default: the whole prefix, causal among the new
        prefix     has .kv, [(K, V)] per layer of shape (1 or B, K, P, D), .next_position, and maybe .log_weight
                   (P,), which is added to the scores of its entries; or None
        adapter    {name of a linear: f(x, weight)} used in place of that linear; or None
        Returns hidden (B, T, C) after the final norm, and the new entries [(K, V)] per layer, each
        (B, K, T, D), keys after RoPE. Raises ValueError on shapes and names that do not fit.
        """
        if (tokens is None) == (embeds is None):
            raise ValueError("Give the model either tokens or embeds, and not both.")
        x = self.embed(tokens) if embeds is None else embeds.to(self.dtype)  # (B, T, C)
        B, T, _ = x.shape
        P = prefix.kv[0][0].shape[2] if prefix is not None else 0
        self._check(x, T, P, mask, prefix, adapter)
        if positions is None:
            start = prefix.next_position if prefix is not None else 0
            positions = torch.arange(start, start + T, device=x.device)[None]
        weight = getattr(prefix, "log_weight", None)
        if mask is None and P and (T > 1 or weight is not None):
            mask = torch.ones(1, T, P + T, dtype=torch.bool, device=x.device).tril(P)
        if mask is not None:  # added to the scores of all heads; made once, or every layer would keep its own
            mask = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill_(~mask, -math.inf)
            if weight is not None:
                mask[..., :P] += weight.to(x.dtype)
            mask = mask[:, None]  # (B or 1, 1, T, S)
        x, turn = self.place(x, positions)
        contexts = lambda: (nullcontext(), rewound(adapter))  # of a forward pass, and of its repetition
        kv = []
        for i, block in enumerate(self.blocks):
            arguments = x, turn, mask, prefix.kv[i] if prefix is not None else None, adapter
            if self.checkpoint and torch.is_grad_enabled():
                x, new = checkpoint(block, *arguments, use_reentrant=False, context_fn=contexts,
                                    preserve_rng_state=False)  # what draws numbers has a generator: see rewound
            else:
                x, new = block(*arguments)
            kv.append(new)
        return self.norm(x), kv

    def logits(self, hidden):
        """Apply the head to rows of hidden: (…, C) -> (…, V) float32. Give it answer positions only.

        A bfloat16 model too computes it in float32, HEAD rows of the head at a time: logits rounded to bfloat16
        distinguish two answers to .1 nats at best.
        """
        head = self.embedding.weight if self.config.tied else self.lm_head.weight
        if head.dtype in (torch.float32, torch.float64):
            return F.linear(hidden, head).float()
        x, product = hidden.float(), lambda x, rows: F.linear(x, rows.float())
        parts = [checkpoint(product, x, rows, use_reentrant=False, preserve_rng_state=False)  # no copy is kept
                 for rows in head.split(HEAD)]
        return torch.cat(parts, dim=-1)

    def _check(self, x, T, P, mask, prefix, adapter):
        c = self.config
        if x.shape[-1] != c.n_embd:
            raise ValueError(f"embeds have width {x.shape[-1]}, this model has n_embd = {c.n_embd}.")
        if mask is not None and (mask.dtype != torch.bool or mask.shape[1:] != (T, P + T)):
            raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}, expected bool (B or 1, T, P+T) with T = {T}, "
                             f"P = {P}.")
        shape = (c.n_layer, c.n_kv_head, c.head_dim)
        if prefix is not None and (len(prefix.kv), *prefix.kv[0][0].shape[1::2]) != shape:
            raise ValueError(f"the prefix has {len(prefix.kv)} layers of {tuple(prefix.kv[0][0].shape)}, this model "
                             f"{c.n_layer} layers of (1, {c.n_kv_head}, P, {c.head_dim}): it belongs to another model.")
        if adapter and (unknown := sorted(adapter.keys() - self.linears.keys())):
            raise ValueError(f"the adapter names {unknown[0]!r}, which is no linear of this model; "
                             f"names look like {next(iter(self.linears))!r}.")


def rewound(adapter):
    """A context manager: in it, an adapter's generators draw again what they draw after this call."""
    generators = {part.generator for part in (adapter or {}).values() if getattr(part, "generator", None) is not None}
    then = [(generator, generator.get_state()) for generator in generators]

    @contextmanager
    def context():
        now = [(generator, generator.get_state()) for generator in generators]
        try:
            for generator, state in then:
                generator.set_state(state)
            yield
        finally:
            for generator, state in now:
                generator.set_state(state)

    return context()


class Llama(Decoder):
    frequency = None  # RoPE's, from the first forward pass on

    def __init__(self, config):
        body = nn.ModuleDict(dict(
            embed_tokens=nn.Embedding(config.vocab_size, config.n_embd),
            layers=nn.ModuleList(Block(config, layer) for layer in range(config.n_layer)),
            norm=RMSNorm(config.n_embd, config.norm_eps),
        ))
        super().__init__(config, body)
        self.model = body
        if not config.tied:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    embedding = property(lambda self: self.model.embed_tokens)
    blocks = property(lambda self: self.model.layers)
    norm = property(lambda self: self.model.norm)

    def place(self, x, positions):
        """RoPE's cos and sin at positions (B or 1, T), each (B or 1, 1, T, D); x (B, T, C) stays as it is."""
        if self.frequency is None or self.frequency.device != x.device:
            self.frequency = rope_frequencies(self.config).to(x.device)  # once: the copy waits for a GPU
        angle = positions[:, None, :, None] * self.frequency  # (B or 1, 1, T, D/2)
        angle = torch.cat([angle, angle], dim=-1)  # (B or 1, 1, T, D)
        return x, (angle.cos().to(x.dtype), angle.sin().to(x.dtype))
