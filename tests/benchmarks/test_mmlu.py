"""MMLU: the format and the drawing of demos on a small file, and files that are not as they should be."""

import csv
from types import SimpleNamespace

import pytest
from helpers import DATA, tiny_llama

from nanoct.benchmarks import common, mmlu
from nanoct.fewshot import concatenate
from nanoct.io.tokenizer import load_tokenizer
from nanoct.score import asked

DATA = DATA / "mmlu"
BYTES = load_tokenizer("bytes")
ROWS = [[f"question {i}?", f"a{i}", f"b{i}", f"c{i}, quoted", f"d{i}", "ABCD"[i % 4]] for i in range(8)]


def write(folder, rows=ROWS):
    (folder / "test").mkdir(exist_ok=True)
    with open(folder / "test" / "sums_test.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def make(folder, k=2, seed=42, **options):
    return mmlu.make_task(folder, "sums", BYTES, seed, k, **options)


def test_a_context_reads_as_the_papers_format(tmp_path):
    task, counts = make(write(tmp_path, [*ROWS, ["two\nlines, and a \"quote\"", "1", "2", "3", "4", "D"]]))
    given = [next(row for row in ROWS if bytes(d.x) == f"{row[0]}\n".encode()) for d in task.demos]
    pair = lambda row: f"{row[0]}\n{row[1 + 'ABCD'.index(row[5])]}"
    tokens, owner = concatenate(tiny_llama(vocab_size=256), task.instruction, task.demos, task.separator)
    assert bytes(tokens[0].tolist()).decode() == "\n".join(map(pair, given)) and owner[0] == 0
    rest = [row for row in ROWS if row not in given]
    assert [bytes(asked(task, q) + q.y).decode() for q in task.queries] == [
        *(f"\n{pair(row)}" for row in rest), "\ntwo\nlines, and a \"quote\"\n4"]
    # not shown, only scored
    assert [[bytes(o).decode() for o in q.options] for q in task.queries[:-1]] == [row[1:5] for row in rest]
    assert counts == common.Counts(demos=2, queries=7) and task.metric == "accuracy"


def test_a_beginning_of_sequence_token_is_the_instruction(tmp_path):
    tokenizer = SimpleNamespace(bos_id=7, adds_bos=True, encode=BYTES.encode)
    task, _ = mmlu.make_task(write(tmp_path), "sums", tokenizer, 42, 2)
    tokens, owner = concatenate(tiny_llama(vocab_size=256), task.instruction, task.demos, task.separator)
    assert tokens[0, 0] == 7 and owner[:2].tolist() == [-1, 0] and not make(tmp_path)[0].instruction
    tokenizer.adds_bos = False  # it has one and puts none, as SmolLM2's and GPT-2's
    assert not mmlu.make_task(tmp_path, "sums", tokenizer, 42, 2)[0].instruction


def test_a_byte_order_mark_is_no_part_of_the_first_question(tmp_path):
    file = write(tmp_path) / "test" / "sums_test.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert mmlu.read(file) == ROWS


@pytest.mark.parametrize("end", ["\n", "\r\n\r\n", "\n   \n\n", ",,,\n", '"",\n'])
def test_empty_lines_at_the_end_are_passed_over(tmp_path, end):
    file = write(tmp_path) / "test" / "sums_test.csv"
    file.write_bytes(file.read_bytes() + end.encode())
    assert mmlu.read(file) == ROWS


def test_demos_are_drawn_by_seed(tmp_path):
    demos = lambda seed: [bytes(d.x) for d in make(write(tmp_path), 3, seed)[0].demos]
    assert demos(42) == demos(42) and len({tuple(demos(seed)) for seed in range(42, 47)}) > 2


def test_a_query_is_dropped_if_any_option_does_not_fit(tmp_path):
    rows = [*ROWS, ["long?", "a" * 100, "b", "c", "d", "B"]]
    task, _ = make(write(tmp_path, rows))
    assert len(task.queries) == 7
    length = len("\n".join(["question 0?", "a0", "question 0?", "a0"])) + 60
    task, counts = make(tmp_path, length=length)
    assert counts.dropped == 1 and len(task.queries) == 6


@pytest.mark.parametrize("rows, said", [
    ([], "is empty"),
    ([["question", "A", "B", "C", "D", "answer"], *ROWS],
     "row 1 is 'question, A, B, C, D, answer'"),
    ([*ROWS, ["q", "1", "2", "3", "4", "E"]], "row 9"),
    ([*ROWS, ["q", "1", "2", "3", "A"]], "row 9"),
    ([*ROWS, ["q", "1", "", "3", "4", "A"]], "row 9"),
    ([*ROWS, [], ROWS[0]], "row 9"),
    ([*ROWS, ["q" * 200_000, "1", "2", "3", "4", "A"]], "field larger than"),
    (ROWS[:2], "2 examples, too few for k = 2"),
])
def test_bad_files_are_named_in_a_sentence(tmp_path, rows, said):
    write(tmp_path, rows)
    with pytest.raises(ValueError) as error:
        make(tmp_path)
    assert "sums_test.csv" in str(error.value) and said in str(error.value) and "\n" not in str(error.value)


def test_a_question_that_repeats_a_demo_is_asked_and_counted(tmp_path, capsys):
    """Its options may be others; only the question counts."""
    write(tmp_path, [["same", *options, "A"] for options in ("abcd", "efgh", "ijkl")] + [["other", *"abcd", "B"]])
    task, counts = make(tmp_path, k=1, seed=next(s for s in range(9) if make(tmp_path, 1, s)[1].repeats))
    assert bytes(task.demos[0].x) == b"same\n" and counts == common.Counts(demos=1, queries=3, repeats=2)
    assert str(counts + counts) == "2 demos, 6 queries, 0 too long, 0 inputs cut, 4 that repeat a demo's input"
    seeds = [seed for seed in range(9) if bytes(make(tmp_path, 1, seed)[0].demos[0].x) == b"other\n"]
    assert seeds and all(make(tmp_path, 1, seed)[1].repeats == 0 for seed in seeds)


def test_a_folder_of_another_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match="--data takes the folder of MMLU"):
        mmlu.tasks(tmp_path)
    write(tmp_path)
    assert mmlu.tasks(tmp_path) == ["sums"]
