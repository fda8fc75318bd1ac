"""Turn a source NN_name.py into the executed notebook NN_name.ipynb, to read in the browser.

    python tutorials/build.py               # all of them, half an hour on two cores
    python tutorials/build.py 01 05         # two of them

A cell has its number as id and no times, so building twice gives the same bytes where nothing depends on the clock.
The notebook keeps the SHA-256 of its source, so that the test suite sees if only one of the two was edited.
"""

import hashlib
import sys
import time
from pathlib import Path

import torch

try:
    import jupytext
    import nbformat
    from nbclient import NotebookClient
except ImportError as error:
    sys.exit(f"{error.name} is not installed, which notebooks are made with: pip install -e '.[tutorials]', or "
             "`make tutorials`, which does so.")

FOLDER = Path(__file__).resolve().parent


def sources(numbers=()):
    """The tutorials with these numbers, or all. Raises SystemExit if a number has no tutorial."""
    found = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
    if unknown := [number for number in numbers if number not in {file.name[:2] for file in found}]:
        sys.exit(f"there is no tutorial {unknown[0]}: the numbers are {' '.join(file.name[:2] for file in found)}.")
    return [file for file in found if not numbers or file.name[:2] in numbers]


def notebook(file):
    """A source as a notebook without outputs."""
    text = file.read_text(encoding="utf-8")
    book = jupytext.reads(text, "py:percent")
    for i, cell in enumerate(book.cells):
        cell.id = f"cell-{i}"
    book.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
        "nanoct": {"sha256": hashlib.sha256(text.encode()).hexdigest(), "torch": torch.__version__},
    }
    return book


def joined(outputs):
    """Outputs of a cell, with printed pieces joined, as a kernel cuts them at random places."""
    found = []
    for output in outputs:
        if found and output.output_type == "stream" and found[-1].get("name") == output.name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def main():
    for file in sources(sys.argv[1:]):
        start, book = time.perf_counter(), notebook(file)
        NotebookClient(book, timeout=900, kernel_name="python3", record_timing=False,
                       resources={"metadata": {"path": str(FOLDER)}}).execute()
        book.metadata["language_info"] = {"name": "python"}  # the kernel adds its version
        for cell in book.cells:
            if cell.cell_type == "code":
                cell.outputs = joined(cell.outputs)
        nbformat.write(book, file.with_suffix(".ipynb"))
        print(f"{file.stem}: {time.perf_counter() - start:.0f} seconds", flush=True)


if __name__ == "__main__":
    main()
