# make run    a finished matrix and its HTML report        make test   the tests
# make check  style and types                              make clean  remove what these made
# Each makes .venv and installs what it needs if that is missing.
PYTHON ?= python3
BIN := .venv/bin
SUITE ?= quick

.PHONY: run test check clean

run: .venv/ready
	$(BIN)/quant-harness run $(SUITE)

test: .venv/ready
	$(BIN)/python -m pytest

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The stamp is written last, so that an interrupted installation is taken up again.
.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache reports results
