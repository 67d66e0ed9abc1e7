PYTHON ?= python3
BIN := .venv/bin
# Tests on all cores (tests/conftest.py); the threads of BLAS and OpenMP would only fight for them.
# What Python compiles is kept, since tests start processes by the hundred.
ALONE := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
PARALLEL := -n auto --dist worksteal

.PHONY: demo test coverage lint docs bench soak test-oldest test-newest
.DEFAULT_GOAL := demo

# Images to a cube, on a fresh machine.
demo: .venv/installed
	$(BIN)/copcube demo demo

# Everything but the soak, on all cores; prints the slowest tests.
test: .venv/installed
	$(ALONE) $(BIN)/pytest $(PARALLEL) --durations=20

# The same with the lines that no test runs, which takes half as long again.
coverage: .venv/installed
	$(ALONE) $(BIN)/pytest $(PARALLEL) --cov --durations=20

# The lowest versions that pyproject.toml allows: make test-oldest PYTHON=python3.11
test-oldest: .venv-oldest/installed
	$(ALONE) .venv-oldest/bin/pytest $(PARALLEL)

# The newest that there are: make test-newest PYTHON=python3.13, with PRE=--pre also pre-releases
test-newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade $(PRE) --editable ".[test]"
	$(ALONE) .venv-newest/bin/pytest $(PARALLEL)

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy --allow-untyped-defs --allow-incomplete-defs --allow-untyped-calls \
	  --allow-any-generics benchmarks/*.py examples/*.py pipelines/*.py

# The pages of docs/ as a site, with warnings as errors (which --quiet would let pass).
docs: .venv/installed
	$(BIN)/pip install --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --config-file .mkdocs.yml

# Ten rounds of builds whose workers, drivers, disks and networks die at ever other moments; then
# what takes long and is hardly ever changed.
soak: .venv/installed
	for seed in 1 2 3 4 5 6 7 8 9 10; do \
	  COPCUBE_FAULTS_SEED=$$seed $(BIN)/pytest tests/test_faults.py tests/test_builds.py \
	    tests/test_remote_builds.py || exit 1; \
	done
	COPCUBE_FAULTS_SEED=1 $(BIN)/pytest tests/test_fuzz.py tests/test_frozen.py \
	  tests/test_majortom_build.py

# Side-by-side measurements; see benchmarks/README.md.
bench: .venv/installed
	$(BIN)/python benchmarks/build.py

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[test]"
	touch $@

# Without the bounds, timm would bring the newest torchvision and with it the newest torch, numcodecs
# would warn of the crc32c that zarr before 3.1.4 asks it for, and pyparsing of old matplotlib.
.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/pip install --quiet uv
	printf 'torchvision<0.22\nnumcodecs<0.16.4\npyparsing<3.3\n' >.venv-oldest/constraints.txt
	.venv-oldest/bin/uv pip compile --quiet --python .venv-oldest/bin/python \
	  --resolution lowest-direct --extra test --constraint .venv-oldest/constraints.txt \
	  --output-file .venv-oldest/requirements.txt pyproject.toml
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python \
	  --requirement .venv-oldest/requirements.txt
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python --no-deps --editable .
	touch $@
