"""Mutants that nobody wrote: every function of a correct file with one small change, made by an operator.

Some operators change the text: a line is dropped, two names change places, a constant or an operator is another one.
Others leave the text alone and spoil what goes in or comes out: an axis, a dtype, an argument that is changed in place.
"""

import ast
import copy
import sys
import types
import zlib
from pathlib import Path

import torch

TURNED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.BitAnd: ast.BitOr,
          ast.BitOr: ast.BitAnd, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
          ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And, ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult,
          ast.MatMult: ast.Mult, ast.In: ast.NotIn, ast.NotIn: ast.In}


def of_text(path, function):
    """[(name, call that makes the module)] of a file with one change in the text of a function."""
    source, made = Path(path).read_text(encoding="utf-8"), {}
    for n, part in enumerate(ast.walk(node_of(ast.parse(source), function))):
        for i, (kind, before, after) in enumerate(changes(part)):
            name = f"{function}: {kind}: {before} -> {after}"
            while name in made:  # the same text in another place
                name += "'"
            made[name] = n, i
    return [(name, lambda name=name, at=at: module(source, function, at, path, name)) for name, at in made.items()]


def node_of(tree, function):
    """The syntax tree of a function of a file."""
    (node,) = (node for node in tree.body if getattr(node, "name", "") == function)
    return node


def module(source, function, at, path, name):
    """The module of a file with the i-th change of a function's n-th node; at: (n, i)."""
    n, i = at
    tree = ast.parse(source)
    going = changes(list(ast.walk(node_of(tree, function)))[n])
    for _ in range(i + 1):  # the change is undone as soon as `going` is asked for the next
        next(going)
    made = types.ModuleType(f"operator_{zlib.crc32(name.encode()):08x}")
    sys.modules[made.__name__] = made
    made.__file__ = str(path)
    exec(compile(ast.fix_missing_locations(tree), f"{path} ({name})", "exec"), vars(made))
    return made


def text(node):
    return " ".join(ast.unparse(node).split())


def changes(node):
    """(kind, before, after) of each small change of a node: it is made when it is yielded, and undone afterwards."""
    for operator in (dropped, swapped, constants, operators):
        yield from operator(node)


def dropped(node):
    """A node's lines, each one left out."""
    for field in ("body", "orelse"):
        lines = getattr(node, field, None)
        for i, line in enumerate(lines if isinstance(lines, list) else []):
            if isinstance(line, (ast.Return, ast.FunctionDef, ast.Pass)):
                continue
            lines[i] = ast.Pass()
            yield "a line dropped", text(line), ""
            lines[i] = line


def swapped(node):
    """Two neighbours among a call's arguments, in a tuple, or on both sides of an operator."""
    lists = {ast.Call: "args", ast.Tuple: "elts", ast.List: "elts"}
    if isinstance(node, ast.BinOp) and not isinstance(node.op, (ast.Add, ast.Mult, ast.BitAnd, ast.BitOr)):
        before, (node.left, node.right) = text(node), (node.right, node.left)
        yield "two names swapped", before, text(node)
        node.left, node.right = node.right, node.left
    elif field := lists.get(type(node)):
        parts = getattr(node, field)
        for i in range(len(parts) - 1):
            if text(parts[i]) == text(parts[i + 1]):
                continue
            before, parts[i : i + 2] = text(node), parts[i : i + 2][::-1]
            yield "two names swapped", before, text(node)
            parts[i : i + 2] = parts[i : i + 2][::-1]


def constants(node):
    if not isinstance(node, ast.Constant) or not isinstance(node.value, (bool, int, float)):
        return
    value = node.value
    for other in ((not value,) if isinstance(value, bool) else (value + 1, value - 1) if isinstance(value, int) else
                  (value * 2, value / 2) if value else (0.5,)):
        node.value = other
        yield "another constant", str(value), str(other)
    node.value = value


def operators(node):
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(node.op) in TURNED:
        before, op, node.op = text(node), node.op, TURNED[type(node.op)]()
        yield "another operator", before, text(node)
        node.op = op
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in TURNED:
        before, op, node.ops[0] = text(node), node.ops[0], TURNED[type(node.ops[0])]()
        yield "another operator", before, text(node)
        node.ops[0] = op
    elif isinstance(node, ast.IfExp):
        before, (node.body, node.orelse) = text(node), (node.orelse, node.body)
        yield "another operator", before, text(node)
        node.body, node.orelse = node.orelse, node.body
    for field, child in ast.iter_fields(node):
        if isinstance(child, ast.UnaryOp):
            setattr(node, field, child.operand)
            yield "another operator", text(child), text(child.operand)
            setattr(node, field, child)


# what goes in and what comes out -----------------------------------------------------------------------------------

def each(value, change):
    """A result with every tensor, or every number, changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(each(part, change) for part in value)
    if isinstance(value, float):
        return float(change(torch.tensor(value, dtype=torch.float64)))
    if hasattr(value, "__dict__") and not isinstance(value, torch.nn.Module):
        return types.SimpleNamespace(**{name: each(part, change) for name, part in vars(value).items()})
    return value


real = lambda t: t.is_floating_point()
RESULTS = {
    "an axis more": lambda t: t[None] if t.dim() else t, "an axis squeezed": lambda t: t.squeeze(),
    "axes swapped": lambda t: t.transpose(-1, -2) if t.dim() > 1 else t, "flattened": lambda t: t.flatten(),
    "turned about": lambda t: t.flip(0) if t.dim() else t, "cast to half": lambda t: t.half() if real(t) else t,
    "cast to float32": lambda t: t.float() if real(t) else t, "cast to float64": lambda t: t.double() if real(t) else t,
    "rounded": lambda t: t.bfloat16().to(t.dtype) if real(t) else t,
    "negative": lambda t: ~t if t.dtype == torch.bool else -t,
    "one off": lambda t: t.logical_not() if t.dtype == torch.bool else t + 1,
    "one number off": lambda t: one_off(t),
    "detached and cut short": lambda t: t.detach()[..., :-1] if t.dim() else t,
}


def one_off(tensor):
    flat = tensor.flatten().clone()
    flat[:1] = ~flat[:1] if flat.dtype == torch.bool else flat[:1] + 1
    return flat.view(tensor.shape)


ARGUMENTS = {
    "changed in place": lambda a: a.add_(1) if a.dtype != torch.bool else a.logical_not_(),
    "zeroed in place": lambda a: a.zero_(),
}
LISTS = {"reversed in place": lambda a: a.reverse(), "emptied": lambda a: a.clear(),
         "longer after the call": lambda a: a.append(a[0]) if a else None}


def of_calls(implementation, function, calls):
    """[(name, implementation)] with what a function gives back, or what it does to an argument, spoilt.

    calls: [(arguments, result)] that tests have made. A change that leaves all of these as they are is no mutant.
    """
    right, found = getattr(implementation, function), []
    results = [result for _, result in calls]

    def add(name, before, after, spoilt):
        if not all(map(equal, before, after)):
            whole = vars(implementation) | {function: spoilt}
            found.append((f"{function}: {name}", lambda: types.SimpleNamespace(**whole)))

    for name, change in RESULTS.items():
        add(f"the result: {name}", results, [each(result, change) for result in results],
            lambda *a, change=change: each(right(*a), change))
    add("the result: its parts swapped", results, map(parts_swapped, results), lambda *a: parts_swapped(right(*a)))
    for i in range(len(calls[0][0])):
        given = [arguments[i] for arguments, _ in calls]
        put = lambda a, value, i=i: right(*a[:i], value, *a[i + 1 :])
        for name in ARGUMENTS | LISTS:
            add(f"argument {i + 1}: {name}", given, [harmed(copied(value), name) for value in given],
                lambda *a, i=i, name=name: changed(right, a, i, name))
        add(f"argument {i + 1}: of the first call", given, given[:1] * len(given), first_call(right, i))
        for name, change in (("in float32", lambda value: each(value, RESULTS["cast to float32"])),
                             ("its first part for all", alike)):
            add(f"argument {i + 1}: {name}", given, [change(value) for value in given],
                lambda *a, i=i, change=change, put=put: put(a, change(a[i])))
    return found


def equal(a, b):
    """Whether two values are the same, in every number, dtype and shape."""
    if isinstance(a, torch.Generator):
        return True
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
    if isinstance(a, torch.nn.Module):
        return equal(list(a.parameters()), list(b.parameters()))
    if hasattr(a, "__dict__") and not isinstance(a, type) and hasattr(b, "__dict__"):
        return equal(vars(a), vars(b))
    return a is b or a == b or a != a and b != b


def copied(value):
    return copy.deepcopy(value) if not isinstance(value, torch.Tensor) else value.detach().clone()


def parts_swapped(value):
    return type(value)(value[::-1]) if isinstance(value, (tuple, list)) else value


def alike(value):
    """A tensor of equal rows, or a list of equal parts."""
    if isinstance(value, torch.Tensor) and value.dim() and len(value):
        return value[:1].expand_as(value).contiguous()
    return [value[0]] * len(value) if type(value) is list and value else value


def changed(right, arguments, i, name):
    """What a function returns; afterwards the argument is another one."""
    result = right(*arguments)
    harmed(arguments[i], name)
    return result


def harmed(value, name):
    if name in LISTS and type(value) is list:
        LISTS[name](value)
    elif name in ARGUMENTS:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
        for part in value.parameters() if isinstance(value, torch.nn.Module) else parts:
            if isinstance(part, torch.Tensor) and part.numel():
                ARGUMENTS[name](part.data)
    return value


def first_call(right, i):
    """A function that goes on using what it was given as an argument the first time."""
    kept = []

    def spoilt(*arguments):
        kept.append(arguments[i])
        return right(*arguments[:i], kept[0], *arguments[i + 1 :])

    return spoilt
