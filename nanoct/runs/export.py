"""Take a tuned context out of the repository, as folders that peft loads, and bring such a folder back.

    nanoct export --context ctx.safetensors --out FOLDER
    nanoct export --back FOLDER --model MODEL --out ctx.safetensors

    FOLDER/adapter   LoRA, DoRA or (IA)³      model = PeftModel.from_pretrained(model, "FOLDER/adapter")
    FOLDER/prefix    theta, of any method     model = PeftModel.from_pretrained(model, "FOLDER/prefix")

There are both where a method has both, as TTT has. peft gives a model one of the two, so merge the adapter first, with
PeftModel.from_pretrained(...).merge_and_unload(). transformers takes theta without peft, as a cache of its own, and
then generates (peft 0.21's own generate leaves the prefix out under transformers 5.24):

    theta = load_file("ctx.safetensors")                                                  # of safetensors.torch
    cache = DynamicCache([*zip(theta["prefix.keys"], theta["prefix.values"])])            # for one text
    seen = torch.ones(1, cache.get_seq_length() + tokens.shape[1])
    model.generate(tokens, past_key_values=cache, attention_mask=seen)

peft and transformers count positions from the number of entries, so theta can leave only if next_position is that
number. What they cannot express is refused. Neither of the two has to be installed.
Nothing is rounded on the way. What nanoct alone knows, such as the owners of entries, is in the header of the
safetensors files, and a folder that was written here comes back as the same bytes. One that peft wrote has no such
header: its entries belong to no demo.

Dimensions: L layers, K KV heads, P prefix entries, D head_dim.
"""

import json
import math
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from nanoct import cli
from nanoct.adapters import DoRA, LoRA
from nanoct.fewshot import Adapted, Mixture, Prefix
from nanoct.io import weights
from nanoct.io.files import each_once, read_json, reading, replace_file
from nanoct.methods.ia3 import Factors
from nanoct.runs.contexts import ABOUT, ENTRY, check_savable, load_adapted, read_about, save_adapted

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # the names that peft gives its files
THETA = dict(PREFIX_TUNING=dict(prefix_projection=False), CARTRIDGE=dict(num_frozen_tokens=1))
LEAVES = {  # class of a part -> {its tensor: peft's name}
    LoRA: dict(a="lora_A.weight", b="lora_B.weight"),
    DoRA: dict(a="lora_A.weight", b="lora_B.weight", magnitude="lora_magnitude_vector"),
    Factors: dict(input="ia3_l", output="ia3_l"),
}
# Settings of peft that change what is computed, and that nanoct does not have: they must be off
BEYOND = """alora_invocation_tokens alpha_pattern arrow_config kasa_config layer_replication lora_bias modules_to_save
    monteclora_config prefix_projection rank_pattern target_parameters trainable_token_indices use_bdlora use_qalora
    velora_config""".split()
STARTS = None, True, False, "gaussian", "eva", "orthogonal", "mica"  # of init_lora_weights: those that leave the model


def export(adapted, folder, about=None, base=None, kind="PREFIX_TUNING"):
    """Write (phi, theta) as the peft folders `adapter` and `prefix`, or one of them; return their paths.

    about: of load_adapted, which comes back with it. base: the model's folder or name, for peft. kind: of THETA.
    Raises ValueError, before anything is written, on what peft does not have, and OSError if it cannot be written.
    """
    parts, theta, header = {}, adapted.prefix, dict(about or {})
    if adapted.adapter:
        parts["adapter"] = _of_adapter(adapted)
    if theta is not None:
        parts["prefix"] = _of_prefix(theta, kind)
        header["owner"] = theta.owner.tolist()
    if not parts:
        raise ValueError("there is nothing to export: the method left model and context as they were.")
    for name, (config, tensors) in parts.items():
        config |= dict(base_model_name_or_path=base and str(base), task_type="CAUSAL_LM", inference_mode=True)
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        place = Path(folder) / name
        replace_file(place / WEIGHTS, save(tensors, {"format": "pt", ENTRY: json.dumps(header)}))
        replace_file(place / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    return [Path(folder) / name for name in parts]


def check_theta(theta):
    """Raise ValueError if a cache of transformers cannot hold theta."""
    if isinstance(theta, Mixture):
        raise ValueError(f"the answers are mixed from {len(theta.parts)} contexts, and peft has one: export what a "
                         "method with one context tuned.")
    if theta.log_weight is not None:
        raise ValueError("the entries of this context count more or less than once in the softmax, and peft has no "
                         "such weights: export plain windows, or what another method tuned.")
    if (P := len(theta.owner)) != theta.next_position:
        raise ValueError(f"the context has {P} entries and a question begins at position {theta.next_position}, where "
                         f"peft and transformers would begin at {P}: export a context with an entry for every "
                         "position.")


def _of_prefix(theta, kind):
    """peft's config and tensors of theta: one row of L·2·K·D numbers for every entry."""
    check_theta(theta)
    keys, values = theta.stack()  # (L, 1, K, P, D)
    L, _, K, P, D = keys.shape
    rows = torch.stack([keys, values], dim=1)[:, :, 0].permute(3, 0, 1, 2, 4)  # (P, L, 2, K, D)
    config = dict(peft_type=kind, num_virtual_tokens=P, num_layers=L, num_attention_heads=K, token_dim=K * D,
                  num_transformer_submodules=1, **THETA[kind])
    return config, dict(prompt_embeddings=rows.flatten(1))


def _of_adapter(adapted):
    """peft's config and tensors of an adapter."""
    model, adapter = adapted.model, adapted.adapter
    check_savable(adapted)
    kind = type(next(iter(adapter.values())))
    if kind not in LEAVES:
        raise ValueError(f"the adapter is made of {kind.__name__}, which peft does not have: only LoRA, DoRA and (IA)³ "
                         "can be exported.")
    names = list(adapter)  # peft looks for modules whose names end so
    config = dict(target_modules=names, fan_in_fan_out=_is_gpt2(model))
    if kind is Factors:
        config |= dict(peft_type="IA3", feedforward_modules=[n for n, part in adapter.items() if "input" in part.names])
        _check_biases(model, adapter)
    else:
        ranks = {(len(part.a), part.scale) for part in adapter.values()}
        if len(ranks) > 1:
            raise ValueError(f"the parts of the adapter have {len(ranks)} ranks or scales: only one can be exported.")
        (rank, scale), = ranks
        config |= dict(peft_type="LORA", r=rank, lora_alpha=scale * rank, lora_dropout=0.0, bias="none",
                       use_dora=kind is DoRA)
    tensors = {}
    for name, part in adapter.items():
        for leaf, tensor in part.state().items():
            if kind is Factors:
                tensor = tensor[None] if leaf == "input" else tensor[:, None]
            tensors[_start(model) + f"{name}.{LEAVES[kind][leaf]}"] = tensor
    return config, tensors


def _is_gpt2(model):
    return hasattr(model, "transformer")


def _start(model):
    """What stands before the name of a linear map in peft's files."""
    return f"base_model.model.{'transformer' if _is_gpt2(model) else 'model'}."


def _check_biases(model, adapter):
    """Raise ValueError if (IA)³ multiplies a map that adds a bias, which peft multiplies too."""
    for name, part in adapter.items():
        if "output" in part.names and model.linears[name].bias is not None:
            raise ValueError(f"(IA)³ here multiplies {name} without its bias, and peft's with it: it goes from one to "
                             "the other only for models without such biases.")


def restore(folder, model):
    """The Adapted in a folder of `export`, or in one that peft wrote, and `about`, all else that its header says.

    Raises ValueError if the header names another model, and on what nanoct does not have; FileNotFoundError without
    such a folder.
    """
    folder, found, about = Path(folder), {}, {}
    places = [place for place in (folder / "adapter", folder / "prefix", folder) if (place / CONFIG).is_file()]
    if not places:
        raise FileNotFoundError(f"there is no {CONFIG} in {folder}, nor in its adapter and prefix: give a folder that "
                                "peft or nanoct export wrote.")
    with reading(folder, "a folder of peft that nanoct can compute", "train it again with peft's plain settings"):
        numbers = 0
        for place in places:
            config = read_json(place / CONFIG, kind=dict)
            start = config.get("init_lora_weights")  # some ways to start an adapter change the model, too
            beyond = [name for name in BEYOND if config.get(name)] + ["init_lora_weights"] * (start not in STARTS)
            if beyond:
                raise ValueError(f"it has {beyond[0]} = {config[beyond[0]]!r:.60}")
            with reading(place / WEIGHTS, "a whole safetensors file"), safe_open(place / WEIGHTS, "pt") as file:
                header = json.loads((file.metadata() or {}).get(ENTRY, "{}"), object_pairs_hook=each_once)
                tensors = {name: file.get_tensor(name).to(model.device, copy=True) for name in file.keys()}
            about = dict(method=config["peft_type"].lower(), config={}, k=0) | header
            if wrong := [name for name, kind in ABOUT.items() if name in about and not isinstance(about[name], kind)]:
                raise ValueError(f"{wrong[0]} is {about[wrong[0]]!r:.60}")
            numbers += sum(tensor.numel() for tensor in tensors.values())
            if config["peft_type"] in THETA:
                found["prefix"] = _to_prefix(tensors["prompt_embeddings"], model, about.pop("owner", None))
            else:
                found["adapter"] = _to_adapter(config, tensors, model)
        if about.get("model", mark := weights.fingerprint(model)) != mark:
            raise ValueError(f"{folder} was tuned on the model {about['model']} and this one is {mark}: give the model "
                             "that it belongs to with --model.")
    return Adapted(model, **found, n_trained=about.get("n_trained", numbers)), about


def _to_prefix(rows, model, owner):
    """theta of peft's rows (P, L·2·K·D)."""
    c, P = model.config, len(rows)
    sizes = c.n_layer, 2, c.n_kv_head, c.head_dim
    if rows.shape[1:] != (math.prod(sizes),):
        raise ValueError(f"its entries have {tuple(rows.shape[1:])} numbers and the model {math.prod(sizes)}")
    owner = [-1] * P if owner is None else owner
    if len(owner) != P or not all(type(i) is int and -1 <= i < P for i in owner):
        raise ValueError(f"it has {P} entries and the owners {owner!r:.60}")
    owner = torch.tensor(owner, device=rows.device)
    keys, values = rows.view(P, *sizes).permute(2, 1, 3, 0, 4)[:, :, None].contiguous()  # (L, 1, K, P, D)
    return Prefix(list(zip(keys, values)), owner, P)


def _to_adapter(config, tensors, model):
    """{name: part} of peft's tensors."""
    kinds = dict(LORA=DoRA if config.get("use_dora") else LoRA, IA3=Factors)
    if config["peft_type"] not in kinds:
        raise ValueError(f"it is of the type {config['peft_type']}, and known are {', '.join([*THETA, *kinds])}")
    kind, scale, adapter = kinds[config["peft_type"]], 1.0, {}
    if kind is not Factors:
        scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    tensors = {name: tensor.float() for name, tensor in tensors.items()}  # as peft loads a file in bfloat16
    for name, layer in model.linears.items():
        state = {}
        for leaf, theirs in LEAVES[kind].items():
            tensor = tensors.pop(_start(model) + f"{name}.{theirs}", None)
            if tensor is not None and kind is Factors:
                state["input" if len(tensor) == 1 else "output"] = tensor.flatten()
            elif tensor is not None:
                state[leaf] = tensor
        seen = {leaf: tuple(tensor.shape) for leaf, tensor in state.items()}
        rank = seen.get("a", (None,))[0]
        if seen and (seen != kind.shapes(tuple(layer.weight.shape), seen) or rank not in (None, config.get("r"))):
            raise ValueError(f"the shapes {seen} do not fit {name}")
        if seen:
            adapter[name] = kind.restore(state, scale)
    if tensors:
        raise ValueError(f"it holds {next(iter(tensors))}, for which the model has no place")
    _check_biases(model, adapter)
    return adapter


def dynamic_cache(theta, dtype=torch.float32):
    """theta as a DynamicCache of transformers, for one call: a model writes its new entries into it.

    dtype: the model's. Raises ValueError if such a cache cannot hold theta.
    """
    from transformers import DynamicCache  # nanoct does without transformers

    check_theta(theta)
    return DynamicCache([(keys.to(dtype), values.to(dtype)) for keys, values in theta.kv])


def from_cache(cache):
    """theta of a cache of transformers whose layers keep every entry; the entries belong to no demo."""
    kv = [(layer.keys, layer.values) for layer in cache.layers]
    P = kv[0][0].shape[2]
    return Prefix(kv, torch.full((P,), -1, device=kv[0][0].device), P)


def main():
    p = cli.Parser(prog="nanoct export", description=__doc__)
    way = p.add_mutually_exclusive_group(required=True)
    way.add_argument("--context", metavar="FILE.safetensors", help="what nanoct tune wrote")
    way.add_argument("--back", metavar="FOLDER", help="what this command wrote, or peft: it becomes a context again")
    p.add_argument("--out", required=True, help="the new folder; with --back the context")
    p.add_argument("--model", help="folder or hub name; default: the context's own; --back needs it")
    p.add_argument("--cartridge", action="store_true", help="theta as peft's Cartridge instead of its prefix tuning")
    args = p.parse_args()
    if args.cartridge and args.back:
        raise ValueError("--cartridge is a form to export: leave it out with --back.")
    if Path(args.out).exists():
        raise ValueError(f"--out {args.out} exists: give another name.")
    own = read_about(args.context).get("name") if args.context else None
    if not (args.model or own):
        raise ValueError("give the model that it belongs to with --model.")
    model, tokenizer = weights.load(args.model or own, "cpu")
    if args.context:
        adapted, about = load_adapted(args.context, model, tokenizer)
        kind = "CARTRIDGE" if args.cartridge else "PREFIX_TUNING"
        for place in export(adapted, args.out, about, args.model or own, kind):
            print(f'wrote {place}: PeftModel.from_pretrained(model, "{place}")')
        return
    adapted, about = restore(args.back, model)
    if about.get("tokenizer", tokenizer.fingerprint) not in (None, tokenizer.fingerprint):
        raise ValueError(f"{args.back} was tuned with the tokenizer {about['tokenizer']!r:.60} and the model has "
                         f"{tokenizer.fingerprint}: give the model that it belongs to with --model.")
    more = {name: value for name, value in about.items() if name not in ("version", "tokenizer", *ABOUT)}
    tokenizer = tokenizer if about.get("tokenizer", True) else None
    save_adapted(adapted, args.out, about["method"], about["config"], about["k"], tokenizer, **more)
    print(f"wrote {args.out}: nanoct tune --predict --context {args.out}")


if __name__ == "__main__":
    cli.run(main)
