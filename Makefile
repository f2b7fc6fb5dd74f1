# make venv | demo | test | bench: the only commands a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_FLAGS := --quiet --disable-pip-version-check --constraint constraints.txt
DEMO := build/quickstart

.PHONY: venv demo test bench clean

venv: $(VENV)/.installed
test-venv: $(VENV)/.installed-test

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install $(PIP_FLAGS) --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install $(PIP_FLAGS) --editable '.[test]'
	touch $@

demo: venv
	rm -rf $(DEMO)
	$(BIN)/surgery apply specs/quickstart.surgery --out $(DEMO)

test: test-venv
	$(BIN)/python -m pytest

bench: venv
	$(BIN)/python -m bench.adaln --quick

clean:
	rm -rf $(VENV) build dist
