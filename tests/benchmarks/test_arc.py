"""ARC: grids as text and back, tasks from small files, and files that are not as they should be."""

import json
import random
from types import SimpleNamespace

import pytest
import torch
from helpers import DATA, tiny_llama

from nanoct.benchmarks import arc, common
from nanoct.fewshot import concatenate
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model, save_model
from nanoct.methods import icl
from nanoct.pretrain import Config, Rows, train
from nanoct.score import asked, evaluate

BYTES = load_tokenizer("bytes")
PAIR = dict(input=[[0, 1, 2]], output=[[3], [4]])
OTHER = dict(input=[[9]], output=[[8, 7]])


def write(folder, train=(PAIR, OTHER), test=(OTHER, PAIR), text=None):
    (folder / "evaluation").mkdir(exist_ok=True)
    (folder / "evaluation" / "0a.json").write_text(json.dumps(dict(train=train, test=test)) if text is None else text)
    return folder


def make(folder, **options):
    return arc.make_task(folder, "0a", BYTES, **options)


def test_a_task_reads_as_documented(tmp_path):
    task, counts = make(write(tmp_path))
    tokens, owner = concatenate(tiny_llama(vocab_size=256), task.instruction, task.demos, task.separator)
    assert bytes(tokens[0].tolist()) == b"input 1 3\n012\noutput 2 1\n3\n4\n\ninput 1 1\n9\noutput 1 2\n87\n\n"
    assert [bytes(asked(task, q)) for q in task.queries] == [b"input 1 1\n9\n", b"input 1 3\n012\n"]
    assert [bytes(q.y) for q in task.queries] == [b"output 1 2\n87\n\n", b"output 2 1\n3\n4\n\n"]
    assert counts == common.Counts(demos=2, queries=2, repeats=2) and task.metric == "ids"


def text_to_grid(text):
    """The grid of a text such as "output 2 3\\n012\\n345\\n"."""
    shape, *rows = text.strip().split("\n")
    grid = [list(map(int, row)) for row in rows]
    assert shape.split()[-2:] == [str(len(grid)), str(len(grid[0]))] and len(set(map(len, grid))) == 1
    return grid


@pytest.mark.parametrize("tokenizer", [BYTES, pytest.param("llama3", marks=pytest.mark.skipif(
    not (DATA / "llama3_tokenizer").is_dir(), reason=f"needs Llama-3's tokenizer in {DATA / 'llama3_tokenizer'}"))])
def test_grids_are_read_back_and_every_cell_is_a_token(tokenizer):
    tokenizer = load_tokenizer(DATA / "llama3_tokenizer") if tokenizer == "llama3" else tokenizer
    draw = random.Random(0)
    for n, m in [(1, 1), (1, 30), (30, 30), (7, 12), (10, 3)]:
        grid = [[draw.randrange(10) for _ in range(m)] for _ in range(n)]
        ids = arc.encode_grid(tokenizer, "output ", grid)
        assert text_to_grid(tokenizer.decode(ids)) == grid
        digits = {tokenizer.encode(str(i))[0] for i in range(10)}
        assert sum(i in digits for i in ids[-n * (m + 1):]) == n * m  # the head has digits too, before them


def test_a_beginning_of_sequence_token_is_the_instruction(tmp_path):
    tokenizer = SimpleNamespace(adds_bos=True, bos_id=7, encode=BYTES.encode, decode=BYTES.decode)
    task, _ = arc.make_task(write(tmp_path), "0a", tokenizer)
    assert task.instruction == [7] and not make(tmp_path)[0].instruction


@pytest.mark.parametrize("n", [2, 10])
def test_all_demos_are_given_and_every_test_grid_is_asked(tmp_path, n):
    task, counts = make(write(tmp_path, train=[PAIR] * n, test=[OTHER] * 3))
    assert counts == common.Counts(demos=n, queries=3) and len(task.demos) == n


def test_every_cell_must_be_right(tmp_path):
    """Scored by teacher forcing: a grid that differs in one cell is wrong."""
    task, _ = make(write(tmp_path))
    model = tiny_llama(vocab_size=256)
    assert evaluate(icl.adapt(model, task, icl.Config()), task).per_query == [False, False]


def test_what_does_not_fit_is_dropped(tmp_path):
    context = sum(len(d.x) + len(d.y) for d in make(write(tmp_path))[0].demos)
    small, large = (len("input 1 1\n9\noutput 1 2\n87\n\n"), len("input 1 3\n012\noutput 2 1\n3\n4\n\n"))
    assert make(tmp_path, length=context + large)[1].dropped == 0
    assert make(tmp_path, length=context + small)[1] == common.Counts(demos=2, queries=1, dropped=1, repeats=1)
    assert make(tmp_path, length=context)[1].queries == 0
    assert make(tmp_path, k=1, limit_queries=1)[1] == common.Counts(demos=1, queries=1)


@pytest.mark.parametrize("grid", [[[0, 1], [2]], [], [[]], [[10]], [[-1]], [[0.5]], [["1"]], [[True]], "01", [[0]] * 31,
                                  [[0] * 31], None])
def test_what_is_no_grid_is_named(tmp_path, grid):
    with pytest.raises(ValueError, match="0a.json is not a task of ARC-AGI-1"):
        make(write(tmp_path, train=[PAIR, dict(input=[[1]], output=grid)]))


@pytest.mark.parametrize("text, said", [("", "is empty"), ("{\"train\": [", "not JSON"),
                                        ("[]", "not a task of ARC"), ('{"train": []}', "no train pairs"),
                                        (json.dumps(dict(train=[PAIR])), "no 'test'"),
                                        (json.dumps(dict(train=[PAIR, [1]], test=[PAIR])), "not a task of ARC")])
def test_bad_files_are_named_in_a_sentence(tmp_path, text, said):
    with pytest.raises(ValueError) as error:
        make(write(tmp_path, text=text))
    assert "0a.json" in str(error.value) and said in str(error.value) and "\n" not in str(error.value)


def test_other_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match="--data takes the folder of ARC-AGI-1"):
        arc.tasks(tmp_path)
    with pytest.raises(ValueError, match="has 2 demos: use --k 2"):
        make(write(tmp_path), k=3)


@pytest.mark.skipif(not (DATA / "arc").is_dir(), reason=f"needs ARC's files in {DATA / 'arc'}")
def test_counts_on_the_public_files():
    n_demo = set()
    total = common.Counts()
    for name in arc.tasks(DATA / "arc"):
        task, counts = arc.make_task(DATA / "arc", name, BYTES, length=10**6)
        n_demo.add(counts.demos)
        total.queries += counts.queries
        parts = [part for pair in task.demos + task.queries for part in (pair.x, pair.y[:-1])]
        assert all(text_to_grid(BYTES.decode(part)) for part in parts)
    assert len(arc.tasks(DATA / "arc")) == 200 and len(arc.tasks(DATA / "arc", "training")) == 200
    assert total.queries == 214 and min(n_demo) == 2 and max(n_demo) >= 7


# --- fine-tuning on the training tasks ---


@pytest.fixture
def training(tmp_path):
    (tmp_path / "training").mkdir()
    for i in range(20):
        draw = random.Random(i)
        grids = [[[draw.randrange(10) for _ in range(2)] for _ in range(3)] for _ in range(4)]
        pairs = [dict(input=grid, output=[row[::-1] for row in grid]) for grid in grids]  # mirrored
        (tmp_path / "training" / f"{i:02}.json").write_text(json.dumps(dict(train=pairs[:3], test=pairs[3:])))
    return tmp_path


def test_an_episode_is_a_task_seen_another_way(training):
    world, rng = arc.Training(training), random.Random(0)
    seen = set()
    for _ in range(200):
        pairs = world.episode(rng, "train")
        assert len(pairs) == 4
        for x, y in pairs:  # a mirrored grid, turned and recoloured, is the mirrored of that, along one of two axes
            x, y = [list(row) for row in x], [list(row) for row in y]
            assert y in ([row[::-1] for row in x], x[::-1]) and (len(x), len(x[0])) in ((3, 2), (2, 3))
            seen.add((len(x), y == x[::-1]))
    assert {(3, False), (2, True)} <= seen  # not turned, and turned


def test_an_episode_permutes_colours_and_keeps_the_background(training):
    world = arc.Training(training)
    (pairs,) = [world.tasks["01"]]
    counts = sorted(sum(row.count(c) for x, _ in pairs for row in x) for c in range(1, 10))
    zeros = sum(row.count(0) for x, _ in pairs for row in x)
    world.pools["train"] = ["01"]
    mapped = set()
    for seed in range(20):
        grids = [x for x, _ in world.episode(random.Random(seed), "train")]
        assert sum(list(row).count(0) for grid in grids for row in grid) == zeros
        assert sorted(sum(list(row).count(c) for grid in grids for row in grid) for c in range(1, 10)) == counts
        mapped.add(str(grids))
    assert len(mapped) == 20


def test_validation_tasks_are_never_drawn_in_training(training):
    world = arc.Training(training)
    assert len(world.pools["validation"]) == 2 and not set(world.pools["validation"]) & set(world.pools["train"])
    assert len(world.pools["train"]) == 18


def test_a_public_model_is_fine_tuned_and_read_by_the_benchmark(training, tmp_path):
    """The documented command on a tiny model: the loss falls, and the folder is a model with its tokenizer."""
    base, out = tmp_path / "base", tmp_path / "out"
    save_model(tiny_llama(vocab_size=18, n_position=256), base)
    (base / "vocab.json").write_text(json.dumps([*"inputo", *"0123456789 \n"]))
    config = Config(n_step=30, lr=3e-3, n_warmup=2, row=128, n_token=256, every=15)
    train(config, out, "arc", base, "cpu", training)
    first, last = (json.loads(line) for line in (out / "log.jsonl").read_text().splitlines())
    assert last["loss"] < first["loss"] and set(last["validation"]) == {"0", "1", "2"}
    write(tmp_path)
    task, counts = arc.make_task(tmp_path, "0a", load_tokenizer(out))
    model = load_model(out, "cpu")
    assert counts.queries == 2 and len(evaluate(icl.adapt(model, task, icl.Config()), task).per_query) == 2
    before = torch.cat([p.flatten() for p in load_model(base, "cpu").parameters()])
    assert not torch.equal(before, torch.cat([p.flatten() for p in model.parameters()]))


def test_all_answers_of_a_row_are_trained_and_its_padding_is_not(training):
    world = arc.Training(training)
    world.tasks["02"], world.pools["train"] = world.tasks["02"][:2], ["01", "02"]
    tokens, answer = Rows(world, BYTES, Config(row=200, n_token=1600))[0]
    assert len(set((answer >= 0).sum(1).tolist())) > 1
    for row, of in zip(tokens, answer):
        outputs = [BYTES.decode(row[of == n].tolist()) for n in range(of.max() + 1)]
        assert all(text_to_grid(text) and text.startswith("output ") for text in outputs)


@pytest.mark.parametrize("options, said", [
    (dict(world="arc"), "--data is the folder of ARC-AGI-1"),
    (dict(world="strings", data="x"), "--data is the folder of ARC-AGI-1"),
    (dict(world="arc", data="x"), "name it, or its folder, with --init"),
])
def test_options_of_fine_tuning_that_do_not_go_together(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        train(Config(n_step=1), tmp_path, device="cpu", **options)


def test_a_row_that_is_too_long_for_the_model(training, tmp_path):
    save_model(tiny_llama(vocab_size=18), tmp_path / "base")
    (tmp_path / "base" / "vocab.json").write_text(json.dumps([*"inputo", *"0123456789 \n"]))
    with pytest.raises(ValueError, match="--row 128: a row is at times twice as long"):
        train(Config(n_step=1, row=128), tmp_path / "out", "arc", tmp_path / "base", "cpu", training)
