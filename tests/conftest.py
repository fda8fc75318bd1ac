"""What the tests share: a tiny random Llama, a task of random ids, and a look at what a method trains."""

from dataclasses import fields
from itertools import chain
from pathlib import Path

import pytest
import torch

from nanoct.fewshot import Demo, Query, Task
from nanoct.model import Llama, LlamaConfig

torch.set_num_threads(1)
DATA = Path(__file__).parents[2] / "shared" / "data"  # public files; tests that need them skip without
V = 23  # vocabulary of the tiny model


def tiny_llama(dtype=torch.float32, seed=0, **changes):
    """A frozen Llama whose weights are large enough for every term to show in the logits."""
    sizes = dict(vocab_size=V, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, head_dim=6, n_ffn=24, n_position=160)
    model = Llama(LlamaConfig(**sizes | changes)).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.uniform_(0.5, 1.5, generator=generator) if p.dim() == 1 else p.normal_(std=0.4, generator=generator)
    return model.to(dtype)


def random_ids(n, generator, vocab_size=V):
    return torch.randint(vocab_size, (n,), generator=generator).tolist()


def random_task(lengths=((3, 2), (5, 1), (2, 4), (6, 3)), n_query=5, instruction=2, options=0, seed=0, **fields):
    """Demos of the given lengths (of x, of y), n_query queries, and so many options each."""
    g = torch.Generator().manual_seed(seed)
    demos = [Demo(random_ids(n, g), random_ids(m, g)) for n, m in lengths]
    queries = []
    for i in range(n_query):
        x, answers = random_ids(2 + i % 3, g), [random_ids(1 + (i + j) % 3, g) for j in range(max(options, 1))]
        queries.append(Query(x, answers[i % len(answers)], answers if options else None))
    return Task("random", demos, queries, instruction=random_ids(instruction, g), **fields)


@pytest.fixture(scope="session")
def model():
    return tiny_llama()


def config_of(method, **changes):
    names = {f.name for f in fields(method.Config)}
    return method.Config(**{name: value for name, value in changes.items() if name in names})


def tensors_of(adapted):
    """Everything that (phi, theta) adds to the model."""
    parts = [t for part in (adapted.adapter or {}).values() for t in vars(part).values() if isinstance(t, torch.Tensor)]
    return parts + list(chain.from_iterable(adapted.prefix.kv if adapted.prefix else []))


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip(tensors_of(a), tensors_of(b), strict=True))


@pytest.fixture
def steps(monkeypatch):
    """Record of every optimiser step: gradient before and after clipping, learning rate, values before and after."""
    record, clip = [], torch.nn.utils.clip_grad_norm_
    copy = lambda tensors: [t.detach().clone() for t in tensors]

    def spy(parameters, max_norm, *args, **options):
        record.append(dict(raw=copy(p.grad for p in parameters)))
        return clip(parameters, max_norm, *args, **options)

    class AdamW(torch.optim.AdamW):
        def step(self):
            (group,) = self.param_groups
            leaves = group["params"]
            record[-1].update(lr=group["lr"], clipped=copy(p.grad for p in leaves), before=copy(leaves))
            super().step()
            record[-1].update(after=copy(leaves))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    monkeypatch.setattr(torch.optim, "AdamW", AdamW)
    return record
