"""What the tests of all assignments share: comparing, the four lines of a message, sizes, mutants.

A test is a plain function test_x(impl, seed) with points. It raises Wrong when a property does not hold. The message
has four lines: the property that broke, the smallest case, one number that came and the one that was expected, and a
question with the section of the handout to read. It never says what to write instead.
"""

import ast
import importlib.util
import math
import random
import sys
import types
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

PLAIN = (torch.Tensor, torch.nn.Parameter)
PRIMES = (2, 3, 5, 7, 11, 13)
KINDS = {"bool": "truth values", "int": "whole numbers", "float": "real numbers"}


class Wrong(AssertionError):
    """A property that does not hold, told in four lines."""


# files -------------------------------------------------------------------------------------------------------------

def load(path):
    """The module in a file. ValueError, in one sentence, if there is none or it cannot be imported."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {path}: give the path of your .py file.")
    if path.suffix != ".py":
        raise ValueError(f"{path} is no .py file: give the path of your .py file.")
    name = f"loaded_{zlib.crc32(str(path.resolve()).encode()):08x}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))  # a file may import what lies beside it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {first_line(error)}.") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def functions_of(path):
    """Names of the public functions at the top of a file: what an implementation must have."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def need(module, names, path):
    """ValueError, in one sentence, if a module lacks one of the functions."""
    for name in names:
        if not callable(getattr(module, name, None)):
            raise ValueError(f"{path} has no function {name}: this assignment asks for {', '.join(names)}.")
    return module


def first_line(error):
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")


# tests -------------------------------------------------------------------------------------------------------------

def points(n, minutes=0, section=""):
    """Marks a test as worth n points; section of the handout. It changes nothing else."""
    def mark(test):
        test.points, test.minutes, test.section = n, minutes, section
        return test
    return mark


def tests_of(module):
    """The tests of a module that have points, in the order of the file."""
    tests = [test for test in vars(module).values() if hasattr(test, "points") and test.__module__ == module.__name__]
    return sorted(tests, key=lambda test: test.__code__.co_firstlineno)


def outcome(test, impl, seed=0):
    """None if a test passes, else what it says. An error in the implementation is a failed test, and stays readable."""
    try:
        test(impl, seed)
    except Wrong as wrong:
        return str(wrong)
    except (Exception, SystemExit) as error:
        return said(error)
    return None


def said(error):
    """An error of the code that is graded, in a line."""
    if isinstance(error, NotImplementedError):
        return f"not written yet: {first_line(error) or 'a stub'}"
    return f"your code stopped with {type(error).__name__}: {first_line(error)}"


# sizes -------------------------------------------------------------------------------------------------------------

def rng(seed, salt=""):
    """A generator for this seed and this use of it."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {salt}".encode()))


def primes(seed, *names, among=PRIMES):
    """Distinct prime sizes, one a name, so that no transposed shape fits by accident: sizes.T, sizes.D, …"""
    drawn = random.Random(f"{seed} {' '.join(names)}").sample(list(among), len(names))
    return types.SimpleNamespace(**dict(zip(names, drawn)))


# messages ----------------------------------------------------------------------------------------------------------

def fail(broke, case, got, want, ask, section):
    """Raise Wrong with the four lines."""
    see = f" See section {section} of the handout." if section else ""
    got, want, case = one_line(got), one_line(want), one_line(case, 250)
    raise Wrong(f"{broke}\n  case: {case}\n  got {got}, expected {want}\n  {ask}{see}")


def one_line(value, longest=150):
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def same(got, want, broke, case, ask, section, atol=1e-9):
    """Wrong unless got is a tensor of want's shape, kind of numbers and values. Nothing is broadcast; NaN is wrong.

    Whole numbers may be of any width; real numbers have the dtype of want.
    """
    stop = lambda got, want: fail(broke, case, got, want, ask, section)
    if type(got) not in PLAIN:  # a class of the submission may say that it equals everything
        stop(f"{type(got).__name__} {one_line(got, 40)}", f"a tensor of shape {tuple(want.shape)}")
    if got.shape != want.shape:
        stop(f"shape {tuple(got.shape)}", f"shape {tuple(want.shape)}")
    if kind(got) != kind(want) or kind(want) == "float" and got.dtype != want.dtype:
        stop(f"{got.dtype}", f"{want.dtype}" if kind(want) != "int" else "torch.int64")
    got = got.detach().to(want.device)
    if kind(want) == "float":
        off = (got - want.detach()).abs()
        off = torch.where(got == want, torch.zeros_like(off), off)  # two infinities of one sign
        off = torch.where(off.isnan(), torch.full_like(off, torch.inf), off)
        wrong = off > atol
    else:
        wrong = got.to(torch.int64) != want.to(torch.int64)
        off = wrong.double()
    if wrong.any():
        i = int(off.flatten().argmax())
        index = [int(n) for n in torch.unravel_index(torch.tensor(i), want.shape)] if want.dim() else []
        number = lambda t: f"{t.flatten()[i].item():.6g}" if kind(want) == "float" else f"{t.flatten()[i].item()}"
        stop(f"{number(got)} at {index}", f"{number(want)} ({int(wrong.sum())} of {want.numel()} are off)")


def shaped(got, want, broke, case, ask, section):
    """got, or Wrong unless it is a tensor of want's shape and kind of numbers, without NaN. Its values are free."""
    fits = type(got) in PLAIN and got.shape == want.shape and kind(got) == kind(want)
    same(got, torch.nan_to_num(got.detach()).to(want.dtype) if fits else want, broke, case, ask, section)
    return got


def kind(tensor):
    if tensor.dtype == torch.bool:
        return "bool"
    return "float" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "int"


def several(got, names, function, section):
    """The parts of what a function returned as a tuple. Wrong if it is no tuple of as many."""
    if not isinstance(got, (tuple, list)) or len(got) != len(names):
        what = f"{type(got).__name__}" + (f" of {len(got)}" if isinstance(got, (tuple, list)) else "")
        fail(f"{function} returns {len(names)} things: {', '.join(names)}.", f"any call of {function}", what,
             f"a tuple of {len(names)}", f"What does {function} hand back?", section)
    return tuple(got)


def as_float(value):
    """A number as a float: Python's, numpy's, or a tensor of one. Truth values, texts and lists are NaN."""
    single = not isinstance(value, (bool, str, list, tuple)) and getattr(value, "shape", ()) in ((), (1,))
    try:
        return float(value) if single else math.nan
    except (TypeError, ValueError):
        return math.nan


@contextmanager
def untouched(function, section, **arguments):
    """Wrong if an argument is another one after the with: a tensor, a list, a dict, or what lies in them."""
    before = {name: snapshot(value) for name, value in arguments.items()}
    yield
    for name, value in arguments.items():
        at = differs(value, before[name], name)
        if at:
            fail(f"{function} changes its argument {at} in place.", f"{at}, looked at after the call",
                 "something else", "what it was before the call",
                 "Who else holds this argument, and what does it see the next time?", section)


def snapshot(value):
    """A copy of tensors, and of lists, tuples, dicts and sets of them."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: snapshot(part) for key, part in value.items()}
    return type(value)(map(snapshot, value)) if type(value) in (list, tuple, set) else value


def differs(value, before, name):
    """The name of the first part of a value that is no longer what it was, or None."""
    if isinstance(before, torch.Tensor):
        same_kind = value.shape == before.shape and value.dtype == before.dtype
        return None if same_kind and torch.equal(value, before) else name
    if isinstance(before, dict):
        if value.keys() != before.keys():
            return name
        parts = [(value[key], part, f"{name}[{key!r}]") for key, part in before.items()]
    elif isinstance(before, (list, tuple)):
        if len(value) != len(before):
            return name
        parts = [(part, then, f"{name}[{i}]") for i, (part, then) in enumerate(zip(value, before))]
    else:
        return None if value == before else name
    return next((at for at in (differs(*part) for part in parts) if at), None)


# mutants -----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Mutant:
    """A correct file with one mistake: the test that must catch it, and a word that its message must hold."""

    name: str
    test: str
    keyword: str
    changes: list  # [(old text, new text), …]; every old text occurs exactly once
    of: str = "solution.py"  # the correct file, beside mutants.py


def mutate(path, mutant):
    """The module of a correct file after a mutant's changes."""
    source = Path(path).read_text(encoding="utf-8")
    for old, new in mutant.changes:
        assert source.count(old) == 1, f"mutant {mutant.name!r}: {old!r} occurs {source.count(old)} times in {path}"
        source = source.replace(old, new)
    name = f"mutant_{zlib.crc32(f'{path} {mutant.name}'.encode()):08x}"
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = str(path)
    sys.path.insert(0, str(Path(path).resolve().parent))  # as in load
    try:
        exec(compile(source, f"{path} ({mutant.name})", "exec"), vars(module))
    finally:
        sys.path.remove(str(Path(path).resolve().parent))
    return module
