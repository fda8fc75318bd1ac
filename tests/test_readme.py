"""Every command that README.md shows is run as it is typed, in a clone, and says what the README promises.

A command is a line of a block of code, or a piece of code in the text, that begins with one of PROGRAMS: a new one is
found here without being listed. The lines of a block run in their order in one clone, whose .venv leads to the tests'
own interpreter, so that make finds everything installed. A command that begins with python or nanoct runs after
ACTIVATE, which the README says first. Blocks are slow tests unless QUICK names them.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import small_bbh

from nanoct.io import smollm2
from nanoct.runs.results import read

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
if not README.exists() or not (ROOT / ".git").exists():
    pytest.skip("the README's commands run in a clone, and this is none", allow_module_level=True)

PROGRAMS = "git", "make", "python", "python3", "pip", "nanoct", "torchrun", "echo", "diff"
ACTIVATE = "source .venv/bin/activate"
QUICK = "diff ", "make student"
HOURS = "--full", "--benchmark words"  # these are begun, and stopped when the first result is on the disk
ENGLISH = "smollm2|SmolLM2|ctx.safetensors| M "  # commands that need the model of `make smollm2`
REAL = [file for file in smollm2.here().iterdir() if file.suffix in (".json", ".safetensors")] if smollm2.here() else []


def is_command(code):
    """Whether a piece of code is to be typed. `nanoct export` in a sentence is the name of a command, and is not."""
    words = code.split()
    return words[0].removeprefix(".venv/bin/") in PROGRAMS and len(words) > (2 if words[0] == "nanoct" else 1)


def blocks(text):
    """The commands of a document, [[line, …], …]: a block of code is one, a piece of code in the text one by itself."""
    found = []
    parts = re.split(r"^```(\w*)\n", text, flags=re.M)  # text, language, code, "", text, language, …
    for language, code in zip(parts[1::4], parts[2::4]):
        if language == "python":
            found.append([f"python -c {shlex.quote(code)}"])
        elif is_command(code):
            found.append(code.replace("\\\n", " ").splitlines())
    in_blocks = {line.split("  #")[0].rstrip() for lines in found for line in lines}
    for between in parts[0::4]:
        found += [[code] for code in re.findall(r"`([^`\n]+)`", between) if is_command(code) and code not in in_blocks]
    return found


BLOCKS = blocks(README.read_text(encoding="utf-8"))


def lacking(line):
    """Why a command cannot run here; None if it can."""
    if "pip install" in line or "benchmarks.fetch" in line:
        return "needs the network"
    if line.startswith("make smollm2") and not smollm2.source(smollm2.here() or "nowhere"):
        return "needs the network, as `make smollm2` has not been run here"
    if not REAL and re.search(ENGLISH, line):
        return "needs the model that `make smollm2` gets"
    if "--device cuda" in line and not torch.cuda.is_available():
        return "needs a GPU"
    if line.startswith("make test"):
        return "is what runs this test"


N_RUN = re.search(r"It repeats (\d+) runs", README.read_text(encoding="utf-8"))[1]
PROMISED = [  # what stands in a command, what its output then shows
    ("make reproduce", rf"\d+ of {N_RUN} live runs have the score of their committed line"),
    ("nanoct.reproduce", r"live runs have the score of their committed line"),
    ("nanoct.demo", r"question +right +ICL +CT-KV\n(.*\n)+ +ICL \d+ of 50 right.*; CT-KV \d+ of 50 right"),
    ("demo --model", r"boy -> +girl +boyfriend ✗ +girl\n"),
    ("tune --data", r"held out"),
    ("tune --predict", r'"input": "day", "prediction": "night"'),
    ("python -c", r"^night$"),
    ("--dry-run", r"GB"),
    ("reproduce --methods icl mine", r"\| mine \|"),
    ("diff ", r"^> .*leave_one_out"),
]
MINE = """
from dataclasses import dataclass

from nanoct.methods import icl

@dataclass
class Config:
    n_step: int = 2

def adapt(model, task, config, seed=0, progress=None):
    return icl.adapt(model, task)
"""


@pytest.fixture
def clone(tmp_path):
    """A clone with this checkout's changes, the environment made, and small files in data/."""
    folder = tmp_path / "nanoct"
    git = lambda *words: subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True)
    git("clone", "--quiet", str(ROOT), str(folder))
    for name in filter(None, git("ls-files", "--modified", "-z").stdout.split("\0")):
        if (ROOT / name).exists():
            shutil.copyfile(ROOT / name, folder / name)
    own = folder / ".venv" / "bin"
    for file, module in (own / "python", ""), (own / "nanoct", "-m nanoct "), (tmp_path / "bin" / "python3", ""):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module}"$@"\n')
        file.chmod(0o755)
    (own / "activate").write_text(f"PATH={shlex.quote(str(own))}:$PATH\n")
    for extra in "", "-test", "-gguf", "-tutorials":
        (folder / ".venv" / f"installed{extra}").touch()
    (folder / "data" / "bbh").mkdir(parents=True)
    small_bbh(folder / "data" / "bbh", n=12)
    return folder


def prepared(line, folder):
    """The line with what a reader fills in: an address, a model M, a method mine, a place for what is given away."""
    line = line.replace("<this repository>", shlex.quote(str(ROOT)))
    if line.startswith("git clone"):
        line = f"mkdir elsewhere && cd elsewhere && {line}"
    if re.search(ENGLISH, line):  # from here on the model is there, and not for the lines before
        for file in REAL:
            link = folder / "weights" / "smollm2" / file.name
            link.unlink(missing_ok=True)
            link.symlink_to(file.resolve())
    if REAL:
        line = line.replace(smollm2.HUB, "weights/smollm2").replace(" M ", " weights/smollm2 ")
    if "icl mine" in line:
        methods = folder / "nanoct" / "methods"
        (methods / "mine.py").write_text(MINE)
        text = (methods / "__init__.py").read_text()
        text = text.replace("\n    lora,", "\n    lora,\n    mine,").replace('"icl": icl,', '"icl": icl, "mine": mine,')
        (methods / "__init__.py").write_text(text)
    return f"{ACTIVATE} && {line}" if line.startswith(("python ", "nanoct ")) else line


def environment(folder):
    path = os.pathsep.join([str(folder.parent / "bin"), os.environ["PATH"]])
    return os.environ | dict(PATH=path, PYTHONPATH=str(folder), HF_HUB_OFFLINE="1")


def run(line, folder):
    """What a command prints."""
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment(folder), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, encoding="utf-8")
    assert done.returncode == (1 if line.startswith("diff") else 0), f"{line}\n{done.stdout}"  # diff: they differ
    return done.stdout


def begin(line, folder):
    """Start a command of hours and stop it with Ctrl-C after its first result."""
    with subprocess.Popen(["bash", "-c", line], cwd=folder, env=environment(folder), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, start_new_session=True) as command:
        while not (lines := [line for file in folder.glob("results/**/results.jsonl") for line in read(file)]):
            assert command.poll() is None, command.communicate()[0]
            time.sleep(0.5)
        os.killpg(command.pid, signal.SIGINT)
        printed, _ = command.communicate(timeout=120)
    assert "score" in lines[0] and "the same command goes on" in printed and "Traceback" not in printed, printed


def slow_unless_quick(lines):
    quick = all(line.startswith(QUICK) for line in lines)
    return pytest.param(lines, id=lines[0][:60], marks=() if quick else pytest.mark.slow)


def test_the_commands_are_found():
    lines = [line.split("  #")[0].rstrip() for lines in BLOCKS for line in lines]
    assert {"make reproduce", "make smollm2", ".venv/bin/python -m nanoct.demo", "make reproduce ARGS=--full",
            "python -m nanoct.tune --data tutorials/opposites.jsonl --out ctx.safetensors"} <= set(lines)
    text = README.read_text(encoding="utf-8")
    assert all(text.index(ACTIVATE) < text.index(line) for line in lines if re.match("python -m|nanoct ", line))
    named = set(re.findall(r"-m (nanoct[\w.]*)", text))
    assert named == {module for line in lines for module in re.findall(r"-m (nanoct[\w.]*)", line)}
    assert blocks("Type `nanoct paper --help`, not `nanoct paper`.\n```\nmake a\nfoo b\n```\n```\na tree\n```\n") == [
        ["make a", "foo b"], ["nanoct paper --help"]]


@pytest.mark.parametrize("lines", [slow_unless_quick(lines) for lines in BLOCKS])
def test_a_block_of_commands_does_what_it_promises(lines, clone):
    left_out = []
    for line in lines:
        if reason := lacking(line):
            left_out.append(f"`{line.split('  #')[0].rstrip()}` {reason}")
        elif any(part in line for part in HOURS):
            begin(prepared(line, clone), clone)
        else:
            printed = run(prepared(line, clone), clone)
            for part, pattern in PROMISED:
                assert part not in line or re.search(pattern, printed, re.M), f"{line}\n{printed}"
    if left_out:
        pytest.skip(f"{len(lines) - len(left_out)} of {len(lines)} lines run; {'; '.join(left_out)}")
