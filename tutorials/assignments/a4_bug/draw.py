"""Draws your five bugs by your name, and writes them beside you: python a4_bug/draw.py "Ada Lovelace".

The twelve variants lie in sealed.txt, so that nobody reads one by accident. It keeps no secret from who opens it.
"""

import argparse
import base64
import hashlib
import json
import sys
import unicodedata
import zlib
from functools import cache
from pathlib import Path

SEALED, N = Path(__file__).parent / "sealed.txt", 5


@cache
def opened():
    """{"variants": {name: [source, the same bug in another layout]}, "correct": {name: source}}."""
    text = "".join(SEALED.read_text(encoding="ascii").split())
    return json.loads(zlib.decompress(base64.b85decode(text)))


def drawn(name):
    """The names of five variants; how the name is spaced, and whether in capitals, does not matter."""
    name = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    if not name:
        raise ValueError("NAME is empty: write your name, it draws your five bugs.")
    order = lambda variant: hashlib.sha256(f"{name}/{variant}".encode()).hexdigest()
    return sorted(opened()["variants"], key=order)[:N]


def sources(name, i):
    """The text of bug_i.py, i = 1 … 5, and that of another file with the same bug, which nobody gets to see."""
    return opened()["variants"][drawn(name)[i - 1]]


def source(name, i):
    return sources(name, i)[0]


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help="your name, as NAME in student.py")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder; default: beside this file")
    options = parser.parse_args()
    try:
        drawn(options.name)
    except ValueError as error:
        sys.exit(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    for i in range(1, N + 1):
        (options.out / f"bug_{i}.py").write_text(source(options.name, i), encoding="utf-8")
    print(f"bug_1.py … bug_{N}.py are in {options.out}")


if __name__ == "__main__":
    main()
