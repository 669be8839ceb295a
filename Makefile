# Everything a developer or CI does, from a fresh checkout with any Python from 3.11 on.

# The first of these that is new enough makes the virtual environment. Name another with `make setup PYTHON=...`.
PYTHON ?= python3.13 python3.12 python3.11 python3
# Extra arguments for pytest, the benchmark, chaos, fuzz or the browser, as in `make test ARGS="-k webhook"`.
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Only `make lock` needs uv, so it lives apart from the environment that the locks describe.
UV_VERSION := 0.13.9
UV := .uv/$(UV_VERSION)/bin/uv
# The same answer on every machine and for every supported Python; nothing about where packages were fetched from.
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(UPGRADE)

# $(call create_venv,FOLDER): trying each candidate, since a name on the path may be too old or a mere stub.
define create_venv
@for candidate in $(PYTHON); do \
	if "$$candidate" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
		echo "Creating $(1) with $$("$$candidate" --version)"; \
		exec "$$candidate" -m venv --clear $(1); \
	fi; \
done; \
echo "This needs Python 3.11 or newer with its venv and ensurepip modules; none among: $(PYTHON)." >&2; \
echo "Install one, or name it: make setup PYTHON=/path/to/python3" >&2; \
exit 1
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run test check fmt bench chaos fuzz converge image-check console-check lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## Create .venv with the locked packages (the other targets do it when needed)

run: setup ## Run everything on this machine with demonstration traffic
	$(BIN)/kahuna-sync up --demo

test: setup ## Run the tests (ARGS="-k webhook" for some of them)
	$(BIN)/python -m pytest -q -n auto --dist loadfile $(ARGS)

check: setup ## Check format, lint, types, floors and migrations
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.check_migrations

fmt: setup ## Format the code and repair what the linter can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: setup ## Measure the speed beside bare Starlette and bare SQL (ARGS="--help" for the choices)
	$(BIN)/python -m tests.bench $(ARGS)

chaos: setup ## Break the service under load and check its promises (ARGS="--help" for the choices)
	$(BIN)/python -m tests.chaos $(ARGS)

fuzz: setup ## Try a million hostile bodies and odd connections (ARGS="--help" for the choices)
	$(BIN)/python -m tests.hostile $(ARGS)

converge: setup ## Play 10,000 random histories until both sides must agree (ARGS="--help" for the choices)
	$(BIN)/python -m tests.convergence $(ARGS)

image-check: setup ## Replay the Dockerfile without Docker, and start the result read-only as nobody
	$(BIN)/python -m tests.image $(ARGS)

console-check: setup ## Look at the console in Chromium (ARGS="--screenshots FOLDER" for pictures)
	$(PIP) install --quiet --require-hashes --requirement requirements-browser.lock
	$(BIN)/python -m tests.console.browser $(ARGS)

lock: $(UV) ## Resolve the locks anew (UPGRADE=--upgrade for newer versions)
	$(COMPILE) --extra embedded --extra traces --group dev --output-file requirements.lock pyproject.toml
	$(COMPILE) --constraint requirements.lock --output-file requirements-production.lock pyproject.toml
	$(COMPILE) --constraint requirements.lock --extra traces --output-file requirements-traces.lock pyproject.toml
	$(COMPILE) --constraint requirements.lock --group browser --output-file requirements-browser.lock
	$(COMPILE) --constraint requirements.lock --group build --output-file requirements-build.lock

clean: ## Remove the environments and everything generated, but not .data
	rm -rf $(VENV) .uv .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache dist
	find service migrations tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(BIN)/python:
	$(call create_venv,$(VENV))

# The hashes make an install of anything but the locked files fail. The build backend is among them, so the project
# itself is installed without asking for one.
$(READY): requirements.lock pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --require-hashes --requirement requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(UV):
	$(call create_venv,.uv/$(UV_VERSION))
	.uv/$(UV_VERSION)/bin/python -m pip --disable-pip-version-check install --quiet uv==$(UV_VERSION)
