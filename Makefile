# Commands for developers; `make` alone lists them. Works with GNU make 3.81 (macOS) and in a path with spaces: all
# paths are relative, and programs of the virtual environment are run as modules, because their first lines are not.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# The interpreter that makes the virtual environment: PYTHON, or else a newer one by its full name.
CANDIDATES := $(PYTHON) python3.14 python3.13 python3.12 python3.11
SUPPORTED := import sys; sys.exit(sys.version_info < (3, 11))
PIP_INSTALL := $(RUN) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# More arguments for pytest, for example: make unit ARGS="-k fold -x"
ARGS ?=
# Of the simulation: how many seeds, and the first one
SEEDS ?= 2000
START ?= 0

.DEFAULT_GOAL := help
.PHONY: help install test lint format unit integration acceptance schemas chart-readme sbom demo spec simulate bench bench-peers chaos chaos-short clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

install: $(VENV)/.installed-test ## Make the virtual environment, with everything that the tests need

test: $(VENV)/.installed-test ## Formatter, linter, strict types and all tests, those on a real Kafka included
	@echo "== format"
	@$(RUN) -m ruff format --check .
	@echo "== lint"
	@$(RUN) -m ruff check .
	@echo "== types"
	@$(RUN) -m mypy --strict
	@echo "== tests"
	@$(RUN) -m pytest $(ARGS)

lint: $(VENV)/.installed-test ## Formatter, linter and strict types alone
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy --strict

format: $(VENV)/.installed-test ## Format the code and mend what the linter can mend
	@$(RUN) -m ruff format .
	@$(RUN) -m ruff check --fix .

unit integration acceptance: $(VENV)/.installed-test
	@$(RUN) -m pytest tests/$@ $(ARGS)

unit: ## Tests that do no I/O
integration: ## Tests against a real Kafka and over real HTTP
acceptance: ## Tests of whole processes

schemas: $(VENV)/.installed-test ## Write schemas/ anew from the message types
	@$(RUN) -m anabranch.contract.schemagen

chart-readme: $(VENV)/.installed-test ## Write the values into the README of the Helm chart
	@$(RUN) -m tests.support.chart_readme

sbom: $(VENV)/.installed-test ## List what the package brings along, as CycloneDX: build/anabranch.cdx.json
	@echo "== sbom"
	@rm -rf build/sbom
	@$(RUN) -m venv build/sbom
	@build/sbom/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt '.[otel,sealing]'
	@build/sbom/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes pip setuptools
	@$(RUN) -m cyclonedx_py environment --pyproject pyproject.toml --output-reproducible --output-format JSON \
	    --output-file build/anabranch.cdx.json build/sbom/bin/python
	@$(RUN) -m tests.support.sbom build/anabranch.cdx.json

demo: $(VENV)/.installed-demo ## Enrich 200 records without key, Docker or Kafka (MODEL=name: the real API, your key)
	@$(RUN) examples/demo.py $(if $(MODEL),--model "$(MODEL)")

spec: $(VENV)/.installed-test ## Check the protocol's models in docs/spec with TLC (ALL=1: the large ones too)
	@$(RUN) -m tests.spec $(if $(ALL),--all)

simulate: $(VENV)/.installed-test ## Run both roles through SEEDS seeds of simulated faults, from START on
	@$(RUN) -m tests.simulation --seeds $(SEEDS) --start $(START)

bench: $(VENV)/.installed-test ## Measure on a real Kafka; a table, and build/bench.json
	@$(RUN) -m tests.bench

bench-peers: $(VENV)/.installed-test ## The same job on other frameworks, each in an environment of its own: a table, and build/peers.json
	@$(RUN) -m tests.bench.peers $(ARGS)

chaos: $(VENV)/.installed-test ## Break a real Kafka and the workers under load, then prove that nothing was lost (ARGS=--only=kills)
	@$(RUN) -m tests.chaos $(ARGS)

chaos-short: $(VENV)/.installed-test ## The same, in about a minute
	@$(RUN) -m tests.chaos --short $(ARGS)

clean: ## Delete what the commands above made, the virtual environment included
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN):
	@for python in $(CANDIDATES); do \
	    if "$$python" -c '$(SUPPORTED)' >/dev/null 2>&1; then \
	        echo "== $(VENV) (by $$python)"; \
	        "$$python" -m venv --clear $(VENV) && exit 0; \
	        echo "$$python cannot make a virtual environment: install its venv module" \
	            "(Debian and Ubuntu: apt install python3-venv)." >&2; \
	        rm -rf $(VENV); exit 1; \
	    fi; \
	done; \
	echo "Anabranch needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1 || true)." \
	    "Install one, or name one: make PYTHON=/path/to/python3.12 ..." >&2; \
	exit 1

# The stamps tell make when to install again: when the dependencies or their pins have changed.
$(VENV)/.installed-test: pyproject.toml constraints.txt | $(RUN)
	@echo "== install"
	@$(PIP_INSTALL) --editable '.[test]'
	@touch $(VENV)/.installed-demo $@

$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(RUN)
	@echo "== install"
	@$(PIP_INSTALL) --editable '.[dev-broker]'
	@touch $@
