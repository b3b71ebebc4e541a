"""What nvcc made of every CUDA source: machine code for each GPU of the list, PTX for newer ones, no
library that a user would have to have. `make wheels` runs this on what it has built for all GPUs."""

import os
import re
import subprocess

import pytest

from tests.gpu.machine_code import cuda_module, dump
from tests.repo.wheel import ROOT

pytestmark = pytest.mark.slow
# As tests/repo/wheel.py and setup.py have it.
GPUS = {"sm_80", "sm_90", "sm_100"} if "SIMMIM_TEST_DIST" in os.environ else {"sm_90"}


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return cuda_module(tmp_path_factory)


def test_every_source_is_in_the_build(module):
    names = set(re.findall(r"([a-z_]+)_file\d", dump(module, "--dump-resource-usage")))
    with_kernels = {
        path.stem for path in (ROOT / "csrc/cuda").glob("*.cu") if "__global__" in path.read_text()
    }
    assert with_kernels and with_kernels <= names


def test_no_kernel_spills_on_any_gpu(module):
    usage = dump(module, "--dump-resource-usage")
    kernels = {}
    for part in usage.split("Fatbin elf code:")[1:]:
        architecture = re.search(r"arch = (sm_\d+)", part)[1]
        for name, stack, local in re.findall(
            r"Function (\w+):\s+REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", part
        ):
            if "simmim" in name:  # the runtime brings kernels of its own
                kernels[architecture, name] = int(stack) + int(local)
    if "SIMMIM_CUDA_ARCHS" not in os.environ:
        assert {architecture for architecture, _ in kernels} == GPUS
    assert len({name for _, name in kernels}) > 20
    assert not {kernel: size for kernel, size in kernels.items() if size}


def test_no_kernel_is_named_by_the_path_of_its_source(module):
    """As nvcc does with what stands in an unnamed namespace: builds in two folders would differ."""
    names = re.findall(r"Function (\w*simmim\w+):", dump(module, "--dump-resource-usage"))
    assert names and not [name for name in names if "_GLOBAL__N_" in name]


def test_machine_code_for_every_gpu_and_ptx_for_newer_ones(module):
    if "SIMMIM_CUDA_ARCHS" in os.environ:
        pytest.skip("SIMMIM_CUDA_ARCHS changes the list")
    listed = dump(module, "--list-elf", "--list-ptx")
    assert set(re.findall(r"\.(sm_\d+)\.cubin", listed)) >= GPUS
    newest = max(map(int, re.findall(r"\.sm_(\d+)\.ptx", listed)))
    assert newest > 100 if len(GPUS) > 1 else newest == 90


def test_links_neither_pytorch_nor_the_cuda_runtime(module):
    shown = subprocess.run(["readelf", "-d", module], capture_output=True, text=True).stdout
    libraries = re.findall(r"NEEDED.*\[(.*)\]", shown)
    assert libraries
    assert not [name for name in libraries if re.search(r"torch|c10|cuda|python", name)]


def test_exports_none_of_its_own_symbols(module):
    shown = subprocess.run(["nm", "-D", "--defined-only", module], capture_output=True, text=True)
    names = [line.split()[-1] for line in shown.stdout.splitlines()]
    assert [name for name in names if re.search("cuda|simmim", name)] == ["PyInit__cuda"]
