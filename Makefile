# make study          set up .venv and run the main job; ARGS="--seeds 0 1" goes to the script
# make test           set up .venv with test tools, run the quick tests in two processes; ARGS
#                     goes to pytest
# make test-slow      also the tests marked slow and cluster
# make lint           ruff, mypy and the import contracts
# make bench          what benchmarks/ measures
# make setup          only .venv
#
# PYTHON and VENV choose the interpreter and the folder.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt
# Compiling all that is installed takes a minute more than compiling what is then imported (10 s),
# which the first import keeps on disk unless told not to.
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile \
	--constraint constraints.txt
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup study test test-slow lint bench
.DEFAULT_GOAL := setup

setup: $(VENV)/runtime.stamp

study: $(VENV)/runtime.stamp
	$(BIN)/python studies/ablation_peft.py $(ARGS)

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder $(ARGS)

test-slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m "not gpu" $(ARGS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/dev.stamp
	@set -e; for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python $$script; done

# The CPU build of PyTorch unless a GPU is there; TORCH=torch takes what the package index has.
CPU_INDEX := https://download.pytorch.org/whl/cpu
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)
ifeq ($(HAS_GPU),yes)
TORCH ?= torch
else
TORCH ?= torch --index-url $(CPU_INDEX)
endif

# torch first and alone: every later resolution then starts from the build that is there. Where
# PyTorch's own index does not answer, it comes from the usual one.
$(VENV)/runtime.stamp: $(INPUTS)
	@echo "Setting up $(VENV): PyTorch (1 of 2)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) setuptools
	@$(INSTALL) --retries 0 --timeout 10 $(TORCH) 2>/dev/null || $(INSTALL) torch
	@echo "Setting up $(VENV): Ray, transformers and the rest (2 of 2)"
	@$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/runtime.stamp
	@echo "Setting up $(VENV): test tools"
	@$(INSTALL) --no-build-isolation --editable '.[dev,minilm]'
	@touch $@
