# make env | test | check | format | demo | clean
#
# PYTHON runs everything: by default that of .venv, which `make env` makes with BASE_PYTHON. Name another one that has
# rlabel[dev] installed, `make test PYTHON=python`, and no environment is made.

BASE_PYTHON = python3
VENV = .venv
PYTHON = $(VENV)/bin/python
PYTEST_ARGS =

STAMP = $(VENV)/.rlabel-installed
ENV = $(if $(filter $(VENV)/bin/python,$(PYTHON)),$(STAMP))

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1
export RAY_USAGE_STATS_ENABLED = 0
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: env test check format demo clean
.DEFAULT_GOAL := test

env: $(ENV)
	@:

$(STAMP): setup.py constraints.txt
	@echo "Installing rlabel and what it needs into $(VENV): a few minutes, once."
	@$(BASE_PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	@touch $@

# One process and one thread: what labels must be byte for byte does not hang on the machine's cores.
test: export OMP_NUM_THREADS = 1
test: export OMP_WAIT_POLICY = PASSIVE
test: export HF_HUB_OFFLINE = 1
test: $(ENV)
	$(PYTHON) -m pytest --durations=10 $(PYTEST_ARGS)

check: $(ENV)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy rlabel jobs
	$(PYTHON) -m pytest -q tests/test_guards.py -k import

format: $(ENV)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

demo: export HF_HUB_OFFLINE = 1
demo: $(ENV)
	$(PYTHON) examples/demo.py

clean:
	rm -rf build dist *.egg-info demo-run .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
