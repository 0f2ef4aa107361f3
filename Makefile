# The plain commands behind each target stand in the README.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test setup lint clean

demo: .venv/demo-ready
	$(BIN)/tutelage demo

test: .venv/dev-ready
	$(BIN)/python -m pytest

setup: .venv/dev-ready

lint: .venv/dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

.venv/demo-ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/dev-ready: .venv/demo-ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv tutelage-demo
