"""The state of a training, one safetensors file: weights, both moments of AdamW, the step, the settings, in float32."""

import json

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nanoct.io.files import each_once, reading, replacing

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
    expected = {}
    for name, p in model.named_parameters():
        expected |= {name: ("F32", *p.shape), f"{name}.step": ("F32",)}
        expected |= {f"{name}.exp_avg": ("F32", *p.shape), f"{name}.exp_avg_sq": ("F32", *p.shape)}
    with reading(path, "the state of this training", "give another --out, or delete it to begin anew"):
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[ENTRY], object_pairs_hook=each_once)
            headers = {name: file.get_slice(name) for name in file.keys()}
            seen = {name: (header.get_dtype(), *header.get_shape()) for name, header in headers.items()}
        for name, value in json.loads(json.dumps(settings)).items():  # JSON has no tuples
            if about["settings"].get(name) != value:
                raise ValueError(f"it is of a training with {name} = {about['settings'].get(name)!r:.60} and not "
                                 f"{value!r:.60}")
        for name in expected | seen:
            if seen.get(name) != expected.get(name):
                raise ValueError(f"its {name} is {seen.get(name, 'missing')}, expected {expected.get(name, 'none')}")
        if not 1 <= about["step"] <= n_step:
            raise ValueError(f"it is at step {about['step']}, behind --n-step {n_step}")
        return int(about["step"])


@torch.no_grad()
def load_state(path, model, optimizer):
    """Load a saved state."""
    with safe_open(path, "pt", device=str(model.device)) as f:
        for name, p in model.named_parameters():
            p.copy_(f.get_tensor(name))
            optimizer.state[p] = {key: f.get_tensor(f"{name}.{key}") for key in MOMENTS}
