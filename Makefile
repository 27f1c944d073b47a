# One virtual environment for everything, made when needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The CUDA extra that fits the NVIDIA driver, where there is one.
comma := ,
DRIVER := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p')
CUDA := $(if $(DRIVER),$(if $(filter 12,$(DRIVER)),$(comma)cuda12,$(if $(shell [ $(DRIVER) -ge 13 ] && echo yes),$(comma)cuda13)))

.PHONY: demo test lint bench sanitize clean

demo: $(VENV)/installed
	$(BIN)/python -m cuconv demo

test: $(VENV)/installed
	$(BIN)/python -m pytest

lint: $(VENV)/linters
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# What is measured and with whom: make bench OPTIONS="--suite resnet50 --batch 8"; the report from all records.
bench: $(VENV)/bench
	$(BIN)/python -m benchmarks $(OPTIONS)
	$(BIN)/python -m benchmarks.report

# On a machine with a GPU and the CUDA toolkit: its four checkers over the small GPU tests. Explicit calls of CUDA,
# which are CuPy's, must succeed too: modules are loaded from memory, and not looked for in files that may not be
# there. Implicit ones are the CUDA runtime's own, which tries what an older driver may lack.
SANITIZER ?= compute-sanitizer
sanitize: $(VENV)/installed
	for tool in memcheck racecheck initcheck synccheck; do \
		CUPY_CACHE_IN_MEMORY=1 $(SANITIZER) --tool $$tool --report-api-errors explicit --error-exitcode 1 --target-processes all \
			$(BIN)/python -m pytest -n 0 -m sanitize || exit 1; \
	done

clean:
	rm -rf $(VENV) .emulator build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis cuconv-demo.png

$(VENV)/installed: pyproject.toml Makefile
	@echo "installing cuconv and what its demo and tests need into $(VENV) (once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[demo,test$(CUDA)]'
	touch $@

$(VENV)/bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

$(VENV)/linters: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
