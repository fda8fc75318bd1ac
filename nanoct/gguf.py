"""A llama.cpp file (GGUF) of a Llama, as the folder that nanoct and transformers load.

    python -m nanoct.gguf FILE.gguf --out FOLDER    # config.json model.safetensors tokenizer.json tokenizer_config.json

Tensors may be F32, F16, BF16, or of any quantised type that the package `gguf` knows (pip install gguf). The weights
are written as bfloat16 or float16 where that holds every value of the file, and otherwise as float32, so that what was
quantised is not rounded a second time.

A GGUF file is a header, then the tensors. The header gives metadata as (key, type, value), and of every tensor its
name, sizes, type and place. This reader believes no number before it has been compared with the size of the file.

llama.cpp rotates neighbours, (0, 1), (2, 3), …, where Hugging Face's layout rotates the halves of a head. So its files
have the rows of W_Q and W_K in another order: per head, (D/2, 2) of theirs are (2, D/2) of ours.
"""

import json
import math
import os
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from nanoct import cli
from nanoct.model import Llama, LlamaConfig, rope_frequencies
from nanoct.tokenizer import LLAMA3, load_tokenizer
from nanoct.weights import resolve_dtype, save_model

SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # GGUF's types of values, as struct's letters
STRING, ARRAY = 8, 9
MOST = 2**22  # entries of a list; vocabularies have a tenth of that
LAYER = dict(attn_norm="input_layernorm", attn_q="self_attn.q_proj", attn_k="self_attn.k_proj", attn_v="self_attn.v_proj",
             attn_output="self_attn.o_proj", ffn_norm="post_attention_layernorm", ffn_gate="mlp.gate_proj",
             ffn_up="mlp.up_proj", ffn_down="mlp.down_proj")
# What metadata may ask for beyond what model.py computes: keys of llama.* but these and those of `read_config` are refused.
PLAIN = {"llama.expert_count": 0, "llama.expert_used_count": 0, "llama.rope.scaling.type": "none",
         "tokenizer.ggml.add_space_prefix": False, "split.count": 1}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens
BYTE_LEVEL = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True)
PIECES = {  # tokenizer.ggml.pre -> a tokenizer.json's pre-tokenizer
    "gpt-2": BYTE_LEVEL | dict(use_regex=True),
    "smollm": dict(type="Sequence", pretokenizers=[dict(type="Digits", individual_digits=True), BYTE_LEVEL | dict(use_regex=True)]),
    "llama-bpe": dict(type="Sequence", pretokenizers=[
        dict(type="Split", pattern=dict(Regex=LLAMA3), behavior="Isolated", invert=False), BYTE_LEVEL | dict(use_regex=False)]),
}


def convert(file, folder, dtype=None) -> Path:
    """Write what `file` holds into `folder` and return that; files of the same names are replaced whole.

    dtype: default as said above. Raises FileNotFoundError, and ValueError with a sentence for a file that is broken, or
    holds anything that nanoct does not compute.
    """
    file, folder = Path(file), Path(folder)
    meta, tensors = read(file)
    config = read_config(file, meta, tensors)
    tokenizer = read_tokenizer(file, meta)
    model = read_weights(file, config, tensors, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".gguf-", dir=folder) as new:
        new = Path(new)
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
    """({key: value}, {name: (type, shape, bytes)}) of a GGUF file; bytes (…, n) are a view of the mapped file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if not file.is_file():
        raise FileNotFoundError(f"There is no file {str(file)!r}; give the path of a GGUF file.")
    size = file.stat().st_size
    data = np.memmap(file, mode="r") if size else b""
    at = 0

    def broken(what):
        raise ValueError(f"{file} is truncated or broken ({what}, byte {at} of {size}); download it again.")

    def take(n):
        nonlocal at
        if n > size - at:
            broken(f"{n} bytes are to come")
        at += n
        return data[at - n:at]

    def number(letter):
        return struct.unpack("<" + letter, take(struct.calcsize("<" + letter)))[0]

    def count(most=MOST):
        n = number("Q")
        return n if n <= most else broken(f"{n} entries")

    def string():
        try:
            return str(take(number("Q")), "utf-8")
        except UnicodeDecodeError:
            broken("no UTF-8")

    def value(kind):
        if kind == STRING:
            return string()
        if kind == ARRAY:
            kind, n = number("I"), count()
            if kind == STRING:
                return [string() for _ in range(n)]
            if kind in SCALARS:
                return np.frombuffer(take(n * struct.calcsize("<" + SCALARS[kind])), "<" + SCALARS[kind]).tolist()
        elif kind in SCALARS:
            return number(SCALARS[kind])
        broken(f"type {kind} of a value")

    def once(name, found):
        return name if name not in found else broken(f"{name!r} comes twice")

    if bytes(data[:4]) != b"GGUF":
        raise ValueError(f"{file} is no GGUF file: it begins with {bytes(data[:4])!r}.")
    take(4)
    version = number("I")
    if version not in (2, 3):
        big = version & 0xFFFF == 0
        raise ValueError(f"{file} is " + ("a big-endian GGUF file" if big else f"GGUF version {version}")
                         + "; this reads versions 2 and 3 in little-endian order.")
    n_tensor, n_key = count(), count()
    meta, found, tensors = {}, {}, {}
    for _ in range(n_key):
        key = once(string(), meta)
        meta[key] = value(number("I"))
    for _ in range(n_tensor):
        name, n_dim = once(string(), found), number("I")
        if n_dim not in (1, 2):
            broken(f"{name!r} has {n_dim} dimensions")
        found[name] = [number("Q") for _ in range(n_dim)][::-1], number("I"), number("Q")
    alignment, total = meta.get("general.alignment", 32), 0
    if not isinstance(alignment, int) or alignment < 1:
        broken(f"alignment {alignment!r}")
    start = at + -at % alignment
    for name, (shape, kind, offset) in found.items():
        try:
            kind = GGMLQuantizationType(kind)
            n_value, n_byte = GGML_QUANT_SIZES[kind]
        except (KeyError, ValueError):
            raise ValueError(f"{file}: {name} is of type {kind}, which the package gguf does not know; try a newer one.") from None
        if shape[-1] % n_value or not all(shape):
            broken(f"{name!r} is {kind.name} {tuple(shape)}")
        rows = *shape[:-1], shape[-1] // n_value * n_byte
        at = start + offset
        total += math.prod(rows)
        if total > size:  # tensors that share their bytes would make a small file a large model
            broken("its tensors need more than there is")
        tensors[name] = kind, tuple(shape), take(math.prod(rows)).reshape(rows)
    return meta, tensors


def read_config(file, meta, tensors) -> LlamaConfig:
    """The sizes that the metadata gives. Raises ValueError with the key that this model does not compute."""
    if (kind := meta.get("general.architecture")) != "llama":
        raise ValueError(f"{file}: the architecture is {kind!r}; nanoct takes 'llama' from GGUF files.")
    for key, plain in PLAIN.items():
        if meta.get(key, plain) != plain:
            raise ValueError(f"{file}: {key} is {str(meta[key])[:60]!r}; nanoct takes {plain!r} only.")
    known = set(PLAIN)

    def number(name, kind=int, default=None):
        key = "llama." + name
        known.add(key)
        if (value := meta.get(key, default)) is None:
            raise ValueError(f"{file}: {key} is missing; download it again, or take another file of the model.")
        if isinstance(value, bool) or not isinstance(value, (int, kind)) or not 0 < value < 2**31:
            raise ValueError(f"{file}: {key} is {str(value)[:60]!r}; it must be a positive {kind.__name__}.")
        return kind(str(np.float32(value))) if kind is float else value  # 1e-5, not the float32 next to it

    if "token_embd.weight" not in tensors:
        raise ValueError(f"{file}: the weights lack token_embd.weight; take a file of a whole model.")
    vocab_size = tensors["token_embd.weight"][1][0]
    sizes = dict(n_layer=number("block_count"), n_head=number("attention.head_count"), n_embd=number("embedding_length"),
                 n_ffn=number("feed_forward_length"), n_position=number("context_length"))
    n_kv_head = number("attention.head_count_kv", default=sizes["n_head"])
    head_dim = number("attention.key_length", default=sizes["n_embd"] // sizes["n_head"])
    for name, size in {"attention.value_length": head_dim, "rope.dimension_count": head_dim, "vocab_size": vocab_size}.items():
        if number(name, default=size) != size:
            raise ValueError(f"{file}: llama.{name} is {meta['llama.' + name]}, expected {size}; nanoct computes nothing else.")
    rest = dict(norm_eps=number("attention.layer_norm_rms_epsilon", float), rope_theta=number("rope.freq_base", float, 10000.0),
                tied="output.weight" not in tensors)
    if unknown := [key for key in meta if key.startswith("llama.") and key not in known]:
        raise ValueError(f"{file}: {unknown[0]} is {str(meta[unknown[0]])[:60]!r}, and nanoct's Llama knows no such setting.")
    try:
        config = LlamaConfig(vocab_size=vocab_size, n_kv_head=n_kv_head, head_dim=head_dim, **sizes, **rest)
        return config if "rope_freqs.weight" not in tensors else _with_llama3(config, tensors.pop("rope_freqs.weight"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _with_llama3(config, stretch):
    """The config with the llama3 scaling that stretches wavelengths so: the files have the result, not the settings."""
    stretch = _floats(*stretch)
    scaling = dict(factor=float(stretch.max()), low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    scaled = LlamaConfig(**vars(config) | dict(rope_scaling=scaling))
    expected = rope_frequencies(config) / rope_frequencies(scaled)
    if stretch.shape != expected.shape or not torch.allclose(stretch, expected, rtol=1e-4):
        raise ValueError("rope_freqs.weight is not Llama 3's scaling of 8192 positions, the only one that nanoct can read back.")
    return scaled


def read_weights(file, config, tensors, dtype=None) -> Llama:
    """The model of a config with the tensors of a file, one at a time. Raises ValueError where they do not fit."""
    c = config
    width = {"token_embd": (c.vocab_size, c.n_embd), "output": (c.vocab_size, c.n_embd), "output_norm": (c.n_embd,),
             "attn_norm": (c.n_embd,), "attn_q": (c.n_head * c.head_dim, c.n_embd), "attn_k": (c.n_kv_head * c.head_dim, c.n_embd),
             "attn_v": (c.n_kv_head * c.head_dim, c.n_embd), "attn_output": (c.n_embd, c.n_head * c.head_dim),
             "ffn_norm": (c.n_embd,), "ffn_gate": (c.n_ffn, c.n_embd), "ffn_up": (c.n_ffn, c.n_embd), "ffn_down": (c.n_embd, c.n_ffn)}
    names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    names |= {} if c.tied else {"output.weight": "lm_head.weight"}
    names |= {f"blk.{i}.{theirs}.weight": f"model.layers.{i}.{ours}.weight"
              for i in range(min(c.n_layer, len(tensors))) for theirs, ours in LAYER.items()}
    missing, unknown = [name for name in names if name not in tensors], [name for name in tensors if name not in names]
    wrong = [f"{name} is {shape}, expected {width[name.split('.')[-2]]}" for name, (_, shape, _) in tensors.items()
             if name in names and shape != width[name.split(".")[-2]]]
    for what, some in dict(missing=missing, unknown=unknown, misshapen=wrong).items():
        if some:
            more = f" and {len(some) - 1} more" if len(some) > 1 else ""
            raise ValueError(f"{file}: the weights do not fit the metadata: {what}: {some[0]}{more}.")
    try:
        dtype = resolve_dtype(dtype, "cpu") if dtype else _narrowest(tensors)
        state = {}
        for name, tensor in tensors.items():
            rows = _floats(*tensor)
            if name.endswith(("attn_q.weight", "attn_k.weight")):
                rows = rows.view(-1, c.head_dim // 2, 2, c.n_embd).transpose(1, 2).reshape(rows.shape)
            state[names[name]] = rows.to(dtype, copy=True)
    except NotImplementedError as error:
        raise ValueError(f"{file}: {name}: {error}; take a file of another type, such as Q8_0.") from None
    with torch.device("meta"):  # shapes without memory
        model = Llama(config).requires_grad_(False).eval()
    model.load_state_dict(state, assign=True)
    return model


def _floats(kind, shape, rows):
    """A tensor's values, float32."""
    from gguf.quants import dequantize

    return torch.from_numpy(dequantize(np.array(rows), kind).reshape(shape))


def _narrowest(tensors):
    """The dtype that holds every value: that of the matrices, if the norms, which files have in float32, fit."""
    kinds = {kind.name for kind, shape, _ in tensors.values() if len(shape) == 2}
    dtype = dict(F16=torch.float16, BF16=torch.bfloat16).get(*kinds) if len(kinds) == 1 else None
    norms = [_floats(*tensor) for tensor in tensors.values() if len(tensor[1]) == 1]
    return dtype if dtype and all(torch.equal(x, x.to(dtype).float()) for x in norms) else torch.float32


def read_tokenizer(file, meta):
    """The content of tokenizer.json and tokenizer_config.json. Raises ValueError for a kind that nanoct does not know."""
    get = lambda name, default=None: meta.get(f"tokenizer.ggml.{name}", default)
    kind, pre = get("model"), get("pre")
    if kind != "gpt2" or pre not in PIECES:
        raise ValueError(f"{file}: the tokenizer is {kind!r} with pre-tokenizer {pre!r}; nanoct reads 'gpt2' with {', '.join(PIECES)}.")
    tokens, types, merges = get("tokens", []), get("token_type", []), get("merges", [])
    text = lambda strings: isinstance(strings, list) and all(isinstance(s, str) for s in strings)
    if not (text(tokens) and text(merges) and isinstance(types, list) and len(types) == len(tokens)):
        raise ValueError(f"{file}: the tokenizer's tokens, token_type and merges do not belong together; download it again.")
    if odd := next((i for i, t in enumerate(types) if t not in (NORMAL, CONTROL, USER_DEFINED, UNUSED)), None):
        raise ValueError(f"{file}: token {tokens[odd]!r} is of type {types[odd]}, which is of no use to byte-level BPE.")
    vocab = {token: i for i, (token, t) in enumerate(zip(tokens, types)) if t != UNUSED}
    if len(vocab) != len(types) - types.count(UNUSED):
        raise ValueError(f"{file}: the tokenizer has a token twice; download it again.")
    if bad := next((m for m in merges if len(m.split(" ")) != 2 or not vocab.keys() >= {*m.split(" "), m.replace(" ", "")}), None):
        raise ValueError(f"{file}: the tokenizer's merge {bad!r} is not of two tokens to a token; download it again.")
    added = [dict(id=i, content=token, special=types[i] == CONTROL, single_word=False, lstrip=False, rstrip=False, normalized=False)
             for token, i in vocab.items() if types[i] in (CONTROL, USER_DEFINED)]

    def named(name):
        i = get(name + "_token_id")
        if i is not None and not (isinstance(i, int) and i in vocab.values()):
            raise ValueError(f"{file}: the tokenizer's {name}_token_id is {str(i)[:60]!r}, which is no token.")
        return i if i is None else tokens[i]

    names = {name: token for name, short in dict(bos="bos", eos="eos", pad="padding").items() if (token := named(short)) is not None}
    around = dict(bos=get("add_bos_token", pre == "llama-bpe"), eos=get("add_eos_token", False))
    if lacking := next((name for name, wanted in around.items() if wanted and name not in names), None):
        raise ValueError(f"{file}: the tokenizer adds a {lacking} token and names none; download it again.")
    sequence = lambda which, i: [dict(Sequence=dict(id=which, type_id=i)) if part == "text" else
                                 dict(SpecialToken=dict(id=names[part], type_id=i))
                                 for part in ("bos", "text", "eos") if around.get(part, part == "text")]
    template = dict(type="TemplateProcessing", single=sequence("A", 0), pair=sequence("A", 0) + sequence("B", 1), special_tokens={
        names[part]: dict(id=names[part], ids=[vocab[names[part]]], tokens=[names[part]]) for part, wanted in around.items() if wanted})
    model = dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None, fuse_unk=False,
                 byte_fallback=False, ignore_merges=pre == "llama-bpe", vocab=vocab, merges=merges)
    config = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token=None, eos_token=None, clean_up_tokenization_spaces=False,
                  model_max_length=meta["llama.context_length"])
    config |= {f"{name}_token": token for name, token in names.items()}
    if "tokenizer.chat_template" in meta:
        config |= dict(chat_template=meta["tokenizer.chat_template"])
    return {"tokenizer.json": dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None,
                                   pre_tokenizer=PIECES[pre], post_processor=template if any(around.values()) else None,
                                   decoder=BYTE_LEVEL | dict(use_regex=True), model=model),
            "tokenizer_config.json": config}


def _write(file, content):
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    parser = cli.Parser(prog="python -m nanoct.gguf", description="A GGUF file of a Llama, as a folder that nanoct and transformers load.")
    parser.add_argument("file", help="a GGUF file")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where config.json, model.safetensors and the tokenizer go")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: the narrowest that holds every value")
    args = parser.parse_args()
    folder = convert(args.file, args.out, args.dtype)
    print(f"{args.file} is in {folder}: config.json, model.safetensors, tokenizer.json, tokenizer_config.json.")


if __name__ == "__main__":
    cli.run(main)
