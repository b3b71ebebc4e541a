"""Per-patch normalisation, one program a patch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from simmim_kernels.backends._results import contiguous, empty_image, target_dtype
from simmim_kernels.backends.triton import OPTIONS, on_device_of, power_of_two
from simmim_kernels.backends.triton._grid import unit_of
from simmim_kernels.backends.triton._pixels import store
from simmim_kernels.backends.triton._scalars import bits_of, float64
from simmim_kernels.grid import scale_of

_BLOCK = 1024  # pixels that a program reads at a time


@triton.jit
def _pixels(image, at, channel, inside, mean, std, STATS: tl.constexpr):
    """Pixels in float64: uint8 divided by 255, then `(x - mean) / std`."""
    x = tl.load(image + at, mask=inside, other=0).to(tl.float64)
    if image.dtype.element_ty == tl.uint8:
        x = x / 255
    if STATS:
        x = (x - tl.load(mean + channel, mask=inside, other=0.0).to(tl.float64)) / tl.load(
            std + channel, mask=inside, other=1.0
        ).to(tl.float64)
    return tl.where(inside, x, 0.0)


@triton.jit(do_not_specialize=["eps"])
def _normalize_patches(
    image, i_b, i_c, i_y, i_x, out, o_b, o_c, o_y, o_x, mean, std, mask, unit_h, unit_w, grid_h,
    grid_w, h, w, eps: tl.int64, CHANNELS: tl.constexpr, P: tl.constexpr,
    STATS: tl.constexpr, SOME: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    sample = (program // (h * w)).to(tl.int64)
    top, left = program % (h * w) // w * P, program % w * P
    if SOME:
        mask += sample * grid_h * grid_w
        if WHOLE and tl.load(mask + unit_of(top, left, unit_h, unit_w, grid_w)) == 0:
            return
    image += sample * i_b + top.to(tl.int64) * i_y + left.to(tl.int64) * i_x
    out += sample * o_b + top.to(tl.int64) * o_y + left.to(tl.int64) * o_x
    n: tl.constexpr = CHANNELS * P * P
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n, BLOCK):
        k = (start + lane).to(tl.int64)
        c, y, x = k // (P * P), k // P % P, k % P
        at = c * i_c + y * i_y + x * i_x
        total += _pixels(image, at, c, k < n, mean, std, STATS)
    average = tl.sum(total, 0) / n
    squares = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n, BLOCK):
        k = (start + lane).to(tl.int64)
        c, y, x = k // (P * P), k // P % P, k % P
        at = c * i_c + y * i_y + x * i_x
        d = _pixels(image, at, c, k < n, mean, std, STATS) - average
        squares += tl.where(k < n, d * d, 0.0)
    bessel: tl.constexpr = n - 1 if n > 1 else 1
    spread = tl.sqrt(tl.sum(squares, 0) / bessel + float64(eps))
    for start in range(0, n, BLOCK):
        k = (start + lane).to(tl.int64)
        c, y, x = k // (P * P), k // P % P, k % P
        at = c * i_c + y * i_y + x * i_x
        result = (_pixels(image, at, c, k < n, mean, std, STATS) - average) / spread
        place = c * o_c + y * o_y + x * o_x
        wanted = k < n
        if SOME and not WHOLE:
            cell = unit_of(top + y, left + x, unit_h, unit_w, grid_w)
            wanted = wanted & (tl.load(mask + cell, mask=wanted, other=0) != 0)
        store(out + place, result, wanted)


def patch_normalized(
    image: Tensor,
    patch: int,
    eps: float,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
    mask: Tensor | None = None,
) -> Tensor:
    """The normalised image in `dtype`. With a contiguous mask `(B, gh, gw)` visible pixels are not
    written."""
    out = empty_image(image, dtype)
    batch, channels, height, width = image.shape
    if out.numel():
        mean, std = contiguous(mean, std)
        h, w = scale_of((height, width), (patch, patch))
        grid_h, grid_w = (height, width) if mask is None else mask.shape[1:]
        unit_h, unit_w = scale_of((height, width), (grid_h, grid_w))
        with on_device_of(image):
            _normalize_patches[(batch * h * w,)](
                image, *image.stride(), out, *out.stride(), mean, std, mask, unit_h, unit_w, grid_h,
                grid_w, h, w, bits_of(eps), CHANNELS=channels, P=patch, STATS=std is not None,
                SOME=mask is not None, WHOLE=unit_h % patch == 0 and unit_w % patch == 0,
                BLOCK=power_of_two(channels * patch * patch, _BLOCK), num_warps=4, **OPTIONS,
            )  # fmt: skip
    return out


def normalize_patches(image, patch, eps, mean, std):
    return patch_normalized(image, patch, eps, mean, std, target_dtype(image))
