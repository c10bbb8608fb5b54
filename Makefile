# Two commands from an empty environment: `make demo` and `make test`. The commands they run stand in the README.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-fast test-oldest lint install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/python -m monai.bundle run --config_file bundles/mdm_pretrain.json
	$(BIN)/python -m monai.bundle run --config_file bundles/mdm_segment.json

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

# The quick tier: no bundle is run and no program started.
test-fast: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 -m "not slow and not bundle"

# The quick tier with the oldest versions that pyproject.toml promises; not part of continuous integration's .ci/run.
test-oldest: .venv-oldest/.installed
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest --numprocesses 2 -m "not slow and not bundle"

.venv-oldest/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt \
	  --editable ".[dev]"
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .venv-oldest runs build dist
