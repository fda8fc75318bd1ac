"""The tool for one's own task: what it saves predicts as it did in memory, and every mistake gets one sentence."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nanoct import cli, score, tune
from nanoct.benchmarks import nano
from nanoct.costs import memory
from nanoct.fewshot import Adapted, Query, Task, Text
from nanoct.io import smollm2
from nanoct.io.tokenizer import ALPHABET, load_tokenizer
from nanoct.io.weights import load_model, save_model
from nanoct.methods import METHODS, ct_kv, icl
from nanoct.model import Llama, LlamaConfig
from nanoct.runs.contexts import load_adapted, read_about, save_adapted
from nanoct.score import NotFinite, evaluate
from nanoct.tune import Line, answer, configure, encode, read_lines, split, unescape

DEMOS = [dict(input=x, output=x[::-1]) for x in ("abc", "fade", "nb", "hijk", "pale", "cab", "dim", "no", "lap", "peg")]
OTHERS = [dict(input=x, output=x[::-1]) for x in ("bade", "cafe", "mop", "gnp", "open", "chip")]
STRINGS = nano.FOLDER / "strings"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """As in a clone without weights/smollm2."""
    monkeypatch.setattr(smollm2, "FOLDER", tmp_path / "weights/smollm2")
    monkeypatch.setattr(smollm2, "EMBEDDED", tmp_path / "weights")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Folder of a random model of the built-in vocabulary with a context of 64 tokens."""
    folder = tmp_path_factory.mktemp("model")
    sizes = dict(n_layer=1, n_head=2, n_kv_head=1, n_embd=16, head_dim=8, n_ffn=16, n_position=64)
    config = LlamaConfig(len(nano.VOCABULARY), **sizes)
    save_model(Llama(config).init_weights(torch.Generator().manual_seed(0)), folder)
    (folder / "vocab.json").write_text(json.dumps(nano.VOCABULARY))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("mine.jsonl", DEMOS[:4])
    write("test.jsonl", DEMOS[4:])
    return tmp_path


def save_bytes_model(folder, n_position=99, added=()):
    """A small random model in a folder that reads any text, byte by byte. added: names of special tokens."""
    tokens = [chr(byte if byte in ALPHABET[:188] else 256 + ALPHABET[188:].index(byte)) for byte in range(256)] + ["ĊĊ"]
    bpe = dict(type="BPE", vocab={token: i for i, token in enumerate(tokens)}, merges=["Ċ Ċ"])
    special = [dict(id=257 + i, content=name, special=True) for i, name in enumerate(added)]
    file = dict(model=bpe, pre_tokenizer=dict(type="ByteLevel", add_prefix_space=False), added_tokens=special)
    sizes = dict(n_layer=1, n_head=2, n_kv_head=1, n_embd=16, head_dim=8, n_ffn=16, n_position=n_position)
    config = LlamaConfig(257 + len(added), **sizes)
    save_model(Llama(config).init_weights(torch.Generator().manual_seed(0)), folder)
    with open(Path(folder) / "tokenizer.json", "w") as f:
        json.dump(file, f)


def write(path, rows):
    with open(path, "w") as f:
        f.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["nanoct.tune", *map(str, arguments)])
    tune.main()


def rows(text):
    return [json.loads(row) for row in text.splitlines()]


# --- tune, save, predict ---


def test_end_to_end_on_the_shipped_model(here, monkeypatch, capsys):
    queries = [dict(row, output=None) if i == 2 else row for i, row in enumerate(DEMOS)]
    write("mine.jsonl", DEMOS)
    write("test.jsonl", OTHERS)
    write("questions.jsonl", queries)
    call(monkeypatch, "--data", "mine.jsonl", "--out", "new/ctx", "--held-out", "test.jsonl", "--set", "n_step=4",
         "lr=0.1", "--device", "cpu", "--seed", 3)
    said = capsys.readouterr()
    assert "4/4" in said.err and f"ct_kv on {STRINGS}, 10 demos: loss without dropout " in said.out
    P = 1 + sum(len(row["input"]) + len(row["output"]) + 2 for row in DEMOS)
    assert f"{2 * 6 * 2 * 32 * P:,} trained numbers" in said.out  # 2·L·K·D·P
    assert f"{(here / 'new' / 'ctx').stat().st_size:,} bytes" in said.out
    scores = dict(line.split() for line in said.out.splitlines()[-3:])
    assert list(scores) == ["ct_kv", "icl", "zero_shot"] and scores["zero_shot"] < scores["icl"]

    model, tokenizer = load_model(STRINGS, "cpu"), load_tokenizer(STRINGS)
    demos = [nano.encode(tokenizer, row["input"], row["output"]) for row in DEMOS]
    others = [nano.encode(tokenizer, row["input"], row["output"]) for row in OTHERS]
    task = Task("mine", [nano.Demo(*demo) for demo in demos], [Query(*demo) for demo in demos], [tokenizer.bos_id],
                metric="text", text=Text(tokenizer.decode, ";"))
    adapted = ct_kv.adapt(model, task, ct_kv.Config(n_step=4, lr=0.1), seed=3)
    saved, about = load_adapted("new/ctx", model)
    assert all(map(torch.equal, saved.prefix.stack(), adapted.prefix.stack())) and about["k"] == 10
    held_out = evaluate(adapted, Task("", [], [Query(*pair) for pair in others], metric="text", text=task.text))
    assert scores["ct_kv"] == f"{held_out.score:.1%}"

    call(monkeypatch, "--predict", "--context", "new/ctx", "--data", "questions.jsonl", "--device", "cpu")
    said = capsys.readouterr()
    right = evaluate(adapted, task).per_query
    assert [row.get("right") for row in rows(said.out)] == [None if i == 2 else r for i, r in enumerate(right)]
    in_memory = answer(adapted, tokenizer, read_lines("questions.jsonl", False), "{input}={output};", None, 22)
    assert [row["prediction"] for row in rows(said.out)] == [prediction for prediction, _ in in_memory]
    assert [row["input"] for row in rows(said.out)] == [row["input"] for row in DEMOS] and "on 9 lines" in said.err

    call(monkeypatch, "--predict", "--context", "new/ctx", "--data", "questions.jsonl", "--out", "answers.jsonl")
    assert (here / "answers.jsonl").read_text() == said.out and not capsys.readouterr().out


def test_options_as_nanoct_scores_them(here, monkeypatch, capsys):
    folder, name = nano.FOLDER / "facts", nano.WORLDS["facts"].pools()["held_out"][0]
    demos, queries = nano.WORLDS["facts"].examples(name, 0, 16, 12)
    write("mine.jsonl", [dict(input=x, output=y) for x, y in demos])
    write("test.jsonl", [dict(input=x, output=y, options=options) for x, y, options in queries])
    for metric in (None, "macro_f1"):
        call(monkeypatch, "--data", "mine.jsonl", "--method", "icl", "--out", "ctx", "--model", folder, "--held-out",
             "test.jsonl", "--force", "--device", "cpu", *(["--metric", metric] if metric else []))
        said = capsys.readouterr()
        assert "no steps" in said.out and "step/s" not in said.err
        model = load_model(folder, "cpu")
        task = nano.make_task("facts", name, load_tokenizer(folder), 0, n_query=12)
        task.metric = metric or "accuracy"
        result = evaluate(icl.adapt(model, task), task)
        assert said.out.splitlines()[-2].split() == ["icl", f"{result.score:.1%}"]
        assert read_about("ctx")["metric"] == metric
        call(monkeypatch, "--predict", "--context", "ctx", "--model", folder, "--data", "test.jsonl", "--device", "cpu")
        said = capsys.readouterr()
        assert [row["right"] for row in rows(said.out)] == result.per_query and f"{result.score:.1%} on 12" in said.err
        for row, (_, _, options) in zip(rows(said.out), queries, strict=True):
            assert list(row["losses"]) == options and min(row["losses"].values()) == row["losses"][row["prediction"]]


@pytest.mark.parametrize("metric", [None, "accuracy", "macro_f1"])
def test_options_that_differ_in_spaces_are_the_same_answer_in_every_metric(metric):
    lines = [tune.Line("a", "x", output, ["yes", " yes", "no"]) for output in ("yes", " yes", "no")]
    losses = lambda best: {option: float(option != best) for option in lines[0].options}
    said = [" yes", "yes", "no"]
    assert tune.score(lines, [(best, losses(best)) for best in said], metric) == 1
    wrong = 1 / 4 if metric == "macro_f1" else 1 / 3
    assert tune.score(lines, [("no", losses("no"))] * 3, metric) == pytest.approx(wrong)


def test_options_that_tie_count_their_share():
    line = tune.Line("a", "x", "yes", ["yes", "no", "maybe", " yes"])
    of = lambda *losses: tune.score([line, line], [("yes", dict(zip(line.options, losses))), ("yes", {})], "accuracy")
    assert of(1.0, 1.0, 1.0, 2.0) == (1 / 3 + 1) / 2 and of(1.0, 1.0, 1.0, 1.0) == (1 / 2 + 1) / 2
    assert of(1.0, 2.0, 2.0, 2.0) == 1 and of(2.0, 1.0, 1.0, 2.0) == 1 / 2


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_tuned_and_asked(here, small, monkeypatch, capsys, method):
    few = [f"--set={name}=1" for name in ("n_step", "ttt_n_step", "n_prefix") if name in vars(METHODS[method].Config)]
    call(monkeypatch, "--data", "mine.jsonl", "--method", method, "--out", "ctx", "--model", small, "--device", "cpu",
         "--template", "{input}={output};;", "--instruction", "=", *few)
    about = read_about("ctx")
    assert about["template"] == "{input}={output};;" and about["instruction"] == "=" and about["method"] == method
    write("test.jsonl", [dict(input="abc")])
    call(monkeypatch, "--predict", "--context", "ctx", "--data", "test.jsonl", "--model", small, "--device", "cpu")
    (row,) = rows(capsys.readouterr().out.splitlines()[-1])
    assert row.keys() == {"input", "prediction"} and ";;" not in row["prediction"]


def test_the_context_is_saved_before_it_is_scored(here, small, monkeypatch, capsys):
    def dies(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "answer", dies)
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: call(monkeypatch, "--data", "mine.jsonl", "--out", "ctx", "--model", small, "--held-out",
                             "test.jsonl", "--set=n_step=1"))
    assert read_about("ctx")["k"] == 4 and stopped.value.code == 130 and "saved" in capsys.readouterr().err


def test_demos_that_icl_cannot_read_do_not_stop_lora(here, small, monkeypatch, capsys):
    write("mine.jsonl", DEMOS)
    write("test.jsonl", OTHERS)
    call(monkeypatch, "--data", "mine.jsonl", "--method", "lora", "--set=n_step=1", "--out", "ctx", "--model", small,
         "--held-out", "test.jsonl")
    lora, told, zero = capsys.readouterr().out.splitlines()[-3:]
    assert lora.split()[0] == "lora" and "icl" in told and "cannot be scored: a context of 10 demos" in told
    assert zero.split()[0] == "zero_shot"


@pytest.mark.parametrize("method, n_step", [("ct_kv", 5), ("lora", 5), ("lora", 1), ("ttt", 1)])  # 1: the last step
def test_what_diverged_is_neither_scored_nor_saved(here, small, monkeypatch, capsys, method, n_step):
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: call(monkeypatch, "--data", "mine.jsonl", "--method", method, "--out", "ctx", "--model", small,
                             "--held-out", "test.jsonl", "--set=lr=1e30", f"--set=n_step={n_step}"))
    said = capsys.readouterr()
    assert stopped.value.code == 2 and not said.out and not (here / "ctx").exists()
    assert f"error: {method} on mine" in said.err and "smaller lr" in said.err


def test_what_needs_more_memory_than_is_free_is_refused_before_the_work(here, small, monkeypatch, capsys):
    monkeypatch.setattr(memory, "free", lambda device: 1000)
    monkeypatch.setattr(METHODS["ttt"], "adapt", lambda *_: pytest.fail("it is at work already"))
    message = refused(monkeypatch, capsys, "--data", "mine.jsonl", "--method", "ttt", "--out", "ctx", "--model", small)
    assert "ttt on mine needs 0.00 GB beside the weights and 0.00 GB are free: take a smaller model" in message


@pytest.mark.parametrize("method", ["icl", "ct_kv", "zero_shot"])
def test_weights_that_are_not_finite_are_refused_before_any_step(here, small, monkeypatch, capsys, method):
    model = load_model(small, "cpu")
    model.model.norm.weight[0] = torch.nan
    save_model(model, "sick")
    Path("sick/vocab.json").write_text(json.dumps(nano.VOCABULARY))
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: call(monkeypatch, "--data", "mine.jsonl", "--model", "sick", "--method", method, "--out",
                             "ctx"))
    said = capsys.readouterr()
    assert stopped.value.code == 2 and not said.out and not (here / "ctx").exists()
    assert f"{method} on mine comes to nan" in said.err and "weights" in said.err and "step/s" not in said.err


def test_scores_that_are_not_finite_end_it(here, small, monkeypatch, capsys):
    def fails(*_, **__):
        raise NotFinite("nan")

    monkeypatch.setattr(tune, "answer", fails)
    with pytest.raises(NotFinite):
        call(monkeypatch, "--data", "mine.jsonl", "--method", "icl", "--out", "ctx", "--model", small, "--held-out",
             "test.jsonl")


# --- the losses that are printed ---


def losses_of(said):
    return [float(number) for number in re.search(r"dropout ([\d.]+) -> ([\d.]+) in", said).groups()]


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("icl", "zero_shot")])
def test_a_rate_that_changes_nothing_leaves_the_loss_that_is_printed(here, small, monkeypatch, capsys, method):
    """Of much dropout the loss of a step is far off, and of two steps two draws; without it both ends are the same."""
    names = vars(METHODS[method].Config)
    tiny = [f"--set={name}=1e-30" for name in ("lr", "ttt_lr") if name in names]
    much = [f"--set={name}=0.6" for name in ("token_dropout", "dropout") if name in names]
    few = [f"--set={name}=2" for name in ("n_step", "ttt_n_step") if name in names]
    call(monkeypatch, "--data", "mine.jsonl", "--method", method, "--out", "ctx", "--model", small, *tiny, *much, *few)
    before, after = losses_of(capsys.readouterr().out)
    assert before == after


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_the_losses_are_those_of_training_without_dropout(here, monkeypatch, capsys, leave_one_out):
    call(monkeypatch, "--data", "mine.jsonl", "--out", "ctx", "--model", STRINGS, "--set=token_dropout=0.5",
         "--set=n_step=2", f"--set=leave_one_out={leave_one_out}")
    found = losses_of(capsys.readouterr().out)
    model, tokenizer = load_model(STRINGS, "cpu"), load_tokenizer(STRINGS)
    demos = [nano.Demo(*nano.encode(tokenizer, row["input"], row["output"])) for row in DEMOS[:4]]
    plain, losses = ct_kv.Config(n_step=1, token_dropout=0, leave_one_out=leave_one_out), []
    ct_kv.adapt(model, Task("", demos, [], [tokenizer.bos_id]), plain, progress=lambda step, loss: losses.append(loss))
    assert found[0] == pytest.approx(losses[0], abs=1e-4) and found[1] != found[0]


# --- what is held out ---


def test_of_twenty_lines_a_fifth_is_held_out_and_said(here, small, monkeypatch, capsys):
    many = [dict(input=a + b, output=b) for a in "abcde" for b in "fghij"]
    for n, k in ((19, 19), (20, 16), (25, 20)):
        write("mine.jsonl", many[:n])
        call(monkeypatch, "--data", "mine.jsonl", "--method", "lora", "--set=n_step=1", "--out", "ctx", "--model",
             small, "--force")
        said = capsys.readouterr().out
        assert read_about("ctx")["k"] == k and f"lora on {small}, {k} demos" in said
        told = f"{n - k} of the {n} lines of mine.jsonl, held out (--held-out none learns from all):"
        assert (told in said) == (n > k) and [row.split()[0] for row in said.splitlines()[3:]] == \
            (["lora", "icl", "zero_shot"] if n > k else [])
    call(monkeypatch, "--data", "mine.jsonl", "--method", "lora", "--set=n_step=1", "--out", "ctx", "--model", small,
         "--force", "--held-out", "none")
    assert read_about("ctx")["k"] == 25 and "held out" not in capsys.readouterr().out


def test_demos_and_held_out_lines_are_the_file_and_the_same_at_every_call(here):
    write("mine.jsonl", [dict(input=str(i), output="a") for i in range(40)])
    demos, asked, _ = tune.read_data("mine.jsonl", None)
    assert sorted(int(line.input) for line in demos + asked) == list(range(40)) and len(asked) == 8
    assert [int(line.input) for line in demos] == sorted(int(line.input) for line in demos)
    assert asked != demos[-8:] and tune.read_data("mine.jsonl", None)[:2] == (demos, asked)


def test_a_question_that_repeats_a_demo_is_not_asked(here):
    write("mine.jsonl", [dict(input=str(i % 40), output="a") for i in range(50)])
    demos, asked, said = tune.read_data("mine.jsonl", None)
    assert not {line.input for line in demos} & {line.input for line in asked} and len(demos) == 40
    assert said.endswith(f"without the {10 - len(asked)} that repeat a demo") and 0 < len(asked) < 10
    write("mine.jsonl", DEMOS[:4])
    write("test.jsonl", DEMOS[2:6])
    _, asked, said = tune.read_data("mine.jsonl", "test.jsonl")
    assert [line.input for line in asked] == [row["input"] for row in DEMOS[4:6]]
    assert said == "test.jsonl, 4 lines, without the 2 that repeat a demo"


def test_a_held_out_file_that_is_the_data_is_warned_of_and_not_scored(here, small, monkeypatch, capsys):
    call(monkeypatch, "--data", "mine.jsonl", "--method", "icl", "--out", "ctx", "--model", small, "--held-out",
         "mine.jsonl")
    said = capsys.readouterr()
    assert "warning: mine.jsonl, 4 lines, without the 4 that repeat a demo: nothing is left to score" in said.err
    assert "%" not in said.out


# --- the model, if none is named ---


def test_the_built_in_model_says_what_it_knows_and_which_command_gets_english(here, monkeypatch, capsys):
    write("mine.jsonl", [dict(input="hot", output="cold")])
    message = refused(monkeypatch, capsys, "--data", "mine.jsonl", "--out", "ctx")
    assert "mine.jsonl, line 1" in message and "letters a to p" in message and "`make smollm2`" in message
    message = refused(monkeypatch, capsys, "--data", "mine.jsonl", "--out", "ctx", "--instruction", "Say")
    assert "--instruction" in message and "`make smollm2`" in message
    save_bytes_model("model")
    write("mine.jsonl", [dict(input="hot" * 50, output="cold")])
    assert "smollm2" not in refused(monkeypatch, capsys, "--data", "mine.jsonl", "--out", "ctx", "--model", "model")
    with pytest.raises(SystemExit):
        call(monkeypatch, "--help")
    assert "knows the letters a to p and no English" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("place", ["FOLDER", "EMBEDDED"])
def test_smollm2_is_the_default_where_it_is_and_a_context_brings_its_model(here, monkeypatch, capsys, place):
    write("letters.jsonl", DEMOS[:4])
    call(monkeypatch, "--data", "letters.jsonl", "--method", "icl", "--out", "of_letters", "--device", "cpu")
    assert f"icl on {STRINGS}, 4 demos" in capsys.readouterr().out
    (here / "else" / "smollm2").mkdir(parents=True)
    (here / "else" / "smollm2" / "README.md").write_text("no weights yet")
    monkeypatch.setattr(smollm2, place, here / "else" / "smollm2" if place == "FOLDER" else here / "else")
    assert smollm2.here() is None
    save_bytes_model(here / "else" / "smollm2")
    write("words.jsonl", [dict(input="hot", output="cold"), dict(input="é", output="b")])
    call(monkeypatch, "--data", "words.jsonl", "--method", "icl", "--out", "of_words")
    assert f"icl on {here / 'else' / 'smollm2'}, 2 demos" in capsys.readouterr().out
    for data, context in (("letters.jsonl", "of_letters"), ("words.jsonl", "of_words")):
        call(monkeypatch, "--predict", "--context", context, "--data", data, "--device", "cpu")
        assert "lines with an output" in capsys.readouterr().err


def test_the_readmes_commands_work_as_typed(here, monkeypatch, capsys):
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("the documents are not beside the tests")
    section = readme.read_text(encoding="utf-8").split("## Your own file")[1]
    tuned, said, asked = section.split("```")[1].split("\n")[1:4]
    smollm2.FOLDER.mkdir(parents=True)
    save_bytes_model(smollm2.FOLDER, 999)
    arguments = [ROOT / part if part.startswith("tutorials/") else part for part in shlex.split(tuned)[3:]]
    assert shlex.split(tuned)[:3] == ["python", "-m", "nanoct.tune"] == shlex.split(asked)[:3]
    call(monkeypatch, *arguments)
    assert "held out" in capsys.readouterr().out
    question, file = re.fullmatch("echo '(.+)' > (.+)", said).groups()
    Path(file).write_text(question + "\n")
    call(monkeypatch, *shlex.split(asked)[3:])
    assert rows(capsys.readouterr().out)[0]["input"] == "day"
    assert len({line.input for line in read_lines(ROOT / "tutorials/opposites.jsonl")} - {"day"}) >= 16


# --- other models and templates ---


@pytest.mark.parametrize("method", ["zero_shot", "dora", "ct_kv"])
def test_another_vocabulary_without_a_beginning(here, monkeypatch, capsys, method):
    save_bytes_model("model")
    few = ["--set=n_step=1"] if method != "zero_shot" else []
    call(monkeypatch, "--data", "mine.jsonl", "--method", method, "--out", "ctx", "--model", "model", *few)
    assert read_about("ctx")["template"] == "{input}\n{output}\n\n"
    assert (read_about("ctx")["next_position"] is None) == (method != "ct_kv")
    write("test.jsonl", [dict(input="What? É", output="yes"), dict(input="Why?", output="a", options=["a", "b"])])
    call(monkeypatch, "--predict", "--context", "ctx", "--data", "test.jsonl", "--model", "model", "--out", "answers")
    decoded, chosen = rows((here / "answers").read_text())
    assert decoded.keys() == {"input", "prediction", "output", "right"} and decoded["input"] == "What? É"
    assert chosen["losses"].keys() == {"a", "b"} and "on 2 lines" in capsys.readouterr().err


# --- templates ---


@pytest.fixture(scope="module")
def words():
    return load_tokenizer(STRINGS)


def test_template_parts():
    assert split("{input}={output};") == ("", "=", ";")
    assert split("Q {input}\n{braces}\n{output}\n\n") == ("Q ", "\n{braces}\n", "\n\n")
    assert unescape(r"a\nb\\n\tc\d") == "a\nb\\n\tc\\d"


def test_x_and_y_are_tokenised_apart_and_the_terminator_too(small, words):
    model = load_model(small, "cpu")
    x, ys = encode(Line("", "ab", "cd", ["cd", "e"]), model, words, ";{input}={output}=;", None, 0)
    assert words.decode(x) == ";ab=" and {o: words.decode(y) for o, y in ys.items()} == {"cd": "cd=;", "e": "e=;"}

    class Merging:  # as BPE does with "." and a line break
        source = "merging"
        encode = staticmethod(lambda text: [{".": 1, "\n": 2, "~": 3}.get(c, 5) for c in text.replace(".\n", "~")])

    assert encode(Line("", "a", "b."), model, Merging, "{input}:{output}\n", None)[1] == {"b.": [5, 1, 2]}


def test_only_the_whole_terminator_ends_an_answer(small, words, monkeypatch):
    new, model, asked = ["ab;c=d=;ef=;", "ab", "=;"], load_model(small, "cpu"), []

    def generate(adapted, prompts, limit, stop):
        asked.append((limit, stop(words.encode("ab=;")), stop(words.encode("ab;"))))
        return [words.encode(text) for text in new[: len(prompts)]]

    monkeypatch.setattr(score, "generate", generate)
    lines = [Line("", x) for x in ("ab", "cd", "ef")]
    answers = answer(Adapted(model), words, lines, "{input}={output}=;", None, 9)
    assert answers == [("ab;c=d", {}), ("ab", {}), ("", {})]
    answer(Adapted(model), words, lines, "{input}={output};", None, 9)
    answer(Adapted(model), words, [Line("", "a" * 60)], "{input}={output};", None, 9)  # 61 of 64: room for four
    assert asked == [(9, True, False), (9, True, True), (4, True, True)]


def test_settings_are_read_by_the_type_of_their_field():
    config = configure("ct_kv", ["lr=3e-2", "n_step=7", "leave_one_out=False"])
    assert config == ct_kv.Config(lr=0.03, n_step=7, leave_one_out=False)


def test_lines_may_hold_line_separators_and_come_from_windows(here):
    (here / "a").write_bytes('\ufeff{"input": "a\u2028b", "output": "é"}\r\n{"input": "", "output": "c"}'.encode())
    first, second = read_lines("a")
    assert (first.input, first.output, second.where) == ("a\u2028b", "é", "a, line 2")


# --- mistakes ---


def refused(monkeypatch, capsys, *arguments):
    """The one line that a mistake is answered with."""
    monkeypatch.setattr(sys, "argv", ["nanoct.tune", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.run(tune.main)
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.err.count("\n") == 1 and not said.out, said
    return said.err


def flat(options):
    """{"--name": value} as arguments; True stands for none, and None leaves the option out."""
    given = {name: value for name, value in options.items() if value is not None}
    return [part for name, value in given.items() for part in ([name] if value is True else [name, value])]


GOOD = '{"input": "ab", "output": "ba"}'


@pytest.mark.parametrize("content, says", [
    ([], ["d.jsonl is empty"]),
    ([GOOD, "", GOOD], ["d.jsonl, line 2 is empty"]),
    (["[" * 100_000], ["d.jsonl, line 1", "nested too deep"]),
    ([GOOD, GOOD, '{"input": "a'], ["d.jsonl, line 3", "JSON", '{"input": "a']),
    (["[1]"], ["line 1", "JSON object"]),
    (['{"output": "a"}'], ["line 1: 'input' is missing"]),
    (['{"input": "a"}'], ["line 1: 'output' is missing"]),
    ([GOOD, '{"input": 3, "output": "a"}'], ["line 2: 'input' is 3"]),
    (['{"input": "a", "output": null}'], ["line 1: 'output' is None"]),
    (['{"input": "a", "output": "b", "options": "bc"}'], ["line 1: 'options' is 'bc'"]),
    (['{"input": "a", "output": "b", "options": []}'], ["line 1: 'options' is empty"]),
    (['{"input": "a", "output": "b", "options": ["b", 1]}'], ["line 1: 'options'"]),
    (['{"input": "a", "output": "b", "options": ["c", "d"]}'], ["line 1", "'b' is not among", "['c', 'd']"]),
    ([GOOD, '{"input": "aXb", "output": "a"}'], ["line 2", "no token for 'X'"]),
    ([GOOD, '{"input": "ab", "output": "a", "options": ["a", "Zb"]}'], ["line 2", "no token for 'Z'"]),
    ([json.dumps(dict(input="a", output="\u00e9", options=["e\u0301"]))], ["line 1", r"'\xe9'", r"'e\u0301'"]),
    ([GOOD, '{"input": "ab", "output": "a;b"}'], ["line 2", "'a;b' contains ';'"]),
    ([json.dumps(dict(input="a" * 70, output="b"))], ["line 1", "context is 64"]),
])
@pytest.mark.parametrize("option", ["--data", "--held-out"])
def test_bad_lines(here, small, monkeypatch, capsys, content, says, option):
    write("d.jsonl", content)
    others = ["--data", "mine.jsonl"] if option == "--held-out" else []
    message = refused(monkeypatch, capsys, *others, option, "d.jsonl", "--out", "ctx", "--model", small)
    assert all(part in message for part in says), message
    assert not (here / "ctx").exists()


@pytest.mark.parametrize("changes, says", [
    ({"--data": "nothing.jsonl"}, ["nothing.jsonl", "there is no file"]),
    ({"--data": "."}, ["Is a directory"]),
    ({"--data": None}, ["--data"]),
    ({"--held-out": "nothing.jsonl"}, ["nothing.jsonl"]),
    ({"--method": "magic"}, ["magic", "ct_kv"]),
    ({"--set": "speed=3"}, ["speed", "n_step"]),
    ({"--set": "lr"}, ["'lr'", "FIELD=VALUE"]),
    ({"--set": "lr=1", "--set=lr=2": True}, ["--set lr is given twice"]),
    ({"--set": "lr=fast"}, ["'fast' is no float"]),
    ({"--set": "n_step=1.5"}, ["'1.5' is no int"]),
    ({"--set": "leave_one_out=maybe"}, ["'maybe' is no bool"]),
    ({"--set": "lr=-1"}, ["lr = -1.0"]),
    ({"--set": "lr=1e38"}, ["lr=1e38 must be a number"]),
    ({"--method": "prefix_tuning", "--set": "start=others"}, ["start = 'others'"]),
    ({"--method": "icl", "--set": "lr=1"}, ["icl has no fields"]),
    ({"--method": "lora", "--set": "rank=0"}, ["rank = 0"]),
    ({"--template": "{input}="}, ["{output}", "'{input}='"]),
    ({"--template": "={output}"}, ["{input} once"]),
    ({"--template": "{output}={input};"}, ["{output} once after it"]),
    ({"--template": "{input}{input}={output};"}, ["{input} once"]),
    ({"--template": ""}, ["''"]),
    ({"--template": "{input}={output}"}, ["terminator"]),
    ({"--template": "Q {input}={output};"}, ["mine.jsonl, line 1", "no token for 'Q'"]),
    ({"--template": "{input}={output}.\\n"}, ["no token for '.'"]),
    ({"--instruction": "Reverse"}, ["--instruction", "no token for 'R'"]),
    ({"--metric": "beauty"}, ["beauty"]),
    ({"--metric": "accuracy", "--held-out": "test.jsonl"}, ["test.jsonl, line 1", "options"]),
    ({"--data": "long.jsonl"}, ["a context of 10 demos", "context is 64"]),
    ({"--data": "long.jsonl", "--method": "ttt"}, ["a context of 10 demos"]),
    ({"--held-out": "late.jsonl"}, ["late.jsonl, line 2, behind 35 tokens", "context is 64"]),
    ({"--out": None}, ["--out"]),
    ({"--out": "there"}, ["there exists", "--force"]),
    ({"--out": "mine.jsonl", "--force": True}, ["one of the files that are read"]),
    ({"--out": ".", "--force": True}, ["folder"]),
    ({"--out": "/dev/null", "--force": True}, ["device"]),
    ({"--out": "/dev/null/ctx"}, ["cannot write /dev/null/ctx"]),
    ({"--out": "mine.jsonl/ctx"}, ["cannot write mine.jsonl/ctx"]),
    ({"--out": "x" * 250}, ["cannot write xxx"]),  # what becomes it has a longer name
    ({"--out": "model/model.safetensors", "--force": True}, ["or of a model"]),
    ({"--out": "link", "--force": True}, ["a link"]),
    ({"--model": "no/where/at/all"}, ["no/where/at/all"]),
    ({"--device": "abacus"}, ["abacus"]),
    ({"--seed": "x"}, ["--seed"]),
    ({"--context": "ctx"}, ["--predict"]),
])
def test_mistakes_of_tuning(here, small, monkeypatch, capsys, changes, says):
    write("long.jsonl", DEMOS)
    write("late.jsonl", [DEMOS[0], dict(input="a" * 20, output="a" * 9)])
    write("there", [])
    (here / "link").symlink_to("there")
    (here / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (here / "model" / name).touch()
    options = {"--data": "mine.jsonl", "--out": "ctx", "--model": small} | changes
    message = refused(monkeypatch, capsys, *flat(options))
    assert all(part in message for part in says), message
    assert not (here / "ctx").exists() and (here / "there").read_text() == "" and len(read_lines("mine.jsonl")) == 4


@pytest.fixture(scope="module")
def context(small, tmp_path_factory):
    """A context of the small model, written by tuning."""
    folder = tmp_path_factory.mktemp("context")
    write(folder / "mine.jsonl", DEMOS[:4])
    with pytest.MonkeyPatch.context() as patch:
        call(patch, "--data", folder / "mine.jsonl", "--method", "icl", "--out", folder / "ctx", "--model", small)
    return folder / "ctx"


@pytest.mark.parametrize("changes, says", [
    ({"--context": None}, ["--predict needs a --context"]),
    ({"--context": "nothing"}, ["no context nothing"]),
    ({"--context": "test.jsonl"}, ["test.jsonl is not a context"]),
    ({"--context": "cut"}, ["cut is not a context"]),
    ({"--context": "plain"}, ["plain", "not a context"]),
    ({"--context": "bare"}, ["bare was saved without a template"]),
    ({"--context": "picky"}, ["test.jsonl, line 1", "'options'"]),
    ({"--context": "silent"}, ["silent was saved", "0 as its max_new_tokens"]),
    ({"--context": "backward"}, ["backward was saved", "-3 as its max_new_tokens"]),
    ({"--model": STRINGS}, ["was tuned on the model"]),
    ({"--model": "no/where/at/all"}, ["no/where/at/all"]),
    ({"--data": "nothing.jsonl"}, ["nothing.jsonl"]),
    ({"--data": "bad.jsonl"}, ["bad.jsonl, line 2", "no token for 'X'"]),
    ({"--data": "odd.jsonl"}, ["odd.jsonl, line 1: 'output' is 3"]),
    ({"--data": "late.jsonl"}, ["late.jsonl, line 2, behind 35 tokens", "context is 64"]),
    ({"--template": "{input}={output};"}, ["leave --template out"]),
    ({"--method": "icl"}, ["--method"]),
    ({"--set": "lr=1"}, ["--set"]),
    ({"--held-out": "test.jsonl"}, ["--held-out"]),
    ({"--seed": "0"}, ["--seed"]),
    ({"--out": "bad.jsonl"}, ["bad.jsonl exists", "--force"]),
    ({"--out": "cut", "--context": "cut", "--force": True}, ["cut"]),
    ({"--out": "/dev/null/a"}, ["cannot write /dev/null/a"]),
])
def test_mistakes_of_answering(here, small, context, monkeypatch, capsys, changes, says):
    write("bad.jsonl", [dict(input="ab"), dict(input="aXb")])
    write("odd.jsonl", [dict(input="ab", output=3)])
    write("late.jsonl", [dict(input="ab"), dict(input="a" * 29)])
    (here / "cut").write_bytes(context.read_bytes()[:-9])
    save_file({"a": torch.ones(1)}, "plain")
    adapted, about = load_adapted(context, load_model(small, "cpu"))
    save_adapted(adapted, "bare", "icl", {}, 4)
    save_adapted(adapted, "picky", "icl", {}, 4, template="{input}={output};", metric="accuracy", max_new_tokens=9)
    for name, n in dict(silent=0, backward=-3).items():
        save_adapted(adapted, name, "icl", {}, 4, template="{input}={output};", metric=None, max_new_tokens=n)
    options = {"--predict": True, "--context": context, "--data": "test.jsonl", "--model": small} | changes
    message = refused(monkeypatch, capsys, *flat(options))
    assert all(part in message for part in says), message


def test_a_context_is_not_answered_with_another_tokenizer(here, small, context, monkeypatch, capsys):
    """The weights are the same, and the ids of two letters are not."""
    letters = json.loads((small / "vocab.json").read_text())
    i, j = letters.index("a"), letters.index("b")
    letters[i], letters[j] = letters[j], letters[i]
    shutil.copytree(small, "other")
    Path("other/vocab.json").write_text(json.dumps(letters))
    asked = "--predict", "--context", context, "--data", "test.jsonl", "--model"
    assert "was tuned with the tokenizer" in refused(monkeypatch, capsys, *asked, "other")
    call(monkeypatch, *asked, small)
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_an_older_context_is_answered_with_a_warning_that_its_tokenizer_is_not_known(here, small, context, monkeypatch):
    adapted, _ = load_adapted(context, load_model(small, "cpu"))
    save_adapted(adapted, "old", "icl", {}, 4, template="{input}={output};", metric=None, max_new_tokens=2)
    with pytest.warns(UserWarning, match="old does not say which tokenizer it was tuned with"):
        call(monkeypatch, "--predict", "--context", "old", "--data", "test.jsonl", "--model", small)


def test_half_a_surrogate_pair_costs_no_answer(here, small, context, monkeypatch, capsys):
    """JSON can say what UTF-8 cannot: the answers come out, escaped where they must be."""
    assert json.loads(tune.written(dict(input="a\ud800é"))) == dict(input="a\ud800é")
    assert tune.written(dict(input="é")) == '{"input": "é"}'
    model, tokenizer = load_model(small, "cpu"), load_tokenizer(small)
    monkeypatch.setattr(tune, "load", lambda *_: (model, tokenizer))
    monkeypatch.setattr(tokenizer, "encode", lambda text, **_: [5])
    write("odd.jsonl", ['{"input": "a\\ud800"}', '{"input": "b"}'])
    call(monkeypatch, "--predict", "--context", context, "--data", "odd.jsonl", "--out", "answers", "--model", small)
    assert [row["input"] for row in rows((here / "answers").read_text())] == ["a\ud800", "b"]
