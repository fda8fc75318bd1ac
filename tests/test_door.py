"""The door for Python users: eight lines from examples to an answer, and a sentence for every wrong call."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nanoct
from nanoct.benchmarks import nano
from nanoct.fewshot import Demo, Query, Task
from nanoct.io.tokenizer import Tokenizer
from nanoct.score import evaluate, text_answers

STRINGS = nano.FOLDER / "strings"
TEMPLATE = "{input}={output};"
PAIRS = [(x, x[::-1]) for x in ("abc", "fade", "nb", "hijk", "pale", "cab", "dim", "no", "lap", "peg")]


@pytest.fixture(scope="module")
def loaded():
    return nanoct.load(STRINGS, "cpu", torch.float32)


def test_importing_takes_no_torch_and_names_are_found_when_they_are_used():
    code = ("import sys, nanoct\nassert not {'torch', 'tiktoken', 'numpy'} & sys.modules.keys()\n"
            "assert set(nanoct.__all__) <= set(dir(nanoct)) and 'torch' not in sys.modules\n"
            "from nanoct import task_of, METHODS\nassert 'torch' in sys.modules and nanoct.METHODS is METHODS")
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in nanoct.__all__:
        assert (nanoct.METHODS == getattr(nanoct, name)) if name == "METHODS" else callable(getattr(nanoct, name))
    with pytest.raises(AttributeError, match="no 'lode'; it has load, "):
        nanoct.__getattr__("lode")


@pytest.mark.parametrize("name", nanoct.METHODS)
def test_examples_become_an_answer_with_every_method(loaded, name):
    model, tokenizer = loaded
    task, method = nanoct.task_of(PAIRS, tokenizer, template=TEMPLATE), nanoct.METHODS[name]
    few = {field: 2 for field in ("n_step", "ttt_n_step") if hasattr(method.Config(), field)}
    adapted = method.adapt(model, task, method.Config(**few))
    said = nanoct.answer(adapted, "mine", tokenizer, TEMPLATE)
    assert said and not {*said} & {"=", ";"}
    x, y = nano.encode(tokenizer, "mine", "enim")
    task.queries = [Query(x, y)]
    assert text_answers(adapted, task) == [(said, "enim")]
    assert evaluate(adapted, task).per_query == [said == "enim"] and evaluate(adapted, task).answers == [said]


def test_the_demos_are_those_of_the_world_and_dicts_are_pairs_too(loaded):
    _, tokenizer = loaded
    task = nanoct.task_of(PAIRS, tokenizer, template=TEMPLATE, name="mine")
    assert [(demo.x, demo.y) for demo in task.demos] == [nano.encode(tokenizer, *pair) for pair in PAIRS]
    assert task.instruction == [tokenizer.bos_id] and (task.name, task.queries, task.metric) == ("mine", [], "text")
    rows = [dict(input=x, output=y, note=3) for x, y in PAIRS]
    assert nanoct.task_of(iter(rows), tokenizer, template=TEMPLATE).demos == task.demos
    headed = nanoct.task_of(PAIRS, tokenizer, instruction="ab", template=TEMPLATE)
    assert headed.instruction == [tokenizer.bos_id, *tokenizer.encode("ab")]


def test_an_answer_is_cut_at_the_number_of_tokens_and_at_the_end(loaded):
    model, tokenizer = loaded
    adapted = nanoct.METHODS["icl"].adapt(model, nanoct.task_of(PAIRS, tokenizer, template=TEMPLATE))
    whole = nanoct.answer(adapted, "mine", tokenizer, TEMPLATE)
    assert len(whole) > 2 and nanoct.answer(adapted, "mine", tokenizer, TEMPLATE, max_new_tokens=2) == whole[:2]


def test_the_plain_template_puts_x_and_y_on_lines():
    tokenizer = nanoct.load_tokenizer("bytes")
    (demo,) = nanoct.task_of([("dog", "chien")], tokenizer).demos
    assert (bytes(demo.x), bytes(demo.y)) == (b"dog\n", b"chien\n\n")


@pytest.mark.parametrize("pairs, options, says", [
    ([], {}, "no pairs"),
    ("ab", {}, "the pairs are 'ab'"),
    ({"a": "b"}, {}, "the pairs are {'a': 'b'}"),
    (3, {}, "the pairs are 3"),
    (["ab"], {}, "pair 0 is 'ab'"),
    ([("a", "b"), ("a", 1)], {}, "pair 1 is ('a', 1)"),
    ([{"input": "a"}], {}, "pair 0 is {'input': 'a'}"),
    ([("a", "b", "c")], {}, "pair 0 is ('a', 'b', 'c')"),
    ([None], {}, "pair 0 is None"),
    ([("a", "b"), ("X", "b")], {}, "has no token for 'X'"),
    ([("a", "b;c")], {}, "pair 0: the output 'b;c' contains ';'"),
    ([("", "a")], dict(template="{input}{output};"), "pair 0 gives an empty input"),
    ([("a", "b")], dict(template="{input}="), "{output} once after it"),
    ([("a", "b")], dict(template="{input}={output}"), "terminator"),
    ([("a", "b")], dict(instruction=3), "the instruction is 3"),
    ([("a", "b")], dict(instruction="Reverse"), "no token for 'R'"),
])
def test_pairs_that_cannot_be_get_a_sentence(loaded, pairs, options, says):
    with pytest.raises(ValueError) as error:
        nanoct.task_of(pairs, loaded[1], **dict(template=TEMPLATE) | options)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_only_the_built_in_vocabulary_is_said_to_know_no_english(loaded):
    other = Tokenizer("tokenizer.json", r"[\s\S]", [b"a", b"\n"], {b"a": 0, b"\n": 1}, special={})
    for tokenizer, template, is_built_in in ((loaded[1], TEMPLATE, True), (other, "{input}\n{output}\n", False)):
        with pytest.raises(ValueError, match="no token for 'X'") as error:
            nanoct.task_of([("X", "a")], tokenizer, template=template)
        assert ("no English: `make smollm2` gets a model that does." in str(error.value)) == is_built_in


@pytest.mark.parametrize("question, options, says", [
    (3, {}, "the question is 3"),
    ("X", {}, "the question 'X': "),
    ("a" * 3000, {}, "context is"),
    ("a", dict(max_new_tokens=0), "max_new_tokens = 0"),
    ("a", dict(template="{input}={output}"), "terminator"),
])
def test_questions_that_cannot_be_get_a_sentence(loaded, question, options, says):
    model, tokenizer = loaded
    adapted = nanoct.METHODS["zero_shot"].adapt(model, nanoct.task_of(PAIRS, tokenizer, template=TEMPLATE))
    with pytest.raises(ValueError) as error:
        nanoct.answer(adapted, question, tokenizer, **dict(template=TEMPLATE) | options)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", nanoct.METHODS)
def test_a_task_of_another_tokenizer_gets_a_sentence_from_every_method(loaded, name):
    """With such an id in a demo and a question, as zero-shot reads no demo; in the instruction; in a question alone."""
    model, n, method = loaded[0], loaded[0].config.vocab_size, nanoct.METHODS[name]
    few = {field: 1 for field in ("n_step", "ttt_n_step") if hasattr(method.Config, field)}
    demos, asked = [Demo([1], [4]), Demo([2], [3])], [Query([1], [1])]
    for wrong, task in [(n, Task("other", [Demo([1], [n]), demos[1]], [Query([n], [1])])),
                        (n, Task("other", demos, asked, [n])), (-1, Task("other", demos, [Query([-1], [1])]))]:
        with pytest.raises(ValueError, match=f"the token id {wrong} is not one of the model's {n}: the tokenizer"):
            evaluate(method.adapt(model, task, method.Config(**few)), task)


def test_a_model_that_is_not_there_and_one_of_another_vocabulary_get_a_sentence(tmp_path, loaded):
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        nanoct.load("/nowhere")
    nanoct.save_model(loaded[0], tmp_path)
    (tmp_path / "vocab.json").write_text('["<s>", "a", "b"]')
    with pytest.raises(ValueError, match="do not belong together"):
        nanoct.load(tmp_path, "cpu")


def test_the_readme_shows_what_the_package_says():
    readme = Path(__file__).parents[1] / "README.md"
    if not readme.exists():
        pytest.skip("the README is not beside the tests")
    lines = [line.strip() for line in nanoct.__doc__.splitlines() if re.match(r" {4}\S", line)]
    assert "\n".join(lines) in re.sub("\n+", "\n", readme.read_text(encoding="utf-8")) and len(lines) <= 8
