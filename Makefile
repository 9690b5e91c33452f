# Two commands: `make demo` shows the main job on built-in real data, `make test` runs the tests.
# Both install into .venv first; PYTHON chooses the interpreter (3.10 or newer).

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
OUT ?= demo-out
BIN := $(VENV)/bin
CSRC := $(wildcard src/globalcnn/ops/native/csrc/*.h src/globalcnn/ops/native/csrc/*.cpp)

.PHONY: help demo test sanitize lint format docs wheel clean

help:
	@echo "make demo    install, then train and compare on 5,000 real digits; pictures into $(OUT)"
	@echo "make test    install, then run the tests"
	@echo "make sanitize  install, then run the native kernels under the address and undefined-behaviour sanitizers"
	@echo "make lint    install, then check style (ruff, clang-format) and types (mypy)"
	@echo "make docs    install, then build the documentation into docs/_build/html"
	@echo "make wheel   install, then build a wheel with compiled kernels into dist"
	@echo "make format  rewrite the sources in the project's style"
	@echo "make clean   remove $(VENV) and caches"

$(BIN)/python:
	@echo "== making a virtual environment in $(VENV)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml
	@echo "== installing globalcnn with PyTorch (a few minutes the first time)"
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[demo]"
	$(BIN)/globalcnn build --if-possible
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml
	@echo "== installing globalcnn with PyTorch and the test tools (a few minutes the first time)"
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[test]"
	$(BIN)/globalcnn build --if-possible
	@touch $@

demo: $(VENV)/.demo
	@echo "== globalcnn demo: training and comparing on real digits, about two minutes on two cores"
	$(BIN)/globalcnn demo --out $(OUT) --overwrite

test: $(VENV)/.test
	@echo "== running the tests with $(WORKERS) processes"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --durations=10

sanitize: $(VENV)/.test
	@echo "== the native kernels under sanitizers, a few minutes"
	tests/ops/sanitized.sh $(BIN)/python

lint: $(VENV)/.test
	@echo "== checking style and types"
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/clang-format --dry-run -Werror $(CSRC)
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff format src tests benchmarks docs
	$(BIN)/ruff check --fix src tests benchmarks docs
	$(BIN)/clang-format -i $(CSRC)

docs: $(VENV)/.test
	@echo "== building the documentation"
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

wheel: $(VENV)/.test
	@echo "== building a wheel with compiled kernels (a minute more if they are not built yet)"
	$(BIN)/globalcnn build
	rm -rf build
	GLOBALCNN_WHEEL_LIBRARY=$$($(BIN)/python -c "from globalcnn.ops import native; print(native.library_path())") \
	    $(BIN)/python -m pip wheel --disable-pip-version-check --no-deps --no-build-isolation -w dist .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build docs/_build
