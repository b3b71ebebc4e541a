"""What nvcc made of every CUDA source: machine code for each GPU of the list, PTX for newer ones, no
library that a user would have to have."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.repo.wheel import ROOT, build, shared_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    if shutil.which("nvcc") is None and not Path("/usr/local/cuda/bin/nvcc").exists():
        pytest.skip("nvcc is not installed")
    folder = shared_folder(tmp_path_factory)
    build(folder)
    package = folder / "site" / "simmim_kernels"
    record = json.loads((package / "_build_info.json").read_text())
    if "SIMMIM_CUDA is 0" in record["_cuda"]:
        pytest.skip("the build left CUDA out: SIMMIM_CUDA is 0")
    assert record["_cuda"] == "built with nvcc"
    return next(package.glob("_cuda.*.so"))


def test_every_source_is_in_the_build(module):
    objects = {path.name for path in (ROOT / "build").glob("cmake-*-_cuda/*.cu.o")}
    sources = {f"{path.name}.o" for path in (ROOT / "csrc/cuda").glob("*.cu")}
    assert sources <= objects


def dumped(module, *options):
    """What the cuobjdump that comes with Triton says of the module."""
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run(
        [tool, *options, module], check=True, capture_output=True, text=True
    ).stdout


def test_no_kernel_spills_on_any_gpu(module):
    usage = dumped(module, "--dump-resource-usage")
    kernels = {}
    for part in usage.split("Fatbin elf code:")[1:]:
        architecture = re.search(r"arch = (sm_\d+)", part)[1]
        for name, stack, local in re.findall(
            r"Function (\w+):\s+REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", part
        ):
            if "simmim" in name:  # the runtime brings kernels of its own
                kernels[architecture, name] = int(stack) + int(local)
    if "SIMMIM_CUDA_ARCHS" not in os.environ:
        assert {"sm_80", "sm_90", "sm_100"} == {architecture for architecture, _ in kernels}
    assert len({name for _, name in kernels}) > 20
    assert not {kernel: size for kernel, size in kernels.items() if size}


def test_machine_code_for_every_gpu_and_ptx_for_newer_ones(module):
    if "SIMMIM_CUDA_ARCHS" in os.environ:
        pytest.skip("SIMMIM_CUDA_ARCHS changes the list")
    listed = dumped(module, "--list-elf", "--list-ptx")
    assert {"sm_80", "sm_90", "sm_100"} <= set(re.findall(r"\.(sm_\d+)\.cubin", listed))
    newest = max(map(int, re.findall(r"\.sm_(\d+)\.ptx", listed)))
    assert newest >= 100


def test_links_neither_pytorch_nor_the_cuda_runtime(module):
    shown = subprocess.run(["readelf", "-d", module], capture_output=True, text=True).stdout
    libraries = re.findall(r"NEEDED.*\[(.*)\]", shown)
    assert libraries
    assert not [name for name in libraries if re.search(r"torch|c10|cuda|python", name)]


def test_exports_none_of_its_own_symbols(module):
    shown = subprocess.run(["nm", "-D", "--defined-only", module], capture_output=True, text=True)
    names = [line.split()[-1] for line in shown.stdout.splitlines()]
    assert [name for name in names if re.search("cuda|simmim", name)] == ["PyInit__cuda"]
