"""Coins on the Llama: tasks, predictions behind a context, the exact learner of two coins, settings, and the table."""

import json
import sys
from itertools import product

import pytest
import torch

from nanoct.coins import bridge
from nanoct.coins.bridge import (
    START,
    TARGETS,
    exact,
    make_task,
    plan,
    predict,
    sessions,
    two_coins,
)
from nanoct.coins.coins import Beta, Coins
from nanoct.fewshot import Adapted
from nanoct.methods import icl
from nanoct.model import Llama, LlamaConfig

SMALL = LlamaConfig(vocab_size=3, n_layer=1, n_head=2, n_kv_head=1, n_embd=16, head_dim=8, n_ffn=16, n_position=512)


@pytest.fixture
def small():
    return Llama(SMALL).init_weights(torch.Generator().manual_seed(0)).requires_grad_(False)


def test_a_task_is_sessions_of_the_target():
    task = make_task(Coins([0.2, 0.8]), 8, seed=3)
    x, truth = sessions(Coins([0.2, 0.8]), 8, 25, 3)
    assert [demo.y for demo in task.demos] == x.tolist() and task.others == ()
    assert all(demo.x == [START] for demo in task.demos)
    assert len(truth[:, 0].unique()) == 2 and (truth == truth[:, :1]).all()  # one coin a session
    many = make_task(Coins([0.2]), 64, seed=3)
    assert len(many.others) == 8 and not {tuple(d.y) for d in many.others} & {tuple(d.y) for d in many.demos}


def test_predictions_are_those_of_the_whole_text(small):
    """A query behind the demos' cache is the continuation of demos and query in one row of tokens."""
    task, (x, _) = make_task(Coins([0.2]), 3, 0), sessions(Coins([0.2]), 5, 7, 1)
    got = predict(icl.adapt(small, task), x, n_row=2)
    before = [i for demo in task.demos for i in (START, *demo.y)]
    for flips, p in zip(x, got):
        hidden, _ = small(torch.tensor([[*before, START, *flips.tolist()]]))
        logits = small.logits(hidden[0, len(before) : -1])[:, :2].double()
        torch.testing.assert_close(p, logits.softmax(-1)[:, 1], atol=1e-5, rtol=0)
    alone = predict(Adapted(small), x)
    assert not torch.allclose(alone, got, atol=1e-3)


def test_two_coins_by_enumeration():
    demos, x = torch.tensor([[1, 1, 0], [0, 0, 0]]), torch.tensor([[0, 1, 0], [1, 1, 1]])
    bias = [1 / 6, 3 / 6, 5 / 6]
    p = lambda flips, b: torch.tensor([b if f else 1 - b for f in flips]).prod().item()
    session = lambda flips, pair: sum(p(flips, b) for b in pair) / 2
    demo_pair = lambda pair: session(demos[0], pair) * session(demos[1], pair)

    def joint(flips):  # of the demos and of a session that begins so
        return sum(demo_pair(pair) * session(flips, pair) for pair in product(bias, bias))

    got = two_coins(demos, x, n=3)
    for i, t in product(range(2), range(3)):
        seen = x[i, :t].tolist()
        assert got[i, t].item() == pytest.approx(joint([*seen, 1]) / joint(seen), abs=1e-6)


def test_exact_predictors_are_in_their_order():
    found = [exact(TARGETS["mixture"], 8, seed) for seed in range(3)]
    at_end = {name: sum(of[name][-1] for of in found) / 3 for name in found[0]}
    assert at_end["TargetBayes"] < at_end["Two coins, demos"] < at_end["PreBayes"] < at_end["PreBayes, demos"]
    single = exact(TARGETS["single"], 8, 0)
    assert abs(single["TargetBayes"][-1]) < 1e-9 and single["PreBayes, demos"][-1] < single["PreBayes"][-1]


def test_the_shipped_llama_reads_coins():
    """Behind 8 sessions of one coin it is nearer to the ideal reader than to one who has not read them."""
    source, x, truth = TARGETS["single"], *sessions(TARGETS["single"], 64, 50, 10_000)
    adapted = icl.adapt(bridge.model(), make_task(source, 8, 0))
    got = bridge.regret(predict(adapted, x), x, truth)[:, -1].mean().item()
    unread = bridge.regret(Beta().bayes(x), x, truth)[:, -1].mean().item()
    assert got < 0.5 * unread


def test_meta_training_repeats_itself_and_never_asks_for_a_start(monkeypatch):
    monkeypatch.setattr(bridge, "CONFIG", SMALL)
    (a, losses), (b, same), (_, other) = (bridge.pretrain(n_step=3, batch=2, seed=seed) for seed in (0, 0, 1))
    assert losses == same != other and all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    generator = torch.Generator().manual_seed(0)
    model = Llama(SMALL).init_weights(generator)
    x, session = Beta().sample(2, bridge.ROW, generator)[0], torch.randint(4, 65, (2, 1), generator=generator)
    x[torch.arange(bridge.ROW) % (session + 1) == 0] = START
    log_p = model.logits(model(x[:, :-1])[0]).log_softmax(-1).gather(-1, x[:, 1:, None])[..., 0]
    assert (x[:, 0] == START).all() and losses[0] == pytest.approx(-log_p[x[:, 1:] != START].mean().item(), rel=1e-5)


def test_the_shipped_llama_never_expects_a_start():
    hidden, _ = bridge.model()(torch.tensor([[START, 0, 1] * 20]))
    assert bridge.model().logits(hidden).softmax(-1)[..., START].max() < 0.01


def test_plan():
    runs = plan(sweep=False, n_seed=2)
    assert len({bridge.key(run) for run in runs}) == len(runs)
    many = {run["method"] for run in runs if run["k"] == bridge.MANY}
    assert many == {"prefix_tuning", "lora", "ct_kv"}
    for run in runs:
        from_others = run["config"].get("start") == "others"
        assert from_others == (run["k"] == bridge.MANY and run["method"] == "ct_kv")
    sweep = plan(sweep=True, n_seed=2)
    assert {run["pool"] for run in sweep} == {"others"}
    assert not {run["seed"] for run in sweep} & {run["seed"] for run in runs}
    assert all(bridge.OTHERS[target] != TARGETS[target] for target in TARGETS)
    for run in runs + sweep:
        bridge.MODULES[run["method"]].Config(**run["config"])


def test_choose_takes_the_lowest_mean_regret():
    few = {1: (0.1, 0.9), 2: (0.4, 0.4), 3: (1, 1)}  # the last regret of two seeds by learning rate
    regrets = {8: few, 64: few | {3: (0.3, 0.3)}}
    lines = [dict(target=target, method=method, k=k, config=dict(lr=lr), regret=[0.0, last])
             for target, method, k, lr in product(TARGETS, bridge.TUNED, regrets, few) for last in regrets[k][lr]]
    each = lambda lr: {method: dict(lr=lr) for method in bridge.TUNED}
    assert bridge.choose(lines) == {target: {"8": each(2), "64": each(3)} for target in TARGETS}


@pytest.mark.parametrize("pool, sources", [("targets", TARGETS), ("others", bridge.OTHERS)])
def test_a_line_is_scored_on_fresh_sessions_of_its_coins(monkeypatch, pool, sources):
    monkeypatch.setattr(bridge, "N_QUERY", 8)
    line = bridge.work(dict(zip(bridge.KEY, ("single", pool, "icl", {}, 2, 0))))
    x, truth = sessions(sources["single"], 8, 50, 10_000)
    p = predict(icl.adapt(bridge.model(), make_task(sources["single"], 2, 0)), x)
    assert line["regret"] == pytest.approx(bridge.regret(p, x, truth).mean(0).tolist(), abs=1e-4)


def test_without_settings_the_sweep_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(bridge, "SETTINGS", tmp_path / "none.json")
    with pytest.raises(ValueError, match="none.json: run with --sweep first"):
        plan(sweep=False, n_seed=1)
    monkeypatch.setattr(bridge, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="--pretrain --out"):
        bridge.model.__wrapped__()


@pytest.mark.slow
def test_table_and_figure(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bridge, "N_QUERY", 4)
    monkeypatch.setattr(bridge, "SEVERAL", (4,))
    monkeypatch.setattr(bridge, "MANY", 6)
    monkeypatch.setattr(bridge, "SWEEP", {4: bridge.SWEEP[8], 6: bridge.SWEEP[64]})
    short = {str(k): {method: dict(n_step=1) for method in methods} for k, methods in bridge.SWEEP.items()}
    (tmp_path / "bridge.json").write_text(json.dumps({target: short for target in TARGETS}))
    monkeypatch.setattr(bridge, "SETTINGS", tmp_path / "bridge.json")
    lines = []
    monkeypatch.setattr(bridge, "execute", lambda runs, results, work, n_worker: lines.extend(map(work, runs)) or lines)
    monkeypatch.setattr(sys, "argv", ["bridge", "--seeds", "2", "--out", str(tmp_path)])
    bridge.main()
    text = (tmp_path / "bridge.md").read_text()
    assert text in capsys.readouterr().out and (tmp_path / "bridge.png").stat().st_size > 10_000
    table = [row.split("|")[1:-1] for row in text.splitlines() if row.startswith("| ")]
    rows = {name.strip(): [cell.strip() for cell in cells] for name, *cells in table}
    assert set(rows) > {"zero_shot", "icl", *bridge.TUNED, "TargetBayes", "PreBayes"}
    assert all(rows["ct_kv"]) and rows["icl"][1] == "" and rows["TargetBayes"][0] == "0.00 ± 0.00"
    bridge.report([line for line in lines if line["seed"] == 0], 1, tmp_path)
    assert "0.00 ± –" in (text := (tmp_path / "bridge.md").read_text()) and "nan" not in text
    with pytest.raises(ValueError, match="--seeds 0"):
        monkeypatch.setattr(sys, "argv", ["bridge", "--seeds", "0", "--out", str(tmp_path)])
        bridge.main()
