"""Meta-training: what it draws, that it learns, and that being killed changes nothing."""

import json
import math
from dataclasses import replace
from itertools import chain, islice, permutations

import pytest
import torch
from conftest import tiny_llama

from nanoct import pretrain
from nanoct.benchmarks import nano
from nanoct.benchmarks.nano import facts, grids, lexicon, strings
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
from nanoct.tokenizer import load_tokenizer
from nanoct.weights import load_model, save_model

TINY = dict(n_layer=2, n_head=2, n_kv_head=1, n_embd=32, head_dim=16, n_ffn=48, n_position=512)
GRIDS = replace(grids.WORLD, primitives=dict(list(grids.PRIMITIVES.items())[::3]))  # a ninth of the functions: fast
WORLDS = {"strings": strings.WORLD, "grids": GRIDS, "lexicon": lexicon.WORLD, "facts": facts.WORLD}
V = len(nano.VOCABULARY)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(pretrain, "ARCHITECTURE", TINY)
    monkeypatch.setattr(nano, "WORLDS", WORLDS)
    monkeypatch.setattr(pretrain.plots, "pretraining", lambda lines, path: None)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.json").write_text(json.dumps(nano.VOCABULARY))
    return load_tokenizer(folder)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


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


def test_the_seed_decides(tmp_path):
    run = lambda name, seed: weights(train(Config(n_step=2, n_token=128, row=64, seed=seed), tmp_path / name, device="cpu"))
    assert torch.equal(run("a", 0), run("b", 0)) and not torch.equal(run("a again", 0), run("c", 1))


@pytest.mark.parametrize("name", WORLDS)
def test_training_draws_the_training_pool_and_nothing_reports_on_held_out(tmp_path, monkeypatch, name):
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


@pytest.mark.parametrize("name", WORLDS)
def test_every_world_trains(tmp_path, name):
    train(Config(n_step=2, n_token=1024, row=256, every=1), tmp_path, name, device="cpu")
    world, log = WORLDS[name], log_of(tmp_path)
    assert [line["step"] for line in log] == [1, 2] and all(math.isfinite(line["loss"]) for line in log)
    for pool in ("train", "validation"):
        assert list(log[-1][pool]) == [str(k) for k in (0, world.k // 2, world.k)]
    config = load_model(tmp_path).config
    assert config.vocab_size == load_tokenizer(tmp_path).vocab_size == V and config.n_embd == 32


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
    with pytest.raises(ValueError, match=r"n_layer is 3 there and 2 here, n_ffn is 40 there and 48 here; start from .*--init\.$"):
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
        assert any(all(strings.WORLD.apply(name, x) == y for x, y in examples) for name in strings.WORLD.pools()["train"])
        for i, (_, y) in enumerate(examples):
            assert tokenizer.decode(row[number == i].tolist()) == y + ";"
        assert ";" not in tokenizer.decode(row[number == -1].tolist())
    assert not torch.equal(tokens, rows[1][0]) and torch.equal(tokens, rows[0][0])


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
    assert shares[0] == 1 and math.isnan(shares[10])


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
