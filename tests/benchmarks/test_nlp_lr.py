"""NLP-LR: ten rows worked out by hand, byte by byte, the rules on length, and files that are not as they should be."""

import json

import pytest
import torch
from helpers import tiny_llama

from nanoct.benchmarks import common, nlp_lr
from nanoct.fewshot import concatenate
from nanoct.io.tokenizer import load_tokenizer
from nanoct.methods import icl
from nanoct.score import asked, evaluate

BYTES = load_tokenizer("bytes")


def write(folder, train, test, name="sick", seed=13):
    """Rows (input, output, options) as files of one task; rows that are no tuple are written as they are."""
    (folder / name).mkdir(exist_ok=True)
    for part, rows in (("train", train), ("test", test)):
        fields = "task", "input", "output", "options"
        line = lambda row: json.dumps(dict(zip(fields, (name, *row))), ensure_ascii=False)
        lines = [row if isinstance(row, str) else line(row) for row in rows]
        (folder / name / f"{name}_16_{seed}_{part}.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def make(folder, k=2, name="sick", **options):
    return nlp_lr.make_task(folder, name, BYTES, 13, k, **options)


def test_ten_rows_by_hand(tmp_path):
    yes_no, sides = ["yes", "no"], ["left", "right", "up"]
    train = [("good film", "yes", yes_no),             # 1: nothing to cut
             ("b" * 254, "no", yes_no),                # 2: 254 + 2 = 256, whole
             ("c" * 255, "no", yes_no)]                # 3: 255 + 2 = 257, the last c goes
    test = [("bad film", "no", yes_no),                # 4
            ("Ähm, nö", "yes", yes_no),                # 5: two bytes each for Ä and ö
            (" two  spaces ", "yes", yes_no),          # 6: nothing is stripped
            ("d" * 251, "up", sides),                  # 7: 251 + len("right") = 256, whole
            ("e" * 252, "up", sides),                  # 8: one less than that, though "up" is short
            ("f" * 300, "right", sides),               # 9: cut to 251
            ("left or right", "left", sides)]          # 10
    task, counts = make(write(tmp_path, train, test), k=3)
    assert [(bytes(d.x), bytes(d.y)) for d in task.demos] == [
        (b"good film ", b"yes"), (b"b" * 254 + b" ", b"no"), (b"c" * 254 + b" ", b"no")]
    model = tiny_llama(vocab_size=256, n_position=1024)
    tokens, owner = concatenate(model, task.instruction, task.demos, task.separator)
    assert bytes(tokens[0].tolist()) == b"good film yes " + b"b" * 254 + b" no " + b"c" * 254 + b" no"
    assert owner.tolist() == [0] * 13 + [1] * 258 + [2] * 258  # the space before a pair is the pair's
    rows = [bytes(asked(task, q)) + bytes(q.y) for q in task.queries]
    assert rows == [b" bad film no", " Ähm, nö yes".encode(), b"  two  spaces  yes", b" " + b"d" * 251 + b" up",
                    b" " + b"e" * 251 + b" up", b" " + b"f" * 251 + b" right", b" left or right left"]
    assert [list(map(bytes, q.options)) for q in task.queries[2:4]] == [[b"yes", b"no"], [b"left", b"right", b"up"]]
    assert counts == common.Counts(demos=3, queries=7, dropped=0, cut=3)
    assert not task.instruction and task.metric == "macro_f1"  # no BOS


def test_input_delimiter_and_output_are_tokenised_apart(tmp_path):
    """Where "film" and "yes" would be one token with the space before them, or behind."""
    tokens = ["good", " ", "film", " film", "film ", "yes", " yes", "no", " no", "no "]
    (tmp_path / "vocab.json").write_text(json.dumps(tokens))
    rows = [("good film", "yes", ["yes", "no"]), ("film", "no", ["yes", "no"])]
    task, _ = nlp_lr.make_task(write(tmp_path, rows, rows), "sick", load_tokenizer(tmp_path), 13, 2)
    read, _ = concatenate(tiny_llama(vocab_size=10), task.instruction, task.demos, task.separator)
    assert [tokens[i] for i in read[0]] == ["good", " film", " ", "yes", " ", "film", " ", "no"]
    rows = [[tokens[i] for i in asked(task, q) + q.y] for q in task.queries]
    assert rows == [[" ", "good", " film", " ", "yes"], [" ", "film", " ", "no"]]


def test_rows_have_as_many_options_as_they_have(tmp_path):
    """Three to five, as in ai2_arc: the answer is among its own row's."""
    rows = [(f"question {n}", "b", list("abcde")[:n]) for n in (3, 4, 5)]
    task, counts = make(write(tmp_path, rows, rows, "ai2_arc"), k=3, name="ai2_arc")
    assert [len(q.options) for q in task.queries] == [3, 4, 5] and counts.queries == 3 and task.metric == "accuracy"
    model = tiny_llama(vocab_size=256)
    assert len(evaluate(icl.adapt(model, task, icl.Config()), task).per_query) == 3


def test_an_output_that_leaves_no_room_for_the_input(tmp_path):
    """256 - n is less than nothing for n = 300: no token is kept, and not all but the last 44."""
    long = [("a" * 200, "y" * n, ["y" * n, "no"]) for n in (255, 256, 300)]
    task, counts = make(write(tmp_path, long, long), k=3, length=2000)
    assert [bytes(d.x) for d in task.demos] == [b"a ", b" ", b" "] == [bytes(q.x) for q in task.queries]
    assert counts.cut == 6 and [len(d.y) for d in task.demos] == [255, 256, 300]


def test_other_line_separators_and_empty_lines_at_the_end(tmp_path):
    odd = ("a\u2028b\u0085c\u2029", "yes", ["yes", "no"])
    folder = write(tmp_path, [odd, odd], [odd, ""])
    task, counts = make(folder)
    assert counts.queries == 1 and bytes(task.queries[0].x).decode() == f"{odd[0]} "


CONTEXT = [("b" * 253, "yes", ["yes", "no"])] * 3  # 3 pairs of 257 tokens and 2 spaces between them: 773


@pytest.mark.parametrize("n, options, kept", [
    (246, ["yes", "no"], True),      # 773 + 1 + 246 + 1 + 3 = 1,024
    (247, ["yes", "no"], False),
    (246, ["yes", "maybe"], False),  # one option that does not fit is enough
    (244, ["yes", "maybe"], True),
])
def test_the_limit_of_1024_tokens_counts_every_option(tmp_path, n, options, kept):
    task, counts = make(write(tmp_path, CONTEXT, [("x" * n, "yes", options), ("x", "yes", options)]), k=3)
    assert len(task.queries) == 1 + kept and counts.dropped == 1 - kept and not counts.given_up
    assert len(task.demos) == 3  # demos are never dropped


@pytest.mark.parametrize("n_long, given_up", [(99, False), (100, True)])
def test_a_task_is_given_up_after_100_dropped_queries_in_a_row(tmp_path, n_long, given_up):
    long, short = ("x" * 300, "yes", ["yes", "no"]), ("x", "yes", ["yes", "no"])
    task, counts = make(write(tmp_path, CONTEXT, [short, *[long] * 60, short, *[long] * n_long, short]), k=3)
    assert len(task.queries) == (2 if given_up else 3)  # what was kept counts; the count in a row began anew
    assert counts.given_up == given_up and counts.dropped == 60 + n_long


def test_the_first_k_demos_and_the_first_queries_are_taken(tmp_path):
    rows = [(f"demo {i}", "yes", ["yes", "no"]) for i in range(16)]
    task, counts = make(write(tmp_path, rows, rows), k=4, limit_queries=3)
    assert [bytes(d.x) for d in task.demos] == [b"demo 0 ", b"demo 1 ", b"demo 2 ", b"demo 3 "]
    assert [bytes(q.x) for q in task.queries] == [b"demo 0 ", b"demo 1 ", b"demo 2 "] and counts.queries == 3


def test_tasks_and_metrics(tmp_path):
    rows = [("a", "yes", ["yes", "no"])]
    write(write(tmp_path, rows, rows, "quail"), rows, rows, "sick")
    assert nlp_lr.tasks(tmp_path) == ["quail", "sick"]
    assert [make(tmp_path, 1, name)[0].metric for name in ("quail", "sick")] == ["accuracy", "macro_f1"]
    assert len(nlp_lr.CLASSIFICATION) == 16


GOOD = ("a", "yes", ["yes", "no"])


@pytest.mark.parametrize("train, test, said", [
    ([GOOD], [GOOD], "1 demos: use --k 1"),
    ([GOOD] * 2, ['{"task": "sick", "input": "a", "outp'], "line 1 is not JSON"),
    ([GOOD] * 2, [GOOD, '{"input": "a", "options": []}'], "line 2 is not a line of MetaICL"),
    ([GOOD] * 2, ["[1, 2]"], "line 1 holds '[1, 2]', expected a JSON object"),
    ([GOOD] * 2, ["[" * 10**5], "nested too deep"),
    ([GOOD] * 2, [GOOD, ("a", "yes", [])], "'yes' is not among the options []"),
    ([GOOD] * 2, [("a", "e\u0301", ["\u00e9", "b"])], r"'e\u0301' is not among the options ['\xe9', 'b']"),
    ([GOOD] * 2, [("a", 1, ["yes"])], "output or an option is empty, or no text"),
    ([GOOD] * 2, [("", "yes", ["yes", "no"])], "its input, output or an option is empty"),
    ([GOOD] * 2, [("a", "maybe", ["yes", "no"])], "'maybe' is not among the options"),
    ([GOOD] * 2, [], "test.jsonl is empty"),
    ([GOOD] * 2, [GOOD, "", GOOD], "line 2 is empty: delete it"),
])
def test_bad_files_are_named_in_a_sentence(tmp_path, train, test, said):
    write(tmp_path, train, test)
    with pytest.raises(ValueError) as error:
        make(tmp_path)
    assert "sick_16_" in str(error.value) or "use --k" in said
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_folder_or_a_seed_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no .*--data takes the folder of NLP-LR"):
        nlp_lr.tasks(tmp_path)
    write(tmp_path, [GOOD] * 2, [GOOD])
    with pytest.raises(FileNotFoundError, match="there is no .*_100_train.jsonl"):
        nlp_lr.make_task(tmp_path, "sick", BYTES, 100, 2)


def test_the_tokens_of_a_task_suit_a_model(tmp_path):
    """The whole way on a tiny model: adapt, score, and the same score query by query."""
    rows = [(f"demo {i}", ["yes", "no"][i % 2], ["yes", "no"]) for i in range(6)]
    task, _ = make(write(tmp_path, rows, rows), k=3)
    model = tiny_llama(vocab_size=256)
    result = evaluate(icl.adapt(model, task, icl.Config()), task)
    context = b"demo 0 yes demo 1 no demo 2 yes"
    for query, right in zip(task.queries, result.per_query):
        losses = []
        for option in query.options:
            ids = torch.tensor([[*context, *b" ", *query.x, *option]])
            logits = model.logits(model(ids[:, :-1])[0])[0, -len(option):]
            losses.append(torch.nn.functional.cross_entropy(logits, ids[0, -len(option):]))
        assert right == (query.options[int(torch.stack(losses).argmin())] == query.y)
