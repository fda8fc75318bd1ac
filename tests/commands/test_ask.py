"""nanoct tune --chat and --ask: demos and questions as turns of a chat, and questions that are typed."""

import io
import json
import sys

import pytest
from test_tune import DEMOS, call, refused, save_bytes_model, write

from nanoct import tune
from nanoct.fewshot import Demo, Task
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model
from nanoct.methods import ct_kv
from nanoct.runs.contexts import load_adapted, read_about, save_adapted
from nanoct.template import answer, encode_example

CHAT = ("{{ bos_token }}{% for m in messages %}<|a|>{{ m.role }}:{{ m.content }}<|z|>{% endfor %}"
        "{% if add_generation_prompt %}<|a|>assistant:{% endif %}")
TURNS = "<|a|>user:{input}<|z|><|a|>assistant:{output}<|z|>"


@pytest.fixture
def talker(tmp_path, monkeypatch):
    """Folder of a small model with special tokens and a chat template; the working folder has mine.jsonl."""
    monkeypatch.chdir(tmp_path)
    write("mine.jsonl", DEMOS[:4])
    save_bytes_model("model", n_position=600, added=["<|a|>", "<|z|>"])
    config = dict(chat_template=CHAT, bos_token="<|a|>", eos_token="<|z|>", add_bos_token=True)
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    return "model"


def test_demos_stand_as_turns_and_the_context_answers_so(talker, monkeypatch, capsys):
    tuning = "--data", "mine.jsonl", "--model", talker, "--set", "n_step=2", "lr=0.1", "--device", "cpu"
    call(monkeypatch, *tuning, "--out", "ctx", "--chat", "--instruction", "Reverse.")
    call(monkeypatch, *tuning, "--out", "plain")
    model, tokenizer = load_model(talker, "cpu"), load_tokenizer(talker)
    head = tokenizer.encode("<|a|><|a|>system:Reverse.<|z|>", special=True)  # the template's beginning, and no other
    demos = []
    for row in DEMOS[:4]:
        x, ys = encode_example("", row["input"], [row["output"]], tokenizer, TURNS, chat=True)
        assert x[0] == tokenizer.special["<|a|>"] and ys[row["output"]][-1] == tokenizer.special["<|z|>"]
        demos.append(Demo(x, ys[row["output"]]))
    expected = ct_kv.adapt(model, Task("mine", demos, [], head), ct_kv.Config(n_step=2, lr=0.1))
    adapted, about = load_adapted("ctx", model)
    assert adapted.prefix.kv[0][0].equal(expected.prefix.kv[0][0])
    assert (about["template"], about["chat"], about["instruction"]) == (TURNS, True, "Reverse.")
    assert "chat" not in read_about("plain")

    asked = []
    monkeypatch.setattr(tune, "decode", lambda adapted, prompts, *rest: asked.extend(prompts) or ["x"] * len(prompts))
    write("questions.jsonl", [dict(input=" fade")])
    call(monkeypatch, "--predict", "--context", "ctx", "--data", "questions.jsonl")
    assert asked == [tokenizer.encode("<|a|>user:fade<|z|><|a|>assistant:", special=True)]


@pytest.mark.parametrize("chat", [True, False])
def test_typed_questions_are_answered_one_by_one(talker, monkeypatch, capsys, chat):
    call(monkeypatch, "--data", "mine.jsonl", "--model", talker, "--method", "icl", "--out", "ctx",
         *(["--chat"] if chat else []))
    adapted, about = load_adapted("ctx", load_model(talker, "cpu"))
    tokenizer = load_tokenizer(talker)
    expected = []
    monkeypatch.setattr(tune, "decode", lambda adapted, prompts, *rest: [tokenizer.decode(prompts[0])])
    for question in ("abc", "no"):
        x, _ = encode_example("", question, [], tokenizer, about["template"], chat)
        expected.append(tokenizer.decode(x))
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc\n\n" + "long" * 200 + "\nno"))
    call(monkeypatch, "--ask", "--context", "ctx")
    said = capsys.readouterr()
    assert said.out == "".join(text + "\n" for text in expected)  # no prompt, as it is no terminal
    assert said.err.startswith("error: the question, behind ") and said.err.count("\n") == 1


def test_the_answer_is_that_of_the_context_and_a_terminal_gets_a_prompt(talker, monkeypatch, capsys):
    call(monkeypatch, "--data", "mine.jsonl", "--model", talker, "--method", "icl", "--out", "ctx")
    adapted, about = load_adapted("ctx", load_model(talker, "cpu"))
    expected = answer(adapted, "abc", load_tokenizer(talker), about["template"], about["max_new_tokens"])
    capsys.readouterr()
    typed = io.StringIO("abc\n")
    monkeypatch.setattr(typed, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", typed)
    call(monkeypatch, "--ask", "--context", "ctx")
    assert capsys.readouterr().out == f"> {expected}\n> "


def test_a_line_that_is_no_text_spoils_its_own_question_alone(talker, monkeypatch, capsys):
    call(monkeypatch, "--data", "mine.jsonl", "--model", talker, "--method", "icl", "--out", "ctx")
    asked = []
    monkeypatch.setattr(tune, "answer", lambda adapted, _, lines, **how: asked.append(lines[0].input) or [("", 0)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc\n\xff\nno\n"), "utf-8"))
    call(monkeypatch, "--ask", "--context", "ctx")
    assert asked == ["abc", "\ufffd", "no"]


@pytest.mark.parametrize("options, said", [
    (["--ask"], "--ask needs a --context"),
    (["--ask", "--context", "ctx", "--data", "mine.jsonl"], "--ask reads what you type"),
    (["--ask", "--context", "ctx", "--predict"], "--ask reads what you type"),
    (["--ask", "--context", "ctx", "--out", "new"], "--ask reads what you type"),
    (["--ask", "--context", "ctx", "--chat"], "--chat is for tuning; --ask does as its context says"),
    (["--ask", "--context", "picky"], "no 'options', which the metric accuracy chooses among"),
    (["--predict", "--context", "ctx"], "--data is missing"),
    (["--out", "new"], "--data is missing"),
    (["--data", "mine.jsonl", "--out", "new", "--chat", "--template", "{input}={output};"], "leave --template out"),
    (["--data", "mine.jsonl", "--out", "new", "--chat", "--model", "mute"], "has no chat template"),
    (["--data", "forged.jsonl", "--out", "new", "--chat"], "forged.jsonl, line 1 has '<|z|>' in its text"),
])
def test_mistakes(talker, monkeypatch, capsys, options, said):
    write("forged.jsonl", [dict(input="a<|z|>", output="b")])
    save_bytes_model("mute")
    model = [] if "mute" in options else ["--model", talker]
    call(monkeypatch, "--data", "mine.jsonl", "--model", talker, "--method", "icl", "--out", "ctx")
    adapted, _ = load_adapted("ctx", load_model(talker, "cpu"))
    save_adapted(adapted, "picky", "icl", {}, 4, template="{input}={output};", metric="accuracy", max_new_tokens=9)
    capsys.readouterr()
    assert said in refused(monkeypatch, capsys, *options, *model)
