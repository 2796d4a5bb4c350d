# SPDX-License-Identifier: Apache-2.0
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# torch first: alone, its newest build would bring several gigabytes of CUDA along
TORCH ?= torch==2.13.0
STAMP = $(VENV)/.installed

.PHONY: demo test lint types tests processes bench site docs dist wheel-check clean

demo: $(STAMP)
	$(BIN)/phalanx run quickstart

# make --jobs 2 test: tests of several processes beside the others
test: lint types tests processes

$(STAMP): pyproject.toml experiments/pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]" --editable experiments
	touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/basedpyright

tests: $(STAMP)
	$(BIN)/python -m pytest -m "not processes"

processes: $(STAMP)
	$(BIN)/python -m pytest -m processes tests

bench: $(STAMP)
	$(BIN)/python benchmarks/aggregators.py
	$(BIN)/python benchmarks/codecs.py
	$(BIN)/python benchmarks/noise.py

site: $(STAMP)
	$(BIN)/phalanx reproduce --report --out site

dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

# in an environment of its own, with nothing of the source tree in it
wheel-check: dist
	TORCH="$(TORCH)" tests/wheel_check.sh dist/*.whl $(PYTHON)

# the whole documentation with all results, in build/docs
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python docs/_site/check.py build/docs

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis
