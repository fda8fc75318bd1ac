"""Meta-training: what it draws, that it learns, and that being killed changes nothing."""

import json
import math

import pytest
import torch
from conftest import tiny_llama

from nanoct import pretrain
from nanoct.benchmarks import nano
from nanoct.benchmarks.nano import strings
from nanoct.pretrain import Config, Rows, exact_by_k, rate, train
from nanoct.tokenizer import load_tokenizer
from nanoct.weights import load_model

TINY = dict(n_layer=2, n_head=2, n_kv_head=1, n_embd=32, head_dim=16, n_ffn=48, n_position=256)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(pretrain, "ARCHITECTURE", TINY)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.json").write_text(json.dumps(nano.VOCABULARY))
    return load_tokenizer(folder)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_killed_run_ends_bit_identical(tmp_path, monkeypatch):
    config = Config(n_step=12, n_token=256, row=64, every=4, n_warmup=2, lr=1e-2)  # step 7 has long rows
    whole = train(config, tmp_path / "whole", device="cpu")
    getitem = Rows.__getitem__

    def kill(rows, step):
        if step == 10:  # two steps behind the last saved state
            raise KeyboardInterrupt
        return getitem(rows, step)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Rows, "__getitem__", kill)
        train(config, tmp_path / "killed", device="cpu")
    at_8 = weights(load_model(tmp_path / "killed", device="cpu"))
    assert not torch.equal(at_8, weights(whole))
    resumed = train(config, tmp_path / "killed", device="cpu")
    assert torch.equal(weights(resumed), weights(whole))
    assert torch.equal(weights(load_model(tmp_path / "killed", device="cpu")), weights(whole))
    state = [(tmp_path / run / "state.safetensors").read_bytes() for run in ("killed", "whole")]
    assert state[0] == state[1]
    steps, losses = zip(*((line["step"], line["loss"]) for line in log_of(tmp_path / "killed")))
    assert steps == (4, 8, 12) and losses == tuple(line["loss"] for line in log_of(tmp_path / "whole"))


def test_the_seed_decides(tmp_path):
    run = lambda name, seed: weights(train(Config(n_step=2, n_token=128, row=64, seed=seed), tmp_path / name, device="cpu"))
    assert torch.equal(run("a", 0), run("b", 0)) and not torch.equal(run("a again", 0), run("c", 1))


def test_training_draws_the_training_pool_and_nothing_reports_on_held_out(tmp_path, monkeypatch, tokenizer):
    drawn, pairs = [], strings.pairs

    def spy(name, n, rng):
        drawn.append(name)
        return pairs(name, n, rng)

    monkeypatch.setattr(strings, "pairs", spy)
    pools = {pool: set(names) for pool, names in strings.pools().items()}
    rows = Rows(strings, tokenizer, Config(n_step=24, n_token=1024, row=64))
    for step in range(24):
        rows[step]
    assert set(drawn) <= pools["train"] and len(set(drawn)) > 100
    evaluate, drawn[:] = pretrain.exact_by_k, []
    train(Config(n_step=3, n_token=128, row=64, every=1), tmp_path / "evaluated", device="cpu")
    assert not set(drawn) & pools["held_out"] and set(drawn) & pools["validation"]
    drawn.clear()
    monkeypatch.setattr(pretrain, "exact_by_k", lambda *_: {0: 0.0, 5: 0.0, 10: 0.0})
    train(Config(n_step=8, n_token=128, row=64, every=1), tmp_path / "not evaluated", device="cpu")
    assert drawn and set(drawn) <= pools["train"]


def test_loss_falls(tmp_path):
    train(Config(n_step=32, n_token=1024, row=128, every=8, n_warmup=4, lr=1e-2), tmp_path, device="cpu")
    log = log_of(tmp_path)
    assert [line["step"] for line in log] == [8, 16, 24, 32]
    assert log[-1]["loss"] < log[0]["loss"] - 0.05 and log[-1]["loss"] < math.log(19) - 0.2  # log 19: guessing


def test_rows_read_as_examples_of_one_function(tokenizer):
    config = Config(n_step=8, n_token=512, row=128, p_single=1.0)
    rows = Rows(strings, tokenizer, config)
    tokens, answer = rows[0]
    assert tokens.shape == answer.shape == (4, 128) and rows[7][0].shape == (2, 256)
    for row, number in zip(tokens, answer):
        text = tokenizer.decode(row.tolist())
        assert text.startswith("<s>")
        examples = [example.split("=") for example in text.removeprefix("<s>").split(";")[:-1]]  # the last may be cut
        assert len(examples) >= 6
        assert any(all(strings.apply(name, x) == y for x, y in examples) for name in strings.PRIMITIVES)
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
                said[row, at - 1] = (said[row, at - 1] + 1) % 19
        return said, None

    def logits(self, said):
        return torch.nn.functional.one_hot(said, 19).float()


def test_exact_by_k_against_a_slow_loop(tokenizer):
    rows = Rows(strings, tokenizer, Config(n_step=4, n_token=1024, row=128))
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
    shares = exact_by_k(Oracle([]), Rows(strings, tokenizer, Config(n_step=4, n_token=128, row=64)))
    assert shares[0] == 1 and math.isnan(shares[10])


def test_exact_by_k_of_a_real_forward(tokenizer):
    """The same, with a Llama's own argmax."""
    model = tiny_llama(vocab_size=19)
    rows = Rows(strings, tokenizer, Config(n_step=4, n_token=2048, row=128))
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
