"""BBH: the format and the drawing of demos on small files, the score of what is decoded, and files that are wrong."""

import json
from types import SimpleNamespace

import pytest
from helpers import DATA, tiny_llama

from nanoct import cli
from nanoct.benchmarks import bbh, common
from nanoct.fewshot import Adapted, concatenate
from nanoct.io.tokenizer import load_tokenizer
from nanoct.methods import METHODS, lora
from nanoct.score import asked, evaluate

DATA = DATA / "bbh"
BYTES = load_tokenizer("bytes")
EXAMPLES = [dict(input=f"what is {i} and {i}", target=f"({'ABCD'[i % 4]})") for i in range(12)]


class WithBOS:
    """The byte tokenizer with a beginning-of-sequence token, which no text contains."""

    bos_id, adds_bos, special, vocab_size = 7, True, {"<s>": 7}, 256
    encode, decode = BYTES.encode, BYTES.decode


def write(folder, examples=EXAMPLES, prompt="canary line\n-----\nAdd the numbers.\n\nQ: x\nA: y\n"):
    examples = examples if isinstance(examples, str) else json.dumps(dict(examples=examples))
    for name, file, text in (("bbh", "sums.json", examples), ("cot-prompts", "sums.txt", prompt)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / file).write_text(text)
    return folder


def make(folder, k=2, seed=42, tokenizer=BYTES, **options):
    return bbh.make_task(folder, "sums", tokenizer, seed, k, **options)


def test_a_context_reads_as_the_papers_format(tmp_path):
    task, counts = make(write(tmp_path), tokenizer=WithBOS(), form=False)
    model = tiny_llama(vocab_size=256, n_position=2048)
    tokens, owner = concatenate(model, task.instruction, task.demos, task.separator)
    given = [next(e for e in EXAMPLES if e["input"].encode() in bytes(d.x)) for d in task.demos]
    pair = "Q: {input}\nA: {target}\n\n"
    text = "Add the numbers.\n\n" + "".join(pair.format(**e) for e in given)
    assert tokens[0].tolist() == [7, *text.encode()]
    assert owner.tolist() == [-1] * 19 + [0] * len(pair.format(**given[0])) + [1] * len(pair.format(**given[1]))
    asked_for = [e for e in EXAMPLES if e not in given]  # all the others, in the order of the file
    assert [bytes(asked(task, q) + q.y).decode() for q in task.queries] == [pair.format(**e) for e in asked_for]
    assert counts == common.Counts(demos=2, queries=10)


def test_single_pairs_are_headed_by_the_instruction(tmp_path):
    """Methods without demos in context train on instruction + pair, and are asked instruction + question."""
    task, _ = make(write(tmp_path), form=False)
    model = tiny_llama(vocab_size=256)
    adapted = lora.adapt(model, task, lora.Config(n_step=1))
    assert adapted.prefix.next_position == len(b"Add the numbers.\n\n") and (adapted.prefix.owner == -1).all()


def instruction(task):
    return bytes(task.instruction).decode()


def test_the_instruction_says_how_to_answer(tmp_path):
    """In the sentence behind it, before the line breaks, and in no other place; by default."""
    task, counts = make(write(tmp_path))
    letter = "Answer with the letter of the right option in brackets, such as (A), and nothing else."
    assert instruction(task) == f"Add the numbers. {letter}\n\n"
    without, same = make(tmp_path, form=False)
    assert instruction(without) == "Add the numbers.\n\n" and counts == same
    assert (task.demos, task.queries) == (without.demos, without.queries)


@pytest.mark.parametrize("targets, what", [
    (["(A)", "(B)"] * 9, "the letter of the right option in brackets, such as (A),"),
    (["(A)", "(R)"] * 9 + ["Monsters, Inc"], "the letter of the right option in brackets, such as (A),"),
    (["False", "True"] * 9, "True or False"), (["No", "Yes"] * 9, "Yes or No"), (["no", "yes"] * 9, "yes or no"),
    (["invalid", "valid"] * 9, "valid or invalid"), (["18", "-3", "0", "2.5"] * 9, "a number"), (["7"] * 9, "a number"),
    ([") ]", ">", "} } )"] * 9, "the missing brackets, separated by spaces,"),
    (["ape bee", "it&t zoo it's", "elk"] * 9, "the words, separated by spaces,"),
    (["True", "False", "yes", "no"], "a word"), (["one", "two", "three"], "a word"),  # too few: no answer is told
    (["Monsters, Inc", "a, b"] * 9, "a few words"), (["a\nb", "c"] * 9, "a few words")])
def test_the_form_of_an_answer_is_that_of_the_targets(targets, what):
    assert bbh.form_of(targets) == f"Answer with {what} and nothing else."


def test_demos_are_drawn_by_seed(tmp_path):
    demos = lambda seed: [bytes(d.x) for d in make(write(tmp_path), 4, seed)[0].demos]
    assert demos(42) == demos(42) and len({tuple(demos(seed)) for seed in range(42, 47)}) == 5


def test_the_limits(tmp_path):
    task, counts = make(write(tmp_path), limit_queries=3)
    assert len(task.queries) == counts.queries == 3
    context = len(task.instruction) + sum(len(d.x) + len(d.y) for d in task.demos)
    long = [*EXAMPLES, dict(input="z" * 100, target="(A)")]
    assert not any(b"z" in bytes(d.x) for d in make(write(tmp_path, long))[0].demos)
    longest = len("Q: \nA: (A)\n\n") + 100
    assert make(tmp_path, length=context + longest)[1].dropped == 0
    task, counts = make(tmp_path, length=context + longest - 1)
    assert (counts.dropped, len(task.queries)) == (1, 10)


def test_a_target_that_is_no_option_is_asked_for_as_it_is(tmp_path, monkeypatch):
    """As some of movie_recommendation and ruin_names are."""
    target = "Monsters, Inc"
    examples = [dict(input=f"{i}\nOptions:\n(A) x\n(B) y", target=target) for i in range(4)]
    task, counts = make(write(tmp_path, examples))
    assert counts.queries == 2 and all(bytes(q.y) == b" Monsters, Inc\n\n" for q in task.queries)
    said = list(b" monsters, inc\n\n")
    monkeypatch.setattr("nanoct.score.generate", lambda adapted, prompts, *_: [said for _ in prompts])
    assert evaluate(Adapted(tiny_llama(vocab_size=256)), task).per_query == [True, True]


def test_an_answer_is_valid_if_it_is_any_target_of_the_file(tmp_path, monkeypatch):
    """Of examples that are asked or not; another case is the same answer, another form is none."""
    write(tmp_path, [dict(input=str(i), target="(A)") for i in range(5)] + [dict(input="5", target="Both")])
    for said, valid in ((" both\n\n", 1), (" (a)\n\n", 1), (" (B)\n\n", 0), (" The answer is (A)\n\n", 0)):
        monkeypatch.setattr("nanoct.score.generate", lambda adapted, prompts, *_: [list(said.encode())] * len(prompts))
        for seed in range(3):
            task, _ = make(tmp_path, seed=seed, limit_queries=1)
            assert task.text.answers == {"(a)", "both"}
            assert evaluate(Adapted(tiny_llama(vocab_size=256)), task).valid == valid


@pytest.mark.parametrize("said, right", [(" (A)\n", True), ("  (a) \n", True), (" (A)", True), (" (B)\n", False),
                                         (" (A) it is\n", False)])
def test_what_is_decoded_is_trimmed_and_compared_without_case(tmp_path, monkeypatch, said, right):
    task, _ = make(write(tmp_path, [dict(input=str(i), target="(A)") for i in range(4)]))
    monkeypatch.setattr("nanoct.score.generate", lambda adapted, prompts, *_: [list(said.encode()) for _ in prompts])
    assert evaluate(Adapted(tiny_llama(vocab_size=256)), task).per_query == [right, right]


@pytest.mark.parametrize("examples, prompt, said", [
    ("{", None, "is not JSON"),
    ("", None, "sums.json is empty"),
    ("[]", None, "is not a task of BBH"),
    ("[" * 10**5, None, "nested too deep"),
    ([dict(input="x", target=" \n")] * 5, None, "example 0 has an empty part"),
    ([], None, "0 examples"),
    ([*EXAMPLES, dict(input="x")], None, "is not a task of BBH, with examples of an input and a target"),
    ([dict(input="x", target=3)], None, "is not a task of BBH"),
    ([dict(input="x", target="a\n\nb")] * 5, None, "holds an empty line"),
    (EXAMPLES[:2], None, "2 examples, too few for k = 2"),
    (EXAMPLES, "no dashes\n", "no line of dashes"),
    (EXAMPLES, "-----\n", "no line of dashes with the instruction behind it"),
    (EXAMPLES, "-----\n\nQ: x\n", "no line of dashes with the instruction behind it"),
])
def test_bad_files_are_named_in_a_sentence(tmp_path, examples, prompt, said):
    write(tmp_path, examples, *([prompt] if prompt else []))
    with pytest.raises(ValueError) as error:
        make(tmp_path)
    assert "sums." in str(error.value) and said in str(error.value) and "\n" not in str(error.value)


def show(monkeypatch, folder, *arguments):
    monkeypatch.setattr("sys.argv", ["bbh", "--data", str(folder), "--k", "2", *arguments])
    cli.run(lambda: common.main(bbh))


def test_the_command_shows_tasks_as_a_model_sees_them_and_what_is_left_out(tmp_path, monkeypatch, capsys):
    write(tmp_path, [*EXAMPLES, dict(input="z" * 2000, target="(A)")])
    show(monkeypatch, tmp_path, "--show", "1", "--length", "500")
    said = capsys.readouterr().out
    assert r"such as (A), and nothing else.\n\n'" in said
    assert said.count(r"\nA:'") == said.count("  y ' (") == 4  # 2 demos, 2 queries
    counts = "2 demos, 10 queries, 1 too long, 0 inputs cut"
    assert [line.split(maxsplit=1)[1] for line in said.splitlines() if line.startswith("sums  ")] == [counts]
    assert said.splitlines()[-1].startswith("1 of 1 tasks ") and said.splitlines()[-1].endswith(counts)


@pytest.mark.parametrize("arguments, said", [
    (["--k", "0"], "--k 0 must be at least 1"), (["--show", "-1"], "--show -1"), (["--length", "0"], "--length 0"),
    (["--tasks", "x"], "--tasks: 'x' is not in"), (["--tasks", "sums", "x", "--show", "1"], "--tasks: 'x' is not in"),
    (["--k", "12"], "too few for k = 12"), (["--model", "no/where/at"], "no/where/at"),
    (["--data", "nowhere"], "folder of BBH")])
def test_a_mistake_on_the_command_line_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        show(monkeypatch, write(tmp_path), *arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.count("\n") == 1


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="--data takes the folder of BBH"):
        bbh.tasks(tmp_path)
    (write(tmp_path) / "cot-prompts" / "sums.txt").unlink()
    assert bbh.tasks(tmp_path) == ["sums"]
    with pytest.raises(FileNotFoundError, match="there is no .*sums.txt"):
        make(tmp_path)


def test_every_method_runs_on_a_task(tmp_path):
    task, _ = make(write(tmp_path), limit_queries=2)
    model = tiny_llama(vocab_size=256, n_position=512)
    for name, method in METHODS.items():
        steps = {f: 1 for f in ("n_step", "ttt_n_step") if hasattr(method.Config, f)}
        assert len(evaluate(method.adapt(model, task, method.Config(**steps)), task).per_query) == 2, name


@pytest.mark.skipif(not (DATA.parent / "llama3_tokenizer").is_dir(), reason="needs Llama-3's tokenizer")
@pytest.mark.parametrize("said, right", [
    (" (B)\n\nQ: next", True), (" (B)<|eot_id|> and more", True), (" (B)<|end_of_text|>", True), (" (A)\n\n(B)", False),
    (" (B) or so", False)])
def test_an_answer_ends_as_llama_3_writes_it(tmp_path, monkeypatch, said, right):
    """")\\n\\n" is one token of Llama-3's, and neither it nor an end-of-sequence token is the two line breaks alone."""
    llama3 = load_tokenizer(DATA.parent / "llama3_tokenizer")
    ids = llama3.encode(said, special=True)
    assert llama3.encode("\n\n")[0] not in ids

    def generate(adapted, prompts, limit, stop):
        return [next(ids[:n] for n in range(1, len(ids) + 1) if n == len(ids) or stop(ids[:n])) for _ in prompts]

    write(tmp_path, [dict(input=str(i), target="(B)") for i in range(4)])
    task, _ = bbh.make_task(tmp_path, "sums", llama3, 42, 2)
    monkeypatch.setattr("nanoct.score.generate", generate)
    model = SimpleNamespace(config=SimpleNamespace(n_position=2048))
    assert evaluate(Adapted(model), task).per_query == [right, right]
