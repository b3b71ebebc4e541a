"""float64 arguments of kernels, passed as the bits of an int64. A constexpr would compile the kernel
again for every fill, beta or eps, and Triton passes a Python float as float32."""

from __future__ import annotations

import struct

import triton
import triton.language as tl


def bits_of(value: float) -> int:
    """A float64 as the `tl.int64` that holds its bits."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


@triton.jit
def float64(bits):
    """The float64 of these bits."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)
