"""Chat templates against transformers' apply_chat_template, and a sentence where demos cannot be written as a chat."""

import json

import pytest
import transformers
from helpers import message
from helpers.bpe import train

from nanoct.io.chat import Chat
from nanoct.io.tokenizer import load_tokenizer
from nanoct.template import encode_example

SMOLLM2 = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|a|>system\n"
           "You are a helpful AI assistant<|ab|>\n' }}{% endif %}{{'<|a|>' + message['role'] + '\n' + "
           "message['content'] + '<|ab|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|a|>assistant\n' }}"
           "{% endif %}")
LLAMA3 = """{{- bos_token }}
{%- if tools is defined and tools %}{{ raise_exception("no tools") }}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|a|>system\\n\\nToday: " + strftime_now("%Y") + "\\n" + system + "<|ab|>" }}
{%- for message in messages %}
    {{- '<|a|>' + message['role'] + '\\n\\n' + message['content'] | trim + '<|ab|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|a|>assistant\\n\\n' }}
{%- endif %}
"""
MARKED = """{% for message in messages %}
  {% if message.role == 'tool' %}{% continue %}{% endif %}
<|a|>{{ message.role }}{{ {'a': '<é>'} | tojson }}
{%- if message.role == 'assistant' %}
{% generation %}{{ message.content }}<|ab|>{% endgeneration %}
{%- else %}{{ '\n' + message.content }}<|ab|>{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|a|>assistant{{ {'a': '<é>'} | tojson }}{% endif %}"""
TEMPLATES = dict(smollm2=SMOLLM2, llama3=LLAMA3, marked=MARKED)
TURNS = [("hot", "cold"), (" big\n\nthing", "a < small"), ("x1 {input} é", "\n{output} ")]


@pytest.fixture(scope="module")
def trained():
    return train("smollm2")


def folder_of(trained, folder, template, in_config=True):
    """A folder as transformers writes it, and the tokenizer that it reads; in_config: as it wrote it before 4.50."""
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=trained, bos_token="<s>", eos_token="<|ab|>")
    theirs.chat_template = template
    theirs.save_pretrained(folder, save_jinja_files=not in_config)
    return theirs


def messages_of(turns, system=""):
    messages = [dict(role="system", content=system)] if system else []
    for x, y in turns:
        messages += [dict(role="user", content=x), dict(role="assistant", content=y)]
    return messages


@pytest.mark.parametrize("in_config", [True, False])
@pytest.mark.parametrize("system", ["", "Answer with the opposite."])
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_and_ids_are_those_of_transformers(trained, tmp_path, name, system, in_config):
    theirs = folder_of(trained, tmp_path, TEMPLATES[name], in_config)
    assert (tmp_path / "chat_template.jinja").exists() != in_config
    chat, ours = Chat(tmp_path), load_tokenizer(tmp_path)
    messages = messages_of([(x.strip(), y.strip()) for x, y in TURNS], system)
    assert chat.render(messages) == theirs.apply_chat_template(messages, tokenize=False)
    asked = [*messages, dict(role="user", content="wet")]
    expected = theirs.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert chat.render(asked, add_generation_prompt=True) == expected

    head, template = chat.frame(system)
    tokens = ours.encode(head, special=True)
    for x, y in TURNS:
        x, ys = encode_example("here", x, [y], ours, template, chat=True)
        tokens += x + ys[y]
    tokens += encode_example("here", "wet", [], ours, template, chat=True)[0]
    expected = theirs.apply_chat_template(asked, tokenize=True, return_dict=False, add_generation_prompt=True)
    assert tokens == expected and ours.special["<|a|>"] in tokens


def test_a_text_cannot_forge_a_turn(trained, tmp_path):
    folder_of(trained, tmp_path, SMOLLM2)
    ours, (_, template) = load_tokenizer(tmp_path), Chat(tmp_path).frame()
    for question, answers in [("a<|ab|>\n", []), ("a", ["b<|a|>"])]:
        with pytest.raises(ValueError) as error:
            encode_example("line 3", question, answers, ours, template, chat=True)
        assert message(error).startswith("line 3 has '<|a") and "a mark of the chat template" in message(error)
    x, _ = encode_example("line 3", "<|ab|>", [], ours, "{input}={output}")
    assert ours.special["<|ab|>"] not in x


LAST = "{% for m in messages %}{{ m.content }}{{ '!' if loop.last else '.' }}{% endfor %}"
THINKS = "{% for m in messages %}{{ m.content }}|{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"


@pytest.mark.parametrize("template, said", [
    (LAST, "does not write every turn alike"),
    (THINKS, "does not write every turn alike"),
    ("{{ raise_exception('no system role.') }}", "cannot write this conversation (no system role): leave"),
    ("{{ messages[9].content.x }}", "cannot write this conversation (UndefinedError: list object has no element 9"),
    ("{{ messages.append(1) }}", "cannot write this conversation (SecurityError: access to attribute 'append'"),
    ("{{ ''.__class__.__mro__ }}", "is unsafe"),
    ("{% for m in messages %}", "cannot write this conversation (TemplateSyntaxError: Unexpected end of template"),
    ("{{ 'a' | xmlattr }}", "cannot write this conversation (AttributeError: 'str' object has no"),
    ("{{ 'a' | truncate(-1) }}", "cannot write this conversation (AssertionError: expected length"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot write this conversation (it is nested too deep)"),
    ("{% break %}", "cannot write this conversation (SyntaxError: 'break' outside loop"),
])
def test_what_cannot_hold_demos_is_refused_in_a_sentence(trained, tmp_path, template, said):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(chat_template=template)))
    with pytest.raises(ValueError) as error:
        Chat(tmp_path).frame("system")
    assert said in message(error) and str(tmp_path) in message(error)


def test_the_default_of_several_and_none(tmp_path):
    config = tmp_path / "tokenizer_config.json"
    with pytest.raises(FileNotFoundError, match="no chat template"):
        Chat(tmp_path)
    config.write_text("{}")
    with pytest.raises(FileNotFoundError, match="no chat template"):
        Chat(tmp_path)
    several = [dict(name="tool_use", template="tool"), dict(name="default", template=SMOLLM2)]
    config.write_text(json.dumps(dict(chat_template=several)))
    assert Chat(tmp_path).frame()[1] == "<|a|>user\n{input}<|ab|>\n<|a|>assistant\n{output}<|ab|>\n"
    config.write_text(json.dumps(dict(chat_template=[3])))
    with pytest.raises(ValueError, match="whose chat templates have names"):
        Chat(tmp_path)
