# Headwater: `make demo`, `make up`, `make test`, `make check`. Everything lands in .venv; nothing else is touched.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROTOS := $(shell find proto -name '*.proto' | sort)
DOCS ?= examples

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo up test chaos check generate lock clean

help: ## show this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(READY) ## make .venv with everything pinned in requirements.lock

# torch goes first and on its own: resolved with the rest it would bring its CUDA packages.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

demo: $(READY) ## two tenants' documents in, questions answered, costs in a table; DOCS=folder takes yours
	$(BIN)/python -m examples.demo --docs "$(DOCS)"

up: $(READY) ## run everything and print how to call it
	$(BIN)/headwater run all

test: $(READY) ## run the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 20

chaos: $(READY) ## run the chaos tests at full size (HEADWATER_CHAOS_MINUTES=60) and show what they measured
	HEADWATER_CHAOS=full timeout $$((60 * ($${HEADWATER_CHAOS_MINUTES:-60} + 60))) $(BIN)/python -m pytest tests/chaos -o log_cli=true -o log_cli_level=INFO

check: $(READY) ## lint, types, import rules, protos, generated code
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	buf lint
	buf format --diff --exit-code
	scripts/buf-breaking
	scripts/generate --check

generate: $(READY) ## make gen/ anew from proto/
	scripts/generate

lock: $(READY) ## pin the newest allowed versions in requirements.lock
	uv pip compile --quiet --no-annotate --no-header --no-emit-index-url --extra dev --python-version 3.11 \
	  --output-file requirements.lock pyproject.toml

clean: ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
