# make run    set up, then fine-tune the embedded model for compression
# make test   set up, then the default tests; the HTML report is tried in Chromium where that is installed
#             (Debian: apt-get install chromium chromium-driver), else its browser tests say that they are skipped,
#             which is a failure where CI is set
#             as on another processor: make test OMP_NUM_THREADS=4, ATEN_CPU_CAPABILITY=default make test (no AVX),
#             PYTEST_ADDOPTS=--perturb-schedules make test (other last bits of float32 products and roots)
# make … TORCH_INDEX=URL   take torch from another package index too, such as PyTorch's own for CPU builds
VENV ?= .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
PYTHON ?= python
else
BIN := $(VENV)/bin
PYTHON ?= python3
endif

# A file's tests stay together, for what they share. Two processes with a thread each: more threads than cores wait for each other.
IN_PARALLEL := --numprocesses 2 --dist loadfile
test test-all: export OMP_NUM_THREADS := 1
# Threads that wait for others sleep: where there are more of them than cores, those that spin take the others' time.
test test-all: export OMP_WAIT_POLICY := PASSIVE

.PHONY: run test test-all check setup clean

setup: $(VENV)/installed

# The constraints pin torch: a plain `torch` takes whatever build is newest.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -c "from pathlib import Path; Path('$(VENV)/installed').touch()"

run: setup
	$(BIN)/rlcm loop --task compression

test: setup
	$(BIN)/python -m pytest $(IN_PARALLEL)

test-all: setup
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "slow or not slow"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
