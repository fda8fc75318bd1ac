"""Strangers' files and unlucky options, over all commands: exit code 2, one sentence, no trace, within ten seconds."""

import importlib
import json
import shlex
import shutil
import sys
import time

import pytest
import torch
from helpers import tiny_llama

from nanoct import cli
from nanoct.benchmarks import common, nano
from nanoct.io.weights import save_model

DEEP = "[" * 10**5
OBJECTS = '{"a":' * 10**5 + "1" + "}" * 10**5
HUGE = str(10**30)
READERS = "bbh", "mmlu", "nlp_lr", "arc"
COMMANDS = dict(tune="tune", reproduce="reproduce", paper="paper", pretrain="pretrain", leak="runs.leak",
                fetch="benchmarks.fetch", nano="benchmarks.nano.__main__", memory="costs.memory", speed="costs.speed",
                study="coins.study", predictors="coins.predictors", conformance="conformance",
                **{name: f"benchmarks.{name}" for name in READERS})


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder of a small model of the built-in vocabulary, and of small files of every benchmark."""
    folder = tmp_path_factory.mktemp("hostile")
    save_model(tiny_llama(vocab_size=len(nano.VOCABULARY), n_position=512), folder / "model")
    (folder / "model" / "vocab.json").write_text(json.dumps(nano.VOCABULARY))
    vocab = {chr(byte): byte for byte in range(33, 127)}
    (folder / "bpe.json").write_text(json.dumps({
        "model": {"type": "BPE", "vocab": vocab | {"ab": 1000}, "merges": [["a", "b"]]}, "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}))
    for name in ("bbh", "cot-prompts", "test", "sick", "evaluation", "training"):
        (folder / "data" / name).mkdir(parents=True)
    data, grid = folder / "data", [[1, 2], [3, 4]]
    examples = [dict(input=f"{i}?", target=f"{i}") for i in range(9)]
    (data / "bbh" / "x.json").write_text(json.dumps(dict(examples=examples)))
    (data / "cot-prompts" / "x.txt").write_text("-----\nAdd.\n")
    (data / "test" / "x_test.csv").write_text("q,a,b,c,d,A\n" * 9)
    row = json.dumps(dict(input="a", output="b", options=["b", "c"]))
    for part in ("train", "test"):
        (data / "sick" / f"sick_16_13_{part}.jsonl").write_text(f"{row}\n" * 9)
    pairs = [dict(input=grid, output=grid)] * 2
    for split in ("evaluation", "training"):
        (data / split / "x.json").write_text(json.dumps(dict(train=pairs, test=pairs)))
    (folder / "mine.jsonl").write_text('{"input": "ab", "output": "ba"}\n' * 3)
    return folder


@pytest.fixture
def here(base, tmp_path, monkeypatch):
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def refused(monkeypatch, capsys, command, *arguments):
    """The one sentence with which a command ends."""
    monkeypatch.setattr(sys, "argv", [command, *map(str, arguments)])
    module = importlib.import_module(f"nanoct.{COMMANDS[command]}")
    main = (lambda: common.main(module)) if command in READERS else module.main
    start = time.process_time()
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    said = capsys.readouterr()
    assert stop.value.code == 2, said
    lines = [line for line in said.err.replace("\r", "\n").splitlines() if line.strip() and "it/s" not in line]
    assert len(lines) == 1 and "Traceback" not in said.err + said.out, said
    assert time.process_time() - start < 10  # of this process alone: the machine may be busy
    return lines[0]


# --- files of a model ---

CONFIG, WEIGHTS = "model/config.json", "model/model.safetensors"


def config(**values):
    return lambda here: (here / CONFIG).write_text(json.dumps(json.loads((here / CONFIG).read_text()) | values))


def text(name, content):
    return lambda here: (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def bpe(**changes):
    """Another tokenizer.json, with changes of its model, or of itself."""
    def write(here):
        file = json.loads((here / "bpe.json").read_text())
        for key, value in changes.items():
            (file["model"] if key in ("vocab", "merges") else file)[key] = value
        (here / "model" / "tokenizer.json").write_text(json.dumps(file))

    return write


def gguf(here):
    shutil.rmtree(here / "model")
    (here / "model").write_bytes(b"GGUF")
    (here / "model").rename(here / "model.gguf")
    (here / "model").mkdir()
    (here / "model.gguf").rename(here / "model" / "x.gguf")


MODELS = {
    "no config": lambda here: (here / CONFIG).unlink(),
    "config nested": text(CONFIG, DEEP), "config of nested objects": text(CONFIG, OBJECTS),
    "config in UTF-16": text(CONFIG, '{"a": 1}'.encode("utf-16")), "config binary": text(CONFIG, bytes(range(256))),
    "config a list": text(CONFIG, "[1]"), "config empty": text(CONFIG, ""),
    "config a folder": lambda here: ((here / CONFIG).unlink(), (here / CONFIG).mkdir()),
    "millions of layers": config(num_hidden_layers=3_000_000), "thousands of layers": config(num_hidden_layers=9999),
    "absurd width": config(hidden_size=10**8), "absurd heads": config(num_attention_heads=10**8, num_key_value_heads=1),
    "sizes beyond numbers": config(vocab_size=10**40), "infinite theta": config(rope_theta=float("inf")),
    "theta beyond floats": config(rope_theta=10**400), "rope a number": config(rope_scaling=3),
    "model_type an object": config(model_type={}), "sizes as text": config(vocab_size="267"),
    "a GGUF file": gguf,
}
LOADED = {
    "weights cut off": lambda here: (here / WEIGHTS).write_bytes((here / WEIGHTS).read_bytes()[:-50]),
    "weights empty": text(WEIGHTS, b""),
    "weights of LFS": text(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"),
    "no weights": lambda here: (here / WEIGHTS).unlink(),
    "weights a folder": lambda here: ((here / WEIGHTS).unlink(), (here / WEIGHTS).mkdir()),
    "index nested": lambda here: ((here / WEIGHTS).unlink(), text(f"{WEIGHTS}.index.json", DEEP)(here)),
    "index a list": lambda here: ((here / WEIGHTS).unlink(), text(f"{WEIGHTS}.index.json", "[]")(here)),
}
TOKENIZERS = {
    "vocabulary nested": text("model/vocab.json", DEEP), "vocabulary an object": text("model/vocab.json", "{}"),
    "vocabulary of numbers": text("model/vocab.json", "[1]"),
    "half a surrogate": text("model/vocab.json", '["a", "\\ud800"]'),
    "tokenizer nested": text("model/tokenizer.json", '{"model":' + DEEP),
    "an added token without id": bpe(added_tokens=[{"content": "<s>"}]), "merges null": bpe(merges=None),
    "ids as text": bpe(vocab={"a": "0"}), "a list as pre-tokenizer": bpe(pre_tokenizer=[1]),
    "bos an object": text("model/tokenizer_config.json", '{"bos_token": {"x": 1}}'),
    "tokenizer_config nested": text("model/tokenizer_config.json", OBJECTS),
    "add_bos_token as text": text("model/tokenizer_config.json", '{"add_bos_token": "no"}'),
    "SentencePiece": lambda here: ((here / "model/vocab.json").unlink(),
                                   text("model/tokenizer.model", b"\n\x0e\0")(here)),
    "no tokenizer": lambda here: (here / "model/vocab.json").unlink(),
}
TUNE = ["--data", "mine.jsonl", "--out", "ctx", "--model", "model", "--device", "cpu"]
PAPER = ["--benchmark", "bbh", "--data", "data", "--model", "model", "--k", "2", "--device", "cpu"]
FINE_TUNE = "--world arc --data data --init model --device cpu --row 64 --n-token 128".split()
WITH_MODEL = {"tune": TUNE, "paper": PAPER, "reproduce": ["--model", "model", "--quick", "--out", "results"],
              "pretrain": FINE_TUNE}


@pytest.mark.parametrize("command, fault", [
    *((c, f) for c in WITH_MODEL for f in MODELS), *((c, f) for c in ("tune", "paper") for f in LOADED),
    *((c, f) for c in ("tune", "bbh") for f in TOKENIZERS)])
def test_files_of_a_model(here, monkeypatch, capsys, command, fault):
    (MODELS | LOADED | TOKENIZERS)[fault](here)
    refused(monkeypatch, capsys, command, *WITH_MODEL.get(command, ["--data", "data", "--k", "2", "--model", "model"]))


# --- files of data ---

CONTENTS = {"nested": DEEP, "nested objects": OBJECTS, "empty": "", "half": '{"examples": [{"inp', "a list": "[1]",
            "binary": bytes(range(256)), "null": "null", "UTF-16": '{"input": "a"}'.encode("utf-16"),
            "a number": "1" * 5000,
            "other types": '{"examples": 3, "train": 3, "test": 3, "input": 3, "output": 3, "options": 3}'}
FILES = {"bbh": "bbh/x.json", "mmlu": "test/x_test.csv", "nlp_lr": "sick/sick_16_13_test.jsonl",
         "arc": "evaluation/x.json"}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", FILES)
def test_files_of_a_benchmark(here, monkeypatch, capsys, name, content):
    text(f"data/{FILES[name]}", CONTENTS[content])(here)
    assert FILES[name] in refused(monkeypatch, capsys, name, "--data", "data", "--k", "2")


@pytest.mark.parametrize("content", [name for name in CONTENTS if "nested" not in name])
def test_files_of_examples(here, monkeypatch, capsys, content):
    text("mine.jsonl", CONTENTS[content])(here)
    assert "mine.jsonl" in refused(monkeypatch, capsys, "tune", *TUNE)


@pytest.mark.parametrize("content", CONTENTS)
def test_files_of_training_tasks(here, monkeypatch, capsys, content):
    text("data/training/x.json", CONTENTS[content])(here)
    assert "training/x.json" in refused(monkeypatch, capsys, "pretrain", *FINE_TUNE)


# --- options: what test_cli.py and the tests of each command do not refuse already ---

OPTIONS = """
    pretrain --weight-decay inf
    pretrain --init nowhere
    pretrain --data data
    pretrain --out mine.jsonl
    tune TUNE --set lr=nan
    tune TUNE --seed -1
    tune TUNE --set n_step=-1
    tune TUNE --set token_dropout=nan
    tune TUNE --held-out ''
    tune TUNE --method ''
    tune TUNE --model ''
    tune TUNE --set leave_one_out=1
    tune TUNE --method prefix_tuning --set n_prefix=900000000
    reproduce --set ct_kv.lr=nan,1
    reproduce --out ''
    paper PAPER --tasks x zzz
    paper PAPER --tokenizer ''
    paper PAPER --data ''
    bbh --data data --k 1000000000
    bbh --data data --seed -1
    bbh --data data --tasks x zzz --show 1 --k 2
    bbh --data ''
    mmlu --data data --show -1
    mmlu --data data --length HUGE
    nlp_lr --data mine.jsonl
    arc --data data --k HUGE
    nano --k 1000000000
    nano --seed HUGE
    nano --show -1
    leak --tasks -1
    leak --out ''
    fetch zzz
    fetch bbh --out ''
    fetch bbh --out mine.jsonl
    predictors --n-layer 100000000
    predictors --width HUGE
    predictors --n-step -1
    study --workers 100000
    speed --k 1000000000
    speed --spread nan
    speed --context HUGE
    memory --context -1
    conformance
    conformance --out mine.jsonl
    conformance --out data
    conformance --out ''
    conformance --out new --seed HUGE
"""
SHORT = dict(TUNE=TUNE, PAPER=PAPER, HUGE=[HUGE])


@pytest.mark.parametrize("case", OPTIONS.split("\n")[1:-1])
def test_options(here, monkeypatch, capsys, case):
    arguments = [part for word in shlex.split(case.replace("=HUGE", f"={HUGE}")) for part in SHORT.get(word, [word])]
    refused(monkeypatch, capsys, *arguments)
    assert not (here / "ctx").exists() and not (here / "data" / "bbh.zip").exists()
