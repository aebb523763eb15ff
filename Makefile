# Two commands on a fresh machine: `make run` (the quickstart) and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
POOLS := deployments/containers/server.lock
# Files keep together, for their fixtures are pipelines; in their own order, which begins with the longest.
PYTEST = $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install run test test-long test-all torture check lint types imports format ui schema starter lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv with the locked dependencies

$(STAMP): requirements.lock pyproject.toml $(POOLS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "loraline needs Python 3.11 or later; '$(PYTHON)' is not. Name another: make $(or $(MAKECMDGOALS),install) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked dependencies into $(VENV) (about two minutes) ..."
	@$(BIN)/python -m pip install --quiet -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@# Beside the environment, for the tests of the job templates: in it, each Prefect server and worker would
	@# import them, for a second and 57 MB more.
	@$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/pools -r $(POOLS)
	@touch $@

run: install  ## run the quickstart: data, training, evaluation, a registered version
	@$(BIN)/loraline run recipes/quickstart.yaml

ui: install  ## serve this folder's Prefect (4200) and MLflow (5000) on loopback
	@$(BIN)/loraline ui

test: install  ## run the tests (under ten minutes on two cores)
	@$(PYTEST) -m "not long and not slow and not torture"

test-long: install  ## run what starts whole runs and many processes, and is left out of `make test`
	@$(PYTEST) -m "long and not slow and not torture"

test-all: install  ## run every test, the slow ones too
	@$(PYTEST) -m "not torture"

torture: install  ## kill trainings at random moments; all must end with the same bytes (minutes)
	@$(BIN)/python -m pytest -q -s -m torture tests/torture

check: lint types imports  ## lint, types and import rules

lint: install  ## ruff: lint and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: install  ## mypy, strict
	@$(BIN)/mypy

imports: install  ## import-linter: who may import what
	@$(BIN)/lint-imports --no-logo --no-cache

format: install  ## rewrite the code as ruff likes it
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

schema: install  ## regenerate recipes/recipe.schema.json and the table of trainer fields
	@$(BIN)/python -m tasks.training.generate_fields
	@$(BIN)/loraline schema --write

starter: install  ## pretrain the quickstart's base model again (an hour of two cores)
	@$(BIN)/python examples/build_starter/pretrain.py --minutes 60 --output examples/starter

lock:  ## resolve the dependencies anew and write requirements.lock
	@bash .ci/lock

clean:  ## remove the environment and the run's state
	rm -rf $(VENV) .loraline .pytest_cache .mypy_cache .ruff_cache
