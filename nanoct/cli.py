"""Command lines that answer a mistake with one sentence."""

import argparse
import itertools
import re
import sys
from dataclasses import asdict, fields


class Parser(argparse.ArgumentParser):
    """argparse without the usage block on an error: what is wrong, and where to look."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (--help shows all options)\n")


def value(name, text, kind):
    """The text of an option as an int, float, bool ("True" or "False") or str. ValueError with its name if it is none."""
    try:
        return {"True": True, "False": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise ValueError(f"{name}={text!r} is no {kind.__name__}.") from None


def overrides(texts, methods):
    """{method: {field: [texts of values]}} of options METHOD.FIELD=V1,V2. ValueError on another form or an unknown method."""
    found = {}
    for text in texts:
        method, dot, rest = text.partition(".")
        name, equals, values = rest.partition("=")
        if not (dot and equals and values) or method not in methods:
            raise ValueError(f"--set {text!r}: write METHOD.FIELD=VALUE, the method one of {', '.join(methods)}.")
        found.setdefault(method, {})[name] = values.split(",")
    return found


def configs(method, Config, values, overridden):
    """All configs, as dicts, of values {field: list} with the overridden {field: [texts]}. ValueError on an unknown field."""
    types = {f.name: f.type for f in fields(Config)}
    values = dict(values)
    for name, texts in overridden.items():
        if name not in types:
            raise ValueError(f"{method} has no setting {name!r}; it has {', '.join(types) or 'none'}.")
        values[name] = [value(f"--set {method}.{name}", text, types[name]) for text in texts]
    return [asdict(Config(**dict(zip(values, choice)))) for choice in itertools.product(*values.values())]


def at_least_one(args, *names):
    """ValueError on an option that is given and less than 1."""
    for name in names:
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)} must be at least 1.")


def run(main):
    """Call main(); what a user can cause ends as one sentence on stderr with exit code 2, never as a stack trace."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from what is saved")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print("error: out of memory: take a smaller model, fewer or shorter demos or rows, or --dtype bfloat16; what was written so far is "
              "kept.", file=sys.stderr)
        sys.exit(2)


def is_out_of_memory(error):
    """Whether an exception says so. torch's are RuntimeErrors, those of the CPU's allocator and of cuBLAS with no name of theirs."""
    return isinstance(error, MemoryError) or bool(re.search("out of memory|(allocate|enough) memory|ALLOC_FAILED", str(error)))
