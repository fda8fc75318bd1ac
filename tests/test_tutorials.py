"""The tutorials: each runs as a script, and its notebook is what its source says."""

import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "tutorials"
SOURCES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
if not SOURCES:
    pytest.skip("the tutorials are not beside the tests", allow_module_level=True)
each = pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.stem)


def cells(file):
    """(kind, text) of the cells of a source in percent format, read here without jupytext."""
    found = []
    for part in re.split(r"^# %%", file.read_text(encoding="utf-8"), flags=re.M)[1:]:
        head, _, body = part.partition("\n")
        body = body.strip("\n")
        if head.strip().startswith("[markdown]"):
            found.append(("markdown", re.sub(r"^# ?", "", body, flags=re.M)))
        else:
            found.append(("code", body))
    return found


@each
def test_the_notebook_is_that_of_the_source_executed_in_order_without_an_error(file):
    path = file.with_suffix(".ipynb")
    text = path.read_text(encoding="utf-8")
    book = json.loads(text)
    again = f"run `python tutorials/build.py {file.name[:2]}`"
    assert book["metadata"]["nanoct"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest(), again
    assert [(c["cell_type"], "".join(c["source"])) for c in book["cells"]] == cells(file), again
    code = [c for c in book["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1)), again
    assert not [o for c in code for o in c["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert "widget" not in text and len(text) < 400_000
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp|Users|usr|opt|mnt)/", text), "a path of a machine"


@each
def test_a_tutorial_has_short_cells_a_planted_bug_and_questions(file):
    found = cells(file)
    code = [body for kind, body in found if kind == "code"]
    prose = "\n".join(body for kind, body in found if kind == "markdown")
    assert max(len(body.splitlines()) for body in code) <= 25
    assert any("breaks(" in body for body in code)
    assert prose.count("<details>") >= 3 and "Change next" in prose


@each
def test_a_tutorial_runs_as_a_script(file, monkeypatch, capsys):
    import matplotlib.pyplot as plt

    monkeypatch.chdir(FOLDER)
    monkeypatch.setenv("NANOCT_QUICK", "1")
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "lesson", raising=False)
    with plt.rc_context():
        runpy.run_path(str(file), run_name="__main__")
    plt.close("all")
    assert capsys.readouterr().out


@pytest.mark.slow
@each
def test_a_tutorials_claims_hold_in_the_full_run(file):
    done = subprocess.run([sys.executable, file.name], cwd=FOLDER, env=os.environ | {"MPLBACKEND": "Agg"},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
