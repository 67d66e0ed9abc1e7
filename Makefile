PYTHON ?= python3
BIN := .venv/bin
UV := .venv/bin/python -m uv

.PHONY: demo test lint docs bench soak test-oldest test-newest
.DEFAULT_GOAL := demo

# Images to a cube, on a fresh machine.
demo: .venv/installed
	$(BIN)/copcube demo demo

# Everything but the soak, on all cores; prints the coverage and the slowest tests.
test: .venv/installed
	$(BIN)/pytest -n auto --dist worksteal --cov --durations=20

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The pages of docs/ as a site, with warnings as errors.
docs: .venv/installed
	$(BIN)/pip install --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --config-file .mkdocs.yml

# Ten rounds of builds whose workers, drivers, disks and networks die at ever other moments.
soak: .venv/installed
	for seed in 1 2 3 4 5 6 7 8 9 10; do \
	  COPCUBE_FAULTS_SEED=$$seed $(BIN)/pytest tests/test_faults.py tests/test_builds.py \
	    tests/test_remote_builds.py || exit 1; \
	done

# Side-by-side measurements; see benchmarks/README.md.
bench: .venv/installed
	$(BIN)/python benchmarks/build.py

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[test]"
	touch $@
