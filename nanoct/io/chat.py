"""The chat template of a model: the Jinja program in its folder that writes a conversation as the text it was tuned on.

    head, template = Chat("weights/smollm2").frame("Answer with the opposite.")

A template of nanoct (template.py) has one {input} and one {output}; a conversation has a system message and turns.
`frame` makes one of the other: the head holds the system message and goes before all demos, and each demo is two turns.
The program was written by the model's authors, so it runs in Jinja's sandbox, as in transformers.
"""

import json
import re
from datetime import datetime
from functools import cached_property
from pathlib import Path

from nanoct.io.files import as_text, read_bytes, read_json, reading, reason

FILE, CONFIG = "chat_template.jinja", "tokenizer_config.json"  # the first that has one counts
SPECIAL = "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"


class Chat:
    """The chat template in a model's folder. Raises FileNotFoundError if it has none, OSError, ValueError."""

    def __init__(self, folder):
        folder = Path(folder)
        config = read_json(folder / CONFIG, kind=dict) if (folder / CONFIG).is_file() else {}
        own = folder / FILE
        self.source = as_text(read_bytes(own), own) if own.is_file() else config.get("chat_template")
        self.file = own if own.is_file() else folder / CONFIG
        if isinstance(self.source, list):  # several, by name
            with reading(self.file, "a tokenizer_config.json whose chat templates have names"):
                self.source = {one["name"]: one["template"] for one in self.source}.get("default")
        if not isinstance(self.source, str):
            raise FileNotFoundError(f"{folder} has no chat template in {CONFIG} or {FILE}: give a model that was tuned "
                                    "to chat, or leave --chat out.")
        contents = {name: config.get(name) for name in SPECIAL}
        contents = {name: one.get("content") if isinstance(one, dict) else one for name, one in contents.items()}
        self.tokens = {name: one for name, one in contents.items() if isinstance(one, str)}

    @cached_property
    def program(self):
        """The compiled template. Raises ValueError if it is broken, ModuleNotFoundError without Jinja."""
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # comes with torch

        world = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                              extensions=["jinja2.ext.loopcontrols"])
        world.filters["tojson"] = lambda x, ensure_ascii=False, **options: json.dumps(
            x, ensure_ascii=ensure_ascii, **options)  # Jinja's own escapes HTML
        world.globals |= dict(raise_exception=refuse, strftime_now=lambda form: datetime.now().strftime(form))
        # transformers' block {% generation %} marks what an assistant said, and writes what is in it
        source = re.sub(r"(\{%-?\s*)(end)?generation(\s*-?%\})",
                        lambda found: found[1] + ("endif" if found[2] else "if true") + found[3], self.source)
        return world.from_string(source)

    def render(self, messages, add_generation_prompt=False):
        """The text of messages [{"role": "user", "content": "hot"}, …]. add_generation_prompt: an answer is to follow.

        Raises ValueError with a sentence on what the template refuses.
        """
        try:
            return self.program.render(messages=messages, add_generation_prompt=add_generation_prompt, **self.tokens)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # a stranger's program can end in any error
            raise ValueError(f"the chat template in {self.file} cannot write this conversation ({reason(error, 200)}): "
                             "leave --instruction or --chat out.") from None

    def frame(self, system=""):
        """(head, template): the text before all demos, and that of a demo, with {input} and {output}.

        system: the system message; "": none, and then a template may put its own. Raises ValueError if the turns of a
        conversation are not all written alike, so that no template of nanoct is the same.
        """
        opening = [dict(role="system", content=system)] if system else []
        demo = [dict(role="user", content="{input}"), dict(role="assistant", content="{output}")]
        once, twice = self.render(opening + demo), self.render(opening + 2 * demo)
        head, template = once[: 2 * len(once) - len(twice)], twice[len(once) :]
        asked = self.render(opening + demo[:1], add_generation_prompt=True)
        if (once, twice) != (head + template, head + 2 * template) or asked != head + template.partition("{output}")[0]:
            raise ValueError(f"the chat template in {self.file} does not write every turn alike, as demos need it: "
                             "leave --instruction out, or give a --template instead of --chat.")
        return head, template


def refuse(message):
    """What chat templates call raise_exception."""
    raise ValueError(message)
