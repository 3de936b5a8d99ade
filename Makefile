# make run        a demo server on loopback, in the foreground (Ctrl-C stops it)
# make test       everything a change must pass
# make test-long  kills, power cuts and fuzzing at full length
# make test-shared  mail that is not ours to pass on, from ../shared/data where that is there
# make perf       kernels beside their twins and rivals, then the rigs (PERF="--full --out DIR" for real figures)
# make generated  docs/config.md and conf/iems.toml from the declarations

PYTHON ?= python3
VENV := .venv
BASE ?= 10000
DEMO ?= demo
JOBS ?= 3
PERF ?= --quick
NATIVE := $(wildcard iems/_native/*.pyx iems/_native/*.pxd iems/_native/*.h)

.PHONY: run test test-long test-shared perf check generated clean machine

run: $(VENV)/.installed
	@exec $(VENV)/bin/python -m iems.cli.demo $(DEMO) --port-base $(BASE)

test: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -q -n $(JOBS) --dist loadfile

test-long: $(VENV)/.dev
	IEMS_TEST_EXEC=1 $(VENV)/bin/python -m pytest -q -m long

test-shared: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -m shared

perf: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q perf/kernels --benchmark-only --benchmark-columns=median,min,rounds --benchmark-sort=name
	$(VENV)/bin/iemsctl perf run $(PERF)

generated: $(VENV)/.installed
	$(VENV)/bin/iemsctl config docs > docs/config.md
	$(VENV)/bin/iemsctl config docs --sample > conf/iems.toml

# What pip would fail on with a page of text, in one line each.
machine:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "make: python3 of at least 3.11 is needed (Debian: apt install python3; or make PYTHON=/path/to/python3)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "make: Python's venv module is missing (Debian: apt install python3-venv)" >&2; exit 1; }
	@command -v $${CC:-cc} >/dev/null 2>&1 \
	  || { echo "make: a C compiler is missing (Debian: apt install gcc libc6-dev)" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
	  || { echo "make: Python.h is missing (Debian: apt install python3-dev)" >&2; exit 1; }
	@echo '#include <stdio.h>' | $${CC:-cc} -E - >/dev/null 2>&1 \
	  || { echo "make: the C library's headers are missing (Debian: apt install libc6-dev)" >&2; exit 1; }

$(VENV)/bin/python: | machine
	$(PYTHON) -m venv $(VENV)

# Editable: the extensions are built beside their sources, so tests and server run the same files.
$(VENV)/.installed: pyproject.toml setup.py $(NATIVE) | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check "setuptools>=77" "Cython>=3.1" wheel
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check --no-build-isolation -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	rm -f iems/_native/*.so iems/_native/*.c
