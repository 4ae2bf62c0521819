# make run    a finished matrix and its HTML report        make test      the tests that take at most ten seconds each
# make check  style and types                              make test-all  every test
# make docs   the documentation site, in site/             make dist      what a release uploads, in dist/
# make real   a real pretrained model, and each library's own path beside it: docs/real-models.md
# make clean  remove .venv, caches and build products; measurements (results/, reports/) stay
# Each makes .venv and installs what it needs if that is missing.
PYTHON ?= python3
BIN := .venv/bin
SUITE ?= quick

# Of `make real`: smollm2 or gemma, and what is measured, which whoever calls it brings along.
MODEL ?= smollm2
TEXT ?=
TASKS ?=
CALIBRATION ?=

.PHONY: run real test test-all check docs dist clean

run: .venv/ready
	$(BIN)/quant-harness run $(SUITE)

real: .venv/ready
	$(BIN)/python -m tests.real_run --model "$(MODEL)" --text "$(TEXT)" --tasks "$(TASKS)" --calibration "$(CALIBRATION)"

test: .venv/ready
	$(BIN)/python -m pytest -m "not slow"

test-all: .venv/ready
	$(BIN)/python -m pytest

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site publishes one report: of results/quick, which `make run` makes and this makes where it is missing.
docs: .venv/ready
	$(BIN)/python docs/example_report.py
	$(BIN)/mkdocs build --strict

dist: .venv/ready
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

# The stamp is written last, so that an interrupted installation is taken up again.
.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build dist site
