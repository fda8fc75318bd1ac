"""Command lines that answer a mistake with one sentence."""

import argparse
import contextlib
import itertools
import os
import re
import sys
import unicodedata
import warnings
from dataclasses import asdict, fields

# The range of a number, by the name of its option or its Config's field. All others: a float within ±1e9, an int from 0
# to 1e9. Methods refuse more, such as a rank of 0; outside these ranges a run would hang or end in a stack trace.
BOUNDS = {
    "seed": (0, 2**63 - 1), "seeds": (0, 2**63 - 1),
    "k": (0, 10**6), "rank": (0, 10**5), "batch": (0, 10**5), "workers": (0, 1024), "n_layer": (0, 1000),
    "n_embd": (0, 10**5), "width": (0, 10**5), "vocab": (0, 10**7), "context": (0, 10**7), "length": (0, 10**7),
    "lr": (-1e37, 1e37), "ttt_lr": (-1e37, 1e37),  # what float32 holds when AdamW has divided it by 1 - 0.9
}
MAY_BE_EMPTY = "template", "instruction"


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors have no usage block: they say what is wrong, and where to look.

    description: a module's __doc__, of which the first line is shown; None, as under python -OO, shows nothing.
    Raises ValueError with the option and its value if a number is outside BOUNDS, or an option is empty that is not
    in MAY_BE_EMPTY.
    """

    def __init__(self, *args, description=None, **options):
        super().__init__(*args, description=(description or "").strip().split("\n")[0], **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (--help shows all options)\n")

    def parse_args(self, args=None, namespace=None):
        found = super().parse_args(args, namespace)
        for action in self._actions:
            given = getattr(found, action.dest, None)
            name = action.option_strings[-1] if action.option_strings else action.dest
            for one in given if isinstance(given, list) else [given]:
                check(f"{name} {one}", action.dest, one)
                if one == "" and action.dest not in MAY_BE_EMPTY:
                    raise ValueError(f"{name} is empty: give it a value, or leave it out.")
        return found


def check(said, name, number):
    """Raise ValueError, beginning with `said`, if a number is outside the BOUNDS of the option or field `name`."""
    if type(number) not in (int, float):
        return
    low, high = BOUNDS.get(name, (0 if type(number) is int else -1e9, 10**9))
    if not low <= number <= high:  # nan fails too
        raise ValueError(f"{said:.100} must be a number from {low:,} to {high:,}.")


def value(name, text, kind):
    """Convert the text of an option to an int, float, bool ("True" or "False") or str.

    `name` ends with the name of a field. Raises ValueError with `name` if the text is no such value, or outside BOUNDS.
    """
    try:
        found = {"True": True, "False": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise ValueError(f"{name}={text[:60]!r} is no {kind.__name__}.") from None
    check(f"{name}={text}", re.split(r"[ .]", name)[-1], found)
    return found


def overrides(texts, methods):
    """Read options METHOD.FIELD=V1,V2 as {method: {field: [texts of values]}}.

    methods: names of the methods that will run. Raises ValueError on any other method, or another form.
    """
    found = {}
    for text in texts:
        method, dot, rest = text.partition(".")
        name, equals, values = rest.partition("=")
        if not (dot and equals and values) or method not in methods:
            raise ValueError(f"--set {text!r}: write METHOD.FIELD=VALUE, the method one of {', '.join(methods)}.")
        if name in found.setdefault(method, {}):
            raise ValueError(f"--set {method}.{name} is given twice: write its values with commas between them.")
        found[method][name] = values.split(",")
    return found


def configs(method, Config, values, overridden):
    """All combinations of values {field: list}, as dicts; overridden {field: [texts]} replaces a list.

    Raises ValueError on an unknown field, or a value that a field does not take.
    """
    types = {f.name: f.type for f in fields(Config)}
    values = dict(values)
    for name, texts in overridden.items():
        if name not in types:
            raise ValueError(f"{method} has no setting {name!r}; it has {', '.join(types) or 'none'}.")
        values[name] = [value(f"--set {method}.{name}", text, types[name]) for text in texts]
    return [asdict(Config(**dict(zip(values, choice)))) for choice in itertools.product(*values.values())]


def at_least_one(args, *names):
    """Raise ValueError on an option that is given and less than 1."""
    for name in names:
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)} must be at least 1.")


def need_gpu(option, device):
    """Raise ValueError if an option that is for CUDA is given on another device."""
    if device.type != "cuda":
        raise ValueError(f"{option} needs a GPU, and the device is {device}: leave it out, or use --device cuda.")


def not_among(text, options):
    """The words "'x' is not among the options ['y']"; escaped if one differs only in its Unicode normal form."""
    normal = lambda part: unicodedata.normalize("NFKC", part)
    show = ascii if normal(text) in map(normal, options) else repr
    return f"{show(text):.60} is not among the options {show(options):.100}"


def ranks():
    """(rank, number of processes, rank on this machine) from torchrun; (0, 1, 0) if it did not start this process.

    Some schedulers set WORLD_SIZE alone; that does not count as torchrun, and a message says so. Raises ValueError on
    impossible numbers.
    """
    names = "RANK", "WORLD_SIZE", "LOCAL_RANK"
    if lacking := [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            print(f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r} but {lacking[0]} is not set, as torchrun would: going "
                  "on as one process.", file=sys.stderr)
        return 0, 1, 0
    try:
        rank, n, local = (int(os.environ[name]) for name in names)
    except ValueError:
        rank = local = n = 0
    if not (0 <= rank < n and 0 <= local < n):
        said = ", ".join(f"{name}={os.environ[name]}" for name in names)
        raise ValueError(f"{said} cannot be: start with torchrun, or unset them.")
    return rank, n, local


class Unheard:
    """A stream whose reader may go away: what is written after that is dropped, and the work goes on.

    lost: the error that tells of it. Any other error is raised once; what is written after that is dropped too.
    """

    def __init__(self, stream, lost):
        self.stream, self.lost = stream, lost

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        return self._try(self.stream.write, text)

    def flush(self):
        self._try(self.stream.flush)

    def _try(self, call, *text):
        try:
            return call(*text)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if not isinstance(error, self.lost):
                raise


def streams():
    """(stdout, stderr) of a command or worker. A full disk is an error on stdout alone, where a result would be lost.

    A warning is one line, without the place in the code that gives it.
    """
    warnings.formatwarning = lambda message, *place: f"warning: {' '.join(str(message).split())}\n"
    if sys.stdin is None:  # closed: nothing can be read from it
        sys.stdin = open(os.devnull)
    for number, name in (1, "stdout"), (2, "stderr"):
        if getattr(sys, name) is None:  # closed: a file that is opened later would get its number, and the warnings
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, open(number, "w", encoding="utf-8"))
    return Unheard(sys.stdout, BrokenPipeError), Unheard(sys.stderr, OSError)


def run(main):
    """Call main(); a mistake of the user ends as one sentence on stderr with exit code 2, never as a stack trace.

    Ctrl-C ends with exit code 130. If nobody reads what is printed, as behind `| head`, the work goes on and keeps its
    exit code. stdout is UTF-8; what UTF-8 cannot hold, such as half of a surrogate pair, is escaped.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    out, progress = streams()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(progress):
        _answer(main)


def _answer(main):
    def stop(code, text):
        print(text, file=sys.stderr)
        sys.exit(code)

    try:
        try:
            main()
        finally:
            sys.stdout.flush()  # a full disk is an error too
    except KeyboardInterrupt as stopped:
        stop(130, str(stopped) or "\nstopped; the same command goes on from what is saved")
    except (ValueError, OSError) as error:
        stop(2, "error: " + re.sub(r"\s*[\r\n]+\s*", " ", str(error)))
    except RecursionError:
        stop(2, "error: a file is nested too deep to be worked with: fetch or write it again.")
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        stop(2, "error: out of memory: take a smaller model, fewer or shorter demos or rows, or --dtype bfloat16; what "
                "was written so far is kept.")


def is_out_of_memory(error):
    """Whether an exception is about memory. torch raises RuntimeErrors for that, some without a type of their own."""
    said = re.search("out of memory|(allocate|enough) memory|ALLOC_FAILED", str(error))
    return isinstance(error, MemoryError) or bool(said)
