"""Pixels on their way in and out of kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def normalised(x, mean, std, channel, inside, BYTES: tl.constexpr, MEAN: tl.constexpr,
               STD: tl.constexpr):  # fmt: skip
    """Pixels in the compute type: bytes divided by 255, then `(x - mean) / std`."""
    if BYTES:
        x = x / 255
    if MEAN:
        x = x - tl.load(mean + channel, mask=inside, other=0.0).to(x.dtype)
    if STD:
        x = x / tl.load(std + channel, mask=inside, other=1.0).to(x.dtype)
    return x


@triton.jit
def store(target, value, inside):
    """Stores in the type of `target`'s elements; no GPU narrows float64 to 16 bits in one step."""
    if target.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)
    tl.store(target, value.to(target.dtype.element_ty), mask=inside)
