# Two commands from an empty environment: `make demo` and `make test`. The commands they run stand in the README.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-fast test-oldest lint docs dist install clean

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

# The documentation as a site, in site/; a broken link is an error (which mkdocs would not see with --quiet).
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# What goes to a package index; then the wheel by itself in an empty environment, in which nothing optional is.
dist: install
	rm -rf dist build/empty
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd build && empty/bin/medmdm --help > /dev/null && empty/bin/medmdm init --overwrite empty/project > /dev/null && \
	  empty/bin/medmdm doctor pretrain --run_dir empty/run

clean:
	rm -rf $(VENV) .venv-oldest runs build dist site
