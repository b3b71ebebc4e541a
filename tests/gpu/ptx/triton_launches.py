"""Triton's launches: compiled for a GPU, then run by the machine on CPU tensors."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from triton import knobs
from triton.runtime.jit import JITFunction

from tests.gpu.ahead_of_time import TARGETS, compiling_for
from tests.gpu.ptx.kernel import Kernel
from tests.gpu.ptx.launches import Run, storage_range

_FORMATS = {"i1": "<b", "i8": "<b", "i16": "<h", "i32": "<i", "i64": "<q", "u1": "<B", "u8": "<B"}
_FORMATS |= {"u16": "<H", "u32": "<I", "u64": "<Q", "fp32": "<f", "fp64": "<d"}
_kernels: dict[str, Kernel] = {}  # by the hash of what was compiled


def _without_machine_code(compiler=None, stages=None, options=None, language=None, capability=None):
    """Leaves ptxas out, which takes longer than everything else. Without arguments: what sets the
    cached results apart from complete ones."""
    if stages is None:
        return "PTX only", "PTX only"
    stages["cubin"] = lambda source, metadata: b""


@contextmanager
def handing(target: str, run: Run) -> Iterator[None]:
    """Hand launches to the machine."""
    compile_and_launch = JITFunction.run

    def launch(self, *args, grid, warmup, **kwargs):
        compiled = compile_and_launch(self, *args, grid=grid, warmup=True, **kwargs)
        kernel = _kernels.get(compiled.hash)
        if kernel is None:
            kernel = _kernels[compiled.hash] = Kernel.of_text(compiled.asm["ptx"])
        given = dict(zip((p.name for p in self.params), args, strict=False))
        given |= {name: value for name, value in kwargs.items() if name in self.arg_names}
        parameters, ranges = _parameters(kernel, compiled.src.signature, given)
        run.add(
            kernel.launch(
                grid(given) if callable(grid) else grid,
                (32 * compiled.metadata.num_warps,),
                parameters,
                ranges,
                dynamic_shared_bytes=compiled.metadata.shared,
                order=run.order,
                checks_races=run.checks_races,
            )
        )
        return compiled

    before, knobs.runtime.add_stages_inspection_hook = (
        knobs.runtime.add_stages_inspection_hook,
        _without_machine_code,
    )
    # A "device" of its own: what is compiled without machine code is of no use to others.
    with compiling_for(TARGETS[target], len(TARGETS) + list(TARGETS).index(target)):
        JITFunction.run = launch
        try:
            yield
        finally:
            JITFunction.run = compile_and_launch
            knobs.runtime.add_stages_inspection_hook = before


def _parameters(kernel: Kernel, signature: dict[str, str], given: dict):
    """The bytes of a launch's parameters, and the memory that it may access. `given`: the values by
    name, of constants also."""
    slots = list(kernel.entry.parameters.values())
    names = [name for name in given if signature[name] != "constexpr"]
    names.sort(key=list(signature).index)
    assert len(names) + 2 == len(slots), "two more parameters are scratch memory, which none uses"
    parameters, ranges = bytearray(kernel.entry.parameter_bytes), []
    for name, (at, size) in zip(names, slots[:-2], strict=True):
        value, kind = given[name], signature[name]
        if isinstance(value, torch.Tensor):
            ranges.append(storage_range(value))
            if name == "table":
                ranges += image_ranges(value, given)
            value, kind = value.data_ptr(), "u64"
        assert struct.calcsize(_FORMATS[kind]) == size, f"{kernel.name}: {name} is {kind}"
        struct.pack_into(_FORMATS[kind], parameters, at, value)
    return bytes(parameters), ranges


def image_ranges(table: torch.Tensor, given: dict) -> Iterator[tuple[int, int]]:
    """The memory of the images in a table of `crop_resize`: from the first pixel to the last, and no
    byte of what lies between the end of one and the start of another."""
    size = given["ELEMENT"].primitive_bitwidth // 8
    for address, *strides, rows, columns in table.tolist():
        last = zip(strides, (given["CHANNELS"], rows, columns), strict=True)
        yield address, address + size * (1 + sum(step * (n - 1) for step, n in last))
