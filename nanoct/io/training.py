"""The state of a training, one safetensors file: weights, both moments of AdamW, the step, the settings, in float32."""

import json

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nanoct.io.files import read_json, replacing

MOMENTS = "exp_avg", "exp_avg_sq", "step"
ENTRY = "nanoct_training"  # the only entry of a state's metadata, as safetensors does not keep an order


def save_state(path, model, optimizer, step, settings):
    """Weights, both moments of AdamW, the step and the settings, in one safetensors file."""
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        tensors |= {f"{name}.{key}": optimizer.state[p][key] for key in MOMENTS}
    with replacing(path) as new:
        save_file(tensors, new, metadata={ENTRY: json.dumps(dict(step=step, settings=settings))})


def read_state(path, model, settings, n_step):
    """The step of a saved state. Raises ValueError if it is broken, or of another model or other settings."""
    anew = "give another --out, or delete it to begin anew"
    try:
        with safe_open(path, "pt") as file:
            about = (file.metadata() or {}).get(ENTRY)
            seen = {name: (file.get_slice(name).get_dtype(), *file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path} is truncated or no state of a training ({said:.100}): {anew}.") from None
    about = read_json(about.encode(), f"{path}, its metadata,", dict) if about else {}
    step, then = about.get("step"), about.get("settings")
    if type(step) is not int or step < 1 or not isinstance(then, dict):
        raise ValueError(f"{path} does not say its step and its settings, as nanoct.pretrain's states do: {anew}.")
    if other := [name for name in settings if then.get(name) != settings[name]]:
        differ = ", ".join(f"{name} = {then.get(name)!r:.60} and not {settings[name]!r:.60}" for name in other[:3])
        raise ValueError(f"{path} is of a training with {differ}: {anew}.")
    expected = {name: ("F32", *p.shape) for name, p in model.named_parameters()}
    expected |= {f"{name}.{key}": ("F32", *(p.shape if key != "step" else ())) for name, p in model.named_parameters()
                 for key in MOMENTS}
    if wrong := [name for name in expected | seen if expected.get(name) != seen.get(name)]:
        raise ValueError(f"{path} does not fit the model: {wrong[0]} is {seen.get(wrong[0], 'missing')}, expected "
                         f"{expected.get(wrong[0], 'none')}: {anew}.")
    if step > n_step:
        raise ValueError(f"{path} is at step {step}, behind --n-step {n_step}: raise it, or {anew}.")
    return step


@torch.no_grad()
def load_state(path, model, optimizer):
    """Load a saved state."""
    with safe_open(path, "pt", device=str(model.device)) as f:
        for name, p in model.named_parameters():
            p.copy_(f.get_tensor(name))
            optimizer.state[p] = {key: f.get_tensor(f"{name}.{key}") for key in MOMENTS}
