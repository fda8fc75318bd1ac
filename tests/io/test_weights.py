"""Files in and out: exact round trips, transformers as reader, and a sentence for everything that does not fit."""

import json
import re
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers
from helpers import tiny_llama
from helpers.llama import LAYOUTS, LLAMA3, assert_logits, ids, read, write
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from nanoct import tune
from nanoct.benchmarks.nano import FOLDER
from nanoct.gpt2 import GPT2, GPT2Config
from nanoct.io import weights
from nanoct.io.weights import (
    fetch,
    fingerprint,
    load_model,
    pick_device,
    quiet_threads,
    read_config,
    save_model,
)
from nanoct.runs.results import read as read_lines

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    write(folder := tmp_path_factory.mktemp("written"))
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy of a model that transformers wrote, which a test may spoil."""
    return shutil.copytree(written, tmp_path / "model")


def edit_config(folder, drop=(), **values):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in config.items() if key not in drop}))


def edit_tensors(folder, edit):
    tensors = {name: t.clone() for name, t in load_file(folder / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def sentence(error, call, *arguments, **options):
    """The message with which call(...) fails: one line that ends as a sentence does."""
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def same_bits(model, other):
    pairs = list(zip(model.named_parameters(), other.named_parameters(), strict=True))
    return all(name == name_ and p.dtype == q.dtype and torch.equal(p, q) for (name, p), (name_, q) in pairs)


# --- out and in again ---


@pytest.mark.parametrize("layout", ["gqa", "narrow heads", "untied", "llama3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_exact(tmp_path, layout, dtype):
    write(tmp_path / "theirs", **LAYOUTS[layout])
    model = load_model(tmp_path / "theirs", device="cpu", dtype=dtype)
    assert save_model(model, tmp_path / "ours" / "new") == tmp_path / "ours" / "new"
    again = load_model(tmp_path / "ours" / "new", device="cpu", dtype=dtype)
    assert same_bits(model, again) and again.config == model.config and again.dtype == dtype
    assert sorted(file.name for file in (tmp_path / "ours" / "new").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_reads_what_is_written(tmp_path, layout):
    write(tmp_path / "theirs", **LAYOUTS[layout])
    model = load_model(tmp_path / "theirs", device="cpu")
    save_model(model, tmp_path / "ours")
    theirs = read(tmp_path / "ours")
    assert_logits(model, theirs, ids(1, 100))
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert all(getattr(theirs.config, key) == value for key, value in written.items()
               if key not in ("rope_theta", "rope_scaling", "torch_dtype"))
    with safe_open(tmp_path / "ours" / "model.safetensors", "pt") as f:
        assert ("lm_head.weight" in f.keys()) == (not model.config.tied)


def test_dtype_and_metadata_of_a_saved_file(folder, tmp_path):
    save_model(load_model(folder, device="cpu"), tmp_path / "new", dtype="bfloat16", metadata={"seed": "7"})
    with safe_open(tmp_path / "new" / "model.safetensors", "pt") as f:
        assert f.metadata() == {"format": "pt", "seed": "7"}
        assert f.get_tensor(EMBEDDING).dtype == torch.bfloat16
    assert json.loads((tmp_path / "new" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert len({file.stat().st_mode for file in (tmp_path / "new").iterdir()}) == 1


def test_a_model_saved_over_its_own_files_stays_whole(folder):
    model = load_model(folder, device="cpu")
    before = {name: p.clone() for name, p in model.named_parameters()}
    save_model(model, folder)
    assert all(torch.equal(p, before[name]) for name, p in load_model(folder, device="cpu").named_parameters())


def test_an_interrupted_save_leaves_the_older_files(folder, monkeypatch):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def dies(tensors, file, metadata):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        save_model(load_model(folder, device="cpu"), folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


# --- what is read ---


def test_a_loaded_model_is_frozen_float32_on_the_cpu(folder):
    model = load_model(str(folder), device="cpu")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float32, "cpu")}


def test_dtype_by_name_by_value_and_by_device(folder):
    for dtype in ("bfloat16", "torch.bfloat16", torch.bfloat16):
        assert load_model(folder, device="cpu", dtype=dtype).dtype == torch.bfloat16
    assert weights.resolve_dtype(None, "cuda:1") == torch.bfloat16
    assert weights.resolve_dtype(None, torch.device("mps")) == weights.resolve_dtype(None, "cpu") == torch.float32


def test_device_order(monkeypatch):
    for cuda, mps, expected in [(2, True, "cuda"), (0, True, "mps"), (0, False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        assert pick_device() == torch.device(expected) and pick_device("cpu") == torch.device("cpu")
        assert not cuda or pick_device("cuda:1") == torch.device("cuda:1")
        assert f"'cuda:{cuda}'" in sentence(ValueError, pick_device, f"cuda:{cuda}")


def test_the_file_may_change_after_loading(folder):
    model = load_model(folder, device="cpu")
    before = model.model.embed_tokens.weight.clone()
    with open(folder / "model.safetensors", "r+b") as f:
        f.seek(2000)
        f.write(bytes(60000))
    assert torch.equal(model.model.embed_tokens.weight, before)


def test_harmless_leftovers(folder):
    model = load_model(folder, device="cpu")

    def edit(tensors):
        tensors["lm_head.weight"] = tensors[EMBEDDING].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    edit_tensors(folder, edit)
    assert same_bits(load_model(folder, device="cpu"), model)


def test_rope_as_transformers_4_and_5_write_it(folder):
    classic = {key: value for key, value in LLAMA3.items() if key != "rope_type"}
    for written in (dict(rope_theta=7.0, rope_scaling=LLAMA3),
                    dict(rope_theta=7.0, rope_scaling=classic | dict(type="llama3")),
                    dict(rope_parameters=LLAMA3 | dict(rope_theta=7.0))):
        edit_config(folder, drop=("rope_parameters",) * ("rope_parameters" not in written), **written)
        assert (c := read_config(folder)).rope_theta == 7.0 and c.rope_scaling == classic
        edit_config(folder, drop=("rope_theta", "rope_scaling", "rope_parameters"))
    assert (c := read_config(folder)).rope_theta == 10000.0 and c.rope_scaling is None
    edit_config(folder, rope_parameters=dict(rope_type="default", rope_theta=3.0))
    assert (c := read_config(folder)).rope_theta == 3.0 and c.rope_scaling is None


def test_defaults_are_those_of_transformers(folder):
    edit_config(folder, drop=("head_dim", "num_key_value_heads", "tie_word_embeddings", "hidden_act", "attention_bias"))
    c = read_config(folder)
    assert (c.head_dim, c.n_kv_head, c.tied) == (8, 4, False)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "olmo2", "smollm3"])
def test_what_a_family_leaves_out_is_as_in_transformers(folder, family):
    lost = "head_dim", "tie_word_embeddings", "attention_bias", "rope_parameters", "rope_theta", "use_sliding_window"
    edit_config(folder, drop=lost, model_type=family, pad_token_id=0, sliding_window=4096)
    theirs, c = transformers.AutoConfig.from_pretrained(folder), read_config(folder)
    assert c.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
    assert (c.tied, c.rope_theta) == (theirs.tie_word_embeddings, theirs.rope_parameters["rope_theta"])
    assert c.attention_bias == (family == "qwen2" or getattr(theirs, "attention_bias", False))


# --- the fingerprint ---


def test_fingerprint_tells_models_apart_and_nothing_else(folder, tmp_path):
    model = load_model(folder, device="cpu")
    mark = fingerprint(model)
    assert re.fullmatch("[0-9a-f]{12}", mark)
    assert mark == fingerprint(load_model(folder, device="cpu", dtype="bfloat16"))
    assert mark == fingerprint(load_model(save_model(model, tmp_path / "new"), device="cpu"))
    edit_config(folder, rms_norm_eps=1e-6)
    assert mark != fingerprint(load_model(folder, device="cpu"))
    edit_config(folder, rms_norm_eps=1e-5)
    for name, p in model.named_parameters():
        last = p.view(-1)[-1].clone()
        p.view(-1)[-1] += 1
        assert mark != fingerprint(model), name
        p.view(-1)[-1] = last
    assert mark == fingerprint(model)


def test_committed_models_keep_their_fingerprints():
    for world, line in {line["world"]: line for line in read_lines(FOLDER / "results" / "full.jsonl")}.items():
        assert fingerprint(load_model(FOLDER / world, "cpu")) == line["model"]


def test_every_later_field_enters_the_fingerprint_where_it_is_used():
    changes = dict(attention_bias=True, output_bias=True, qk_norm="head", norm_after=True, no_rope=(1,))
    marks = [fingerprint(tiny_llama())] + [fingerprint(tiny_llama(**{key: x})) for key, x in changes.items()]
    marks.append(fingerprint(tiny_llama(qk_norm="width")))
    assert len(set(marks)) == len(marks)


def test_what_no_public_family_computes_is_not_saved(tmp_path):
    both = dict(no_rope=(1,), qk_norm="head")
    biased = [dict(attention_bias=True, **more) for more in (dict(qk_norm="head"), dict(no_rope=(1,)))]
    for fields in dict(norm_after=True), dict(qk_norm="width"), dict(output_bias=True), both, *biased:
        assert "no public family" in sentence(ValueError, save_model, tiny_llama(**fields), tmp_path / "new")


# --- what does not fit ---


@pytest.mark.parametrize("edit, said", [
    (lambda t: t.pop("model.norm.weight"), ["missing: model.norm.weight."]),
    (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}),
     ["unexpected: model.layers.0.self_attn.q_proj.bias."]),
    (lambda t: t.update({"model.norm.weight": torch.ones(33)}), ["misshapen: model.norm.weight", "(33,)", "(32,)"]),
    (lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}), ["model.norm.weight is I8 (32,)"]),
    (lambda t: t.update({"lm_head.weight": t[EMBEDDING] + 1}), ["lm_head.weight", EMBEDDING, "tie_word_embeddings"]),
    (lambda t: t.update({"lm_head.weight": torch.ones(60, 32)}), ["lm_head.weight", "(60, 32)", "(61, 32)"]),
    (lambda t: (t.pop("model.norm.weight"), t.update({"a": torch.ones(1), EMBEDDING: torch.ones(62, 32)})),
     ["missing: model.norm.weight; ", "unexpected: a; ", f"misshapen: {EMBEDDING}", "(62, 32)"]),
])
def test_tensors_that_do_not_fit_are_named(folder, edit, said):
    edit_tensors(folder, edit)
    message = sentence(ValueError, load_model, folder, device="cpu")
    assert str(folder) in message and all(part in message for part in said), message


def test_very_many_missing_tensors_are_counted(folder):
    edit_config(folder, num_hidden_layers=20)
    message = sentence(ValueError, load_model, folder, device="cpu")
    assert "model.layers.2.input_layernorm.weight" in message or "model.layers.2.self_attn.q_proj.weight" in message
    assert "and 157 more" in message and len(message) < 600


@pytest.mark.parametrize("values", [
    dict(num_hidden_layers=9000), dict(num_hidden_layers=3_000_000), dict(vocab_size=10**9),
    dict(hidden_size=10**8, vocab_size=10**9), dict(intermediate_size=10**6), dict(head_dim=10**8),
    dict(num_attention_heads=10**6, num_key_value_heads=1)])
def test_absurd_sizes_are_said_before_anything_is_built(folder, monkeypatch, values):
    edit_config(folder, **values)
    monkeypatch.setattr(weights, "Llama", None)
    message = sentence(ValueError, load_model, folder, device="cpu")
    assert f"{folder}: the weights do not fit config.json: it asks for" in message


def test_absurd_sizes_of_a_gpt2(tmp_path):
    config = GPT2Config(vocab_size=61, n_layer=2, n_head=4, n_embd=32, n_ffn=128, n_position=50)
    save_model(GPT2(config).init_weights(torch.Generator().manual_seed(0)), tmp_path)
    assert load_model(tmp_path, "cpu").config == config
    for key, value in dict(n_positions=10**9, n_layer=9999, n_inner=10**8, vocab_size=10**9).items():
        edit_config(tmp_path, **{key: value})
        assert "do not fit config.json" in sentence(ValueError, load_model, tmp_path, device="cpu")
        edit_config(tmp_path, n_positions=50, n_layer=2, n_inner=128, vocab_size=61)


def test_a_tensor_of_two_shards_is_refused(tmp_path):
    """Which of the two counted would be chance."""
    write(tmp_path, max_shard_size="20KB")
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    tensors = {name: t.clone() for name, t in load_file(first).items()}
    save_file(tensors | {name: t.clone() for name, t in load_file(second).items()}, second)
    message = sentence(ValueError, load_model, tmp_path, device="cpu")
    assert str(second) in message and "stands in another file too" in message


def test_a_tied_file_may_call_its_embedding_the_head(folder):
    """As transformers reads it; an untied one needs both."""
    before = load_model(folder, device="cpu")
    edit_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": tensors.pop(EMBEDDING)}))
    assert same_bits(load_model(folder, device="cpu"), before)
    tokens = ids(1, 20)
    assert_logits(before, read(folder), tokens)
    edit_config(folder, tie_word_embeddings=False)
    assert f"missing: {EMBEDDING}." in sentence(ValueError, load_model, folder, device="cpu")


def test_a_head_alone_of_another_shape(folder):
    edit_tensors(folder, lambda t: (t.pop(EMBEDDING), t.update({"lm_head.weight": torch.ones(60, 32)})))
    message = sentence(ValueError, load_model, folder, device="cpu")
    assert f"misshapen: {EMBEDDING}" in message and "(60, 32)" in message


def test_an_untied_config_wants_a_head(folder):
    edit_config(folder, tie_word_embeddings=False)
    assert "missing: lm_head.weight." in sentence(ValueError, load_model, folder, device="cpu")


@pytest.mark.parametrize("values, said", [
    (dict(model_type="mamba"), "'mamba'"),
    (dict(model_type="gpt2"), "no 'n_layer'"),
    (dict(attention_bias="yes"), "attention_bias is 'yes'"),
    (dict(mlp_bias=True), "mlp_bias is True"),
    (dict(hidden_act="gelu"), "hidden_act is 'gelu'"),
    (dict(sliding_window=128), "sliding_window is 128"),
    (dict(quantization_config={"bits": 4}), "{'bits': 4}"),
    (dict(rope_scaling={"type": "yarn", "factor": 2.0}), "'yarn'"),
    (dict(rope_scaling={"rope_type": "linear", "factor": 2.0}), "'linear'"),
    (dict(rope_scaling="llama3"), "['llama3']"),
    (dict(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4}), "'dynamic'"),
    (dict(model_type="smollm3", no_rope_layers=[1]), "no_rope_layers is [1]"),
    (dict(model_type="qwen3", use_sliding_window="no"), "use_sliding_window is 'no'"),
    (dict(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}), "partial_rotary_factor is 0.5"),
    (dict(rope_scaling={"rope_type": "llama3", "factor": 8.0}), "no 'low_freq_factor'"),
    (dict(hidden_size="64"), "hidden_size is '64'"),
    (dict(num_hidden_layers=True), "num_hidden_layers is True"),
    (dict(num_hidden_layers=0), "num_hidden_layers is 0"),
    (dict(max_position_embeddings=10**30), "max_position_embeddings is 10000"),
    (dict(rope_parameters=dict(rope_theta=10**400)), "rope_theta is 10000"),
    (dict(rope_parameters=dict(rope_theta=float("inf"))), "rope_theta is inf"),
    (dict(rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
    (dict(hidden_size=[64]), "hidden_size is [64]"),
    (dict(rope_scaling=LLAMA3 | dict(low_freq_factor=4.0)), "low_freq_factor is 4.0; it must be less"),
    (dict(tie_word_embeddings="false"), "tie_word_embeddings is 'false'"),
    (dict(model_type={"a": 1}), "{'a': 1}"),
    (dict(vocab_size=1.5), "vocab_size is 1.5"),
    (dict(rms_norm_eps=-1.0), "rms_norm_eps is -1.0"),
    (dict(num_key_value_heads=3), "n_kv_head = 3"),
    (dict(head_dim=5), "head_dim = 5"),
])
def test_a_config_of_another_model_is_refused(folder, values, said):
    edit_config(folder, **values)
    message = sentence(ValueError, load_model, folder, device="cpu")
    assert said in message and "config.json" in message


@pytest.mark.parametrize("key", ["model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                 "num_attention_heads", "max_position_embeddings", "rms_norm_eps"])
def test_a_missing_key_is_named(folder, key):
    edit_config(folder, drop=(key,))
    assert key in sentence(ValueError, load_model, folder, device="cpu")


@pytest.mark.parametrize("damage", [
    lambda b: b[:-100], lambda b: b[:50], lambda b: b"", lambda b: b + b"x",
    lambda b: b"version https://git-lfs.github.com/spec/v1\n", lambda b: b"\x80\x02" + b[2:]])
def test_a_damaged_file_is_named(folder, damage):
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert str(file) in sentence(ValueError, load_model, folder, device="cpu")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert str(folder / name) in sentence(FileNotFoundError, load_model, folder, device="cpu")


def test_missing_and_foreign_shards_are_named(tmp_path):
    write(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    assert str(shard) in sentence(FileNotFoundError, load_model, tmp_path, device="cpu")
    shard.write_bytes(content[:-1])
    assert str(shard) in sentence(ValueError, load_model, tmp_path, device="cpu")
    maps = '{"weight_map": {}}', '{"weight_map": {"a": "../a.safetensors"}}', '{"weight_map": {"a": 1}}'
    for broken in ("{", "{}", *maps, '{"weight_map": ' + "[" * 10**5, '{"weight_map": [1]}'):
        index.write_text(broken)
        assert str(index) in sentence(ValueError, load_model, tmp_path, device="cpu")


@pytest.mark.parametrize("device", ["cuda:99", "xpu", "meta", "toaster", "cpu:1"])
def test_a_device_that_does_not_exist(folder, device):
    message = sentence(ValueError, load_model, folder, device=device)
    assert repr(device) in message and "cpu" in message


@pytest.mark.parametrize("dtype", ["int8", "float7", "nn", torch.int64, 32])
def test_a_dtype_that_does_not_exist(folder, dtype):
    assert repr(dtype) in sentence(ValueError, load_model, folder, device="cpu", dtype=dtype)


# --- by name ---


def answer(monkeypatch, result):
    """Let the hub answer with a folder or an error; return the calls it got."""
    calls = []

    def snapshot_download(name, **options):
        calls.append((name, options))
        if isinstance(result, Exception):
            raise result
        return str(result)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A hub that has one model, in `folder` with more than its loading needs; .got has the names of what it sent."""
    for name in ("tokenizer.json", "tokenizer_config.json", "README.md", "consolidated.safetensors",
                 "model.fp16.safetensors", "checkpoint-1/model.safetensors", "original/params.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    there = SimpleNamespace(folder=folder, got=[], here=tmp_path / "cache")

    def snapshot_download(name, allow_patterns):
        there.here.mkdir(exist_ok=True)
        files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns):
            there.got.append(file)
            (there.here / file).parent.mkdir(exist_ok=True)
            (there.here / file).write_bytes((folder / file).read_bytes())
        return str(there.here)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return there


def test_only_the_weights_that_the_index_names_are_downloaded(hub):
    assert load_model("org/name", "cpu").config.n_layer == 2
    assert sorted(hub.got) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    hub.got.clear()
    (hub.folder / "model.safetensors").rename(hub.folder / "model-00001-of-00001.safetensors")
    (hub.here / "model.safetensors").unlink()
    names = load_file(hub.folder / "model-00001-of-00001.safetensors")
    index = dict(weight_map=dict.fromkeys(names, "model-00001-of-00001.safetensors"))
    (hub.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fetch("org/name", weights=False) == hub.here and not list(hub.here.glob("*.safetensors"))
    assert load_model("org/name", "cpu").config.n_layer == 2
    assert [name for name in hub.got if name.endswith("safetensors")] == ["model-00001-of-00001.safetensors"]


@pytest.mark.parametrize("values, said", [
    (dict(model_type="qwen2_moe"), "'qwen2_moe'"),
    (dict(model_type="qwen2", use_sliding_window=True, sliding_window=64, max_window_layers=1), "sliding_window is 64"),
    (dict(model_type="mistral", max_position_embeddings=8192, sliding_window=None), None),
    (dict(model_type="mistral", max_position_embeddings=8192), "sliding_window is 4096"),
    (dict(model_type="phi3"), "'phi3'"),
    (dict(quantization_config=dict(bits=4)), "quantization_config"),
])
def test_a_foreign_model_costs_no_weights(hub, values, said):
    edit_config(hub.folder, **values)
    if said is None:  # a window that is null is given, and is none
        load_model("org/name", "cpu")
        return
    assert said in sentence(ValueError, load_model, "org/name", device="cpu")
    assert sorted(hub.got) == ["config.json", "tokenizer.json", "tokenizer_config.json"]


def test_a_foreign_tokenizer_costs_no_weights_either(hub):
    """Llama 2's SentencePiece with byte fallback, to a command that needs text."""
    model = dict(type="BPE", byte_fallback=True, vocab={"a": 0}, merges=[])
    (hub.folder / "tokenizer.json").write_text(json.dumps(dict(model=model)))
    assert "byte_fallback" in str(pytest.raises(ValueError, tune.load, "org/name", "cpu").value)
    assert "model.safetensors" not in hub.got


@pytest.mark.parametrize("values, said", [
    (dict(model_type="mistral", max_window_layers=99), "sliding_window is 64"),  # which Mistral does not have
    (dict(model_type="mistral", num_hidden_layers=1), "sliding_window is 64"),
    (dict(model_type="mistral", use_sliding_window=False), "sliding_window is 64"),
    (dict(model_type="qwen2", use_sliding_window=True, max_window_layers=0), "sliding_window is 64"),
    (dict(model_type="qwen2", max_window_layers=2, layer_types=["sliding_attention"] * 2), "sliding_window is 64"),
    (dict(model_type="smollm3", layer_types=["full_attention", "sliding_attention"]), "sliding_window is 64"),
    (dict(model_type="qwen3", use_sliding_window=True, sliding_window=None, max_window_layers=1), "window is 4096"),
    (dict(model_type="qwen2", layer_types=["chunked_attention", "full_attention"]), "layer_types is"),
    (dict(model_type="qwen2", layer_types=["full_attention"]), "layer_types is"),
    (dict(model_type="qwen2", use_sliding_window=True, max_window_layers=2), None),
    (dict(model_type="qwen3", use_sliding_window=True, layer_types=["full_attention"] * 2), None),
    (dict(model_type="mistral", sliding_window=8192), None),
])
def test_a_window_matters_where_transformers_says_so(folder, values, said):
    values = dict(sliding_window=64, max_position_embeddings=8192) | values
    edit_config(folder, drop=("sliding_window",) * ("sliding_window" in values and values["sliding_window"] is None),
                **{key: value for key, value in values.items() if value is not None})
    if said is None:
        read_config(folder)
        return
    assert said in sentence(ValueError, read_config, folder)


def test_a_lora_beside_its_base_is_refused(hub):
    (hub.folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for where in hub.folder, "org/name":
        assert "adapter_config.json" in sentence(ValueError, load_model, where, device="cpu")
    assert "model.safetensors" not in hub.got


def test_files_of_a_model_without_head(folder):
    """As a family's Model, and not its ForCausalLM, is saved."""
    before = load_model(folder, device="cpu")
    edit_tensors(folder, lambda t: [t.update({name.removeprefix("model."): t.pop(name)}) for name in list(t)])
    assert same_bits(load_model(folder, device="cpu"), before)


def http(kind):
    return kind("401 Client Error.\nAccess denied.", response=SimpleNamespace(headers={}, request=None))


def test_a_hub_name_is_fetched(folder, monkeypatch):
    calls = answer(monkeypatch, folder)
    assert fetch("meta-llama/Llama-3.2-1B") == folder and load_model("org/name.v1", device="cpu").config.n_layer == 2
    assert [name for name, _ in calls] == ["meta-llama/Llama-3.2-1B"] * 2 + ["org/name.v1"] * 2
    assert {"config.json", "tokenizer.json", "tokenizer.model"} < set(calls[0][1]["allow_patterns"])
    assert calls[1][1]["allow_patterns"] == ["model.safetensors"]


@pytest.mark.parametrize("reply, error, said", [
    (http(errors.GatedRepoError), ValueError,
     ["accept the licence", "https://huggingface.co/org/name", "`hf auth login`"]),
    (http(errors.RepositoryNotFoundError), FileNotFoundError,
     ["neither a folder nor a public hub model", "`hf auth login`"]),
    (errors.LocalEntryNotFoundError("Got: ConnectError\nTry again."), FileNotFoundError,
     ["no folder", "cannot be reached"]),
    (OSError(28, "No space\nleft on device"), ValueError, ["No space left on device"]),
    (TimeoutError(), ValueError, ["TimeoutError"]),
])
def test_a_hub_that_does_not_deliver(monkeypatch, reply, error, said):
    answer(monkeypatch, reply)
    message = sentence(error, load_model, "org/name", device="cpu")
    assert "'org/name'" in message and all(part in message for part in said)


def test_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # its own switch: no request is made
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert "cannot be reached" in sentence(FileNotFoundError, fetch, "org/name")


@pytest.mark.parametrize("lost, lacking", [
    ((), []), (("special_tokens_map.json", "generation_config.json"), []), (("config.json",), ["config.json"]),
    (("tokenizer.json",), ["tokenizer.json"]), (("tokenizer_config.json",), ["tokenizer_config.json"]),
    (("model.safetensors",), ["model.safetensors"]),
    (("config.json", "tokenizer.json"), ["config.json", "tokenizer.json"]),
])
def test_a_cache_that_lacks_some_files(folder, monkeypatch, lost, lacking):
    """Offline, what is needed is enough; what is lacking of it is named."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_text("{}")
    for name in lost:
        (folder / name).unlink(missing_ok=True)
    answer(monkeypatch, errors.IncompleteSnapshotError("3 file(s) are missing (original/params.json).", str(folder)))
    if not lacking:
        assert fetch("org/name") == folder
    else:
        assert f"{', '.join(lacking)} is not in the cache" in sentence(FileNotFoundError, fetch, "org/name")


def test_a_cache_that_lacks_a_shard(tmp_path, monkeypatch):
    write(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    answer(monkeypatch, errors.IncompleteSnapshotError("incomplete", str(tmp_path)))
    assert fetch("org/name") == tmp_path
    shard.unlink()
    assert f"{shard.name} is not in the cache" in sentence(FileNotFoundError, fetch, "org/name")


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/at/all", "./nowhere", "../a", "a/b/c"])
def test_a_path_that_does_not_exist_never_reaches_the_hub(monkeypatch, tmp_path, name):
    calls = answer(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert repr(name) in sentence(FileNotFoundError, load_model, name, device="cpu")
    assert not calls


def test_a_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert fetch("~/model") == folder


def test_a_file_in_place_of_a_folder(folder):
    assert "model.safetensors'" in sentence(ValueError, load_model, folder / "model.safetensors", device="cpu")


def test_a_gguf_file_by_mistake(folder):
    """Alone, or in a folder that is no model's."""
    file = folder / "x.GGUF"
    file.write_bytes(b"GGUF")
    assert f"`nanoct gguf {file} --out FOLDER`" in sentence(ValueError, fetch, file)
    assert fetch(folder) == folder
    file.rename(file := folder / "x.gguf")
    (folder / "config.json").unlink()
    assert f"`nanoct gguf {file} --out FOLDER`" in sentence(ValueError, load_model, folder)
    assert "no folder" in sentence(FileNotFoundError, fetch, folder / "other.gguf")


def test_the_built_in_models_are_in_no_installed_package(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "EMBEDDED", tmp_path / "site-packages" / "weights")
    message = sentence(FileNotFoundError, load_model, weights.EMBEDDED / "nano" / "strings")
    assert "not in an installed package" in message and "`pip install -e .`" in message and "--model" in message
    assert weights.EMBEDDED != FOLDER.parent and FOLDER.is_dir()


# --- threads ---


@pytest.mark.parametrize("n_embd, device, n_thread", [(128, "cpu", 1), (511, "cpu", 1), (512, "cpu", 7),
                                                      (128, "cuda", 7)])
def test_small_models_on_a_cpu_run_in_one_thread(monkeypatch, n_embd, device, n_thread):
    threads = [7]
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    quiet_threads(SimpleNamespace(device=torch.device(device), config=SimpleNamespace(n_embd=n_embd)))
    assert threads[-1] == n_thread


# --- a full disk ---


def test_a_full_disk_is_a_sentence_and_leaves_the_older_files(folder, monkeypatch):
    model, before = load_model(folder, device="cpu"), (folder / "model.safetensors").read_bytes()

    def full(tensors, file, metadata):
        file.write_bytes(b"ha")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(weights, "save_file", full)
    message = sentence(OSError, save_model, model, folder)
    assert "model.safetensors (Error while serializing: I/O error: No space" in message
    assert (folder / "model.safetensors").read_bytes() == before and not list(folder.glob(".*"))
