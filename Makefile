# Everything a newcomer needs is here: `make check` and `make demo` work on a machine with python3 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_WORKERS ?= 4
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help venv check format lint types contracts test demo demo-live bench lock clean e2e-vllm

help: ## what the targets do
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

venv: $(VENV)/installed ## the environment, from the lock file

$(VENV)/installed: requirements.lock pyproject.toml daemon/gpuward/__init__.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --require-hashes -r requirements.lock
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

check: lint types contracts test ## format check, lint, strict types, import contract, all tests

format: venv ## rewrite the sources in the one format
	$(BIN)/ruff format daemon tests .ci
	$(BIN)/ruff check --fix daemon tests .ci

lint: venv
	$(BIN)/ruff format --check daemon tests
	$(BIN)/ruff check daemon tests

types: venv
	$(BIN)/mypy

contracts: venv
	$(BIN)/lint-imports --no-cache

test: venv
	$(BIN)/pytest -n $(PYTEST_WORKERS) --dist worksteal

demo: venv ## a simulated 8-GPU host runs a Dynamo file: start, look, kill, recover, stop
	$(BIN)/python tests/demo.py

demo-live: venv ## the same, left running to play with
	$(BIN)/python tests/demo.py --live

bench: venv ## the figures that the README quotes, beside supervisord and circus in the same run (4 minutes)
	test -x .venv-bench/bin/supervisord || ($(PYTHON) -m venv .venv-bench && \
	  .venv-bench/bin/pip install -q supervisor==4.3.0 circus==0.19.0)
	$(BIN)/python tests/bench/bench.py

lock: ## refresh the lock file (needs uv)
	uv pip compile --universal --python-version 3.11 --group dev pyproject.toml --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header -q -o requirements.lock

clean: ## remove what the targets made
	rm -rf $(VENV) .venv-bench .venv-vllm .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist

e2e-vllm: venv ## real vLLM on CPU, in an environment of its own (about 4 GB)
	tests/e2e/vllm-env .venv-vllm
	GPUWARD_VLLM=$(CURDIR)/.venv-vllm/bin/python $(BIN)/pytest -m vllm tests/e2e -s -p no:xdist --timeout 900
