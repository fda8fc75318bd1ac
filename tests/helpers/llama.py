"""Random Llamas, and models of other families, as transformers writes and reads them."""

from copy import deepcopy

import torch
import transformers

from helpers import V

BASE = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=True)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
PUBLIC = dict(vocab_size=97, max_position_embeddings=4096, rope_theta=500000.0,
              rope_scaling=LLAMA3 | dict(factor=32.0, original_max_position_embeddings=512))
LAYOUTS = {
    "gqa": {},
    "mha": dict(num_key_value_heads=4),
    "mqa": dict(num_key_value_heads=1),
    "wide heads": dict(head_dim=12),
    "narrow heads": dict(head_dim=6),
    "untied": dict(tie_word_embeddings=False),
    "llama3": dict(head_dim=16, rope_theta=100.0, rope_scaling=LLAMA3),
    "Llama-3.2-1B": PUBLIC | dict(hidden_size=64, num_attention_heads=8, intermediate_size=256, num_hidden_layers=4),
    "Llama-3.2-3B": PUBLIC | dict(hidden_size=96, num_attention_heads=6, intermediate_size=256, num_hidden_layers=3),
    "Llama-3.1-8B": PUBLIC | dict(hidden_size=64, num_attention_heads=8, intermediate_size=224, num_hidden_layers=4,
                                  rope_scaling=LLAMA3 | dict(original_max_position_embeddings=512),
                                  tie_word_embeddings=False),
}

TINY = dict(vocab_size=V, hidden_size=16, intermediate_size=24, max_position_embeddings=160, tie_word_embeddings=False)


def write(folder, dtype=torch.float32, max_shard_size="1GB", family="Llama", **layout):
    """Write a random Llama, or model of another family, with transformers; return it as transformers reads it, float32.

    Its weights are large, so that every term shows in the logits.
    """
    torch.manual_seed(0)
    tokens = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)  # some families' are beyond this vocabulary
    Config, Model = (getattr(transformers, family + kind) for kind in ("Config", "ForCausalLM"))
    config = Config(**deepcopy(BASE | tokens | layout))  # a copy: transformers writes into rope_scaling
    theirs = Model(config).to(dtype).requires_grad_(False)
    for p in theirs.parameters():
        p.uniform_(0.5, 1.5) if p.dim() == 1 else p.normal_(std=0.2)
    theirs.save_pretrained(folder, max_shard_size=max_shard_size)
    return read(folder)


def read(folder, attention="eager"):
    options = dict(dtype=torch.float32, attn_implementation=attention, local_files_only=True)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).requires_grad_(False)


def ids(*shape, seed=0, vocab_size=61):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def assert_logits(ours, theirs, tokens):
    expected = theirs(tokens).logits
    assert expected.std() > 1
    torch.testing.assert_close(ours.logits(ours(tokens)[0]), expected, atol=1e-4, rtol=0)
