# make reproduce   environment, main job on the embedded model, table, figure, JSON lines; ARGS=--quick for a first look
# make test        environment with the test extra, then the suite (no network, no GPU)
PYTHON ?= python3
PY := .venv/bin/python

reproduce: .venv/installed
	$(PY) -m nanoct.reproduce $(ARGS)

test: .venv/installed-test
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

test-slow: .venv/installed-test
	$(PY) -m pytest -m slow

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nanoct needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

# two stamps: the test extra (transformers, peft) is large, and only tests need it
.venv/installed: $(PY) requirements.txt pyproject.toml
	$(PY) -m pip install -q -r requirements.txt
	$(PY) -m pip install -q -e .
	touch $@

.venv/installed-test: .venv/installed
	$(PY) -m pip install -q -e '.[test]'
	touch $@

clean:
	rm -rf .venv results

.PHONY: reproduce test test-slow clean
