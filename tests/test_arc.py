"""ARC: grids as text and back, tasks from small files, and files that are not as they should be."""

import json
import random
from pathlib import Path

import pytest

from nanoct.benchmarks import arc, common
from nanoct.fewshot import concatenate
from nanoct.methods import icl
from nanoct.score import asked, evaluate
from nanoct.tokenizer import load_tokenizer

from conftest import tiny_llama

DATA = Path(__file__).parents[2] / "shared" / "data"
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
    assert counts == common.Counts(demos=2, queries=2) and task.metric == "ids"


@pytest.mark.parametrize("tokenizer", [BYTES, pytest.param("llama3", marks=pytest.mark.skipif(
    not (DATA / "llama3_tokenizer").is_dir(), reason=f"needs Llama-3's tokenizer in {DATA / 'llama3_tokenizer'}"))])
def test_grids_are_read_back_and_every_cell_is_a_token(tokenizer):
    tokenizer = load_tokenizer(DATA / "llama3_tokenizer") if tokenizer == "llama3" else tokenizer
    draw = random.Random(0)
    for n, m in [(1, 1), (1, 30), (30, 30), (7, 12), (10, 3)]:
        grid = [[draw.randrange(10) for _ in range(m)] for _ in range(n)]
        ids = arc.encode_grid(tokenizer, "output ", grid)
        assert arc.text_to_grid(tokenizer.decode(ids)) == grid
        digits = {tokenizer.encode(str(i))[0] for i in range(10)}
        assert sum(i in digits for i in ids[-n * (m + 1):]) == n * m  # the head has digits too, before them


@pytest.mark.parametrize("text", ["output 2 2\n01\n2\n", "output 2 2\n01\n", "output 2 2\n01\n23\n45\n"])
def test_text_that_is_no_grid_is_refused(text):
    with pytest.raises(ValueError, match="no grid of 2 rows of 2"):
        arc.text_to_grid(text)


def test_every_cell_must_be_right(tmp_path):
    """Scored by teacher forcing: a grid that differs in one cell is wrong."""
    task, _ = make(write(tmp_path))
    model = tiny_llama(vocab_size=256)
    assert evaluate(icl.adapt(model, task, icl.Config()), task).per_query == [False, False]


def test_what_does_not_fit_is_dropped(tmp_path):
    context = sum(len(d.x) + len(d.y) for d in make(write(tmp_path))[0].demos)
    small, large = (len("input 1 1\n9\noutput 1 2\n87\n\n"), len("input 1 3\n012\noutput 2 1\n3\n4\n\n"))
    assert make(tmp_path, length=context + large)[1].dropped == 0
    assert make(tmp_path, length=context + small)[1] == common.Counts(demos=2, queries=1, dropped=1)
    assert make(tmp_path, length=context)[1].queries == 0
    assert make(tmp_path, k=1, limit_queries=1)[1] == common.Counts(demos=1, queries=1)


@pytest.mark.parametrize("grid", [[[0, 1], [2]], [], [[]], [[10]], [[-1]], [[0.5]], [["1"]], [[True]], "01", [[0]] * 31, [[0] * 31], None])
def test_what_is_no_grid_is_named(tmp_path, grid):
    with pytest.raises(ValueError, match="the output of train pair 1 is no grid"):
        make(write(tmp_path, train=[PAIR, dict(input=[[1]], output=grid)]))


@pytest.mark.parametrize("text, said", [("", "is empty"), ("{\"train\": [", "perhaps truncated"), ("[]", "no train pairs"),
                                        ('{"train": []}', "no train pairs"), (json.dumps(dict(train=[PAIR])), "no test pairs"),
                                        (json.dumps(dict(train=[PAIR, [1]], test=[PAIR])), "input of train pair 1")])
def test_bad_files_are_named_in_a_sentence(tmp_path, text, said):
    with pytest.raises(ValueError) as error:
        make(write(tmp_path, text=text))
    assert said in str(error.value) and "\n" not in str(error.value)


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
        assert all(arc.text_to_grid(BYTES.decode(part)) for pair in task.demos + task.queries for part in (pair.x, pair.y[:-1]))
    assert len(arc.tasks(DATA / "arc")) == 200 and len(arc.tasks(DATA / "arc", "training")) == 200
    assert total.queries == 214 and min(n_demo) == 2 and max(n_demo) >= 7
