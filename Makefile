# Everything runs from a virtual environment in this folder; nothing is installed anywhere else.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help install demo up test test-slow test-faults check bench

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make the virtual environment from the locked versions

# Done once, and again when the lock or the package's own description changes.
$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

demo: $(STAMP) ## a bounded story on a scratch folder: cut-off, token, supply again
	$(BIN)/prepaid demo

up: $(STAMP) ## run everything on embedded parts until Ctrl-C; data in ./var
	$(BIN)/prepaid up

check: $(STAMP) ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Many tests wait more than they compute: three at a time keep two cores busy. A file stays in one process, for what its
# tests share; files start in their order, so that the short ones come last.
test: check ## check, then every test that is not slow
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP) ## long faults and floods
	$(BIN)/python -m pytest -m slow

test-faults: $(STAMP) ## the fault tests that take minutes
	$(BIN)/python -m pytest -m faults tests/faults

bench: $(STAMP) ## measure readings per second on this machine
	$(BIN)/prepaid bench ingest
