# The two commands that set everything up: `make hello` trains HelloWorld, `make test` passes the tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: hello test check fuzz bench faults docs install clean
.DEFAULT_GOAL := hello

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# constraints.txt pins torch first: an open range would download several gigabytes of CUDA packages.
$(STAMP): setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

install: $(STAMP)

hello: $(STAMP)
	$(BIN)/himl-runner --model=HelloWorld

# One worker per core; the tests of a file stay together because they share what is slow to set up.
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadfile

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --severity-level medium --configfile pyproject.toml src benchmarks configs
	$(BIN)/python .ci/audit_dependencies.py constraints.txt

# An hour: FUZZ='300' gives each reader of text from outside five minutes, FUZZ='60 sweep pickled' two of them one.
FUZZ ?= 300
fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz $(FUZZ)

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# Two hundred interruptions, in about ten minutes; `make test` has a short part of it.
faults: $(STAMP)
	$(BIN)/python -m faults

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) build dist docs/_build .mypy_cache .pytest_cache .ruff_cache
