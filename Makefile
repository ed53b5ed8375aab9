# make test works on a machine with nothing but Python >= 3.11, make and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DISTRIBUTIONS := core plugins/llama370m plugins/qwen2 plugins/codebert
REQUIREMENTS := constraints.txt requirements-dev.txt requirements-real.txt $(DISTRIBUTIONS:%=%/pyproject.toml)
# The tests' matrices are tiny: one thread each and several processes is the fastest way through them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadfile -p tests.slowest_files
PYTEST_ARGS ?=
MUTANTS_ARGS ?=
FUZZ_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow mutants fuzz check dist docs certificates bench bench-quick

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(STAMP) ## Train on real weights and real code, and show what came of it (4 minutes)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash docs/demo.sh

test: $(STAMP) ## Run every test but the slow ones (PYTEST_ARGS="-k name" to choose)
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: $(STAMP) ## Run the slow tests: minutes, or gigabytes
	$(PYTEST) -m slow $(PYTEST_ARGS)

mutants: $(STAMP) ## Try every seeded defect: what the kit catches, what the comparison with transformers (10 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants $(MUTANTS_ARGS)

fuzz: $(STAMP) ## Change files of every kind, and try commands on them (5 minutes; FUZZ_ARGS="--seed 7 --seconds 3600")
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

check: $(STAMP) ## Lint, types, import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_import_direction.py

dist: $(STAMP) ## Build what one installs: source and wheel of every distribution, and check them
	rm -rf dist
	for distribution in $(DISTRIBUTIONS); do $(BIN)/python -m build --no-isolation --outdir dist $$distribution || exit 1; done
	$(BIN)/python -m twine check --strict dist/*

docs: $(STAMP) ## Write what is generated anew: from the help, the settings, the contract, and the families' certificates
	$(BIN)/python tools/setting_types.py > core/src/apr_train/api/setting_types.py
	$(BIN)/python tools/cli_reference.py > docs/cli.md
	$(BIN)/python tools/contract.py --render > docs/contract.md
	$(BIN)/python tools/certify.py --page > docs/families.md

certificates: $(STAMP) ## Measure every family anew and write its certificate (minutes), then run make docs
	$(BIN)/python tools/certify.py

bench: $(STAMP) ## Run the benchmarks: ratios, not wall times of one machine (two hours)
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done
	@echo "== benchmarks/train.py --same-allocator"; $(BIN)/python benchmarks/train.py --same-allocator

bench-quick: $(STAMP) ## Measure a training step against its limits, before and after a change (under five minutes)
	$(BIN)/python benchmarks/train.py --ours --shape smollm2 --precision all --pairs 3 --steps 2
	$(BIN)/python benchmarks/bf16_update.py --rounds 5
	$(BIN)/python benchmarks/step_parts.py --shape smollm2 --precision bf16

$(STAMP): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python >= 3.11 is needed; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt -r requirements-real.txt
	@touch $@
