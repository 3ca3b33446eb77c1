# `make` alone lists what there is. Every target sets up what it needs first.
#   PYTHON=/path/to/python3.13   the Python to make .venv with (else .venv's own, or python3)
#   ARGS="…"                     passed on to the target's command

SHELL = /bin/sh
.DEFAULT_GOAL = help
.NOTPARALLEL:

PYTHON ?=
ARGS ?=
# -S: nothing that is installed has a part in deciding whether the set-up is up to date.
set_up = @$(or $(PYTHON),$(wildcard .venv/bin/python),python3) -S scripts/set_up.py

# Without .pyc files every process would compile Dagster and dbt anew: ten seconds each.
unexport PYTHONDONTWRITEBYTECODE
# A library lying about in the caller's environment is not a part of the locked set.
unexport PYTHONPATH
unexport PYTHONHOME

.PHONY: help run ui test lint bench lock clean environment development

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile

run: environment ## set up, then carry the data of all domains from source to mart
	@exec .venv/bin/mesh run $(ARGS)

ui: environment ## the Dagster UI on loopback; Ctrl-C ends it
	@exec .venv/bin/mesh ui $(ARGS)

# Each process has its own PostgreSQL; more than four would wait for the disk.
side_by_side = --numprocesses=logical --maxprocesses=4 --no-loadscope-reorder

test: development ## the tests, on the real engines
	@exec .venv/bin/python -m pytest $(side_by_side) $(ARGS)

lint: development ## style, types, who may use whom, and the suites of expectations
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/mesh lint

bench: environment ## what it costs, as ratios (ARGS="loading warehouse sync quality pipeline events")
	@.venv/bin/python -m benchmarks $(ARGS)

lock: ## compile requirements/*.txt anew (ARGS="--upgrade-package dagster")
	$(set_up) bootstrap
	@.venv/bin/python scripts/lock.py $(ARGS)

clean: ## stop what runs, then remove .mesh
	@if [ -x .venv/bin/mesh ]; then .venv/bin/mesh clean; fi
	@rm -rf .mesh

environment:
	$(set_up) run

development:
	$(set_up) develop
