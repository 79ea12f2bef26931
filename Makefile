# Every target does its own set-up: a fresh machine needs Python 3.11+ and make, nothing else.
PYTHON ?= python3
# REFERENCE=1 also installs torch and transformers, against which the embedded engine and the training are tested.
REFERENCE ?=
BIN := .venv/bin
# From the repository's root a bare tools/ or verifiers/ must not shadow other packages.
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
DEV := .venv/.dev$(REFERENCE)

.PHONY: demo test test-vllm check bench bench-vllm clean

demo: .venv/.base
	@$(BIN)/stratagem demo

test: $(DEV)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# With real vLLM, in an environment of its own.
test-vllm:
	.ci/vllm
	.venv-vllm/bin/python -m pytest tests/vllm $(PYTEST_ARGS)

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache
	rm -rf dist && $(BIN)/python -m build --quiet --outdir dist
	.ci/wheel

# All of them, also where one misses a goal; then it fails.
bench: export PYTHONPATH := benchmarks
bench: $(DEV)
	failed=0; for each in overhead embedded scheduling speculation cost_model particles tools accuracy agents adaptive allocation families; do \
	    $(BIN)/python benchmarks/$$each.py || failed=1; \
	done; exit $$failed

# Those that measure real vLLM servers.
bench-vllm: export PYTHONPATH := benchmarks
bench-vllm:
	.ci/vllm
	failed=0; for each in vllm_prefix.py vllm_throughput.py speculation.py "speculation.py --server" \
	    "cost_model.py --plot docs/cost_model.png"; do \
	    .venv-vllm/bin/python benchmarks/$$each || failed=1; \
	done; exit $$failed

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Stratagem needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@touch $@

.venv/.base: .venv/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/.dev: .venv/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[bench,postgres,tune]' --group dev
	@touch $@ .venv/.base

.venv/.dev1: .venv/.dev
	$(BIN)/python -m pip install --quiet --group reference
	@touch $@

clean:
	rm -rf .venv .venv-vllm dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
