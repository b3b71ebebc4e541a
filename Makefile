# `make help` lists the targets. PYTHON=... uses an environment that exists instead of making .venv.
ifeq ($(origin PYTHON),undefined)
PY := .venv/bin/python
ENVIRONMENT := .venv/bin/python
else
PY := $(PYTHON)
ENVIRONMENT :=
endif

# Rounds of every benchmark comparison, hypothesis examples of `make check`, where the lowest versions
# are installed, and the tests that exercise the compiled kernels.
ROUNDS ?= 25
EXAMPLES ?= 6
LOWEST := build/lowest
OUT ?= runs/gpu
SANITIZED := $(patsubst csrc/cpu/%.cpp,tests/ops/test_%.py,$(wildcard csrc/cpu/*.cpp)) \
	tests/ops/test_contract.py tests/ops/test_call_signature.py

CLANG_FORMAT = "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("scripts"))')/clang-format"

.DEFAULT_GOAL := help
.PHONY: help install build wheels demo docs learn check test test-lowest ptx bench gpu-check sanitize lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/bin/python:
	python3 -m venv .venv

install: $(ENVIRONMENT) ## make .venv (unless PYTHON is given) and install the project with what its targets need
	@echo "The kernels come from a wheel of these sources in $${SIMMIM_WHEELS:-dist}, or are compiled: 40 s on two cores."
	$(PY) -m pip install -q -e ".[train,test,bench]"

build: ## compile the kernels in place, for this machine
	@mkdir -p build
	flock build/.lock env PATH="$(dir $(abspath $(PY))):$$PATH" $(PY) setup.py -q build_ext --inplace

wheels: install ## build the wheels and the source distribution into dist, and test them (20 to 45 minutes)
	$(PY) -m tools.wheels
	SIMMIM_TEST_DIST=dist $(PY) -m pytest tests/repo/test_wheels.py tests/repo/test_aarch64.py \
		tests/gpu/test_nvcc.py tests/gpu/test_machine_code.py -rs

check: ## run the quick tests on what is built, before every commit
	SIMMIM_TEST_EXAMPLES=$(EXAMPLES) OMP_NUM_THREADS=1 $(PY) -m pytest tests -n 2 --dist worksteal -m "not slow"

test: install ## install and run every test
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -n 2 --dist worksteal

test-lowest: ## run the quick tests with the lowest versions that pyproject.toml admits (3 GB)
	rm -rf $(LOWEST)/source && mkdir -p $(LOWEST)/source
	git ls-files -z | xargs -0 cp --parents -t $(LOWEST)/source
	test -x $(LOWEST)/venv/bin/python || $(if $(ENVIRONMENT),python3,$(PY)) -m venv $(LOWEST)/venv
	cd $(LOWEST)/source && ../venv/bin/python -m tests.repo.lowest > ../constraints.txt
	$(LOWEST)/venv/bin/python -m pip install -q -c $(LOWEST)/constraints.txt packaging setuptools cmake ninja pybind11
	cd $(LOWEST)/source && PATH="$(abspath $(LOWEST))/venv/bin:$$PATH" ../venv/bin/python -m pip install \
		-q -c ../constraints.txt --no-build-isolation -e ".[train,hub,test,bench]"
	cd $(LOWEST)/source && $(MAKE) check PYTHON=../venv/bin/python

ptx: install ## run the compiled GPU kernels on this processor, in several orders of warps (15 minutes)
	OMP_NUM_THREADS=1 $(PY) -m tests.gpu.ptx

demo: install ## train on a few photographs and draw what the model puts into the gaps (runs/demo)
	$(PY) -m simmim pretrain --preset demo --overwrite

learn: install ## pre-train on noisy photographs of clothes, probe and fine-tune, write docs/learn (23 minutes)
	$(PY) -m experiments.learn

bench: install ## run the CPU benchmarks, remake the tables of the README and the plots
	$(PY) -m pytest benchmarks --rounds $(ROUNDS) -s -q --benchmark-disable-gc --benchmark-columns=rounds
	$(PY) -m benchmarks.report

sanitize: ## run the op tests on kernels built with AddressSanitizer and UBSan
	rm -rf build/sanitize && mkdir -p build/sanitize
	git ls-files -z | xargs -0 cp --parents -t build/sanitize
	cd build/sanitize && SIMMIM_SANITIZE=ON SIMMIM_CUDA=0 PATH="$(dir $(abspath $(PY))):$$PATH" \
		$(abspath $(PY)) setup.py -q build_ext --inplace
	cd build/sanitize && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 OMP_NUM_THREADS=2 \
		$(abspath $(PY)) -m pytest -s $(SANITIZED) \
		-k "not compile and not export and not opcheck and not fork and not worker and not forced"

gpu-check: ## on a machine with a GPU: build, test and measure there, results in OUT (9 minutes)
	$(if $(ENVIRONMENT),python3,$(PY)) -m benchmarks.gpu_check $(OUT)

docs: install ## build the documentation site into build/site
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build

lint: ## check format, style and the types of the public functions
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(CLANG_FORMAT) --dry-run -Werror $$(git ls-files '*.h' '*.cpp' '*.cu')

format: ## rewrite Python and C++ in the project's format
	$(PY) -m ruff check --fix -q .
	$(PY) -m ruff format -q .
	$(CLANG_FORMAT) -i $$(git ls-files '*.h' '*.cpp' '*.cu')

clean: ## remove what was built
	rm -rf build dist *.egg-info simmim_kernels/*.so simmim_kernels/_build_info.json
