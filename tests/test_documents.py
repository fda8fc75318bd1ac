"""The README is short and begins with a command; no link of any document is dead, and no command names what is not."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
if not README.exists():
    pytest.skip("the documents are not beside the tests", allow_module_level=True)
DOCUMENTS = [file for file in ROOT.rglob("*.md") if not {".venv", "results"} & set(file.relative_to(ROOT).parts[:1])
             and not any(part.startswith(".") for part in file.relative_to(ROOT).parts)]
name_of = lambda file: str(file.relative_to(ROOT))


def anchors(file):
    """The anchors of a document's headings, as they are made of them on the web."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short_and_its_first_command_stands_before_word_150():
    words = README.read_text(encoding="utf-8").split()
    assert len(words) <= 2200
    first = next(i for i, pair in enumerate(zip(words, words[1:])) if pair in (("make", "reproduce"), ("python", "-m")))
    assert first < 150


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_no_link_is_dead(file):
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            assert re.match(r"https://[\w.-]+\.\w+(/\S*)?$", target), target
            continue
        there = (file.parent / path).resolve() if path else file
        assert there.exists(), f"{name_of(file)} links to {target}"
        assert not anchor or anchor in anchors(there), f"{name_of(file)} links to {target}"


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_commands_and_files_that_are_named_exist(file):
    text = file.read_text(encoding="utf-8")
    for module in set(re.findall(r"-m (nanoct[\w.]*)", text)):
        assert importlib.util.find_spec(module.rstrip(".")), f"{name_of(file)} names {module}"
    of_the_reader = {"nanoct/methods/mine.py"}
    for path in set(re.findall(r"\b((?:nanoct|tests|tutorials)/[\w/]+\.(?:py|tsv|md))\b", text)) - of_the_reader:
        assert (ROOT / path).exists(), f"{name_of(file)} names {path}"
    made = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for target in set(re.findall(r"^make ([a-z0-9-]+)", text, re.M)):
        assert target in made, f"{name_of(file)} names make {target}"
