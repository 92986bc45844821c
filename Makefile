# Set up, show, test and check qsync. Everything is installed into .venv; nothing else is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

SOURCES := pyproject.toml README.md $(shell find src -type f -not -name '*.pyc')

.PHONY: help demo test soak check format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    watch tasks of every kind run, fail, retry and survive a kill -9"
	@echo "make test    run the whole suite against real stores that it starts itself"
	@echo "make soak    the tests that take long"
	@echo "make check   linters, types, import floors"
	@echo "make format  put the code into its shape"
	@echo "make clean   remove .venv and caches"

demo: $(VENV)/installed
	$(BIN)/qsync demo

# The guarantees are measured with nothing else running; the rest shares the cores.
test: $(VENV)/installed-dev
	$(BIN)/pytest -m "not slow" -n 2 --dist loadscope --ignore tests/guarantees
	$(BIN)/pytest -m "not slow" tests/guarantees

soak: $(VENV)/installed-dev
	$(BIN)/pytest -m slow --timeout 1800
	$(BIN)/python -m tests.sim --seeds 5000
	$(BIN)/python -m tests.sim --mistakes

check: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qsync needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

# The package itself is always built and installed anew, so that the tests meet what users get.
$(VENV)/installed: $(VENV)/created $(SOURCES)
	$(PIP) install --upgrade '.[embedded,process,fast]'
	$(PIP) install --force-reinstall --no-deps .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install --group dev
	@touch $@
