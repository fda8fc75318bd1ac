"""Save a tuned context as a file to share: what a method makes of a task, without the model that it belongs to.

    save_adapted(adapted, "ctx.safetensors", "ct_kv", config, k=10, tokenizer=tokenizer, template="{input}={output};")
    adapted, about = load_adapted("ctx.safetensors", model, tokenizer)

It is one safetensors file, so nothing in it is ever executed. Its tensors have the dtypes they were trained in:

    prefix.keys, prefix.values    (L, 1, K, P, D), keys after RoPE
    prefix.owner                  (P,) int64
    prefix.log_weight             (P,) float32, where entries are weighed
    prefix.0.keys, …              the same of every part, where theta is a Mixture of contexts
    adapter.NAME.LEAF             the state of the adapter of the linear layer NAME (adapters.py): LoRA's a (rank, in)
                                  and b (out, rank), and DoRA's magnitude (out,) too

Its metadata are one JSON object, `about`: version, model (the fingerprint of the base model), method, config, k (number
of demos), n_trained, next_position (null: no prefix; a list: of a Mixture's parts), weights (of a Mixture's parts),
adapter (its class, such as "LoRA", or null), scale ({NAME: number}), tokenizer (its fingerprint; null or absent: not
known), and whatever else the writer gave. The same context gives the same bytes.

Dimensions: L layers, K KV heads, P prefix entries, D head_dim.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from warnings import warn

from safetensors import safe_open
from safetensors.torch import save

from nanoct import adapters
from nanoct.fewshot import Adapted, Mixture, Prefix, contexts
from nanoct.io.files import each_once, reading, replace_file
from nanoct.io.weights import FLOATS, fingerprint
from nanoct.methods import KNOWN

VERSION = 1
ENTRY = "nanoct_context"  # the only entry of the metadata, as safetensors does not keep the order of several
ABOUT = dict(model=str, method=str, config=dict, k=int, n_trained=int, next_position=(int, NoneType, list),
             adapter=(str, NoneType), scale=dict)


def save_adapted(adapted, path, method, config, k, tokenizer=None, **extra) -> Path:
    """Write the adapter and theta (the prefix) of an Adapted; return the path. An older file stays until this is whole.

    method: its name. config: its Config or a dict. k: number of demos. tokenizer: that of its demos, to which it then
    belongs. extra: JSON values to add to `about`.
    Raises ValueError on what load_adapted would refuse, OSError if the file cannot be written.
    """
    adapter, theta, tensors, kind = adapted.adapter or {}, adapted.prefix, {}, check_savable(adapted)
    next_position = None if theta is None else theta.next_position
    if isinstance(theta, Mixture):
        next_position = [prefix.next_position for _, prefix in theta.parts]
        extra["weights"] = [weight for weight, _ in theta.parts]
    for name, (_, prefix) in zip(_names(next_position), contexts(theta)):
        keys, values = prefix.stack()
        tensors |= {f"{name}.keys": keys, f"{name}.values": values, f"{name}.owner": prefix.owner}
        if prefix.log_weight is not None:
            tensors[f"{name}.log_weight"] = prefix.log_weight
    for name, part in adapter.items():
        tensors |= {f"adapter.{name}.{leaf}": tensor for leaf, tensor in part.state().items()}
    about = dict(version=VERSION, model=fingerprint(adapted.model), method=method,
                 config=config if isinstance(config, dict) else asdict(config), k=k, n_trained=adapted.n_trained,
                 next_position=next_position, adapter=kind,
                 scale={name: float(part.scale) for name, part in adapter.items()},
                 tokenizer=tokenizer and tokenizer.fingerprint, **extra)
    _check_fits(path, about, adapted.model,
                {name: ("floats" if t.is_floating_point() else "I64", *t.shape) for name, t in tensors.items()})
    _check_finite(path, tensors)
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    return replace_file(path, save(tensors, {ENTRY: json.dumps(about)}))


def kinds():
    """{name: class} of the adapters that can be saved: those of adapters.py and of the methods' own files."""
    found = {}
    for module in (adapters, *KNOWN.values()):
        found |= {name: kind for name, kind in vars(module).items() if hasattr(kind, "restore")}
    return {name: kind for name, kind in found.items() if kind is not adapters.Part}


def check_savable(adapted):
    """Return the name of its adapter's class, or None. Raises ValueError if a file could not hold it."""
    there = {type(part).__name__: type(part) for part in (adapted.adapter or {}).values()}
    if len(there) > 1 or any(kinds().get(name) is not kind for name, kind in there.items()):
        raise ValueError(f"the adapter holds {', '.join(sorted(there))}, and a file holds one kind of "
                         f"{', '.join(kinds())}: it cannot be saved until its class has state, shapes and restore "
                         "(nanoct/adapters.py).")
    return next(iter(there), None)


def load_adapted(path, model, tokenizer=None):
    """Load a file of save_adapted: the Adapted, on the model's device, and `about`, everything else in the file.

    Raises what read_about raises, and ValueError if the context is of another model or tokenizer, or its tensors do not
    fit this model. A context that does not say its tokenizer, as older ones, may be of any: then a warning says so.
    """
    about = read_about(path)
    if about["model"] != (mark := fingerprint(model)):
        name = f"{about['name']} ({about['model']})" if "name" in about else about["model"]
        raise ValueError(f"{path} was tuned on the model {name} and this one is {mark}: give the model that it belongs "
                         "to with --model.")
    if tokenizer and not (own := about.get("tokenizer")):
        warn(f"{path} does not say which tokenizer it was tuned with: its answers are right only if that was the "
             "one of this model; tune it again to be sure.")
    elif tokenizer and own != tokenizer.fingerprint:
        raise ValueError(f"{path} was tuned with the tokenizer {own!r:.60} and {tokenizer.source} is "
                         f"{tokenizer.fingerprint}: give the model with the tokenizer that it belongs to.")
    with safe_open(path, "pt") as file:
        headers = {name: file.get_slice(name) for name in file.keys()}
        _check_fits(path, about, model, {name: ("floats" if h.get_dtype() in FLOATS else h.get_dtype(), *h.get_shape())
                                         for name, h in headers.items()})
        # copy, as a view of the mapped file would change, and vanish, with the file
        tensors = {name: file.get_tensor(name).to(model.device, copy=True) for name in headers}
    _check_finite(path, tensors)
    parts = []
    for name, next_position in _names(about["next_position"]).items():
        layers = zip(tensors[f"{name}.keys"].unbind(), tensors[f"{name}.values"].unbind())
        log_weight = tensors.get(f"{name}.log_weight")
        parts.append(Prefix(list(layers), tensors[f"{name}.owner"], next_position, log_weight))
    if isinstance(about["next_position"], list):
        prefix = Mixture(list(zip(about["weights"], parts)))
    else:
        prefix = parts[0] if parts else None
    adapter = {}
    for name, scale in about["scale"].items():
        state = {leaf: tensors[key] for leaf, key in _leaves(tensors, name).items()}
        adapter[name] = kinds()[about["adapter"]].restore(state, scale)
    return Adapted(model, adapter or None, prefix, about["n_trained"]), about


def _names(next_position):
    """{name of a prefix in the file: its next_position}: none, one, or those of a Mixture's parts."""
    if isinstance(next_position, list):
        return {f"prefix.{i}": position for i, position in enumerate(next_position)}
    return {} if next_position is None else {"prefix": next_position}


def _check_finite(path, tensors):
    if wrong := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{path}: {wrong[0]} holds numbers that are not finite: tune it again, at a smaller rate.")


def _leaves(tensors, name):
    """{leaf: its key in the file} of the linear layer `name`."""
    start = f"adapter.{name}."
    return {key.removeprefix(start): key for key in tensors if key.startswith(start)}


def read_about(path):
    """Return `about` of a context file; this reads no tensor and needs no model.

    Raises FileNotFoundError without a file, ValueError if the file is truncated, no safetensors file, no context,
    or of a version that this code does not know.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no context {path}: give a file that nanoct.tune wrote.")
    with reading(path, "a context that nanoct.tune wrote", "tune or copy it again"):
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[ENTRY], object_pairs_hook=each_once)
        if about["version"] != VERSION:
            raise ValueError(f"{path} has version {about['version']!r} of the format and this nanoct reads {VERSION}: "
                             "update it, or tune again.")
        for name, kind in ABOUT.items():
            if not isinstance(about[name], kind):
                raise ValueError(f"{name} is {about[name]!r:.60}")
        if isinstance(about["next_position"], list):
            numbers = [*about["next_position"], *about["weights"]]
            kinds = [int] * len(about["next_position"]) + [float] * len(about["next_position"])
            if not numbers or [type(number) for number in numbers] != kinds:
                raise ValueError(f"next_position and weights are {numbers!r:.60}")
    return about


def _check_fits(path, about, model, seen):
    """Raise ValueError unless the tensors {name: (kind, *shape)} are a context of the model, of any P and rank."""
    c, expected = model.config, {}
    size = lambda name, dim: seen.get(name, ())[1 + dim : 2 + dim] or (0,)
    for name, next_position in _names(about["next_position"]).items():
        P, share = size(f"{name}.keys", 3), about["method"] == "windows"  # windows share their positions
        if f"{name}.keys" in seen and not (0 < P[0] and (P[0] <= next_position or share and next_position > 0)):
            raise ValueError(f"{path} has {P[0]} entries and next_position = {next_position}: it takes one "
                             "or more, and a position behind all of them; tune or copy it again.")
        theta = ("floats", c.n_layer, 1, c.n_kv_head, *P, c.head_dim)
        expected |= {f"{name}.keys": theta, f"{name}.values": theta, f"{name}.owner": ("I64", *P)}
        if f"{name}.log_weight" in seen:
            expected[f"{name}.log_weight"] = ("floats", *P)
    if about["scale"] and about["adapter"] not in kinds():
        raise ValueError(f"{path} has an adapter of kind {about['adapter']!r}; known are {', '.join(kinds())}.")
    for name, scale in about["scale"].items():
        if name not in model.linears or not isinstance(scale, float) or not math.isfinite(scale):
            raise ValueError(f"{path} has an adapter of scale {scale!r} for {name!r}; names look like "
                             f"{next(iter(model.linears))!r}, and scales are numbers.")
        weight, there = tuple(model.linears[name].weight.shape), _leaves(seen, name)
        shapes = kinds()[about["adapter"]].shapes(weight, {leaf: seen[key][1:] for leaf, key in there.items()})
        expected |= {f"adapter.{name}.{leaf}": ("floats", *shape) for leaf, shape in shapes.items()}
    if wrong := [name for name in sorted(expected.keys() | seen.keys()) if seen.get(name) != expected.get(name)]:
        show = lambda there, name: f"{there[name][0]} {there[name][1:]}" if name in there else "missing"
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ValueError(f"{path} does not fit the model: {wrong[0]} is {show(seen, wrong[0])}, expected "
                         f"{show(expected, wrong[0])}{more}; tune it again on this model.")
