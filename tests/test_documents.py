"""The README is short and begins with a command; no link of any document is dead, and no command names what is not."""

import importlib.util
import re
from pathlib import Path

import pytest

from nanoct.__main__ import commands

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
if not README.exists():
    pytest.skip("the documents are not beside the tests", allow_module_level=True)
DOCUMENTS = [file for file in ROOT.rglob("*.md") if not {".venv", "results"} & set(file.relative_to(ROOT).parts[:1])
             and not any(part.startswith(".") for part in file.relative_to(ROOT).parts)]
CLAIMS = ROOT / "weights" / "claims.md"
COMMANDS = commands()
name_of = lambda file: str(file.relative_to(ROOT))


def anchors(file):
    """The anchors of a document's headings, as they are made of them on the web."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short_and_its_first_command_stands_before_word_150():
    words = [word for word in README.read_text(encoding="utf-8").split() if re.search(r"\w", word)]  # no bars of tables
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
    blocks = "".join(re.split(r"^```.*\n", text, flags=re.M)[1::2])
    for command in re.findall(r"`nanoct ([a-z][\w.]*)", text) + re.findall(r"^nanoct ([a-z][\w.]*)", blocks, re.M):
        assert command in COMMANDS, f"{name_of(file)} names nanoct {command}"


# --- the README's results: every number has its page and its command ---


def results_section():
    return README.read_text(encoding="utf-8").split("## What comes out\n")[1].split("\n## ")[0]


def numbers(text):
    return re.findall(r"\d+(?:\.\d+)?", re.sub(r"\]\(.*?\)|`.*?`|TTT\+CT", "", text))


def says(page, number):
    """Whether a number stands on a page, perhaps with more decimal places."""
    places = len(number.partition(".")[2])
    return any(f"{float(found):.{places}f}" == number for found in numbers(page))


def test_every_cell_of_the_results_stands_on_the_page_that_is_linked_under_its_table():
    parts = results_section().split("\n\n")
    tables = [(part, after) for part, after in zip(parts, parts[1:]) if part.startswith("|")]
    assert len(tables) == 3
    for table, after in tables:
        page = (ROOT / re.search(r"\]\((\S+\.md)\)", after)[1]).read_text(encoding="utf-8")
        for row in table.splitlines()[2:]:
            for cell in row.strip("|").split("|")[1:]:
                for value in cell.strip().split(", "):
                    assert value in page, f"{value} of {row}"


def test_every_number_of_the_results_is_a_claim_that_stands_on_its_page():
    readme, quoted = " ".join(README.read_text(encoding="utf-8").split()), []
    for quote, pages in re.findall(r"^\| “(.+?)” \| (.+?) \|", CLAIMS.read_text(encoding="utf-8"), re.M):
        assert quote in readme, f"{name_of(CLAIMS)} quotes {quote!r}, which the README does not say"
        texts = [(CLAIMS.parent / page).read_text(encoding="utf-8") for page in re.findall(r"\((\S+\.md)\)", pages)]
        assert texts and all(any(says(text, number) for text in texts) for number in numbers(quote)), quote
        quoted += numbers(quote)
    prose = re.sub(r"^\|.*\n", "", results_section(), flags=re.M)
    assert len(quoted) > 20 and set(numbers(prose)) - set(quoted) == {"95"}  # of "a 95% interval"
