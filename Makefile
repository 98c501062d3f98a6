# make demo     the whole pipeline on synthetic scans, in its own virtual environment
# make test     lint, types and tests, likewise (two workers, one thread each)
# make docs     the documentation as a site, in site/
# make mutants  mutation testing of the method's modules (hours; docs: CONTRIBUTING.md)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread per worker: tiny networks gain nothing from threads, and two workers use both cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=1

.PHONY: demo test test-slow docs mutants clean

$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/python -m pip install -q -c constraints.txt -e .[test,dicom,tensorboard,cluster]
	@touch $@

$(VENV)/.docs: $(VENV)/.run
	$(BIN)/python -m pip install -q -c constraints.txt -e .[docs]
	@touch $@

demo: $(VENV)/.run
	$(BIN)/mre_demo --overwrite

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/.test
	$(BIN)/python -m pip install -q -c constraints.txt -e .[docs,view,browser]
	$(BIN)/python -m pytest -m slow

# NO_MKDOCS_2_WARNING: a notice of the theme about another program's next version
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

mutants: $(VENV)/.test
	$(BIN)/python -m pip install -q -c constraints.txt -e .[develop]
	$(BIN)/python -m tests.mutation

clean:
	rm -rf $(VENV) build dist site mre_demo .pytest_cache .mypy_cache .ruff_cache
