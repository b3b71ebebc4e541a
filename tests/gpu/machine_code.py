"""What nvcc made of the CUDA sources: the module of a wheel, and its machine code for an H100 (sm_90)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import zipfile
from functools import cache
from pathlib import Path

import pytest

from tests.repo.wheel import build, shared_folder


def cuda_module(tmp_path_factory) -> Path:
    """The CUDA module of the wheel in the folder `SIMMIM_TEST_DIST`, which `make wheels` names, or of
    the wheel that the tests share; skips where that one has none."""
    if "SIMMIM_TEST_DIST" in os.environ:
        package = tmp_path_factory.mktemp("dist") / "simmim_kernels"
        with zipfile.ZipFile(
            min(Path(os.environ["SIMMIM_TEST_DIST"]).glob("*x86_64.whl"))
        ) as wheel:
            wheel.extractall(package.parent)
    else:
        build(shared_folder(tmp_path_factory))
        package = shared_folder(tmp_path_factory) / "site" / "simmim_kernels"
    said = json.loads((package / "_build_info.json").read_text())["_cuda"]
    if "nvcc was not found" in said or "SIMMIM_CUDA is 0" in said:
        pytest.skip(f"the CUDA module was {said}")
    assert said == "built with nvcc"
    return next(package.glob("_cuda.*.so"))


def dump(module: Path, *options: str) -> str:
    """What the cuobjdump that comes with Triton says of a module."""
    triton = pytest.importorskip("triton")
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    path = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}  # cuobjdump calls nvdisasm
    return _output([tools / "cuobjdump", *options, module], env=os.environ | path)


@cache
def machine_code(module: Path) -> dict[str, list[str]]:
    """The instructions of each kernel, by source, kernel and types: `source::kernel<types>`."""
    parts = dump(module, "-sass", "-arch", "sm_90").split("Function : ")[1:]
    mangled = "\n".join(part.split(None, 1)[0] for part in parts)
    names = _output(["c++filt"], input=mangled).splitlines()
    return {
        re.sub(r"^void |simmim::cuda::|_file\b|\(.*", "", name): re.findall(
            r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", part
        )
        for name, part in zip(names, parts, strict=True)
    }


def _output(command: list, **options) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout
