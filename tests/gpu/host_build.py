"""Compiles the CUDA sources for the host, with the emulator's header in place of the runtime's."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

EMULATOR = Path(__file__).parent / "emulator"
CSRC = Path(__file__).parents[2] / "csrc"


def build(folder: Path, *options: str) -> Path:
    """The module `_cuda` whose kernels run on CPU tensors; `folder` keeps what is compiled."""
    import pybind11

    compiler = shutil.which("c++") or shutil.which("g++")
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
    flags += ["-ffp-contract=off", "-DSIMMIM_ISA=cuda", '-DSIMMIM_DEVICE_TYPE="cpu"', *options]
    includes = [EMULATOR, CSRC, pybind11.get_include(), sysconfig.get_path("include")]
    flags += [f"-I{path}" for path in includes]

    def compiled(source: Path) -> Path:
        target = folder / f"{source.name}.o"
        command = [compiler, *flags, "-x", "c++", "-c", source, "-o", target]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return target

    sources = [*sorted((CSRC / "cuda").glob("*.cu")), CSRC / "bindings_cuda.cpp"]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    module = folder / "_cuda.so"
    subprocess.run([compiler, "-shared", *options, *objects, "-o", module], check=True)
    return module
