# Every target sets up what it needs first: a virtual environment with the pinned versions.
# On a fresh machine: Python 3.11+, git, make. See CONTRIBUTING.md for the plain pip lines.
#
#   make test ARGS="-k fork -x"            pass something on to the command
#   make test PYTHON=python3.12 VENV=.venv-3.12     with another Python, beside the usual one

VENV   ?= .venv
PYTHON ?=
ARGS   ?=

bin   := $(VENV)/bin
ready := $(VENV)/.ready

# Tried in this order where PYTHON does not say which.
pythons = $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
# The highest Python this project supports, if this machine has it.
highest = $(shell for python in python3.13 $$HOME/.pyenv/versions/3.13*/bin/python; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null \
	&& echo $$python && break; done)

# For every lock file: versions and hashes, and nothing else.
locked = --universal --python-version 3.11 --generate-hashes --quiet $(if $(UPGRADE),--upgrade) \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-highest has-highest servers django django-highest celery celery-highest services services-stop matrix matrix-highest storm lint format types bench all lock clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: $(ready) ## Make the virtual environment, and nothing else.

demo: $(ready) ## See lifeguard at work on a real PostgreSQL, with and without it.
	$(bin)/lifeguard demo $(ARGS)

test: $(ready) ## Run the tests.
	$(bin)/python -m pytest $(ARGS)

test-highest: ## The same with the highest supported Python (3.13), beside the usual one.
	@$(MAKE) --silent has-highest >&2 || { echo "Python 3.13 is not on this machine."; exit 1; }
	$(MAKE) test VENV=.venv-3.13 PYTHON=$(highest)

has-highest:
	@test -n "$(highest)" && echo 3.13

servers: $(ready) ## End requests in every way, on every supported server.
	$(bin)/python -m pytest -m servers tests/servers $(ARGS)

django: $(ready) ## Lose connections in every way Django knows, on every server, and see them kept.
	$(bin)/python -m pytest -m django tests/django $(ARGS)

django-highest: ## The same with the highest supported Python (3.13), beside the usual one.
	@$(MAKE) --silent has-highest >&2 || { echo "Python 3.13 is not on this machine."; exit 1; }
	$(MAKE) django VENV=.venv-3.13 PYTHON=$(highest)

celery: $(ready) ## Run, end and kill Celery's workers in every way, on every pool.
	$(bin)/python -m pytest -m celery tests/celery $(ARGS)

celery-highest: ## The same with the highest supported Python (3.13), beside the usual one.
	@$(MAKE) --silent has-highest >&2 || { echo "Python 3.13 is not on this machine."; exit 1; }
	$(MAKE) celery VENV=.venv-3.13 PYTHON=$(highest)

services: $(ready) ## Install and start a redis for the examples (REDIS_PORT=6379).
	$(bin)/python -m tests.support.services start

services-stop: $(ready) ## Stop it.
	$(bin)/python -m tests.support.services stop

matrix: $(ready) ## End workers in every way, on every supported server (ARGS="--help").
	$(bin)/python -m tests.matrix $(ARGS)

matrix-highest: ## The same with the highest supported Python (3.13), beside the usual one.
	@$(MAKE) --silent has-highest >&2 || { echo "Python 3.13 is not on this machine."; exit 1; }
	$(MAKE) matrix VENV=.venv-3.13 PYTHON=$(highest)

storm: $(ready) ## End workers at random moments, under load, on three servers (ARGS="--seed N").
	$(bin)/python -m tests.storm $(ARGS)

lint: $(ready) ## Check style and formatting.
	@status=0; for check in "check" "format --check"; do \
		echo "ruff $$check"; $(bin)/ruff $$check . || status=1; done; exit $$status

format: $(ready) ## Repair style and formatting where that can be done safely.
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

types: $(ready) ## Check types: mypy and pyright, both strict.
	@status=0; for check in mypy pyright; do \
		echo "$$check"; $(bin)/$$check || status=1; done; exit $$status

bench: $(ready) ## Measure the price of lifeguard beside its peers.
	$(bin)/python -m bench $(ARGS)

all: test lint types servers django celery ## All checks that a change has to pass.

$(ready): requirements/dev.txt pyproject.toml
	@set -e; \
	for python in $(pythons); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "lifeguard needs Python 3.11 or newer; tried: $(pythons). Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python"; \
		exit 1; \
	fi; \
	if ! $$found -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$$found cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv"; \
		exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$($$found --version)"; \
	test -x $(bin)/python || $$found -m venv $(VENV)
	$(bin)/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	$(bin)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

lock: ## Resolve the pinned versions again (UPGRADE=1: to the newest ones). Needs network.
	@test -x .venv-lock/bin/uv || { python3 -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv; }
	.venv-lock/bin/uv pip compile pyproject.toml --group dev --output-file requirements/dev.txt \
		$(locked)
	@for overlay in $(basename $(wildcard requirements/overlays/*.in)); do \
		echo "$$overlay.txt"; .venv-lock/bin/uv pip compile $$overlay.in --output-file $$overlay.txt \
			$(locked) --no-emit-package click --no-emit-package uvloop || exit 1; done

clean: ## Remove everything that make and the tools have made.
	rm -rf .venv .venv-* .lifeguard .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
