"""What nvcc makes of a CUDA source, read as machine code of an H100 (sm_90)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


def nvcc() -> str | None:
    """The compiler, on PATH or where NVIDIA's installer puts it."""
    usual = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(usual) if usual.exists() else None)


@cache
def machine_code(source: str) -> dict[str, list[str]]:
    """The instructions of each kernel in `csrc/cuda/<source>.cu`, by the kernel's name and types."""
    import tempfile

    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "code.cubin"
        command = [nvcc(), "-std=c++17", "-O3", "-cubin", "-arch=sm_90", "-DSIMMIM_ISA=cuda"]
        command += [f"-I{ROOT / 'csrc'}", "-o", cubin, ROOT / f"csrc/cuda/{source}.cu"]
        _output(command)
        path = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}  # cuobjdump calls nvdisasm
        listing = _output([tools / "cuobjdump", "-sass", cubin], os.environ | path)
    kernels = {}
    for part in listing.split("Function : ")[1:]:
        mangled = part.split(None, 1)[0]
        name = _output(["c++filt", mangled]).partition("(anonymous namespace)::")[2]
        name = name.replace("simmim::cuda::", "").partition("(")[0]
        kernels[name] = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", part)
    return kernels


def _output(command: list, env: dict[str, str] | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
