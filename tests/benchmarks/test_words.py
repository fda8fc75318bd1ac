"""Words: the lists checked line by line, forms computed, the split, and files that are not as they should be."""

import json
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from helpers import tiny_llama

from nanoct.benchmarks import words
from nanoct.fewshot import concatenate
from nanoct.io.tokenizer import load_tokenizer

BYTES = load_tokenizer("bytes")
NAMES = words.tasks()
ONES = """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBERS = {word: str(n) for n, word in enumerate(ONES, 1)}
NUMBERS |= {ten: f"{n}0" for n, ten in enumerate(TENS, 2)}
NUMBERS |= {f"{ten}-{one}": f"{n}{digit}" for n, ten in enumerate(TENS, 2) for digit, one in enumerate(ONES[:9], 1)}
FORMS = {
    "first_letter": lambda word: word[0],
    "first_two": lambda word: word[:2],
    "last_letter": lambda word: word[-1],
    "length": lambda word: str(len(word)),
    "next_number": lambda number: str(int(number) + 1),
    "number_word": NUMBERS.get,
    "reverse": lambda word: word[::-1],
    "starts_with_vowel": lambda word: "yes" if word[0] in "aeiou" else "no",
    "upper_case": str.upper,
}
CLASSES = {"animal_class": 4, "animal_or_thing": 2, "category": 5, "continent": 5, "length": 6, "starts_with_vowel": 2,
           "animal_foo_plant_bar": 2, "city_dax_country_wug": 2, "food_x_clothes_y_tool_z": 3, "good_nim_bad_tob": 2}
PLACES = {"capital", "continent", "currency", "language", "nationality", "city_dax_country_wug"}  # inputs are names


def read(name):
    return words.read(words.where(None) / f"{name}.tsv")


def write(folder, content, name="own"):
    (folder / f"{name}.tsv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_list(name):
    text = (words.where(None) / f"{name}.tsv").read_bytes().decode()
    pairs = [line.split("\t") for line in text.split("\n")[:-1]]
    assert text.endswith("\n") and unicodedata.normalize("NFC", text) == text
    assert len(pairs) == 60 and all(len(pair) == 2 for pair in pairs) and read(name) == pairs
    assert len({x.lower() for x, _ in pairs}) == 60
    cells = [cell for pair in pairs for cell in pair]
    assert all(re.fullmatch(r"[^\W_]+([ -][^\W_]+)?([ -][^\W_]+)?", cell) for cell in cells)
    inputs, outputs = (list(column) for column in zip(*pairs))
    assert all(x.istitle() for x in inputs) if name in PLACES else all(x == x.lower() for x in inputs)
    title = name in ("capital", "continent", "language", "nationality")
    if name not in ("upper_case", "english_to_german"):
        assert all(y.istitle() for y in outputs) if title else all(y == y.lower() for y in outputs)


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_the_one_computed(name):
    assert [y for _, y in read(name)] == [FORMS[name](x) for x, _ in read(name)]


def test_number_words():
    assert [NUMBERS[word] for word in ("seventeen", "forty", "ninety-nine")] == ["17", "40", "99"]
    assert sorted(map(int, NUMBERS.values())) == list(range(1, 100))


def test_no_word_reads_the_same_backwards():
    assert all(x != y for x, y in read("reverse"))


@pytest.mark.parametrize("name", CLASSES)
def test_classes_have_as_many_lines_each_and_come_in_turn(name):
    outputs, n = [y for _, y in read(name)], CLASSES[name]
    assert set(Counter(outputs).values()) == {60 // n}
    assert outputs == outputs[:n] * (60 // n)


def test_all_other_tasks_have_many_answers():
    for name in set(NAMES) - set(CLASSES):
        assert Counter(y for _, y in read(name)).most_common(1)[0][1] <= 10, name


@pytest.mark.parametrize("name, ends", [("adverb", "ly"), ("agent", ("er", "or")), ("comparative", ("er", "worse")),
                                        ("gerund", "ing"), ("superlative", ("est", "worst")), ("third_person", "s")])
def test_endings(name, ends):
    for x, y in read(name):
        assert y.endswith(ends) and (y[0] == x[0] or x in ("good", "bad", "be")), (x, y)


def test_languages_have_their_own_letters():
    letters = {"english_to_french": "éèêç", "english_to_german": "äöüß", "english_to_spanish": "áóúñ"}
    for name, extra in letters.items():
        found = {c for _, y in read(name) for c in y.lower() if not c.isascii()}
        assert found <= set(extra) | set("íùâîôû") and found & set(extra), (name, found)
    nouns = [y for x, y in read("english_to_german") if x not in ("red", "white", "two")]
    assert all(noun.istitle() for noun in nouns) and ["red", "rot"] in read("english_to_german")


def test_split():
    """Every third of a kind, from the second on, by alphabet; no task on both sides; all kinds on both sides."""
    validation, test = words.POOLS["validation"], words.POOLS["test"]
    assert sorted(validation + test) == sorted(NAMES) == sorted(sum(words.KINDS.values(), []))
    assert len(NAMES) == 35
    assert validation == ["animal_or_thing", "category", "language", "agent", "past_participle", "superlative",
                          "english_to_german", "first_two", "next_number", "starts_with_vowel", "city_dax_country_wug"]
    for names in words.KINDS.values():
        assert names == sorted(names) and {name for name in names if name in validation} == set(names[1::3])
    for folder in (None, "words", words.where(None)):
        assert words.pools(folder) == words.POOLS


def test_a_task_byte_by_byte(tmp_path):
    text = "".join(f"in {i}\tout {i}\n" for i in range(4))
    task, counts = words.make_task(write(tmp_path, text), "own", BYTES, 42, k=2)
    given = [int(bytes(d.x)[3:4]) for d in task.demos]
    others = [i for i in range(4) if i not in given]
    tokens, owner = concatenate(tiny_llama(vocab_size=256), task.instruction, task.demos, task.separator)
    assert bytes(tokens[0].tolist()).decode() == "".join(f"in {i} -> out {i}\n" for i in given)
    assert [(bytes(q.x), bytes(q.y)) for q in task.queries] == [(b"in %d ->" % i, b" out %d\n" % i) for i in others]
    assert not task.instruction and not task.separator and task.metric == "ids"
    assert owner.tolist() == [0] * 14 + [1] * 14
    assert (counts.demos, counts.queries, counts.dropped) == (2, 2, 0)


def test_the_line_break_is_tokenised_apart(tmp_path):
    """Where "cold" and the line break would be one token."""
    tokens = ["hot", " ->", " cold", "\n", " cold\n", "big", " small", " small\n"]
    (tmp_path / "vocab.json").write_text(json.dumps(tokens))
    task, _ = words.make_task(write(tmp_path, "hot\tcold\nbig\tsmall\n"), "own", load_tokenizer(tmp_path), 42, k=1)
    assert sorted([task.demos[0].y, task.queries[0].y]) == [[2, 3], [6, 3]]


def test_packaged_tasks_and_seeds():
    make = lambda folder, seed: words.make_task(folder, "antonym", BYTES, seed)[0]
    tasks = [make(None, 42), make("words", 42), make(None, 43)]
    assert tasks[0] == tasks[1] and tasks[0].demos != tasks[2].demos
    for name in NAMES:
        task, counts = words.make_task(None, name, BYTES, 42)
        assert (counts.demos, counts.queries, counts.dropped) == (10, 50, 0)
        pairs = [bytes(p.x) + bytes(p.y) for p in task.demos + task.queries]
        assert sorted(pairs) == sorted(f"{x} -> {y}\n".encode() for x, y in read(name))
    assert len(words.make_task(None, "antonym", BYTES, 42, limit_queries=7)[0].queries) == 7


def test_queries_that_are_too_long_are_dropped(tmp_path):
    text = "".join(f"{i}\t{i}\n" for i in range(3)) + "long" * 9 + "\t4\n"
    draws = [words.make_task(write(tmp_path, text), "own", BYTES, seed, k=2, length=30)[1] for seed in range(9)]
    assert all(counts.queries + counts.dropped == 2 for counts in draws)
    assert {counts.dropped for counts in draws} == {1, 2}


@pytest.mark.parametrize("text", [
    "\ufeffa\tb\nc\td\n",  # a byte-order mark
    "a\tb\r\nc\td\r\n",    # Windows line ends
    "a\tb\nc\td",          # no end of the last line
    "a\tb\nc\td\n\n \n",   # blank lines at the end
    " a \tb\nc\t d \n",    # blanks around
])
def test_tolerated(tmp_path, text):
    assert words.read(write(tmp_path, text) / "own.tsv") == [["a", "b"], ["c", "d"]]


def test_inner_blanks_and_other_letters_stay(tmp_path):
    assert words.read(write(tmp_path, "New  Zealand\tça\u2028va\n") / "own.tsv") == [["New  Zealand", "ça\u2028va"]]


@pytest.mark.parametrize("content, sentence", [
    ("a\tb\nc d\n", r"own.tsv, line 2 is 'c d': write input<TAB>output"),
    ("a\tb\tc\nd\te\n", r"own.tsv, line 1 is 'a\\tb\\tc'"),
    ("a\tb\n\tc\n", r"own.tsv, line 2 is '\\tc'"),
    ("a\tb\nc\t \nd\te\n", r"own.tsv, line 2 is 'c\\t '"),
    ("a\tb\nc\t\n", r"own.tsv, line 2 is 'c\\t'"),
    ("a\tb\n\nc\td\n", r"own.tsv, line 2 is ''"),
    ("a\tb\nc\td\na \te\n", r"own.tsv, line 3 has the input 'a' of line 1 again"),
    (b"a\tb\nc\t\xe9t\xe9\n", r"own.tsv, line 2 is not UTF-8 text"),
    ("\ufeff\n \n", r"own.tsv is empty"),
    ("a\tb\nc\td\n", r"own.tsv has 2 examples, too few for k = 2 demos and a query: use a lower --k"),
])
def test_refused(tmp_path, content, sentence):
    with pytest.raises(ValueError, match=sentence):
        words.make_task(write(tmp_path, content), "own", BYTES, 42, k=2)


def test_one_line_more_than_demos_is_enough(tmp_path):
    assert len(words.make_task(write(tmp_path, "a\tb\nc\td\ne\tf\n"), "own", BYTES, 42, k=2)[0].queries) == 1


def test_no_lists_or_no_such_list(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no .*tsv"):
        words.tasks(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no .*missing.tsv"):
        words.make_task(None, "missing", BYTES, 42)


def test_a_folder_of_ones_own(tmp_path, monkeypatch):
    write(tmp_path, "a\tb\n", "second"), write(tmp_path, "a\tb\n", "first")
    assert words.tasks(tmp_path) == ["first", "second"]
    assert words.pools(tmp_path) == {"validation": [], "test": ["first", "second"]}
    (tmp_path / "words").mkdir()
    write(tmp_path / "words", "a\tb\n", "mine")
    monkeypatch.chdir(tmp_path)
    assert words.tasks("./words") == ["mine"] and words.tasks("words") == NAMES
    assert words.tasks(Path("words")) == ["mine"]


def command(*options):
    line = [sys.executable, "-m", "nanoct.benchmarks.words", *options]
    return subprocess.run(line, capture_output=True, text=True, encoding="utf-8")


@pytest.mark.slow
def test_command(tmp_path):
    shown = command("--show", "2").stdout
    assert "agent: 10 demos, 50 queries, metric ids" in shown and "2 of 35 tasks" in shown
    assert "x 'begin ->'\n  y ' beginner\\n'" in shown
    own = command("--data", str(write(tmp_path, "a\tb\nc\td\n")), "--k", "1")
    assert "1 of 1 tasks" in own.stdout and not own.returncode
    wrong = command("--data", str(write(tmp_path, "a\tb\nc d\n")), "--k", "1")
    assert wrong.returncode == 2 and "own.tsv, line 2 is 'c d'" in wrong.stderr
    assert wrong.stderr.count("\n") == 1


def test_readme():
    """Its table has every task with its kind, a line of its list, and the side it is on."""
    text = (words.where(None) / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| (\w+) \| (\w+) \| (.+) -> (.+) \| (\w+) \|$", text, re.M)
    assert [row[:2] for row in rows] == [(kind, name) for kind, names in words.KINDS.items() for name in names]
    for _, name, x, y, side in rows:
        assert [x, y] in read(name) and name in words.POOLS[side]
