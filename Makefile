# Every target sets up what it needs: .venv in this folder, with fpstated installed from the tree and the test tools.
#   make test PYTHON=python3.12          another Python for the .venv (the first time, or after `make clean`)
#   make test ARGS="-k realloc -x"       arguments for the command behind run, test and bench

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-in

# The constraints hold for the build back end too: PIP_CONSTRAINT for an older pip, PIP_BUILD_CONSTRAINT from 25.3 on.
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_REQUIRE_VIRTUALENV=0 \
       $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help run test check proof reliability mutants bench protos format clean FORCE

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

run: $(STAMP)  ## run the demonstration: host agent, controller and three guests as processes, one timeline
	@$(BIN)/fpstated demo $(ARGS)

# Up to four processes: many tests start processes of their own. `make test ARGS="-n 0 ..."` runs them in one, in their order.
test: $(STAMP)  ## run the tests
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

check: $(STAMP)  ## check format, lint, types, import directions, that generated code and docs are fresh, and the protos
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py
	$(BIN)/python -m tools.gen_protos --check
	$(BIN)/python -m tools.gen_docs --check
	$(BIN)/python -m tools.lint_protos

proof: $(STAMP)  ## run the property tests at length (some minutes)
	@FPSTATED_HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest tests/core/test_state_machine*.py tests/test_machine_properties*.py tests/test_migration_properties.py $(ARGS)

reliability: $(STAMP)  ## kill, fill and damage at length (an hour); docs/reliability.md has the figures
	@$(BIN)/python -m tests.crash --kills 1000 $(ARGS)
	@$(BIN)/python -m tests.crash --kills 200 --faults $(ARGS)
	@$(BIN)/python -m tests.crash --kills 100 --full $(ARGS)
	@$(BIN)/python -m tests.crash --damages 1000 $(ARGS)

mutants: $(STAMP)  ## run the suites against every mutant of docs/museum (some minutes)
	@$(BIN)/python -m tests.mutants $(ARGS)

bench: $(STAMP)  ## measure; prints a table and writes build/bench.json
	@mkdir -p build
	@$(BIN)/python -m bench $(ARGS)

protos: $(STAMP)  ## generate protos/gen from the .proto files
	@$(BIN)/python -m tools.gen_protos

format: $(STAMP)  ## format the code and apply the lint fixes that are safe
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## remove everything that make made, .venv included
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A venv knows its own path: in a clone that was moved or copied together with its .venv, it is made anew.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): FORCE
endif

$(STAMP): pyproject.toml constraints.txt fpstated/_version.py
	@command -v $(PYTHON) >/dev/null || { echo "fpstated needs Python 3.11 or newer, and there is no '$(PYTHON)': try make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fpstated needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1): try make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' lacks the venv module; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@if test "$$(cat $(STAMP) 2>/dev/null)" = "$(CURDIR)"; then echo "bringing $(VENV) up to date"; \
	else echo "setting up $(VENV) with $$($(PYTHON) --version) (a minute, the first time)" && $(PYTHON) -m venv --clear $(VENV); fi
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@echo "$(CURDIR)" > $(STAMP)

FORCE:
