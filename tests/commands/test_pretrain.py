"""Meta-training: what it draws, that it learns, and that being killed changes nothing."""

import json
import math
import shutil
from dataclasses import replace
from itertools import chain, islice, permutations

import pytest
import torch
from helpers import tiny_llama
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from nanoct import cli, pretrain
from nanoct.benchmarks import nano
from nanoct.benchmarks.nano import facts, grids, lexicon, strings
from nanoct.io import files, training
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model, save_model
from nanoct.model import Llama, LlamaConfig
from nanoct.pretrain import (
    Config,
    Rows,
    exact_by_k,
    has_fast_bf16,
    rate,
    start_from,
    train,
)

draw_curve = pretrain.plots.pretraining  # the fixture replaces it
TINY = dict(n_layer=2, n_head=2, n_kv_head=1, n_embd=32, head_dim=16, n_ffn=48, n_position=512)
GRIDS = replace(grids.WORLD, primitives=dict(list(grids.PRIMITIVES.items())[::3]))  # a ninth of the functions: fast
WORLDS = {"strings": strings.WORLD, "grids": GRIDS, "lexicon": lexicon.WORLD, "facts": facts.WORLD}
V = len(nano.VOCABULARY)
SHORT = Config(n_step=4, n_token=128, row=64, every=2, n_warmup=1, lr=1e-2)


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pretrain, "ARCHITECTURE", TINY)
        patched.setattr(nano, "WORLDS", WORLDS)
        patched.setattr(pretrain.plots, "pretraining", lambda lines, path: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of SHORT that has ended."""
    train(SHORT, folder := tmp_path_factory.mktemp("whole"), device="cpu")
    return folder


@pytest.fixture
def done(whole, tmp_path):
    """A copy of it, which a test may spoil."""
    return shutil.copytree(whole, tmp_path / "done")


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def step_of(folder):
    """The training step of the model in a folder."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return int(file.metadata()["step"])


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def rounded(model):
    """The weights as a file has them."""
    return weights(model).bfloat16().float()


def kill_at(last, monkeypatch):
    getitem = Rows.__getitem__

    def kill(rows, step):
        if step == last:
            raise KeyboardInterrupt
        return getitem(rows, step)

    monkeypatch.setattr(Rows, "__getitem__", kill)


def test_a_killed_run_ends_bit_identical(tmp_path, monkeypatch):
    config = Config(n_step=12, n_token=256, row=64, every=4, n_warmup=2, lr=1e-2)  # step 7 has long rows
    whole = train(config, tmp_path / "whole", device="cpu")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        kill_at(10, patched)  # two steps behind the last saved state
        train(config, tmp_path / "killed", device="cpu")
    at_8 = weights(load_model(tmp_path / "killed", device="cpu"))
    assert not torch.equal(at_8, rounded(whole))
    resumed = train(config, tmp_path / "killed", device="cpu")
    assert torch.equal(weights(resumed), weights(whole))
    assert torch.equal(weights(load_model(tmp_path / "killed", device="cpu")), rounded(whole))
    assert not torch.equal(weights(whole), rounded(whole))  # what goes on is float32, what is written bfloat16
    state = [(tmp_path / run / "state.safetensors").read_bytes() for run in ("killed", "whole")]
    assert state[0] == state[1]
    steps, losses = zip(*((line["step"], line["loss"]) for line in log_of(tmp_path / "killed")))
    assert steps == (4, 8, 12) and losses == tuple(line["loss"] for line in log_of(tmp_path / "whole"))


NAMES = "config.json", "log.jsonl", "model.safetensors", "state.safetensors", "vocab.json"


def contents(folder):
    """What a run leaves; of the log all but the seconds, and of the model's header what has an order."""
    log = [{name: value for name, value in line.items() if name != "seconds"} for line in log_of(folder)]
    model = {name: t.tolist() for name, t in load_file(folder / "model.safetensors").items()}
    return log, model, [(folder / name).read_bytes() for name in ("config.json", "state.safetensors", "vocab.json")]


def test_killed_at_any_writing_it_ends_the_same(tmp_path, whole, monkeypatch):
    """Every file is replaced once or twice in a run; it is killed before each of them, so behind the one before."""
    replace, n_kill = files.os.replace, 0
    while True:
        out, n = tmp_path / f"{n_kill}", 0

        def dies(old, new):
            nonlocal n
            n += 1
            if n == n_kill:
                raise KeyboardInterrupt
            replace(old, new)

        n_kill += 1
        with monkeypatch.context() as patched:
            patched.setattr(files.os, "replace", dies)
            try:
                train(SHORT, out, device="cpu")
                break
            except KeyboardInterrupt:
                pass
        half = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] if n_kill > 2 else []
        assert [line["step"] for line in half] in ([], [2], [2, 4])  # what there is of it is whole
        train(SHORT, out, device="cpu")
        assert contents(out) == contents(whole), n_kill
        assert sorted(file.name for file in out.iterdir()) == sorted(NAMES)
    assert n_kill == 10  # vocab.json; then log, state, model and config.json, twice


def test_a_model_older_than_the_state_is_written(whole, done):
    """The last step may have been done, and saved, by a run that was killed right behind that."""
    for spoil in (lambda file: file.unlink(), lambda file: file.write_bytes(b"half"),
                  lambda file: save_model(tiny_model(nano.VOCABULARY), done, metadata={"step": "2"})):
        spoil(done / "model.safetensors")
        train(SHORT, done, device="cpu")
        assert contents(done) == contents(whole)
    for name in ("model.safetensors", "config.json"):
        (done / f".{name}.{2**22 + 1}").write_bytes(b"half")  # as a kill leaves it; no process has such a number
    train(SHORT, done, device="cpu")
    assert not list(done.glob(".*")) and contents(done) == contents(whole)


def refused(*arguments, error=ValueError, **options):
    with pytest.raises(error) as caught:
        train(*arguments, device="cpu", **options)
    said = str(caught.value)
    assert "\n" not in said and said.endswith("."), said
    return said


@pytest.mark.parametrize("changes, said", [
    (dict(lr=1e-3), "lr = 0.01 and not 0.001"), (dict(seed=1), "seed = 0 and not 1"),
    (dict(row=32), "row = 64 and not 32"),
    (dict(n_token=256), "n_token = 128 and not 256"), (dict(n_warmup=2), "n_warmup = 1 and not 2"),
    (dict(decay=0.5), "decay = 0.25 and not 0.5"), (dict(weight_decay=0.0), "weight_decay = 0.1 and not 0.0"),
    (dict(world="grids"), "world = 'strings' and not 'grids'"), (dict(n_layer=1), "n_layer = 2 and not 1"),
    (dict(n_step=3), "is at step 4, behind --n-step 3")])
def test_a_state_of_other_settings_is_refused_and_stays(whole, done, monkeypatch, changes, said):
    world = changes.pop("world", "strings")
    monkeypatch.setattr(pretrain, "ARCHITECTURE", TINY | dict(n_layer=changes.pop("n_layer", 2)))
    assert said in (message := refused(replace(SHORT, **changes), done, world)) and "another --out" in message
    assert contents(done) == contents(whole)


def test_more_steps_and_other_evaluations_go_on(done):
    train(replace(SHORT, n_step=7, every=3), done, device="cpu")
    assert [line["step"] for line in log_of(done)] == [2, 4, 6, 7]


def test_a_folder_with_a_model_and_no_state_is_not_written_over(tmp_path):
    for name in ("model.safetensors", "config.json", "model-00001-of-00002.safetensors"):
        (tmp_path / name).write_bytes(b"mine")
        assert f"holds {name} and no state" in refused(SHORT, tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == [name] and (tmp_path / name).read_bytes() == b"mine"
        (tmp_path / name).unlink()


def spoilt(path, edit):
    tensors = load_file(path)
    edit(tensors)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    save_file(tensors, path, metadata=about)


def says(path, about):
    """Another state, and what it says of itself."""
    save_file({"a": torch.ones(1)}, path, metadata=about and {training.ENTRY: about})


NORM = "model.norm.weight"


@pytest.mark.parametrize("spoil, said", [
    (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is not the state"),
    (lambda path: path.write_bytes(b""), "is not the state"),
    (lambda path: path.write_bytes(b"{}" * 50), "is not the state of this training"),
    (lambda path: (path.unlink(), path.mkdir()), "state.safetensors (OSError: No such device"),
    (lambda path: says(path, None), "is not the state"), (lambda path: says(path, "{}"), "no 'settings'"),
    (lambda path: says(path, '{"step": 4}'), "no 'settings'"),
    (lambda path: says(path, '{"step": 4, "settings": {}}'), "world = None and not 'strings'"),
    (lambda path: says(path, '{"step": 4, "step": 2, "settings": {}}'), "an object has a key twice"),
    (lambda path: says(path, "["), "is not the state"), (lambda path: says(path, "[]"), "is not the state"),
    (lambda path: says(path, "[" * 10**5), "nested"),
    (lambda path: spoilt(path, lambda t: t.pop(NORM)), f"{NORM} is missing"),
    (lambda path: spoilt(path, lambda t: t.pop(f"{NORM}.exp_avg")), f"{NORM}.exp_avg is missing"),
    (lambda path: spoilt(path, lambda t: t.update({NORM: torch.ones(3)})),
     f"{NORM} is ('F32', 3), expected ('F32', 32)"),
    (lambda path: spoilt(path, lambda t: t.update({NORM: t[NORM].half()})), f"{NORM} is ('F16', 32)"),
    (lambda path: spoilt(path, lambda t: t.update(more=torch.ones(3))), "more is ('F32', 3), expected none"),
])
def test_a_broken_or_foreign_state_is_refused(done, spoil, said):
    spoil(done / "state.safetensors")
    model = (done / "model.safetensors").read_bytes()
    assert said in refused(SHORT, done, error=(ValueError, OSError))
    assert (done / "model.safetensors").read_bytes() == model


@pytest.mark.parametrize("line", ["{", '{"a": 1}', "[1]", '{"step": "2"}'])
def test_a_broken_log_is_said(done, line):
    (done / "log.jsonl").write_text((done / "log.jsonl").read_text() + line + "\n")
    assert "log.jsonl" in refused(SHORT, done)


def test_two_processes_do_not_share_a_folder(tmp_path):
    with files.lock(tmp_path):
        assert "another process is at work" in refused(SHORT, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_first_loss_that_is_not_finite_ends_a_run(tmp_path, monkeypatch, at, what):
    """Nothing of it is saved, and what was saved before stays."""
    clip, cross_entropy, steps = torch.nn.utils.clip_grad_norm_, pretrain.F.cross_entropy, []

    def gradient(parameters, most):
        norm = clip(parameters, most)
        return norm * math.inf if what == "gradient" and len(steps) == at + 1 else norm

    def loss(*arguments):
        steps.append(1)
        return cross_entropy(*arguments) * (math.nan if what == "loss" and len(steps) == at + 1 else 1)

    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.utils, "clip_grad_norm_", gradient)
        patched.setattr(pretrain.F, "cross_entropy", loss)
        assert f"not finite at step {at + 1}: stopped" in refused(SHORT, tmp_path)
    assert len(steps) == at + 1
    if at == 1:
        assert [file.name for file in tmp_path.iterdir()] == ["vocab.json"]
    else:
        assert [line["step"] for line in log_of(tmp_path)] == [2] and step_of(tmp_path) == 2


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    assert "not finite at step" in refused(replace(SHORT, lr=1e38), tmp_path)
    assert "not finite at step 1:" in refused(replace(SHORT, lr=1e38, weight_decay=1e9, every=1), tmp_path)
    assert not (tmp_path / "state.safetensors").exists() and not (tmp_path / "log.jsonl").exists()


def test_a_full_disk_loses_nothing(tmp_path, whole, monkeypatch):
    save, n = training.save_file, 0

    def full(tensors, path, metadata):
        nonlocal n
        n += 1
        if n == 2:
            path.write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(tensors, path, metadata=metadata)

    with monkeypatch.context() as patched:
        patched.setattr(training, "save_file", full)
        assert "cannot write" in (said := refused(SHORT, tmp_path / "out", error=OSError)) and "No space" in said
    assert step_of(tmp_path / "out") == 2
    train(SHORT, tmp_path / "out", device="cpu")
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.parametrize("changes, said", [
    (dict(n_step=0), "--n-step 0"), (dict(every=0), "--every 0"), (dict(row=0), "--row 0"), (dict(row=-1), "--row -1"),
    (dict(n_warmup=0), "--n-warmup 0"), (dict(decay=math.nan), "--decay nan"), (dict(decay=0.0), "--decay 0.0"),
    (dict(decay=1.5), "--decay 1.5"), (dict(lr=0.0), "--lr 0.0"), (dict(lr=math.inf), "--lr inf"),
    (dict(weight_decay=-1.0), "--weight-decay -1.0"),
    (dict(n_token=100), "--row 64: a row is at times twice as long, and a step has"),
    (dict(row=512, n_token=4096), "--row 512: a row is at times twice as long, and the model takes 512"),
    (dict(row=1), "--row 1: no answer fits")])
def test_settings_that_cannot_be(tmp_path, changes, said):
    assert said in refused(replace(SHORT, **changes), tmp_path / "out")
    assert not (tmp_path / "out" / "state.safetensors").exists()


@pytest.mark.parametrize("arguments", [
    ["--n-step", "-1"], ["--lr", "1e300"], ["--seed", str(10**30)], ["--out", ""], ["--world", "mars"],
    ["--device", "toaster"]])
def test_mistakes_on_the_command_line(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pretrain", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run(pretrain.main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and arguments[0] in said or "toaster" in said


def test_shares_that_no_row_could_show_are_null_and_a_gap(done, monkeypatch):
    """In the lines that were there, and in the one that comes."""
    drawn = []
    monkeypatch.setattr(pretrain.plots, "pretraining", lambda lines, path: drawn.extend(lines))
    train(replace(SHORT, n_step=6), done, device="cpu")
    assert "NaN" not in (done / "log.jsonl").read_text()
    assert [line["train"]["10"] for line in log_of(done)] == [None] * 3
    draw_curve(drawn, done / "curve.png")
    assert len(drawn) == 3 and (done / "curve.png").exists()


def test_the_seed_decides(tmp_path):
    config = Config(n_step=2, n_token=128, row=64)
    run = lambda name, seed: weights(train(replace(config, seed=seed), tmp_path / name, device="cpu"))
    first = run("a", 0)
    assert torch.equal(first, run("b", 0)) and not torch.equal(first, run("c", 1))


@pytest.mark.parametrize("name", WORLDS)
def test_every_world_trains_on_its_training_pool_and_nothing_reports_on_held_out(tmp_path, monkeypatch, name):
    """Every episode of a training fits a task of the pool that it was asked for, and only `train` is learnt from."""
    world, asked, seen = WORLDS[name], [], {"train": [], "validation": []}
    episode = world.episode

    def spy(rng, pool="train"):
        drawn = episode(rng, pool)
        pairs = list(islice(drawn, 12))
        asked.append(pool)
        seen[pool].append(pairs)
        return chain(pairs, drawn)

    monkeypatch.setattr(world, "episode", spy)
    with monkeypatch.context() as patched:
        patched.setattr(pretrain, "exact_by_k", lambda *_: {world.k: 0.0})
        train(Config(n_step=8, n_token=512, row=64, every=4), tmp_path / "not evaluated", name, device="cpu")
    assert set(asked) == {"train"} and len(asked) == 7 * 8 + 4  # step 7 has long rows
    train(Config(n_step=2, n_token=512, row=64, every=1), tmp_path / "evaluated", name, device="cpu")
    assert set(asked) == {"train", "validation"}
    for pool, drawn in seen.items():
        names = world.pools()[pool]
        assert all(is_stated(pairs) if pool == "train" and name == "facts" and " " in pairs[0][0].strip()
                   else any(is_of(name, task, pairs) for task in names) for pairs in drawn)
    log = log_of(tmp_path / "evaluated")
    assert [line["step"] for line in log] == [1, 2] and all(math.isfinite(line["loss"]) for line in log)
    assert all(list(log[-1][pool]) == [str(k) for k in (0, world.k // 2, world.k)] for pool in seen)
    config = load_model(tmp_path / "evaluated").config
    assert config.vocab_size == load_tokenizer(tmp_path / "evaluated").vocab_size == V and config.n_embd == 32


def is_of(world, task, pairs):
    """Whether the pairs are of a task."""
    if world == "facts":
        return all(facts.table()[task][x] == y for x, y in pairs)
    if world == "lexicon":  # every sentence is of one class, and every class has one label
        labels = {y for _, y in pairs}
        seen = [{word for x, z in pairs if z == y for word in lexicon.words(x)} for y in labels]
        return any(all(map(set.issubset, seen, two)) for two in permutations(lexicon.classes(task), len(labels)))
    return all(WORLDS[world].apply(task, x) == y for x, y in pairs)


def is_stated(pairs):
    """Whether they are facts by name."""
    return all(facts.table()[x.split()[1]][f" {x.split()[0]}"] == y for x, y in pairs)


# --- starting from other weights ---


def tiny_model(vocabulary, folder=None, seed=5, **changes):
    model = Llama(LlamaConfig(vocab_size=len(vocabulary), **TINY | changes))
    model.init_weights(torch.Generator().manual_seed(seed))
    if folder:
        save_model(model, folder)
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return model


def test_start_from_follows_the_names_of_tokens(tmp_path):
    old_vocabulary = ["<s>", "b", "gone", "a", "="]
    old = tiny_model(old_vocabulary, tmp_path)
    model, fresh = tiny_model(nano.VOCABULARY, seed=6), tiny_model(nano.VOCABULARY, seed=6)
    start_from(model, tmp_path, nano.VOCABULARY)
    embedding = "model.embed_tokens.weight"
    state, old, fresh = model.state_dict(), old.state_dict(), fresh.state_dict()
    for i, token in enumerate(nano.VOCABULARY):
        known = token in ("<s>", "b", "a", "=")
        expected = old[embedding][old_vocabulary.index(token)] if known else fresh[embedding][i]
        assert torch.equal(state[embedding][i], expected), token
    assert all(torch.equal(state[name], old[name]) for name in state if name != embedding)
    assert not any(torch.equal(old[name], fresh[name]) for name in state if name.endswith("proj.weight"))


def test_a_run_starts_from_init_and_goes_on_without_it(tmp_path, monkeypatch):
    """What goes on is bit-identical, also if the folder is gone."""
    tiny_model(nano.VOCABULARY[:30][::-1], tmp_path / "init")
    config = Config(n_step=8, n_token=128, row=64, every=4, n_warmup=1)
    run = lambda out, init=None: train(config, tmp_path / out, init=init and tmp_path / init, device="cpu")
    whole = run("whole", "init")
    assert not torch.equal(weights(whole), weights(run("without")))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        kill_at(6, patched)
        run("killed", "init")
    assert torch.equal(weights(run("killed", "no such folder")), weights(whole))


def test_init_of_another_architecture_or_of_none(tmp_path):
    tiny_model(["<s>", "a"], tmp_path / "other", n_layer=3, n_ffn=40)
    start = lambda folder: train(Config(n_step=1), tmp_path / "out", init=tmp_path / folder, device="cpu")
    said = r"n_layer is 3 there and 2 here, n_ffn is 40 there and 48 here; start from .*--init\.$"
    with pytest.raises(ValueError, match=said):
        start("other")
    with pytest.raises(FileNotFoundError, match="There is no folder '.*absent'"):
        start("absent")
    assert not (tmp_path / "out" / "state.safetensors").exists()


def test_has_fast_bf16(monkeypatch):
    cpu = torch.device("cpu")
    assert has_fast_bf16(cpu) in (True, False) and has_fast_bf16(torch.device("cuda")) is True
    assert has_fast_bf16(torch.device("mps")) is False
    for can, fast in [({}, False), ({"avx512_bf16": False, "avx2": True}, False), ({"avx512_bf16": True}, True),
                      ({"amx_bf16": True}, True), ({"bf16": True}, True)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can, raising=False)
        assert has_fast_bf16(cpu) is fast
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older torch cannot tell
    assert has_fast_bf16(cpu) is False


@pytest.mark.parametrize("fast", [True, False])
def test_bf16_only_where_it_is_native(tmp_path, monkeypatch, fast):
    dtypes, logits = [], pretrain.answer_logits

    def spy(model, tokens, answer):
        dtypes.append(torch.is_autocast_enabled("cpu"))
        return logits(model, tokens, answer)

    monkeypatch.setattr(pretrain, "has_fast_bf16", lambda device: fast)
    monkeypatch.setattr(pretrain, "answer_logits", spy)
    monkeypatch.setattr(pretrain, "exact_by_k", lambda *_: {10: 0.0})
    train(Config(n_step=2, n_token=128, row=64), tmp_path, device="cpu")
    assert dtypes == [fast, fast]


# --- the rows, and what is logged ---


def test_loss_falls(tmp_path):
    train(Config(n_step=32, n_token=1024, row=128, every=16, n_warmup=4, lr=1e-2), tmp_path, device="cpu")
    log = log_of(tmp_path)
    assert [line["step"] for line in log] == [16, 32]
    assert log[-1]["loss"] < log[0]["loss"] - 0.05 and log[-1]["loss"] < math.log(V) - 0.2  # log V: guessing


def test_rows_read_as_examples_of_one_function(tokenizer):
    rows = Rows(strings.WORLD, tokenizer, Config(n_step=8, n_token=512, row=128))
    tokens, answer = rows[0]
    assert tokens.shape == answer.shape == (4, 128) and rows[7][0].shape == (2, 256)
    for row, number in zip(tokens, answer):
        text = tokenizer.decode(row.tolist())
        assert text.startswith("<s>")
        examples = [example.split("=") for example in text.removeprefix("<s>").split(";")[:-1]]  # the last may be cut
        assert len(examples) >= 6
        is_of = lambda name, pairs: all(strings.WORLD.apply(name, x) == y for x, y in pairs)
        assert any(is_of(name, examples) for name in strings.WORLD.pools()["train"])
        for i, (_, y) in enumerate(examples):
            assert tokenizer.decode(row[number == i].tolist()) == y + ";"
        assert ";" not in tokenizer.decode(row[number == -1].tolist())
    assert not torch.equal(tokens, rows[1][0]) and torch.equal(tokens, rows[0][0])


def test_a_row_is_in_the_format_of_its_tasks(tokenizer):
    """x with the world's delimiter and y with its terminator, as `make_task` has them."""
    for name, world in WORLDS.items():
        task = nano.make_task(name, "big" if name == "lexicon" else world.pools()["train"][0], tokenizer, 0, 2, 2)
        assert all(tokenizer.decode(demo.x).endswith("=") == (name != "lexicon") for demo in task.demos)
        row, _ = Rows(world, tokenizer, Config(row=64, n_token=128))[0]
        pairs = tokenizer.decode(row[0].tolist()).removeprefix("<s>").split(";")[:-1]
        assert [pair.count("=") for pair in pairs] == [name != "lexicon"] * len(pairs)


class Oracle:
    """Says the right next token, but for the positions (batch, row, token) that it is told to miss."""

    device = torch.device("cpu")

    def __init__(self, misses):
        self.misses, self.batch = misses, -1

    def __call__(self, tokens):
        self.batch += 1
        said = tokens.roll(-1, 1)
        for batch, row, at in self.misses:
            if batch == self.batch:
                said[row, at - 1] = (said[row, at - 1] + 1) % V
        return said, None

    def logits(self, said):
        return torch.nn.functional.one_hot(said, V).float()


def test_exact_by_k_against_a_slow_loop(tokenizer):
    rows = Rows(strings.WORLD, tokenizer, Config(n_step=4, n_token=1024, row=128))
    g = torch.Generator().manual_seed(0)
    batches = [rows[step] for step in range(4)]
    draw = lambda low, high: torch.randint(low, high, (), generator=g).item()
    misses = [(b, draw(0, 8), draw(1, 128)) for b in range(4) for _ in range(60)]
    right = {0: [], 5: [], 10: []}
    for b, (tokens, answer) in enumerate(batches):
        for r in range(len(tokens)):
            for k in right:
                if answer[r].max() > k:  # there is a later answer, so this one is not cut off
                    right[k].append(not any((b, r, t) in misses for t in range(128) if answer[r, t] == k))
    assert all(0 < sum(of_k) < len(of_k) for of_k in right.values())
    assert exact_by_k(Oracle(misses), rows) == {k: sum(of_k) / len(of_k) for k, of_k in right.items()}
    assert exact_by_k(Oracle([]), rows) == {0: 1, 5: 1, 10: 1}


def test_exact_by_k_of_rows_too_short_for_ten(tokenizer):
    shares = exact_by_k(Oracle([]), Rows(strings.WORLD, tokenizer, Config(n_step=4, n_token=128, row=64)))
    assert shares[0] == 1 and shares[10] is None


def test_exact_by_k_of_a_real_forward(tokenizer):
    """The same, with a Llama's own argmax."""
    model = tiny_llama(vocab_size=V)
    rows = Rows(strings.WORLD, tokenizer, Config(n_step=4, n_token=2048, row=128))
    right = {0: [], 5: [], 10: []}
    with torch.no_grad():
        for tokens, answer in (rows[step] for step in range(4)):
            said = model.logits(model(tokens)[0]).argmax(-1)
            for row, number, guess in zip(tokens, answer, said):
                for k in right:
                    at = torch.where(number == k)[0]
                    if number.max() > k:
                        right[k].append(torch.equal(guess[at - 1], row[at]))
    assert exact_by_k(model, rows) == {k: sum(of_k) / len(of_k) for k, of_k in right.items()}


def test_rate_warms_up_stays_and_decays():
    c = Config(n_step=100, lr=2.0, n_warmup=10, decay=0.25)
    assert [rate(step, c) for step in (0, 4, 9, 50, 75)] == pytest.approx([0.2, 1.0, 2.0, 2.0, 2.0])
    assert [rate(step, c) for step in (80, 99)] == pytest.approx([2 * 20 / 25, 2 / 25])
