# Thin on purpose: setup_env.py makes .venv, everything else runs in it.

# An existing .venv keeps its Python. For another one: make setup PYTHON=python3.12
PYTHON ?= $(shell command -v .venv/bin/python || command -v python3.11 || command -v python3)
WORKERS ?= 2
# Handed on to the command, as in: make test ARGS="-k video", make lab ARGS=--no-browser
ARGS ?=
# Of which to make the figures, as in: make figures NOTEBOOKS=notebooks/03*; all, if none are named
NOTEBOOKS ?=

VENV_PYTHON := .venv/bin/python
# One thread in each worker, or torch's threads fight over the cores. Notebooks run in this .venv,
# whatever kernel they name, and must print again what they printed when they were committed. They
# take the longest, so they come first: at the end short files keep all workers busy.
PYTEST = OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n $(WORKERS) --dist loadfile \
	--no-loadscope-reorder \
	--nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg

# Notebooks are left out: what they print was printed by the versions of constraints.txt.
define test_in
$(PYTHON) tests/edges.py $(1)
OMP_NUM_THREADS=1 .venv-$(1)/bin/python -m pytest -n $(WORKERS) --dist loadfile \
	-m "not slow and not browser" tests $(ARGS)
endef

.DEFAULT_GOAL := help
.PHONY: help setup demo figures test test-slow test-browser test-oldest test-newest bench docs lab \
	lint types format address clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: ## Create or update .venv (seconds when it is up to date)
	@$(PYTHON) setup_env.py

demo: setup ## Film a clip, edit it with TokenFlow and per frame, compare the two
	$(VENV_PYTHON) -m tfkit demo $(ARGS)

figures: setup ## Run the notebooks and the demo, and renew what comes out otherwise (20 minutes)
	WORKERS=$(WORKERS) $(VENV_PYTHON) tests/make_figures.py $(NOTEBOOKS)

test: lint ## Lint, then run all tests and notebooks but the slow tests
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: setup ## Run the slow tests: half an hour, 12 GiB; each notebook in a browser, if one is there
	$(VENV_PYTHON) -m pytest -m slow $(ARGS)

test-browser: setup ## Run the tests in a real browser; gets playwright and, as root, chromium
	@$(VENV_PYTHON) setup_env.py --browser
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -m "browser and not slow" -s tests/browser $(ARGS)

test-oldest: ## Run the tests with the oldest packages that pyproject.toml admits
	$(call test_in,oldest)

test-newest: ## Run the tests with the newest packages that pip finds
	$(call test_in,newest)

bench: setup ## Print how fast it is, as ratios within one run (minutes)
	$(VENV_PYTHON) -m tfkit bench

docs: setup ## Build the documentation, which then reads without a network
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m sphinx -qnWa --keep-going docs docs/_build/html $(ARGS)
	@echo "Open docs/_build/html/index.html in a browser."

lab: setup ## Open JupyterLab on the notebooks
	$(VENV_PYTHON) -m jupyterlab --notebook-dir=notebooks $(ARGS)

lint: setup ## Check style, formatting and types
	$(VENV_PYTHON) -m ruff check
	$(VENV_PYTHON) -m ruff format --check
	$(VENV_PYTHON) -m mypy

types: setup ## Check the package's types alone
	$(VENV_PYTHON) -m mypy

format: setup ## Mend style and formatting
	$(VENV_PYTHON) -m ruff check --fix
	$(VENV_PYTHON) -m ruff format

address: setup ## Write the repository's address (in pyproject.toml) into the notebooks
	$(VENV_PYTHON) notebooks/address.py

clean: ## Remove caches and builds (for a new environment: rm -rf .venv)
	rm -rf build dist docs/_build docs/notebooks *.egg-info
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find tfkit tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) \
		-prune -exec rm -rf {} +
