# CI runs the same words. `make demo` and `make test` need only Python 3.11 or later, make and git.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo ui test test-slow check docs bench bench-gpu install
.DEFAULT_GOAL := demo

# Compiled modules are kept: tests start some hundred processes, and each would compile the packages anew.
unexport PYTHONDONTWRITEBYTECODE

# The locked packages in .venv, installed again when the lock or the dependencies change. With TORCH_INDEX, the address of
# PyTorch's index of CPU wheels, torch comes from there and the packages of CUDA are left out.
TORCH_INDEX ?=
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check
install: .venv/installed
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
ifdef TORCH_INDEX
	$(PIP_INSTALL) --no-deps --index-url $(TORCH_INDEX) --constraint requirements.lock torch torchvision
	grep --extended-regexp --invert-match '^(cuda|nvidia|triton)' requirements.lock > .venv/without-cuda.lock
	$(PIP_INSTALL) --no-deps --requirement .venv/without-cuda.lock
else
	$(PIP_INSTALL) --requirement requirements.lock
endif
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

demo: install
	$(BIN)/sptune launch demo

ui: install
	$(BIN)/sptune ui

test: install
	$(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal

# Two files at a time: a cluster that starts, or waits for what it has lost, leaves most of a core to the other.
test-slow: install
	$(BIN)/pytest -m slow --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --num-workers 2

# Regenerates the part of search_spaces/README.md that comes from the schema.
docs: install
	$(BIN)/python -m orchestrator.spec.reference

# Compares speed with the published recipe and with the limits of the machine. Prints tables, writes numbers to bench/.
bench: install
	$(BIN)/python -m tests.benchmarks.throughput --prototypes --out bench/throughput.json
	$(BIN)/python -m tests.benchmarks.trials --out bench/trials.json
	$(BIN)/python -m tests.benchmarks.growth --out bench/growth.json
	$(BIN)/python -m tests.benchmarks.lanes --out bench/lanes.json
	$(BIN)/python -m tests.benchmarks.accuracy --out bench/accuracy.json
	$(BIN)/python -m tests.benchmarks.step vit_nano_patch4_32.mae --batch-size 32 --steps 30 --out bench/step.json
	$(BIN)/python -m tests.benchmarks.command_line --out bench/command_line.json

# The same on a GPU: engines of the training step, prototypes, trials. Ends with a sentence where there is none.
bench-gpu: install
	$(BIN)/python -m tests.benchmarks.engines --device cuda --out bench/engines.json
	$(BIN)/python -m tests.benchmarks.throughput --device cuda --backbones vit_base_patch16_224.mae --methods spt_deep --prompt-lengths 20 --prototypes --out bench/throughput.json
	$(BIN)/python -m tests.benchmarks.trials --only start trial --backbones vit_base_patch16_224.mae --out bench/trials.json
