"""The world "strings": what its functions do, and that what is held out is nowhere in training."""

import json
import os
import random
import subprocess
import sys

import pytest

from nanoct.benchmarks import nano
from nanoct.benchmarks.nano import strings
from nanoct.tokenizer import load_tokenizer

POOLS = ("train", "validation", "held_out")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.json").write_text(json.dumps(nano.VOCABULARY))
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def outputs():
    """{pool: {name: outputs}} on 400 inputs that are not the probes."""
    rng = random.Random("fresh")
    inputs = [strings.draw(rng) for _ in range(400)]
    return {pool: {name: tuple(strings.apply(name, s) for s in inputs) for name in names}
            for pool, names in strings.pools().items()}


# --- the functions ---

EXAMPLES = {
    "reverse": ("bca", "acb"),
    "rotate": ("abcd", "bcda"),
    "swap_ends": ("abcd", "dbca"),
    "swap_pairs": ("abcde", "badce"),
    "drop_first": ("abc", "bc"),
    "drop_last": ("abc", "ab"),
    "every_other": ("abcde", "ace"),
    "swap_halves": ("abcde", "deabc"),
    "riffle": ("abcde", "adbec"),
    "unriffle": ("abcde", "acebd"),
    "double": ("abc", "aabbcc"),
    "repeat": ("abc", "abcabc"),
    "mirror": ("abc", "abccba"),
    "echo": ("abc", "abca"),
    "bounce": ("abcde", "abced"),
    "next": ("abp", "bca"),
    "opposite": ("abp", "poa"),
    "ramp": ("aaap", "abcc"),
    "next_if_low": ("ahip", "biip"),
    "sort": ("cabc", "abcc"),
    "dedupe": ("abacb", "abc"),
    "max_first": ("acbc", "cabc"),
    "min_last": ("bacab", "bcaba"),
    "low_first": ("pabi", "abpi"),
    "odd_first": ("abcd", "acbd"),
    "running_max": ("acbdb", "accdd"),
    "turn": ("cba", "abc"),
}


def test_every_primitive_has_an_example():
    assert EXAMPLES.keys() == strings.PRIMITIVES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_primitive_by_hand(name):
    s, expected = EXAMPLES[name]
    assert strings.apply(name, s) == expected


@pytest.mark.parametrize("name, s, expected", [
    ("turn", "abc", "abc"),
    ("swap_ends", "a", "a"),
    ("swap_pairs", "abcd", "badc"),
    ("riffle", "abcd", "acbd"),
    ("bounce", "abcd", "abdc"),
    ("reverse then drop_first", "abc", "ba"),  # from left to right
    ("drop_first then reverse", "abc", "cb"),
])
def test_more_by_hand(name, s, expected):
    assert strings.apply(name, s) == expected


def test_the_functions_stand_the_empty_string_and_stay_in_the_alphabet():
    for name in strings.PRIMITIVES:
        assert strings.apply(name, "") == ""
        assert set(strings.apply(name, strings.LETTERS)) <= set(strings.LETTERS)


# --- the pools ---


def test_pools_are_large_and_the_primitives_are_trained_on():
    pools = strings.pools()
    assert tuple(pools) == POOLS
    assert set(strings.PRIMITIVES) <= set(pools["train"]) and len(pools["train"]) > 200
    assert len(pools["held_out"]) + len(pools["validation"]) > 200 and len(pools["validation"]) >= 40
    names = [name for pool in POOLS for name in pools[pool]]
    assert len(set(names)) == len(names)


def test_pools_are_disjoint_as_functions(outputs):
    functions = [y for pool in POOLS for y in outputs[pool].values()]
    assert len(set(functions)) == len(functions)


@pytest.mark.parametrize("pool", ["validation", "held_out"])
def test_no_unseen_function_is_nearly_a_trained_one(outputs, pool):
    """Chosen at 0.5 on the probes; 0.6 is four standard errors away on 400 other inputs."""
    nearest = strings.agreement(list(outputs[pool].values()), list(outputs["train"].values())).max(1)
    assert nearest.max() <= 0.6
    trained, unseen = list(outputs["train"].items())[40], list(outputs[pool].items())[7]
    by_hand = sum(a == b for a, b in zip(unseen[1], trained[1])) / 400
    assert strings.agreement([unseen[1]], [trained[1]])[0, 0] == by_hand


def test_outputs_are_never_empty_or_too_long(outputs):
    lengths = {len(y) for pool in POOLS for of_function in outputs[pool].values() for y in of_function}
    assert min(lengths) >= 1 and max(lengths) <= strings.LONGEST_OUTPUT == 12


def test_pools_and_tasks_are_the_same_in_every_process():
    program = ("import random; from nanoct.benchmarks.nano import strings as s; p = s.pools();"
               "print(p, s.pairs(p['held_out'][0], 5, random.Random('a/1')))")
    other = {"PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}  # by default, random
    there = subprocess.run([sys.executable, "-c", program], env=os.environ | other, capture_output=True, text=True, check=True)
    here = strings.pools()
    assert there.stdout == f"{here} {strings.pairs(here['held_out'][0], 5, random.Random('a/1'))}\n"


# --- tasks ---


def test_a_task_is_readable_and_right(tokenizer):
    for name in strings.pools()["held_out"][:20]:
        task = strings.make_task(name, tokenizer, seed=42)
        assert tokenizer.decode(task.instruction) == strings.BOS
        assert len(task.demos) == 10 and len(task.queries) == 30 and task.metric == "ids"
        read = [(tokenizer.decode(p.x), tokenizer.decode(p.y)) for p in (*task.demos, *task.queries)]
        for x, y in read:
            assert x.endswith("=") and y.endswith(";") and 3 <= len(x) - 1 <= 6
            assert strings.apply(name, x[:-1]) == y[:-1]
            assert tokenizer.encode(x) + tokenizer.encode(y) == tokenizer.encode(x + y)
        assert len({x for x, _ in read}) == 40  # demos and queries share no input


def test_a_task_is_its_name_and_seed(tokenizer):
    make = lambda name, seed, **sizes: strings.make_task(name, tokenizer, seed, **sizes)
    assert make("reverse", 1) == make("reverse", 1)
    xs = lambda task: [demo.x for demo in task.demos]
    assert xs(make("reverse", 1)) != xs(make("reverse", 2)) and xs(make("reverse", 1)) != xs(make("sort", 1))
    small = make("sort", 3, k=2, n_query=4)
    assert len(small.demos) == 2 and len(small.queries) == 4


def test_inputs_are_drawn_until_they_are_distinct():
    n, rng = 3000, random.Random(0)
    assert len({strings.draw(rng) for _ in range(n)}) < n
    assert len({x for x, _ in strings.pairs("sort", n, random.Random(0))}) == n


def test_the_vocabulary_round_trips(tokenizer):
    text = "bca=acb;" + strings.LETTERS
    ids = tokenizer.encode(text, bos=True)
    assert len(ids) == len(text) + 1 and tokenizer.decode(ids) == "<s>" + text
    assert tokenizer.vocab_size == len(nano.VOCABULARY) == 19
