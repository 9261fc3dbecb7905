# `make` alone lists what there is. Everything runs in .venv, made on first use and kept.

PYTHON ?= python3
# Passed to every pip install, e.g. PIP_ARGS="--extra-index-url https://…" (see BUILD.md).
PIP_ARGS ?=
# Passed to pytest, and to the launch.py verb of the target.
ARGS ?=

PY := .venv/bin/python
PYTEST = $(PY) -m pytest $(ARGS)

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help demo demo-rl test test-all test-gpu lint bench results doctor kernels clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.run ## train a tiny ZAYA here, sample from it and export it, in minutes
	$(PY) launch.py demo $(ARGS)

demo-rl: .venv/.rl ## teach a tiny ZAYA sums by demonstrations, then by RL, in a quarter of an hour
	$(PY) launch.py demo-rl $(ARGS)

# Torch or transformers missing is then a failure, not a skip: parity is proved against them.
test test-all: export ZAYA_REQUIRE_ORACLES ?= 1

test: .venv/.dev ## all tests but the slow ones
	$(PYTEST) -m "not slow and not gpu" -n 2 --dist=loadfile

test-all: .venv/.dev ## all tests that need no GPU
	$(PYTEST) -m "not gpu" -n 2 --dist=loadfile

test-gpu: .venv/.dev ## the tests that need a GPU, on whichever is attached
	JAX_PLATFORMS= $(PYTEST) -m gpu

lint: .venv/.dev ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/mypy

bench: .venv/.dev ## this code beside transformers, on this machine
	$(PY) launch.py bench --against=transformers $(ARGS)

results: .venv/.rl ## rerun the ablations behind docs/results (hours; goes on where it stopped)
	$(PY) launch.py results $(ARGS)

doctor: .venv/.run ## versions, platform, and a check of every op on the attached device
	$(PY) launch.py doctor $(ARGS)

kernels: .venv/.run .venv-aot/.done ## compile the Pallas kernels for MI300X and H100, without either
	$(PY) launch.py kernels $(ARGS)

clean: ## remove .venv and caches; runs stay
	rm -rf .venv .venv-aot .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment: one stamp for the run-time set, one for what tests need on top of it.

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not one."; \
	  echo "Install it, or name it: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.run: requirements.txt | .venv/bin/python
	$(PY) -m pip install -q $(PIP_ARGS) -r requirements.txt
	@touch $@

.venv/.rl: requirements-rl.txt .venv/.run
	$(PY) -m pip install -q $(PIP_ARGS) -r requirements-rl.txt
	@touch $@

.venv/.dev: requirements-dev.txt requirements-oracles.txt requirements-evals.txt .venv/.run
	$(PY) -m pip install -q $(PIP_ARGS) -r requirements-dev.txt
	-$(PY) -m pip install -q $(PIP_ARGS) --no-deps -r requirements-oracles.txt
	-$(PY) -m pip install -q $(PIP_ARGS) --no-deps -r requirements-evals.txt
	@touch $@

# The GPUs' compilers keep to an environment of their own (Linux on x86-64).
.venv-aot/.done: requirements-aot.txt requirements.txt
	$(PYTHON) -m venv .venv-aot
	.venv-aot/bin/python -m pip install -q $(PIP_ARGS) -r requirements-aot.txt
	@touch $@
