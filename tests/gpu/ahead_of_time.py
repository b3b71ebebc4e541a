"""Compiles what a backend call would launch, for a GPU that need not be there."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_WIDE = {
    "cuda": r"ld\.global[\w.:]*\.(v4\.(b|u|f)32|v2\.(b|u|f)64|v8\.(b|u|f)32|b128)",
    "hip": r"(global|buffer)_load_dwordx4",
}


class _Driver:
    """What a launch asks of the driver; each target counts as a device of its own."""

    def __init__(self, target: GPUTarget, device: int) -> None:
        self.get_current_target = lambda: target
        self.get_current_device = lambda: device
        self.get_current_stream = lambda _: 0


class Compiled:
    """A compiled kernel, and what can be read off it."""

    def __init__(self, kernel, target: GPUTarget) -> None:
        self.name, self.asm, self.target = kernel.metadata.name, kernel.asm, target

    def loads_wide(self) -> bool:
        """Whether any load from memory is 16 bytes (or more) wide."""
        text = self.asm["ptx" if self.target.backend == "cuda" else "amdgcn"]
        return re.search(_WIDE[self.target.backend], text) is not None

    def spilled(self) -> int:
        """Bytes (NVIDIA) or vector registers (AMD) that went to memory. AMD's scalar registers
        overflow into vector registers, which costs no memory access."""
        if self.target.backend == "hip":
            return sum(map(int, re.findall(r"vgpr_spill_count:\s*(\d+)", self.asm["amdgcn"])))
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.asm["cubin"])
            file.flush()
            usage = subprocess.run(
                [tool, "--dump-resource-usage", file.name],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        return sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", usage)))


@contextmanager
def compiling_for(target: GPUTarget, device: int) -> Iterator[None]:
    """Have Triton compile for a GPU that need not be there, as the device of that number."""
    before = driver._active  # `driver.active` would look for a GPU
    driver.set_active(_Driver(target, device))
    try:
        yield
    finally:
        driver._active = before


@contextmanager
def _compiling_only(target: GPUTarget, device: int) -> Iterator[list[Compiled]]:
    compiled: list[Compiled] = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled.append(Compiled(run(self, *args, grid=grid, warmup=True, **kwargs), target))

    JITFunction.run = compile_only
    try:
        with compiling_for(target, device):
            yield compiled
    finally:
        JITFunction.run = run


def compiled_by(call: Callable[[], object], target: str) -> list[Compiled]:
    """The kernels that `call` launches, compiled for `target` and not run."""
    device = list(TARGETS).index(target)
    with _compiling_only(TARGETS[target], device) as kernels:
        call()
    return kernels
