"""The house: imports, late ones too, go down the floors and in no circle, and nothing imports a command."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import nanoct

FLOORS = ["model gpt2 io cli", "fewshot packing footprint adapters optimise score template", "methods", "benchmarks",
          "runs conformance", "costs", "coins"]  # all else is a command, and so is every __main__
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names.split()}
FOLDER = Path(nanoct.__file__).parent
FILES = {".".join(file.relative_to(FOLDER.parent).with_suffix("").parts): file for file in FOLDER.rglob("*.py")}
FILES = {module.removesuffix(".__init__"): file for module, file in FILES.items()}


def place(module):
    """(floor, room): the two lowest floors are one room each, a command is a room of its own."""
    name = module.partition(".")[2].partition(".")[0]
    if name not in FLOOR or module.endswith(".__main__"):
        return len(FLOORS), module
    return FLOOR[name], name if FLOOR[name] > 1 else ""


def imports(file):
    """The modules of nanoct in a file's imports: of `from a import b` that is a.b if there is such a module, else a."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}, line {node.lineno}: write the whole name of the module"
            for alias in node.names:
                yield inner if (inner := f"{node.module}.{alias.name}") in FILES else node.module


GRAPH = {module: set(imports(file)) & FILES.keys() for module, file in FILES.items()}


def test_imports_go_down_the_floors_or_stay_in_the_room():
    down = lambda a, b: place(b)[0] < place(a)[0] or place(b) == place(a)
    assert not [f"{a} imports {b}" for a, found in GRAPH.items() for b in found if not down(a, b)]


def test_there_is_no_circle():
    TopologicalSorter(GRAPH).prepare()  # or an error that names it
