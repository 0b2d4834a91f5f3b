# Everything runs from this folder, in a virtual environment of its own (.venv).
# Settings, by `make TARGET NAME=value`:
#   PYTHON       the interpreter that makes .venv (3.11 or newer)
#   ARGS         handed on to the command of run, test, test-slow, coverage, fuzz, resilience,
#                golden, mutants, bench:
#                make run ARGS="seed=2"
#   EXPERIMENT, TRIALS, WORKERS of search: what to search, trials in all, how many run at once
#   TABLE, SCALE of reproduce: est, sat, dlch, delta or all; demo (minutes), cpu, gpu or paper
#   WORKERS      of test: processes that test side by side, each with one thread
#   SEED         draws what fuzz and resilience try
#   TORCH_INDEX  a wheel index to take torch from as well, say PyTorch's CPU-only one; the version
#                stays the pinned one. Empty: the build pip finds by itself (with CUDA on Linux).

PYTHON ?= python3
ARGS ?=
WORKERS ?= 2
EXPERIMENT ?= est_gpt2
TRIALS ?= 50
TABLE ?= all
SCALE ?= demo
SEED ?= 1
TORCH_INDEX ?=

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run test test-slow search test-gpu coverage fuzz resilience audit golden mutants reproduce lint type bench list validate requirements clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-13s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nSettings:\n'; sed -n 's/^#  / /p' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv and install the pinned dependencies (done again when they change)

# Only dependencies are installed, never this folder: see the head of pyproject.toml.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 11) else f"Python {v} is too old: 3.11 or newer is needed. Name one with: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@$(MAKE) --no-print-directory -s requirements > $(VENV)/requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r $(VENV)/requirements.txt -c constraints.txt
	@touch $@

requirements: ## Print the dependencies of pyproject.toml, dev extra included, one a line
	@$(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["dev"], sep="\n")'

run: setup ## Train a small GPT-2 with EST on real English: minutes on 2 cores
	$(PY) run.py experiment=est_gpt2 $(ARGS)

search: setup ## Look for good settings with Optuna; the same command goes on with what is left
	$(PY) run.py -m hydra/sweeper=search experiment=$(EXPERIMENT) trials=$(TRIALS) workers=$(WORKERS) $(ARGS)

test: setup ## The fast tests
	$(PY) -m pytest -m "not slow" -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: setup ## All tests
	$(PY) -m pytest $(ARGS)

test-gpu: setup ## The tests that need a GPU; without one they say so and are skipped
	$(PY) -m pytest -m gpu $(ARGS)

coverage: setup ## The fast tests, with the share of our lines that they run
	$(PY) -m pytest -m "not slow" -n $(WORKERS) --dist loadfile --cov --cov-report=term:skip-covered $(ARGS)

fuzz: setup ## Generated configs and damaged files: one table; SEED=N draws others, ARGS=configs one kind
	FRUGAL_FUZZ_SEED=$(SEED) $(PY) -m tests.fuzz $(ARGS)

resilience: setup ## Kill every method's runs at random moments, go on: one table; SEED=N
	$(PY) -m tests.resilience --seed $(SEED) $(ARGS)

audit: ## Known vulnerabilities of the pinned versions, by pip-audit; without a network says so
	$(PYTHON) -m tests.audit

golden: setup ## Repeat eight small runs and six refusals; print what differs from the recorded ones
	$(PY) -m tests.golden compare $(ARGS)

mutants: setup ## Put listed faults in, one at a time, and print which the tests see; ARGS="--only ROOM"
	$(PY) -m tests.mutants $(ARGS)

lint: setup ## Style, format and the layer contract
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-logo

type: setup ## Type check
	$(VENV)/bin/mypy

bench: setup ## What steps and searches cost and save; ARGS=--quick takes minutes each
	$(PY) -m benchmarks.steps $(ARGS)
	$(PY) -m benchmarks.hamming_search $(ARGS)

reproduce: setup ## The papers' tables by runs of run.py; what has finished is not repeated
	$(PY) -m benchmarks.reproduce $(TABLE) --scale $(SCALE) $(ARGS)

list: setup ## Every experiment with its one line
	$(PY) -m runner.validate --list

validate: setup ## Compose every experiment and check every key, without training
	$(PY) -m runner.validate --all

clean: ## Remove .venv and what tools cached; runs (outputs/) are results and stay
	@find . -path ./outputs -prune -o -path ./.git -prune -o -path ./$(VENV) -prune -o \
		-type d \( -name __pycache__ -o -name .pytest_cache -o -name .mypy_cache -o -name .ruff_cache \
		-o -name .import_linter_cache -o -name .hypothesis \) -prune -print -exec rm -r {} +
	@if [ -d $(VENV) ]; then echo ./$(VENV); rm -r $(VENV); fi
	@if [ -d outputs ]; then echo "kept: ./outputs"; fi
