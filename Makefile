# One obvious command for each habit. `make demo` and `make test` work from a fresh clone.
#
#   PYTHON=python3.12   the interpreter the environment is made with (3.11 or newer)
#   JOBS=4              processes that the tests run in
#   TORCH=cpu           take torch's CPU build (on Linux, pip's default brings CUDA: 3 GB)

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
TESTS ?= tests
JOBS ?= 2
POCKET ?= --max-minutes 7 --workers 12 --compile
BENCH_CPU ?= benchmarks/host.py benchmarks/cpu_vs_transformers.py
BENCH_CUDA ?= benchmarks/prefill.py benchmarks/decode.py benchmarks/kernels.py benchmarks/offline.py

ifeq ($(TORCH),cpu)
PIP += --extra-index-url https://download.pytorch.org/whl/cpu
endif

# What speaks to others. Comparisons with transformers are skipped where it needs newer libraries.
WIRE ?= tests/contract tests/service/rpc tests/service/security tests/clients

# Tests by property: `make test-long` gives each of them LONGER times its examples.
PROPERTIES ?= $(shell grep -rl --include='test_*.py' 'from hypothesis' tests)
LONGER ?= 10

# Hundreds of processes import the same modules: these are compiled once, whatever the shell says.
test course test-lowest test-long: export PYTHONDONTWRITEBYTECODE =

.PHONY: help demo test course test-gpu test-lowest test-long check node proto baseline bench plots screens chaos soak mutants pocket clean

help:
	@echo "make demo      install, serve the embedded model, talk to it, stop"
	@echo "make test      the whole CPU suite"
	@echo "make course    the course: its small engine, its exercises, its notebooks (course/README.md)"
	@echo "make check     style, types, import rules, contract, stubs, and the wheel"
	@echo "make test-gpu  the tests that need a CUDA device"
	@echo "make test-lowest  the wire's tests on the oldest versions allowed (needs Python 3.11)"
	@echo "make test-long  property tests, soak, fuzz and storms in their long forms (most of an hour)"
	@echo "make bench     benchmarks that suit this machine;  make plots: their pictures"
	@echo "make chaos     10,000 streams with everything that goes wrong (minutes)"
	@echo "make soak      the long property tests and fuzz;  make mutants: old faults put back"
	@echo "make screens   the pictures in the README, and of quire watch (needs Chromium)"
	@echo "make proto     the stubs, from proto/quire/v1/inference.proto"
	@echo "make node      the packages of examples/node, which its tests need (skipped without)"
	@echo "make baseline  promise the contract as it is now, at a release (additions only)"
	@echo "make pocket    train the embedded model again"
	@echo "make clean     remove what the above have made, the environment included"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "quire: Python 3.11 or newer is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "quire: this Python makes no environments; on Debian: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What runs (.server), and what also develops (.dev). A stamp older than its inputs installs again.
$(VENV)/.server: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Quire and its server into $(VENV)"
	@$(PIP) --editable '.[server]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Quire, its server and what develops it into $(VENV)"
	@$(PIP) --editable '.[dev]'
	@touch $(VENV)/.server $@

# grpcio-tools wants versions of its own, so it has an environment of its own.
.venv-proto/.done: | $(BIN)/python
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/python -m pip install --quiet --disable-pip-version-check grpcio-tools==1.76.0
	@touch $@

demo: $(VENV)/.server
	$(BIN)/python tools/demo.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(TESTS)

# Notebooks are run here alone: `make test` shows the rest of the course.
course: $(VENV)/.dev
	TESTS_LONG=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --no-loadscope-reorder tests/course

test-gpu: $(VENV)/.dev
	$(BIN)/python tools/test_gpu.py

# The lowest versions of what the server needs come first; torch and the tests' own are borrowed.
.venv-lowest/.done: pyproject.toml tools/lowest.py $(VENV)/.dev
	pins=$$($(BIN)/python tools/lowest.py) && $(BIN)/python -m venv --clear .venv-lowest && \
		.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check $$pins
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(BIN)/python tools/lowest.py --lend .venv-lowest
	@touch $@

test-lowest: .venv-lowest/.done
	.venv-lowest/bin/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder \
		$(WIRE)

test-long: $(VENV)/.dev
	TESTS_LONG=1 $(BIN)/python -m pytest -m long --numprocesses $(JOBS) --dist loadfile $(TESTS)
	PYTHONPATH=tools TESTS_LONGER=$(LONGER) $(BIN)/python -m pytest -p longer \
		--numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(PROPERTIES)
	$(BIN)/python tools/soak.py
	$(BIN)/python tools/fuzz.py
	$(BIN)/python tools/chaos.py

check: $(VENV)/.dev .venv-proto/.done
	$(BIN)/python tools/check.py

# What examples/node needs. No lock file: it would name a registry.
examples/node/node_modules: examples/node/package.json
	cd examples/node && npm install --no-package-lock --no-audit --no-fund --ignore-scripts
	@touch $@

node: examples/node/node_modules

proto: .venv-proto/.done
	cd proto && ../.venv-proto/bin/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. \
		--grpc_python_out=. quire/v1/inference.proto

# The contract as it is promised: what `make check` holds it against. Renewed at a release.
baseline: $(VENV)/.dev
	$(BIN)/buf breaking --against proto/baseline.binpb
	$(BIN)/buf build --exclude-source-info --output proto/baseline.binpb

bench: $(VENV)/.dev
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; \
		then scripts="$(BENCH_CUDA)"; else scripts="$(BENCH_CPU)"; fi; \
	for script in $$scripts; do echo "-- $$script"; $(BIN)/python $$script || exit 1; done

plots: $(VENV)/.dev
	$(BIN)/python tools/plots.py
	$(BIN)/python tools/how_it_works.py

screens: $(VENV)/.dev
	$(BIN)/python tools/screens.py
	$(BIN)/python tools/watch_screens.py

soak: $(VENV)/.dev
	$(BIN)/python tools/soak.py
	$(BIN)/python tools/fuzz.py

chaos: $(VENV)/.dev
	$(BIN)/python tools/chaos.py

mutants: $(VENV)/.dev
	$(BIN)/python tools/mutants.py --jobs $(JOBS)

pocket: $(VENV)/.dev
	$(BIN)/python tools/pocket/train.py --out build/pocket $(POCKET)
	$(BIN)/python tools/pocket/publish.py --trained build/pocket

clean:
	rm -rf $(VENV) .venv-proto .venv-lowest .types build dist *.egg-info .pytest_cache .mypy_cache \
		.ruff_cache .hypothesis .import_linter_cache examples/node/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
