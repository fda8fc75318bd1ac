"""A real public checkpoint of 260,032 parameters: its published text, and its losses."""

import json

import pytest
import torch
from helpers import DATA

from nanoct.fewshot import Adapted
from nanoct.io.weights import load_model
from nanoct.score import generate

FOLDER = DATA / "stories260K"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"needs the public stories260K checkpoint in {FOLDER}")


@pytest.fixture(scope="module")
def model():
    return load_model(FOLDER, device="cpu")


def test_greedy_decoding_gives_the_published_text(model):
    sample = json.loads((FOLDER / "greedy.json").read_text())
    assert len(sample["greedy_ids"]) == 255
    assert generate(Adapted(model), [sample["prompt_ids"]], 255) == [sample["greedy_ids"]]


@torch.no_grad()
def test_losses_of_five_stories(model):
    for story in json.loads((FOLDER / "nll.json").read_text()):
        tokens = torch.tensor([story["ids"]])
        logits = model.logits(model(tokens)[0])[0, :-1].double()
        nll = -logits.log_softmax(-1).gather(-1, tokens[0, 1:, None]).mean().item()
        assert nll == pytest.approx(story["mean_nll"], abs=1e-4)
