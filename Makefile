# `make help` lists the targets. PYTHON=... uses an environment that exists instead of making .venv.
ifeq ($(origin PYTHON),undefined)
PY := .venv/bin/python
ENVIRONMENT := .venv/bin/python
else
PY := $(PYTHON)
ENVIRONMENT :=
endif

# Rounds of every benchmark comparison, and the tests that exercise the compiled kernels.
ROUNDS ?= 25
OUT ?= runs/gpu
SANITIZED := $(patsubst csrc/cpu/%.cpp,tests/test_%.py,$(wildcard csrc/cpu/*.cpp))

CLANG_FORMAT = "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("scripts"))')/clang-format"

.DEFAULT_GOAL := help
.PHONY: help install build demo learn test bench gpu-check sanitize lint format clean

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

demo: install ## train on a few photographs and draw what the model puts into the gaps (runs/demo)
	$(PY) -m simmim pretrain --preset demo --overwrite

learn: install ## pre-train on digits, probe and fine-tune with few labels, write docs/learn
	$(PY) -m benchmarks.learn

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

lint: ## check format and style, Python and C++
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(CLANG_FORMAT) --dry-run -Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')

format: ## rewrite Python and C++ in the project's format
	$(PY) -m ruff check --fix -q .
	$(PY) -m ruff format -q .
	$(CLANG_FORMAT) -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')

clean: ## remove what was built
	rm -rf build dist *.egg-info simmim_kernels/*.so simmim_kernels/_build_info.json
