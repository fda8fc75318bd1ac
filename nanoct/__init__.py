"""Context Tuning: a model learns from a few examples by training the KV cache that it made of them.

    import nanoct

    model, tokenizer = nanoct.load("HuggingFaceTB/SmolLM2-135M-Instruct")
    pairs = [("hot", "cold"), ("big", "small"), ("early", "late"), ("full", "empty")]
    task = nanoct.task_of(pairs, tokenizer)
    adapted = nanoct.METHODS["ct_kv"].adapt(model, task)
    print(nanoct.answer(adapted, "day", tokenizer))  # night

`nanoct.METHODS` is {name: module}, each with a Config and adapt(model, task, config, seed, progress). A name of DOOR is
imported when it is first used, so `import nanoct` takes no time and no torch.
"""

import sys
from importlib import import_module

if sys.argv[:1] == ["-m"]:  # Python is about to run nanoct.COMMAND: Ctrl-C while torch is imported shows no trace
    sys.excepthook = lambda kind, *error: kind is KeyboardInterrupt or sys.__excepthook__(kind, *error)

DOOR = {  # name -> its module
    "load": "nanoct.io.weights",
    "load_model": "nanoct.io.weights",
    "save_model": "nanoct.io.weights",
    "read_config": "nanoct.io.weights",
    "load_tokenizer": "nanoct.io.tokenizer",
    "convert": "nanoct.io.gguf",
    "METHODS": "nanoct.methods",
    "task_of": "nanoct.template",
    "answer": "nanoct.template",
}
__all__ = list(DOOR)


def __getattr__(name):
    if name not in DOOR:
        raise AttributeError(f"nanoct has no {name!r}; it has {', '.join(DOOR)}, and its modules")
    return getattr(import_module(DOOR[name]), name)


def __dir__():
    return [*globals(), *DOOR]
