# Every target makes what it needs, from `python3`, `make` and `git` alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
OLDEST := .venv-oldest
OLDEST_EXTRAS := models,tensorflow,train,datasets,tensorboard,detection,report,onnx,openvino
OLDEST_TESTS ?= tests src

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-oldest lint format docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed-train  ## show what routing brings, in a few minutes
	$(BIN)/condconv demo

test: $(VENV)/.installed-all  ## run every check that CI runs
	$(BIN)/python scripts/check.py

test-slow: $(VENV)/.installed-all  ## run the tests marked slow
	$(BIN)/python -m pytest -m "slow and not gpu"

# Warnings are no errors there: old packages warn of what is new in others.
test-oldest: $(OLDEST)/.installed  ## run the tests on the oldest versions that are supported
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -n 2 --dist worksteal -W default $(OLDEST_TESTS)

lint: $(VENV)/.installed-all  ## format check, lint, plain words, types, import contracts
	$(BIN)/python scripts/check.py format lint words types imports

format: $(VENV)/.installed-all  ## format the code and fix what the linter can
	$(BIN)/ruff check --fix-only --exit-zero .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-all  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove what was built; the virtual environment stays
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit(f"PYTHON must be Python 3.10 or newer, got {v[0]}.{v[1]}: run make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# A stamp for each set of extras: made once, and again whenever pyproject.toml or the kernels change.
KERNELS := $(wildcard src/condconv/ops/native/*.[ch]) src/condconv/ops/native/build.py
$(VENV)/.installed-%: pyproject.toml $(KERNELS) $(VENV)/.created
	$(PIP) install --quiet --editable '.[$*]'
	@touch $@

# The lower bounds of pyproject.toml, with what they need now: the oldest numpy has no wheel for Python 3.13 and newer.
$(OLDEST)/.installed: pyproject.toml scripts/oldest.py $(KERNELS)
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 10) <= v < (3, 13) or sys.exit(f"PYTHON must be Python 3.10 to 3.12 for the oldest versions, got {v[0]}.{v[1]}: run make test-oldest PYTHON=python3.12")'
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) scripts/oldest.py > $(OLDEST)/oldest.txt
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet --constraint $(OLDEST)/oldest.txt \
		--editable '.[$(OLDEST_EXTRAS)]' pytest pytest-xdist packaging
	@touch $@
