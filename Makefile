# Everything to be done with this tree. "make help" lists it. Only Python 3.11+ and
# make are needed: each target makes the virtual environment it needs, once.

VENV ?= .venv
PYTHON ?=
EXTRAS ?= dev
FOLDER ?=
TEST_ARGS ?=
SECONDS ?= 60
MODULE ?= degu/wire.py

PY := $(VENV)/bin/python
CODE := $(wildcard degu demo_app bench tests doc/conf.py)
SCREEN := $(if $(DISPLAY)$(WAYLAND_DISPLAY),yes)
DOCTESTED := degu $(wildcard README.rst doc)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help demo app test test-pure test-all lint types format doc doctest coverage \
	bench bench-quick fuzz fuzz-properties mutants sanitize dist check clean distclean
# Two pips in one environment would trip over each other.
.NOTPARALLEL:

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile
	@echo "Variables: PYTHON=/path/to/python3 VENV=$(VENV) EXTRAS=$(EXTRAS) TEST_ARGS= FOLDER= MODULE= SECONDS="

demo: $(VENV)/installed.$(if $(SCREEN),demo,testing) ## The demo: a window, or without a screen its main job; FOLDER=path
	$(PY) -m demo_app $(if $(SCREEN),,--headless) $(if $(FOLDER),"$(FOLDER)")

app: $(VENV)/installed.app ## A packaged Degu Drop in dist/app, tried out
	$(PY) -m PyInstaller -y --log-level WARN --workpath build/app --distpath dist/app packaging/degu-drop.spec
	$(PY) packaging/check_app.py dist/app/degu-drop/degu-drop

test: $(VENV)/installed.$(EXTRAS) ## The whole suite; TEST_ARGS="-k chunked -x" narrows it
	$(PY) -m pytest -n auto $(TEST_ARGS)

test-pure: $(VENV)/installed.$(EXTRAS) ## The whole suite without the compiled twin
	DEGU_PURE_PYTHON=1 $(PY) -m pytest -n auto $(TEST_ARGS)

test-all: ## The whole suite on every CPython 3.11+ found here
	MAKE="$(MAKE)" .ci/test-all

lint: $(VENV)/installed.$(EXTRAS) ## Style and likely mistakes (ruff)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/installed.$(EXTRAS) ## Types (mypy, strict)
	$(PY) -m mypy $(CODE)

format: $(VENV)/installed.$(EXTRAS) ## Lay out the code, and mend what ruff can mend
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

doc: $(VENV)/installed.$(EXTRAS) ## The documentation, to doc/_build/html
	$(PY) -m sphinx -nW --keep-going -q -b html -d doc/_build/doctrees doc doc/_build/html

doctest: $(VENV)/installed.$(EXTRAS) ## Every example in docstrings, README and doc/
	$(PY) -m pytest --doctest-modules --doctest-glob='*.rst' --ignore-glob='doc/*.py' $(DOCTESTED)

coverage: $(VENV)/installed.$(EXTRAS) ## Line and branch coverage, child processes included
	$(PY) -m coverage erase
	@# Being watched makes a few tests fail; "make test" says whether they pass.
	-$(PY) -m coverage run -m pytest -n auto $(TEST_ARGS)
	-$(PY) -m coverage combine -q
	$(PY) -m coverage report

bench: $(VENV)/installed.$(EXTRAS) ## Speed and memory beside the peers (minutes)
	$(PY) -m bench

bench-quick: $(VENV)/installed.$(EXTRAS) ## The same in two minutes, to build/bench
	$(PY) -m bench --quick

fuzz: $(VENV)/installed.$(EXTRAS) ## Coverage-guided, SECONDS= for each target (Linux)
	$(PY) -m pip install -q 'atheris>=3,<4'
	$(PY) -m tests.fuzz --seconds $(SECONDS)

fuzz-properties: $(VENV)/installed.$(EXTRAS) ## Property tests with many more examples
	$(PY) -m pytest -n auto -m hypothesis --hypothesis-profile=fuzz --timeout=0 $(TEST_ARGS)

mutants: $(VENV)/installed.$(EXTRAS) ## Does a test notice each small change to MODULE=? (long)
	$(PY) -m tests.mutants $(MODULE)

sanitize: $(VENV)/installed.$(EXTRAS) ## The compiled twin under AddressSanitizer and UBSan (Linux)
	.ci/sanitize $(PY) $(TEST_ARGS)

dist: $(VENV)/installed.release ## Sdist and wheel in dist/, installed and tried out
	rm -rf build dist
	$(PY) -m build -q && DEGU_BUILD_EXTENSION=no $(PY) -m build -q --wheel
	$(PY) -m twine check --strict dist/* && .ci/smoke-dist $(PY) dist/*

check: lint types doc doctest test test-pure ## All that CI checks, the quick things first

clean: ## Remove what was built (virtual environments stay)
	rm -rf build dist wheelhouse *.egg-info htmlcov .coverage .coverage.* doc/_build
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .fuzz degu/_*.c degu/_*.so .venv*/installed.*
	find degu $(wildcard demo_app bench tests doc) -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## Remove the virtual environments too
	rm -rf .venv .venv-*

$(VENV)/bin/python:
	@.ci/make-venv $(VENV) $(PYTHON)

# A stamp for each set of extras, so that the next run starts at once.
$(VENV)/installed.%: pyproject.toml setup.py $(wildcard degu/_*.pyx degu/_*.pxd) | $(VENV)/bin/python
	@echo "Installing degu[$*] into $(VENV), a minute or two"
	@$(PY) -m pip install -q -e ".[$*]"
	@# Where nothing writes byte code later, each server process would compile anew.
	@$(PY) -m compileall -q degu demo_app
	@touch $@
