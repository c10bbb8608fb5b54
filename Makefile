# Two commands from an empty environment: `make demo` and `make test`. The commands they run stand in the README.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint install clean

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

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build dist
