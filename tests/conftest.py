"""The fixtures that all tests share: a tiny random Llama, one in a folder, and a look at every optimiser step."""

import gc

import pytest
import torch
from helpers import saved_nano, tiny_llama

from nanoct.benchmarks import nano
from nanoct.io.tokenizer import load_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """What the imports made stays, so a collection need not look at it: every run that is measured makes two."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return saved_nano(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tokenizer():
    """That of the built-in vocabulary."""
    return load_tokenizer(nano.FOLDER / "strings")


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
