# SPDX-License-Identifier: Apache-2.0
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# pip installs torch first: alone, its newest build would bring several gigabytes of CUDA along
TORCH ?= torch==2.13.0
DEMO = $(VENV)/.installed-demo
STAMP = $(VENV)/.installed
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# uv installs five times as fast as pip, but reads none of pip's settings; where it fails, pip does it
define install
{ { command -v uv > /dev/null || $(PIP) uv; } && PATH="$$PATH:$(BIN)" uv pip install --quiet --python $(BIN)/python $(1); } \
	|| $(PIP) $(1)
endef
PYTEST = $(BIN)/python -m pytest --numprocesses auto --dist loadfile
# modules are compiled once, not by every process that imports them, also where the environment asks for no such files
export PYTHONDONTWRITEBYTECODE =
export PYTHONPYCACHEPREFIX = $(abspath $(VENV))/pycache
# one room of the library, such as P=codecs; all if left out
P ?=

.PHONY: demo quick test check lint types tests processes bench site docs dist wheel-check clean

demo: $(DEMO)
	@$(BIN)/phalanx run quickstart

# what a developer runs while writing: no processes, no experiments, no docs, few random draws
quick: $(STAMP)
	PHALANX_TEST_PROFILE=quick $(PYTEST) -m "not slow and not processes and not docs" \
		$(if $(P),tests/$(P) $(wildcard src/phalanx/$(P)),tests src)

# what a developer runs before a commit: all but the slow tests
test: lint types
	$(PYTEST) -m "not slow and not processes"
	$(PYTEST) -m "processes and not slow" tests

# everything, one after the other; jobs of several processes one at a time, as gloo's connections are in each other's way
check: lint types tests processes

$(DEMO): pyproject.toml Makefile
	@echo "making $(VENV) and installing torch (200 MB) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --no-compile "$(TORCH)"
	@echo "installing phalanx and what it needs ..."
	@$(call install,--editable ".[plots]")
	@touch $(DEMO)

$(STAMP): $(DEMO) pyproject.toml experiments/pyproject.toml
	@echo "installing the tools for development ..."
	@$(call install,--editable ".[dev]" --editable experiments)
	@touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tests/lint/house.py

types: $(STAMP)
	$(BIN)/basedpyright

tests: $(STAMP)
	$(PYTEST) -m "not processes"

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
	$(BIN)/python -m build --no-isolation --outdir dist experiments
	$(BIN)/twine check --strict dist/*

# installs both wheels in an environment of their own, with nothing of the source tree in it
wheel-check: dist
	TORCH="$(TORCH)" tests/wheel_check.sh dist/phalanx_train-*.whl dist/phalanx_experiments-*.whl $(PYTHON)

# the whole documentation with all results, in build/docs
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python docs/_site/check.py build/docs

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis
