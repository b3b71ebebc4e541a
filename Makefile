# `make help` lists the targets. PYTHON=... uses an environment that exists instead of making .venv.
ifeq ($(origin PYTHON),undefined)
PY := .venv/bin/python
ENVIRONMENT := .venv/bin/python
else
PY := $(PYTHON)
ENVIRONMENT :=
endif

.DEFAULT_GOAL := help
.PHONY: help install build test lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/bin/python:
	python3 -m venv .venv

install: $(ENVIRONMENT) ## make .venv (unless PYTHON is given) and install the project with what its targets need
	$(PY) -m pip install -q -e ".[train,test,bench]"

build: ## compile the kernels in place, for an environment that has the build tools
	@mkdir -p build
	flock build/.lock env PATH="$(dir $(abspath $(PY))):$$PATH" $(PY) setup.py -q build_ext --inplace

test: install ## install and run every test
	$(PY) -m pytest tests

lint: ## check format and style, Python and C++
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m clang_format --dry-run -Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')

format: ## rewrite Python and C++ in the project's format
	$(PY) -m ruff check --fix -q .
	$(PY) -m ruff format -q .
	$(PY) -m clang_format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')

clean: ## remove what was built
	rm -rf build dist *.egg-info simmim_kernels/*.so simmim_kernels/_build_info.json
