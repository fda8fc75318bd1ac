"""Read and write public files of Llamas and GPT-2: config.json with model.safetensors, whole or in shards.

    model = load_model("meta-llama/Llama-3.2-1B")   # or a folder
    save_model(model, "folder")                     # transformers reads it

Reading is strict: a file that does not fit is refused with a sentence that names what does not fit.
From the hub the small files come first, so that a model that nanoct does not compute costs no download of weights.
Headers are checked before any weight is read; then each tensor goes from the mapped file straight
to its device and dtype, so there is one copy of the model in memory.
"""

import hashlib
import json
import re
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nanoct.gpt2 import GPT2, GPT2Config
from nanoct.io.files import read_json, reading, reason, replacing
from nanoct.io.tokenizer import Tokenizer, load_tokenizer
from nanoct.model import Llama, LlamaConfig

SIZES = dict(vocab_size="vocab_size", n_layer="num_hidden_layers", n_head="num_attention_heads",
             n_embd="hidden_size", n_ffn="intermediate_size", n_position="max_position_embeddings")
# model_type -> what its files leave out, where that is not as in Llama's
FAMILIES = {"llama": {}, "mistral": dict(sliding_window=4096), "qwen2": dict(sliding_window=4096, max_window_layers=28),
            "qwen3": dict(head_dim=128, sliding_window=4096, max_window_layers=28), "olmo2": {},
            "smollm3": dict(tie_word_embeddings=True, rope_theta=2e6)}
# Further settings of these files. model.py computes only these values of them, and any other is refused.
PLAIN = dict(hidden_act="silu", mlp_bias=False, rope_interleaved=False, partial_rotary_factor=1.0,
             quantization_config=None)
SWITCHES = "tie_word_embeddings", "attention_bias", "use_sliding_window"
GPT2_SIZES = dict(vocab_size="vocab_size", n_layer="n_layer", n_head="n_head", n_embd="n_embd",
                  n_position="n_positions")
GPT2_PLAIN = dict(activation_function="gelu_new", scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False,
                  add_cross_attention=False, quantization_config=None)
TURNED = "c_attn.weight", "c_proj.weight", "c_fc.weight"  # GPT-2's files have (in, out)
LLAMA3 = dict(factor=float, low_freq_factor=float, high_freq_factor=float, original_max_position_embeddings=int)
FLOATS = dict(F64=torch.float64, F32=torch.float32, F16=torch.float16, BF16=torch.bfloat16)
CONSTANTS = "rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"  # in older files
HEAD = "lm_head.weight"
LARGEST = {int: 10**9, float: 1e15}  # of the numbers in a config.json
FIRST = {*SIZES, "n_kv_head", "head_dim", "rope_theta", "rope_scaling", "norm_eps", "tied"}  # of a config's fields
SMALL = """config.json adapter_config.json tokenizer.json tokenizer.model tokenizer_config.json special_tokens_map.json
    chat_template.jinja vocab.json""".split()  # files of a model that are no weights
INDEX = "model.safetensors.index.json"
EMBEDDED = Path(__file__).parents[2] / "weights"  # in the repository, not in an installed package


def load(folder_or_name, device=None, dtype=None) -> tuple[Llama | GPT2, Tokenizer]:
    """A frozen model and its tokenizer, from a folder or a hub name.

    Raises what load_model and load_tokenizer raise, and ValueError if the two do not belong together.
    device: "cuda", "mps" or "cpu"; default: the first there is. dtype: default: bfloat16 on cuda, float32 elsewhere.
    """
    tokenizer = load_tokenizer(fetch(folder_or_name, weights=False))
    model = load_model(folder_or_name, device, dtype)
    tokenizer.check_belongs(model.config.vocab_size)
    return model, tokenizer


def load_model(folder_or_name, device=None, dtype=None) -> Llama | GPT2:
    """Load a frozen Llama, relative of it, or GPT-2, from a folder or a hub name such as "meta-llama/Llama-3.2-1B".

    Raises FileNotFoundError if a file is missing. Raises ValueError if one cannot be read, asks for what
    these models do not compute, or holds other tensors than its config says. Each is one sentence.
    """
    device = pick_device(device)
    dtype = resolve_dtype(dtype, device)
    folder = fetch(folder_or_name)
    config = read_config(folder)
    tensors = _tensors(folder)
    body = "transformer." if isinstance(config, GPT2Config) else "model."
    if not any(name.startswith(body) for name in tensors):  # as in the files of a model that had no head
        tensors = {name if name == HEAD else body + name: t for name, t in tensors.items()}
    _check_room(folder, config, tensors.values())
    with torch.device("meta"):  # shapes without memory
        model = (GPT2 if isinstance(config, GPT2Config) else Llama)(config).requires_grad_(False).eval()
    shapes = {name: tuple(_as_in_file(name, p).shape) for name, p in model.named_parameters()}
    embedding = next(name for name in shapes if name.endswith(("embed_tokens.weight", "wte.weight")))
    if config.tied and HEAD in tensors:
        if embedding not in tensors:  # the head is the embedding, and a file may call it by either name
            tensors[embedding] = tensors.pop(HEAD)
        else:  # or by both
            shapes[HEAD] = shapes[embedding]
    _check_fits(folder, tensors, shapes)
    # copy: a view of the mapped file would change, and die, with the file
    state = {name: _as_in_file(name, t[:]).to(device, dtype, copy=True).contiguous() for name, t in tensors.items()}
    if config.tied and not torch.allclose(state.pop(HEAD, state[embedding]), state[embedding], 0, 0, equal_nan=True):
        raise ValueError(f"{folder}: tie_word_embeddings is true, but {HEAD} differs from {embedding}; set it to "
                         "false.")
    model.load_state_dict(state, assign=True)
    return model


def _tensors(folder):
    """{name: a tensor that is not yet read} of all files of weights."""
    tensors = {}
    for path in _weight_files(folder):
        if not path.is_file():
            raise FileNotFoundError(f"There is no {path}; download it, or convert the pickled weights (.bin, .pth) "
                                    "with transformers' save_pretrained.")
        with reading(path, "a whole safetensors file", "download it again"):
            file = safe_open(path, framework="pt")
            for name in file.keys():
                if name in tensors:
                    raise ValueError(f"{name} stands in another file too")
                if not name.endswith(CONSTANTS):
                    tensors[name] = file.get_slice(name)
    return tensors


def _check_fits(folder, tensors, shapes):
    """Raise ValueError unless the tensors are floats of these shapes {name: shape}, none missing and none more."""
    missing = [name for name in shapes if name not in tensors]
    unexpected = [name for name in tensors if name not in shapes]
    misshapen = []
    for name in shapes.keys() & tensors.keys():
        kind, shape = tensors[name].get_dtype(), tuple(tensors[name].get_shape())
        if shape != shapes[name] or kind not in FLOATS:
            misshapen.append(f"{name} is {kind} {shape}, expected floats {shapes[name]}")
    wrong = dict(missing=missing, unexpected=unexpected, misshapen=sorted(misshapen))
    if any(wrong.values()):
        raise ValueError(f"{folder}: the weights do not fit config.json: "
                         + "; ".join(f"{what}: {_some(names)}" for what, names in wrong.items() if names) + ".")


def _check_room(folder, config, tensors):
    """Raise ValueError on sizes far above those of the tensors. Building such a model first could take minutes."""
    longest = max((side for tensor in tensors for side in tensor.get_shape()), default=0)
    widest = max(config.vocab_size, config.n_embd, config.n_ffn, config.n_head * config.head_dim)
    if config.n_layer > len(tensors) or widest > 10 * longest:
        raise ValueError(f"{folder}: the weights do not fit config.json: it asks for {config.n_layer} layers and sides "
                         f"of {widest}, and there are {len(tensors)} tensors with sides of {longest} at most.")


def save_model(model, folder, dtype=None, metadata=None) -> Path:
    """Write config.json and model.safetensors as transformers (4.x and 5.x) reads them; return the folder.

    dtype: by default the model's. metadata: {str: str} for the header of the safetensors file.
    Files are replaced whole: an interrupted call leaves no half-written one. Raises ValueError on an unknown dtype,
    OSError with a sentence if they cannot be written.
    """
    folder, dtype = Path(folder), resolve_dtype(dtype or model.dtype, model.device)
    state = {name: _as_in_file(name, p.detach()).to("cpu", dtype).contiguous() for name, p in model.named_parameters()}
    with replacing(folder / "config.json") as text, replacing(folder / "model.safetensors") as weights:
        save_file(state, weights, metadata={**(metadata or {}), "format": "pt"})
        text.write_text(json.dumps(config_json(model.config, dtype), indent=2) + "\n")
        weights.chmod(text.stat().st_mode)  # safetensors writes for the owner only
    return folder


def config_json(c, dtype) -> dict:
    """What transformers has in config.json for a LlamaConfig or GPT2Config of ours and weights of a torch.dtype."""
    none = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # or a family's defaults count
    config = none | dict(torch_dtype=str(dtype).removeprefix("torch."), tie_word_embeddings=c.tied)
    if isinstance(c, GPT2Config):
        return config | dict(architectures=["GPT2LMHeadModel"], model_type="gpt2", activation_function="gelu_new",
                             n_inner=c.n_ffn, layer_norm_epsilon=c.norm_eps,
                             **{theirs: getattr(c, ours) for ours, theirs in GPT2_SIZES.items()})
    name, more = _family(c)
    return config | dict(architectures=[name + "ForCausalLM"], model_type=name.lower(), hidden_act="silu",
                         attention_bias=c.output_bias, mlp_bias=False, **more,
                         **{theirs: getattr(c, ours) for ours, theirs in SIZES.items()},
                         num_key_value_heads=c.n_kv_head, head_dim=c.head_dim, rms_norm_eps=c.norm_eps,
                         rope_theta=c.rope_theta,
                         rope_scaling=c.rope_scaling and {"rope_type": "llama3", **c.rope_scaling})


def _family(c):
    """The public family that computes a LlamaConfig: its name, and settings that are its own.

    Raises ValueError if there is none.
    """
    is_qwen2 = c.attention_bias and not (c.output_bias or c.qk_norm or c.no_rope)
    one_bias = c.attention_bias != c.output_bias and not is_qwen2
    if c.norm_after != (c.qk_norm == "width") or one_bias or c.no_rope and c.qk_norm:
        raise ValueError(f"no public family computes {c}: it cannot be saved as one of transformers' models.")
    if c.norm_after:
        return "Olmo2", {}
    if c.qk_norm:
        return "Qwen3", {}
    if c.no_rope:
        return "SmolLM3", dict(no_rope_layers=[int(layer not in c.no_rope) for layer in range(c.n_layer)])
    return ("Qwen2" if is_qwen2 else "Llama"), {}


def fingerprint(model) -> str:
    """12 hex digits that say which base model a result or a tuned context belongs to.

    A sha256 over the config and the weights rounded to bfloat16: the same on every device, and for one file
    loaded in float32 or bfloat16. Tensors below two million values are hashed whole. Of larger ones about a
    million evenly spaced values are hashed: half a gigabyte and a few seconds for an 8B model.
    """
    digest = hashlib.sha256(json.dumps(lasting(model.config), sort_keys=True).encode())
    for name, p in sorted(model.named_parameters()):
        stride = p.numel() // 2**20 | 1  # odd, so that it walks through all columns
        values = p.detach().flatten()[::stride].to(torch.bfloat16).cpu()
        digest.update(f"{name} {tuple(p.shape)}".encode() + values.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:12]


def lasting(config) -> dict:
    """The fields of a config, but those that came after FIRST only where they are not at their default.

    So what is made of them stays what it is when a field is added.
    """
    defaults = {f.name: f.default for f in fields(config) if f.name not in FIRST}
    values = {name: x for name, x in asdict(config).items() if name not in defaults or x != defaults[name]}
    return json.loads(json.dumps(values))  # with lists for tuples, as a file gives them back


def fetch(folder_or_name, weights=True) -> Path:
    """Return a model's folder as it is, or download the model named "org/name" from the hub and return its folder.

    The small files come first: config.json, which is read, tokenizer and index; then the files of weights that the
    index names, and no others. weights: whether these are wanted.
    Raises FileNotFoundError or ValueError with a sentence: no such folder, no network, not allowed, not found, or a
    config.json that these models do not compute.
    """
    name, path = str(folder_or_name), Path(folder_or_name).expanduser()
    gguf = [path] if path.suffix.lower() == ".gguf" else []
    if path.is_dir():
        gguf = [] if (path / "config.json").exists() else sorted(path.glob("*.gguf"))
    if gguf and gguf[0].exists():
        raise ValueError(f"{name!r} is a GGUF file, or holds one: `nanoct gguf {gguf[0]} --out FOLDER` makes "
                         "of it the folder that can be given here.")
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{name!r} is a file; give the folder that holds config.json and model.safetensors.")
    if path.is_relative_to(EMBEDDED) and not EMBEDDED.is_dir():
        raise FileNotFoundError(f"There is no {path}: the built-in models are in the repository and not in an "
                                "installed package; clone it and `pip install -e .` there, or name a model with "
                                "--model.")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise FileNotFoundError(f"There is no folder {name!r}, nor is that a hub name such as "
                                "'meta-llama/Llama-3.2-1B'.")
    folder = _download(name, [*SMALL, INDEX], _small_files)
    read_config(folder)
    return _download(name, [file.name for file in _weight_files(folder)], _weight_files) if weights else folder


def _download(name, files, needed):
    """Download files of a hub model and return its folder. needed(folder): the files that cannot be done without."""
    from huggingface_hub import errors, snapshot_download  # only here: a folder does without the hub

    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except errors.GatedRepoError:
        raise ValueError(f"{name!r} is gated: accept the licence on https://huggingface.co/{name} and log in "
                         "with `hf auth login`.") from None
    except errors.RepositoryNotFoundError:  # without a login the hub answers the same for private and absent
        raise FileNotFoundError(f"There is neither a folder nor a public hub model {name!r}; check the name, or log in "
                                "with `hf auth login` if the model is private.") from None
    except errors.LocalEntryNotFoundError as error:
        there = getattr(error, "snapshot_path", None)  # a cache that lacks some files, perhaps none that is needed
        lacking = [file.name for file in needed(Path(there)) if not file.is_file()] if there else ["all of it"]
        if not lacking:
            return Path(there)
        raise FileNotFoundError(f"There is no folder {name!r}, of the hub model of that name {_some(lacking)} is not "
                                "in the cache, and the hub cannot be reached; connect, or give the folder of a "
                                "download.") from None
    except Exception as error:  # a download fails in many ways: disk, proxy, time-out
        raise ValueError(f"{name!r} could not be fetched ({reason(error)}); try again, or give the folder of "
                         "a download.") from error


def _small_files(folder):
    """The files without weights that a model and its tokenizer need."""
    tokenizer = "tokenizer.model" if (folder / "tokenizer.model").is_file() else "tokenizer.json"
    return [folder / name for name in ("config.json", "tokenizer_config.json", tokenizer)]


def _as_in_file(name, tensor):
    """Turn a model's tensor into its file's, or back: GPT-2's linear maps are transposed."""
    return tensor.T if name.endswith(TURNED) else tensor


def read_config(folder) -> LlamaConfig | GPT2Config:
    """Read config.json as a LlamaConfig or GPT2Config.

    Raises ValueError with the key and the value that these models do not compute.
    """
    file = Path(folder) / "config.json"
    if file.with_name("adapter_config.json").is_file():
        raise ValueError(f"{folder} holds adapter_config.json: its weights are a base and a LoRA beside it; give a "
                         "folder that peft's merge_and_unload has made of both, or delete that file to run the base.")
    with reading(file, "the config of a model that nanoct computes", "give another model, or the file that came with "
                 "the weights"):
        return _config(read_json(file, kind=dict))


def _config(c):
    family, gpt2 = c["model_type"], c["model_type"] == "gpt2"
    rope = c.get("rope_scaling") or c.get("rope_parameters") or {}  # as transformers 4 and 5 write it
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else [rope]
    if not gpt2 and (family not in list(FAMILIES) or kind not in ("default", "llama3")):
        raise ValueError(f"model_type is {family!r:.60} and the RoPE type {kind!r:.60}; nanoct runs 'gpt2', and "
                         f"{', '.join(FAMILIES)} with 'default' or 'llama3'")
    c = {**FAMILIES.get(family, {}), **c, **rope}
    for key, value in (GPT2_PLAIN if gpt2 else PLAIN).items():
        if c.get(key, value) not in (value, None):
            raise ValueError(f"{key} is {c[key]!r:.60}; nanoct computes {value!r} only")
    for key in SWITCHES:
        if c.get(key) not in (None, True, False):
            raise ValueError(f"{key} is {c[key]!r:.60}; it must be true or false")

    def number(key, kind, default=None):
        value = default if c.get(key) is None else c[key]
        if value is None:
            raise KeyError(key)
        if isinstance(value, bool) or not isinstance(value, (int, kind)) or not 0 < value <= LARGEST[kind]:
            raise ValueError(f"{key} is {value!r:.60}; it must be a positive {kind.__name__}, at most {LARGEST[kind]}")
        return kind(value)

    if gpt2:
        sizes = {ours: number(theirs, int) for ours, theirs in GPT2_SIZES.items()}
        return GPT2Config(**sizes, n_ffn=number("n_inner", int, 4 * sizes["n_embd"]),
                          norm_eps=number("layer_norm_epsilon", float, 1e-5),
                          tied=bool(c.get("tie_word_embeddings", True)))
    scaling = {key: number(key, type_) for key, type_ in LLAMA3.items()} if kind == "llama3" else None
    if scaling and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        raise ValueError(f"low_freq_factor is {scaling['low_freq_factor']}; it must be less than high_freq_factor")
    sizes = {ours: number(theirs, int) for ours, theirs in SIZES.items()}
    sizes.update(n_kv_head=number("num_key_value_heads", int, sizes["n_head"]),
                 head_dim=number("head_dim", int, sizes["n_embd"] // sizes["n_head"]))
    rest = dict(rope_theta=number("rope_theta", float, 10000.0), rope_scaling=scaling,
                norm_eps=number("rms_norm_eps", float), tied=bool(c.get("tie_word_embeddings", False)))
    window = number("sliding_window", int, sizes["n_position"])
    if _slides(family, c, sizes["n_layer"]) and window < sizes["n_position"]:
        raise ValueError(f"sliding_window is {window} and the context {sizes['n_position']}; nanoct's Llama attends "
                         f"to all of it: set max_position_embeddings to {window} to run it on shorter texts")
    bias = family not in ("mistral", "qwen2") and bool(c.get("attention_bias"))  # which have no such setting
    rest |= dict(attention_bias=bias or family == "qwen2", output_bias=bias, norm_after=family == "olmo2",
                 qk_norm=dict(qwen3="head", olmo2="width").get(family))
    if family == "smollm3":
        every, n = number("no_rope_layer_interval", int, 4), sizes["n_layer"]
        has_rope = c.get("no_rope_layers") or [(i + 1) % every for i in range(n)]
        if len(has_rope) != n:
            raise ValueError(f"no_rope_layers is {has_rope!r:.60}; it must have a 0 or 1 for each layer")
        rest["no_rope"] = tuple(i for i in range(n) if not has_rope[i])
    return LlamaConfig(**sizes, **rest)


def _slides(family, c, n_layer):
    """Whether a layer of a config.json c attends to its sliding_window alone, by transformers' rules.

    Raises ValueError if a layer is of another kind.
    """
    kinds = c.get("layer_types")
    if kinds is not None and (len(kinds) != n_layer or not {"full_attention", "sliding_attention"} >= set(kinds)):
        raise ValueError(f"layer_types is {str(kinds):.80}; nanoct's Llama has full attention in each of its "
                         f"{n_layer} layers")
    if family == "mistral" or kinds is None and family in ("llama", "olmo2"):
        return True  # in Llama's and OLMo-2's own files there is no sliding_window
    if kinds is not None:
        return "sliding_attention" in kinds
    first = c["max_window_layers"] if family in ("qwen2", "qwen3") else 0  # the first layer that has a window
    return bool(c.get("use_sliding_window")) and first < n_layer


def quiet_threads(model):
    """Use one thread if the model is small and on a CPU.

    Its matrices are done before a second thread has begun, and on a busy machine each one would wait for that thread.
    """
    if model.device.type == "cpu" and model.config.n_embd < 512:
        torch.set_num_threads(1)


def pick_device(device=None) -> torch.device:
    """The named device, or else the first there is of cuda, mps, cpu. Raises ValueError if it does not exist."""
    count = dict(cuda=torch.cuda.device_count(), mps=int(torch.backends.mps.is_available()), cpu=1)
    here = [kind for kind, n in count.items() if n]
    try:
        chosen = torch.device(here[0] if device is None else device)
    except RuntimeError:
        chosen = None
    if chosen is None or (chosen.index or 0) >= count.get(chosen.type, 0):
        raise ValueError(f"There is no device {str(device)!r} here; this machine has {', '.join(here)}.")
    return chosen


def resolve_dtype(dtype, device) -> torch.dtype:
    """The torch.dtype of a dtype or name; None: bfloat16 on cuda, float32 elsewhere. Raises ValueError on any other."""
    if dtype is None:
        return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    chosen = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if chosen not in FLOATS.values():
        raise ValueError(f"dtype is {dtype!r}; it must be 'float32', 'bfloat16', 'float16' or 'float64'.")
    return chosen


def _weight_files(folder):
    """model.safetensors, or the shards that model.safetensors.index.json names."""
    whole, index = folder / "model.safetensors", folder / INDEX
    if whole.exists() or not index.exists():
        return [whole]
    with reading(index, "an index of shards", "download it again"):
        shards = sorted(set(read_json(index)["weight_map"].values()))
        if not shards or any(Path(shard).name != shard for shard in shards):
            raise ValueError("weight_map must map each tensor to a file of this folder")
    return [folder / shard for shard in shards]


def _some(names, limit=5):
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


