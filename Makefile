# make env | test | check | format | demo | chaos | dist | clean
#
# PYTHON runs everything: by default that of .venv, which `make env` makes with BASE_PYTHON. Name another one that has
# rlabel[dev] installed, `make test PYTHON=python`, and no environment is made.

BASE_PYTHON = python3
VENV = .venv
PYTHON = $(VENV)/bin/python
PYTEST_ARGS =
# Test processes side by side; each file runs in one of them, the longest first (tests/conftest.py). Tests that start a Ray need
# about 3 GB in each.
TEST_PROCESSES = 2

STAMP = $(VENV)/.rlabel-installed
ENV = $(if $(filter $(VENV)/bin/python,$(PYTHON)),$(STAMP))

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1
export RAY_USAGE_STATS_ENABLED = 0
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: env test check format demo chaos dist clean
.DEFAULT_GOAL := test

env: $(ENV)
	@:

$(STAMP): setup.py constraints.txt
	@echo "Installing rlabel and what it needs into $(VENV): a few minutes, once."
	@$(BASE_PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install -qq --no-compile --constraint constraints.txt --editable '.[dev]'
	@# pip compiles its 20,000 files in one process, here all cores do. A few are templates, which cannot be compiled.
	@$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib > /dev/null || true
	@touch $@

# One thread a process: what labels must be byte for byte does not hang on the machine's cores.
test: export OMP_NUM_THREADS = 1
test: export OMP_WAIT_POLICY = PASSIVE
test: export HF_HUB_OFFLINE = 1
# Some 200 processes import parts of rlabel: an environment that forbids to keep what was compiled would have each compile it.
test: export PYTHONDONTWRITEBYTECODE =
test: $(ENV)
	$(PYTHON) -m pytest --durations=10 --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

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

# Whole runs under faults, into RELIABILITY.md: 20 minutes and more. CHAOS_ARGS="driver_kill --points 3" runs one case, small.
CHAOS_ARGS =
chaos: $(ENV)
	$(PYTHON) -m tests.chaos --report $(CHAOS_ARGS)

# The source archive, and the wheel made from it: what one lacks the other lacks. Needs no network.
SDIST = import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])
dist: $(ENV)
	rm -rf build dist
	$(PYTHON) -c '$(SDIST)' dist > /dev/null
	$(PYTHON) -m pip wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir dist dist/rlabel-*.tar.gz
	@ls -l dist

clean:
	rm -rf build dist *.egg-info demo-run .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
