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

    monkeypatch.chdir(FOLDER.parent)  # the root; a lesson finds its files from anywhere
    monkeypatch.setenv("NANOCT_QUICK", "1")
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "lesson", raising=False)
    with plt.rc_context():
        runpy.run_path(str(file), run_name="__main__")
    plt.close("all")
    assert capsys.readouterr().out


SAID = [
    (["tutorials/01_first_minute.py"], dict(PYTHONOPTIMIZE="2"), "A lesson asserts what it claims"),
    (["-c", "import sys, runpy; sys.modules['jupytext'] = None; runpy.run_path('tutorials/build.py')"], {},
     "jupytext is not installed"),
]


@pytest.mark.parametrize("how, environment, said", SAID, ids=["asserts left out", "no jupytext"])
def test_what_a_script_lacks_is_said_in_a_sentence(how, environment, said):
    done = subprocess.run([sys.executable, *how], cwd=FOLDER.parent, env=os.environ | environment, capture_output=True,
                          text=True)
    assert done.returncode == 1 and done.stderr.startswith(said) and done.stderr.count("\n") == 1, done.stderr


def test_the_scripts_of_the_course_need_no_docstrings(tmp_path):
    course = FOLDER / "assignments"
    for how in ([course / "student_copy.py", "--help"], [course / "a4_bug" / "draw.py", "Ada", "--out", tmp_path]):
        subprocess.run([sys.executable, "-OO", *how], check=True, capture_output=True)
    assert (tmp_path / "bug_5.py").exists()


@pytest.mark.slow
@each
def test_a_tutorials_claims_hold_in_the_full_run(file):
    done = subprocess.run([sys.executable, file.name], cwd=FOLDER, env=os.environ | {"MPLBACKEND": "Agg"},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


# {number: (a part of the tutorial, what takes its place, what fails then)}
BROKEN = {
    "01": ("config.n_step = few(config.n_step, 2)", "config.lr = 1e-9", "CT-KV answers more than ICL"),
    "02": ("task.instruction, task.demos)", "task.instruction, task.demos[::-1])",
           "assert apart(behind(theta), whole)"),
    "03": ('pools["held_out"][: few(None, 1)]', "list(of_training)", "unseen rules leave"),
    "04": ("start=STARTS[start])", 'start=STARTS["its own examples"])', "from the best other start"),
    "05": ("pack_demos(task, exact, theta.next_position)", "pack_demos(task, exact, theta.next_position + 1)",
           "the loss is off"),
    "06": ("trap(name, 1.0), *hidden, config)", 'trap(name, 1.0), *leak.HIDDEN["k passes"], config)', "one pass hands"),
    "07": ("    entries = len(", "    model.norm.weight.data.add_(1e-3)\n    entries = len(",
           "assert bits(model) == before"),
    "08": ("p, exact = network.predict(x)", "p, exact = 1 - network.predict(x)", "the network says what Bayes says"),
    "09": ('config = SETTINGS["words"].get(method, {})',
           'config = SETTINGS["words"].get(method, {}) | (dict(lr=1e-9) if method == "ct_kv" else {})',
           "points from ICL"),
    "10": ("estimate(name, method, c.lengths())", 'estimate(name, "ttt", c.lengths())', "assert peak[name"),
    "11": ("loaded, about = load_adapted(file, model)", "loaded, about = load_adapted(file, model)\n"
           "loaded.prefix.kv[0][0].mul_(1.001)", "the logits are"),
}
EXACT = "02", "05", "07", "10", "11"  # theirs are identities, which a quick run asserts too


@pytest.mark.slow
@each
def test_the_first_claim_fails_where_what_it_is_about_is_broken(file, tmp_path):
    number = file.name[:2]
    part, instead, said = BROKEN[number]
    if number == "09" and not (FOLDER.parent / "weights/smollm2/model.safetensors").exists():
        pytest.skip("no weights/smollm2: `make smollm2` brings it")
    source = file.read_text(encoding="utf-8")
    assert source.count(part) == 1
    broken = tmp_path / file.name
    broken.write_text(source.replace(part, instead), encoding="utf-8")
    env = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(FOLDER), "NANOCT_QUICK": str(int(number in EXACT))}
    done = subprocess.run([sys.executable, str(broken)], cwd=FOLDER, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "AssertionError" in done.stderr and said in done.stderr, done.stderr[-2000:]
