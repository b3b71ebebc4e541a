"""Kernels of a few lines of PTX, to try the machine with."""

from __future__ import annotations

import struct

import torch

from tests.gpu.ptx.kernel import Kernel, Launch
from tests.gpu.ptx.launches import storage_range

_TEXT = """
.version 8.6
.target sm_90
.address_size 64
.visible .entry snippet(.param .u64 data)
{{
    .reg .pred %p<9>;
    .reg .b16 %rs<9>;
    .reg .b32 %r<19>;
    .reg .b64 %rd<9>;
    .shared .align 16 .b8 words[{shared_bytes}];
    ld.param.u64 %rd0, [data];
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, %laneid;
    mul.wide.u32 %rd1, %r0, 4;
    add.s64 %rd2, %rd0, %rd1;  // data[thread]
    mov.u32 %r2, words;
    shl.b32 %r3, %r0, 2;
    add.s32 %r4, %r2, %r3;  // words[thread]
    {body}
    ret;
}}
"""


def snippet(body: str, shared_bytes: int = 256) -> Kernel:
    """A kernel whose `%rd2` is the address of the thread's number in `data`, `%r4` of its word in
    shared memory; `%r0` is the thread, `%r1` the lane."""
    return Kernel.of_text(_TEXT.format(body=body, shared_bytes=shared_bytes))


def launch(
    body: str, data: torch.Tensor | None = None, blocks: int = 1, threads: int = 64, **options
) -> Launch:
    """Run a snippet on `data`, by default a number of 32 bits for each thread of one block."""
    data = torch.zeros(threads, dtype=torch.int32) if data is None else data
    parameters = struct.pack("<Q", data.data_ptr())
    kernel = snippet(body)
    return kernel.launch((blocks,), (threads,), parameters, [storage_range(data)], **options)


def kinds(launch: Launch) -> set[str]:
    return {fault.kind for fault in launch.faults}
