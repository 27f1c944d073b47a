# One virtual environment for everything, made when needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The CUDA extra that fits the NVIDIA driver, where there is one.
comma := ,
DRIVER := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p')
CUDA := $(if $(DRIVER),$(if $(filter 12,$(DRIVER)),$(comma)cuda12,$(if $(shell [ $(DRIVER) -ge 13 ] && echo yes),$(comma)cuda13)))

.PHONY: demo test docs lint bench device sanitize clean

demo: $(VENV)/installed
	$(BIN)/python -m cuconv demo

test: $(VENV)/tests
	$(BIN)/python -m pytest

# The pages as a site: build/docs/index.html.
docs: $(VENV)/docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html -j auto docs build/docs
	@echo "the pages are in build/docs/index.html"

lint: $(VENV)/linters
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# What is measured and with whom: make bench OPTIONS="--suite resnet50 --batch 8"; the report from all records.
bench: $(VENV)/bench
	$(BIN)/python -m benchmarks $(OPTIONS)
	$(BIN)/python -m benchmarks.report

# On a machine with a GPU: all that one is wanted for, in nine minutes, and on from there when it is given again.
# make device OPTIONS="--minutes 30 --from home"
device: $(VENV)/bench $(VENV)/tests
	$(BIN)/python -m benchmarks.device $(OPTIONS)

# There, with the CUDA toolkit: its four checkers over the small GPU tests.
SANITIZER ?= compute-sanitizer
sanitize: $(VENV)/tests
	$(BIN)/python -m benchmarks.sanitizer $(SANITIZER)

clean:
	rm -rf $(VENV) .emulator build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis cuconv-demo.png

$(VENV)/installed: pyproject.toml Makefile
	@echo "installing cuconv and what its demo needs into $(VENV) (once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[demo$(CUDA)]'
	touch $@

$(VENV)/tests: $(VENV)/installed
	@echo "installing what its tests need, NVIDIA's compiler among it (once)"
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

$(VENV)/linters: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
