"""nanoct passes its own course: assignment 1 by the package's Llama."""

import torch

from nanoct import model
from nanoct.fewshot import Prefix


def config(**sizes):
    unused = dict(vocab_size=1, n_layer=1, n_head=1, n_kv_head=1, n_embd=2, head_dim=2, n_ffn=1, n_position=10**6)
    return model.LlamaConfig(**unused | sizes)


def rope(x, positions, theta):
    angle = positions[:, None, :, None] * model.rope_frequencies(config(head_dim=x.shape[-1], rope_theta=theta))
    angle = torch.cat([angle, angle], dim=-1)
    return model.rotate(x, angle.cos(), angle.sin())


def attend(q, k, v, past, mask):
    P = past[0].shape[2] if past is not None else 0
    if mask is None:
        mask = torch.ones(1, q.shape[2], P + q.shape[2], dtype=torch.bool).tril(P)
    return model.attend(q, k, v, mask[:, None], past).unflatten(-1, (q.shape[1], -1)).transpose(1, 2)


def read(weights, tokens, past, positions):
    w, D = weights, weights["head_dim"]
    (V, C), F = w["embed"].shape, len(w["gate_proj"])
    llama = model.Llama(config(vocab_size=V, n_head=len(w["q_proj"]) // D, n_kv_head=len(w["k_proj"]) // D, n_embd=C,
                               head_dim=D, n_ffn=F, rope_theta=w["theta"], norm_eps=w["eps"])).to(w["embed"].dtype)
    at = {"embed": "embed_tokens", "norm_1": "layers.0.input_layernorm", "norm_2": "layers.0.post_attention_layernorm"}
    at |= {f"{part}_proj": f"layers.0.self_attn.{part}_proj" for part in "qkvo"}
    at |= {f"{part}_proj": f"layers.0.mlp.{part}_proj" for part in ("gate", "up", "down")}
    llama.model.load_state_dict({f"{place}.weight": w[name] for name, place in at.items()}, strict=False)
    llama.model.norm = torch.nn.Identity()  # the block alone
    prefix = Prefix([past], torch.full((past[0].shape[2],), -1), 0) if past is not None else None
    hidden, (new,) = llama(tokens, positions=positions, prefix=prefix)
    return hidden, new
