# Set up, show, test and check qsync. Everything is installed into .venv; nothing else is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

SOURCES := pyproject.toml README.md $(shell find src -type f -not -name '*.pyc')

SOAK_PARTS := slow acl model simulation outbox limits mutants django release

.PHONY: help demo docs test test-most test-chaos test-alone collect redis-envs test-redis test-lowest test-stores test-django release-check test-again soak $(SOAK_PARTS:%=soak-%) bench bench-peers check messages format clean
.DEFAULT_GOAL := help
.NOTPARALLEL:

help:
	@echo "make demo    watch tasks of every kind run, fail, retry and survive a kill -9"
	@echo "make test    run the whole suite against real stores that it starts itself"
	@echo "make test-redis   a short part of it with the lowest and the highest redis-py that is allowed"
	@echo "make test-django  Django's own tests of task backends, with Python 3.12 or 3.13"
	@echo "make test-lowest  a part of it with the lowest releases of all dependencies"
	@echo "make test-stores  what differs between stores, on the redis-server of the path"
	@echo "make release-check  what a release would upload: built twice, compared, installed and run"
	@echo "make soak    the tests that take long, about two hours; SOAK=10 for ten times as much"
	@echo "make bench   measure qsync on this machine, beside the floor; charts go to .bench"
	@echo "make bench-peers  the same work by qsync and by twelve other queues; PEERS=\"arq huey\" for some"
	@echo "make docs    build the documentation site into site/"
	@echo "make check   linters, types, import floors"
	@echo "make messages  update and compile the catalogues of the dashboard's texts"
	@echo "make format  put the code into its shape"
	@echo "make clean   remove .venv, .bench and caches"

demo: $(VENV)/installed
	$(BIN)/qsync demo

# More at a time than there are cores, since many tests wait. What is measured to the millisecond or as a
# ratio comes last, with nothing else running, and so does the simulation, which takes all cores for 40
# seconds.
ALONE := $(addprefix tests/guarantees/test_, blocked_loop.py capacity.py ratio.py recovery.py speed.py timers.py)
SEEDS := tests/simulation/test_sim.py::test_no_fault_loses_a_task
QUICK := $(BIN)/pytest -m "not slow"
test: test-most test-chaos test-alone

# The modules of the tests as pytest compiles them, once and not by each of its processes.
collect: $(VENV)/installed-dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest --collect-only -qq >/dev/null

test-most: $(VENV)/installed-dev
	$(QUICK) -n 4 --dist loadscope --no-loadscope-reorder --ignore tests/guarantees --ignore tests/chaos --deselect $(SEEDS)
test-chaos: $(VENV)/installed-dev
	$(QUICK) -n 2 --dist loadscope tests/chaos tests/guarantees $(ALONE:%=--ignore %)
test-alone: $(VENV)/installed-dev
	$(QUICK) $(ALONE) $(SEEDS)

# What knows redis-py, with the first release of the lowest and the last of the highest that pyproject.toml
# allows, each in an environment of its own.
REDIS_TESTS := $(addprefix tests/broker/test_, protocol.py brokers.py sentinel.py client_objects.py credentials.py internals.py)
REDIS_ENVS := $(VENV)-redis-lowest $(VENV)-redis-highest
# Both at a time, since each uses one core; what each says is shown when it has ended.
redis-envs: $(REDIS_ENVS:%=%/installed)
test-redis: redis-envs
	for env in $(REDIS_ENVS); do \
		( $$env/bin/python -c 'import redis; print("redis-py", redis.__version__)' && \
		$$env/bin/python -m pytest -m "not slow" -p no:cacheprovider $(REDIS_TESTS) ) >$$env/report 2>&1 & \
		runs="$$runs $$!"; \
	done; \
	for run in $$runs; do wait $$run || failed=1; done; \
	cat $(REDIS_ENVS:%=%/report); test -z "$$failed"

$(VENV)-redis-lowest/installed: REDIS := redis[hiredis]==6.0.0
$(VENV)-redis-highest/installed: REDIS := redis[hiredis]<9
$(VENV)-redis-%/installed: $(SOURCES)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check --quiet install --upgrade --upgrade-strategy eager \
		'.[embedded,process,fast]' '$(REDIS)' attrs greenlet hypothesis pydantic pytest pytest-asyncio pytest-timeout
	@touch $@

# The lowest releases of all dependencies that pyproject.toml allows, in an environment of their own. Not of
# uvloop: with old ones a test's own echo server answers after it has closed.
LOWEST_TESTS := $(addprefix tests/, unit client server cli/test_cli_task.py) $(REDIS_TESTS)
test-lowest: $(VENV)-lowest/installed
	$(VENV)-lowest/bin/python -m pytest -m "not slow" -p no:cacheprovider $(LOWEST_TESTS)

$(VENV)-lowest/installed: $(SOURCES) tools/lowest.py
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check --quiet install \
		. $$($(PYTHON) tools/lowest.py | grep -v uvloop) uvloop 'click==8.2.*' \
		attrs greenlet httpx hypothesis pydantic pytest pytest-asyncio pytest-timeout
	@touch $@

# What differs between stores, on the redis-server of the path beside the Valkey of the wheel.
STORE_TESTS := $(addprefix tests/, scripts broker client server inspector)
test-stores: $(VENV)/installed-dev
	redis-server --version
	$(QUICK) -n 2 --dist loadscope $(STORE_TESTS)

# Django's own tests of task backends, from its source, with Python 3.12 or 3.13: the Django that 3.11 allows
# has no tasks of its own.
test-django: $(VENV)-django/installed
	$(VENV)-django/bin/python -m tools.django_backend_tests $(VENV)-django/source/*/tests/tasks

$(VENV)-django/installed: $(SOURCES)
	$$($(PYTHON) -c 'from benchmarks.peers.interpreter import choose; print(choose("$(DJANGO_PYTHON)")["program"])') \
		-m venv --clear $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check --quiet install '.[embedded]' django
	$(@D)/bin/python -m pip --disable-pip-version-check --quiet download --no-deps --no-binary :all: \
		--dest $(@D)/source django
	tar -xzf $(@D)/source/*.tar.gz -C $(@D)/source
	@touch $@

# What a release would upload: built twice, compared, installed without extras and run.
release-check: $(VENV)/installed-dev
	$(PIP) install --group release
	$(BIN)/python -m tools.release_check

# Those that failed, alone. Chaos has no second try: what was lost there is lost.
test-again:
	! grep tests/chaos .pytest_cache/v/cache/lastfailed
	$(QUICK) --last-failed --last-failed-no-failures none

# Files that are tested once more by users of the store with the rights of a role and no more.
AS_USERS := $(wildcard tests/scripts/test_ops*.py tests/inspector/test_inspector*.py) \
	$(addprefix tests/scripts/test_, views.py counts.py) $(addprefix tests/client/test_, client.py handle.py) \
	$(addprefix tests/server/test_, server.py periodic.py)

# What takes long, in parts: about two hours on two cores. SOAK=10 makes ten times the rounds, seeds and
# examples; `make -k soak` goes on after a part that failed, and each part is a target of its own.
# Ctrl-C or SIGTERM ends the rounds and the simulation with the verdict so far.
SOAK ?= 1
times = $$(( $(1) * $(SOAK) ))
soak: $(SOAK_PARTS:%=soak-%)

soak-slow: $(VENV)/installed-dev
	$(BIN)/pytest -v -m slow --timeout 1800 --durations 10
soak-acl: $(VENV)/installed-dev
	QSYNC_TEST_ACL=1 $(BIN)/pytest -m "not slow" -n 2 --dist loadscope $(AS_USERS)
soak-model: $(VENV)/installed-dev
	QSYNC_MODEL_EXAMPLES=$(call times,500) $(BIN)/pytest -s tests/scripts/model/test_model.py -k match_the_model
soak-simulation: $(VENV)/installed-dev
	$(BIN)/python -m tests.simulation --seeds $(call times,2000) --from $$(date +%s) --processes 2
soak-outbox: $(VENV)/installed-dev
	$(BIN)/python -m tests.chaos.outbox_rounds --rounds $(call times,250)
soak-limits: $(VENV)/installed-dev
	$(BIN)/python -m tests.chaos.limit_rounds --rounds $(call times,500)
	$(BIN)/python -m tests.chaos.limit_rounds --minutes $(call times,10)
soak-mutants: $(VENV)/installed-dev
	$(BIN)/python -m tools.mutants --sample $(call times,20)
soak-django:
	$(MAKE) test-django
soak-release:
	$(MAKE) release-check

# Nothing else should run meanwhile. CHARTS=docs/charts draws those that the README shows.
CHARTS ?= .bench/charts
bench: $(VENV)/installed
	$(BIN)/python -m benchmarks --json .bench/bench.json --plot $(CHARTS)

# Each queue in an environment of its own in .bench, all of one interpreter: the first of 3.12 and 3.13
# that is found, since two of them need it, or PEERS_PYTHON. About ten minutes.
ROUNDS ?= 3
bench-peers: $(VENV)/installed
	$(BIN)/python -m benchmarks peers --rounds $(ROUNDS) $(if $(SCALE),--scale $(SCALE)) $(if $(PEERS_PYTHON),--python $(PEERS_PYTHON)) $(PEERS)

# Fails at any warning; needs no network.
docs: $(VENV)/installed-dev
	$(BIN)/python -m tools.settings_reference --check
	$(BIN)/python -m tools.includes --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

check: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

messages: $(VENV)/installed-dev
	$(BIN)/python -m tools.messages

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) $(REDIS_ENVS) $(VENV)-lowest $(VENV)-migrate-* .bench dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

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
