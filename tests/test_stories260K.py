"""A real public checkpoint of 260,032 parameters: its published text, and its losses."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nanoct.weights import load_model

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "stories260K"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"needs the public stories260K checkpoint in {FOLDER}")


@pytest.fixture(scope="module")
def model():
    return load_model(FOLDER, device="cpu")


@torch.no_grad()
def test_greedy_decoding_gives_the_published_text(model):
    sample = json.loads((FOLDER / "greedy.json").read_text())
    tokens, prefix, decoded = torch.tensor([sample["prompt_ids"]]), None, []
    while len(decoded) < 255:
        hidden, kv = model(tokens, prefix=prefix)
        past = prefix.kv if prefix else [(k[:, :, :0], v[:, :, :0]) for k, v in kv]
        kv = [(torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2)) for (old_k, old_v), (k, v) in zip(past, kv)]
        prefix = SimpleNamespace(kv=kv, next_position=kv[0][0].shape[2])
        tokens = model.logits(hidden[:, -1:]).argmax(-1)
        decoded.append(tokens.item())
    assert decoded == sample["greedy_ids"]


@torch.no_grad()
def test_losses_of_five_stories(model):
    for story in json.loads((FOLDER / "nll.json").read_text()):
        tokens = torch.tensor([story["ids"]])
        logits = model.logits(model(tokens)[0])[0, :-1].double()
        nll = -logits.log_softmax(-1).gather(-1, tokens[0, 1:, None]).mean().item()
        assert nll == pytest.approx(story["mean_nll"], abs=1e-4)
