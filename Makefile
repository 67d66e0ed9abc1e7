PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench
.DEFAULT_GOAL := demo

# Images to a cube, on a fresh machine.
demo: .venv/installed
	$(BIN)/copcube demo demo

test: .venv/installed
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Side-by-side measurements; see benchmarks/README.md.
bench: .venv/installed
	$(BIN)/python benchmarks/build.py

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[test]"
	touch $@
