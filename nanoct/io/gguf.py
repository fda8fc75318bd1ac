"""Convert a llama.cpp file (GGUF) of a Llama, Qwen2 or Qwen3 to a folder that nanoct and transformers load.

    nanoct gguf FILE.gguf --out FOLDER    # config.json model.safetensors tokenizer.json tokenizer_config.json

Tensors may be F32, F16, BF16, or of any quantised type that the package `gguf` knows (pip install gguf). The weights
are written as bfloat16 or float16 where that holds every value of the file, and otherwise as float32, so that what was
quantised is not rounded a second time.

RoPE rotates pairs of components. llama.cpp pairs neighbours, (0, 1), (2, 3), …, Hugging Face the halves of a head.
So a Llama's GGUF files have W_Q's and W_K's rows in another order, per head (D/2, 2) for (2, D/2); Qwen's do not.
"""

import json
import os
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from nanoct import cli
from nanoct.io.files import reading, temporary_folder
from nanoct.io.tokenizer import LLAMA3, load_tokenizer
from nanoct.io.weights import resolve_dtype, save_model
from nanoct.model import Llama, LlamaConfig, rope_frequencies

# llama.cpp's name: (ours, shape). D is head_dim, Q is H·D, K is n_kv_head·D, F is n_ffn.
WHOLE = {"token_embd": ("model.embed_tokens", "VC"), "output_norm": ("model.norm", "C"), "output": ("lm_head", "VC")}
LAYER = {"attn_norm": ("input_layernorm", "C"), "ffn_norm": ("post_attention_layernorm", "C"),
         "attn_q": ("self_attn.q_proj", "QC"), "attn_k": ("self_attn.k_proj", "KC"),
         "attn_v": ("self_attn.v_proj", "KC"), "attn_output": ("self_attn.o_proj", "CQ"),
         "ffn_gate": ("mlp.gate_proj", "FC"), "ffn_up": ("mlp.up_proj", "FC"), "ffn_down": ("mlp.down_proj", "CF")}
NORMS = {"attn_q_norm": ("self_attn.q_norm", "D"), "attn_k_norm": ("self_attn.k_norm", "D")}
ARCHITECTURES = {"llama": {}, "qwen2": dict(attention_bias=True), "qwen3": dict(qk_norm="head")}  # fields of the config
# Further settings in the metadata. nanoct computes only these values of them, and any other is refused.
PLAIN = {"ARCH.expert_count": 0, "ARCH.expert_used_count": 0, "ARCH.rope.scaling.type": "none",
         "tokenizer.ggml.add_space_prefix": False, "split.count": 1}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens
BYTES = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
DIGITS = dict(type="Digits", individual_digits=True)
WORD = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]%s[\p{Ll}\p{Lm}\p{Lo}\p{M}]%s|"
TEKKEN = WORD % ("*", "+") + WORD % ("+", "*") + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {"llama-bpe": LLAMA3, "smaug-bpe": LLAMA3, "qwen2": LLAMA3.replace("{1,3}", ""), "tekken": TEKKEN}
PIECES = {"gpt-2": [BYTES], "smollm": [DIGITS, BYTES]} | {
    pre: [dict(type="Split", pattern=dict(Regex=split), behavior="Isolated", invert=False),
          BYTES | dict(use_regex=False)] for pre, split in SPLITS.items()}
WHOLE_PIECES = "llama-bpe", "tekken"  # look for a whole piece before they merge, and put bos before a text


def convert(file, folder, dtype=None) -> Path:
    """Convert `file` into `folder` and return the folder; files of the same names are replaced whole.

    dtype: the default is as above. Raises FileNotFoundError if there is no file, ValueError with a sentence if it is
    broken or asks for what nanoct does not compute, and OSError if the folder cannot be made.
    """
    file, folder = Path(file), Path(folder)
    meta, tensors = read(file)
    with reading(file, "a model that nanoct computes", "take another file"):
        config = read_config(meta, tensors)
        tokenizer = read_tokenizer(meta)
        model = read_weights(config, tensors, dtype)
    with temporary_folder(folder) as new:
        for name, content in tokenizer.items():
            _write(new / name, content)
        try:
            load_tokenizer(new).check_belongs(config.vocab_size)
        except ValueError as error:
            raise ValueError(f"{file}: {error}".replace(f"{new}/", "its ")) from None
        save_model(model, new)
        ids = {f"{name}_token_id": meta.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
        _write(new / "config.json", json.loads((new / "config.json").read_text()) | ids)
        for name in (*tokenizer, "model.safetensors", "config.json"):
            os.replace(new / name, folder / name)
    return folder


def read(file):
    """Read a GGUF file: ({key: value}, {name: (type, shape, array)}); arrays are views of the mapped file."""
    package = _package()
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {str(file)!r}; give the path of a GGUF file.")

    class Reader(package.GGUFReader):
        """The package's reader, which by itself reads past the end of a file for as long as its header says."""

        def _get(self, offset, dtype, count=1, override_order=None):
            if self.byte_order == "S":
                raise ValueError("it is big-endian")
            return np.frombuffer(self.data, dtype, int(count), offset)  # ValueError behind the end

    with reading(file, "a whole GGUF file that nanoct reads", "download it again"), np.errstate(over="raise"):
        opened = Reader(file)
        meta = {name: field.contents() for name, field in opened.fields.items()}
        tensors = {t.name: (t.tensor_type, tuple(t.shape.tolist()[::-1]), t.data) for t in opened.tensors}
        places = sorted((t.data_offset, t.data_offset + t.n_bytes) for t in opened.tensors)
        if any(start < end for (_, end), (start, _) in pairwise(places)):  # or a small file would make a large model
            raise ValueError("its tensors overlap")
    return meta, tensors


def read_config(meta, tensors) -> LlamaConfig:
    """The config that the metadata gives. Raises ValueError with a key that nanoct does not compute."""
    if (arch := meta.get("general.architecture")) not in list(ARCHITECTURES):
        raise ValueError(f"the architecture is {_short(arch)}; nanoct takes {', '.join(ARCHITECTURES)} from GGUF files")
    known = {key.replace("ARCH", arch): plain for key, plain in PLAIN.items()}
    for key, plain in known.items():
        if meta.get(key, plain) != plain:
            raise ValueError(f"{key} is {_short(meta[key])}; nanoct takes {plain!r} only")

    def number(name, kind=int, default=None):
        known.setdefault(key := f"{arch}.{name}")
        value = meta[key] if default is None else meta.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, kind)) or not 0 < value < 2**31:
            raise ValueError(f"{key} is {_short(value)}; it must be a positive {kind.__name__}")
        return kind(str(np.float32(value))) if kind is float else value  # 1e-5, not the float32 next to it

    vocab_size = tensors["token_embd.weight"][1][0]
    n_head, n_embd = number("attention.head_count"), number("embedding_length")
    head_dim = number("attention.key_length", default=n_embd // n_head)
    for name, size in {"attention.value_length": head_dim, "rope.dimension_count": head_dim,
                       "vocab_size": vocab_size}.items():
        if number(name, default=size) != size:
            raise ValueError(f"{arch}.{name} is {meta[f'{arch}.{name}']}; nanoct computes {size} only")
    fields = dict(vocab_size=vocab_size, n_head=n_head, n_embd=n_embd, head_dim=head_dim,
                  n_kv_head=number("attention.head_count_kv", default=n_head), n_layer=number("block_count"),
                  n_ffn=number("feed_forward_length"), n_position=number("context_length"),
                  norm_eps=number("attention.layer_norm_rms_epsilon", float),
                  rope_theta=number("rope.freq_base", float, 10000.0), tied="output.weight" not in tensors,
                  **ARCHITECTURES[arch])
    if unknown := [key for key in meta if key.startswith(f"{arch}.") and key not in known]:
        raise ValueError(f"{unknown[0]} is {_short(meta[unknown[0]])}; nanoct's Llama has no such setting")
    config = LlamaConfig(**fields)
    return _with_llama3(config, tensors.pop("rope_freqs.weight")) if "rope_freqs.weight" in tensors else config


def _with_llama3(config, tensor):
    """Add to a config the llama3 scaling that stretches wavelengths like this tensor: files have no settings of it."""
    if tensor[1] == (config.head_dim // 2,):
        stretch = _floats(*tensor)
        scaling = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
        scaled = replace(config, rope_scaling=dict(factor=stretch.max().item(), **scaling))
        if torch.allclose(stretch, rope_frequencies(config) / rope_frequencies(scaled), rtol=1e-4):
            return scaled
    raise ValueError("rope_freqs.weight is not Llama 3's scaling of 8192 positions, the only one nanoct can read back")


def read_weights(config, tensors, dtype=None) -> Llama:
    """Build the model of a config from the tensors of a file, one at a time. Raises ValueError if they do not fit."""
    c = config
    D = c.head_dim
    size = dict(V=c.vocab_size, C=c.n_embd, D=D, Q=c.n_head * D, K=c.n_kv_head * D, F=c.n_ffn)
    places = {name: place for name, place in WHOLE.items() if name != "output" or not c.tied}
    layer = LAYER | NORMS if c.qk_norm else LAYER
    for i in range(min(c.n_layer, len(tensors))):
        places |= {f"blk.{i}.{name}": (f"model.layers.{i}.{ours}", shape) for name, (ours, shape) in layer.items()}
    places = {f"{name}.weight": (f"{ours}.weight", tuple(size[s] for s in shape))
              for name, (ours, shape) in places.items()}
    if c.attention_bias:
        places |= {name.replace("weight", "bias"): (ours.replace("weight", "bias"), shape[:1])
                   for name, (ours, shape) in places.items() if re.search(r"attn_[qkv]\.", name)}
    wrong = [f"{name} is missing" for name in places if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in places]
    wrong += [f"{name} is {tensors[name][1]}, expected {shape}" for name, (_, shape) in places.items()
              if name in tensors and tensors[name][1] != shape]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(f"the tensors do not fit the metadata: {wrong[0]}{more}")
    dtype, state = resolve_dtype(dtype, "cpu") if dtype else _narrowest(tensors), {}
    in_pairs = not c.attention_bias and not c.qk_norm  # the Llama, and not Qwen
    for name, tensor in tensors.items():
        rows = _floats(*tensor)
        if in_pairs and name.endswith(("attn_q.weight", "attn_k.weight")):
            rows = rows.view(-1, D // 2, 2, c.n_embd).transpose(1, 2).reshape(rows.shape)
        state[places[name][0]] = rows = rows.to(dtype)
        if not rows.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite in {dtype}")
    with torch.device("meta"):  # shapes without memory
        model = Llama(config).requires_grad_(False).eval()
    model.load_state_dict(state, assign=True)
    return model


def _floats(kind, shape, rows):
    """A tensor's values, float32."""
    try:
        return torch.from_numpy(_package().quants.dequantize(np.array(rows), kind).reshape(shape))
    except NotImplementedError:
        raise ValueError(f"it has tensors of type {kind.name}, which the package gguf does not dequantise; take a file "
                         "of another type, such as Q8_0") from None


def _narrowest(tensors):
    """The dtype that holds every value: that of the matrices if the norms, float32 in files, fit it, else float32."""
    kinds = {kind.name for kind, shape, _ in tensors.values() if len(shape) == 2}
    dtype = dict(F16=torch.float16, BF16=torch.bfloat16).get(*kinds) if len(kinds) == 1 else None
    norms = [_floats(*tensor) for tensor in tensors.values() if len(tensor[1]) == 1]
    return dtype if dtype and all(torch.equal(x, x.to(dtype).float()) for x in norms) else torch.float32


def _package():
    """The package gguf, which only this needs."""
    try:
        import gguf.quants
    except ModuleNotFoundError:
        raise ValueError("GGUF files need the package gguf: pip install gguf, or nanoct with its extra gguf.") from None
    return gguf


def read_tokenizer(meta):
    """The tokenizer's files for transformers: {name: content}. Raises ValueError for a kind that nanoct lacks."""
    get = lambda name, default=None: meta.get(f"tokenizer.ggml.{name}", default)
    kind, pre = get("model"), get("pre")
    if kind != "gpt2" or pre not in list(PIECES):
        raise ValueError(f"the tokenizer is {_short(kind)} with the pre-tokenizer {_short(pre)}; nanoct reads 'gpt2' "
                         f"with {', '.join(PIECES)}")
    tokens, types, merges = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"], get("merges", [])
    vocab = {}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind not in (NORMAL, CONTROL, USER_DEFINED, UNUSED):
            raise ValueError(f"token {token!r} is of type {kind}, which byte-level BPE does not have")
        if token in vocab:
            raise ValueError(f"the tokenizer has the token {token!r} twice")
        if kind != UNUSED:
            vocab[token] = i
    names = {}
    for name, key in dict(bos_token="bos_token_id", eos_token="eos_token_id", pad_token="padding_token_id").items():
        if (i := get(key)) is not None and not (isinstance(i, int) and i in vocab.values()):
            raise ValueError(f"the tokenizer's {key} is {_short(i)}, which is no token")
        names[name] = None if i is None else tokens[i]
    adds = dict(bos=pre in WHOLE_PIECES, eos=False)  # what llama.cpp does if the file does not say
    around = [name for name, default in adds.items() if get(f"add_{name}_token", default)]
    if lacking := [name for name in around if names[f"{name}_token"] is None]:
        raise ValueError(f"the tokenizer adds a {lacking[0]} token and names none")
    added = [dict(id=i, content=token, special=types[i] == CONTROL, single_word=False, lstrip=False, rstrip=False,
                  normalized=False) for token, i in vocab.items() if types[i] in (CONTROL, USER_DEFINED)]
    model = dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                 fuse_unk=False, byte_fallback=False, ignore_merges=pre in WHOLE_PIECES, vocab=vocab, merges=merges)
    normalizer, pieces = dict(type="NFC") if pre == "qwen2" else None, dict(type="Sequence", pretokenizers=PIECES[pre])
    tokenizer = dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=normalizer,
                     decoder=BYTES, pre_tokenizer=pieces, post_processor=_template(around, names, vocab), model=model)
    length = meta[f"{meta['general.architecture']}.context_length"]
    config = dict(tokenizer_class="PreTrainedTokenizerFast", model_max_length=length,
                  clean_up_tokenization_spaces=False, **names)
    if "tokenizer.chat_template" in meta:
        config["chat_template"] = meta["tokenizer.chat_template"]
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config}


def _template(around, names, vocab):
    """The post-processor that puts bos or eos around a text, or None."""
    named = {part: names[f"{part}_token"] for part in around}
    parts = [part for part in ("bos", "text", "eos") if part in named or part == "text"]
    one, two = ([dict(SpecialToken=dict(id=named[part], type_id=i)) if part in named else
                 dict(Sequence=dict(id="AB"[i], type_id=i)) for part in parts] for i in (0, 1))
    special = {token: dict(id=token, ids=[vocab[token]], tokens=[token]) for token in named.values()}
    return dict(type="TemplateProcessing", single=one, pair=one + two, special_tokens=special) if around else None


def _write(file, content):
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _short(value):
    return repr(value) if len(repr(value)) <= 60 else repr(value)[:60] + "…"


def main():
    parser = cli.Parser(prog="nanoct gguf", description=__doc__)
    parser.add_argument("file", help="a GGUF file")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the four files go")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"],
                        help="default: bfloat16 or float16 where that holds every value of the file, else float32")
    args = parser.parse_args()
    folder = convert(args.file, args.out, args.dtype)
    print(f"{args.file} is in {folder}: config.json, model.safetensors, tokenizer.json, tokenizer_config.json.")


if __name__ == "__main__":
    cli.run(main)
