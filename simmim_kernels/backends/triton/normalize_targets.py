"""Sliding-window normalisation by running sums in float64.

A program goes down a band of one channel's rows. It keeps the sums over the window's rows of every
column, and for each row turns them into sums over the window's columns by one prefix sum. Running
sums never lose a NaN or Inf, and keep the rounding of large numbers after they have left: such
numbers are left out of them and added one by one, at a cost that grows with the window.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from simmim_kernels.backends._results import empty_image, target_dtype
from simmim_kernels.backends._window import running_limit
from simmim_kernels.backends.triton import OPTIONS, cdiv, on_device_of, power_of_two
from simmim_kernels.backends.triton._grid import unit_of
from simmim_kernels.backends.triton._pixels import store
from simmim_kernels.backends.triton._scalars import bits_of, float64

_PROGRAMS = 1024  # as high bands as this many programs allow: each begins by adding up a window
_LEAST_ROWS = 32


@triton.jit
def _row(image, y, i_y, i_x, lane, width, limit):
    """A row in float64, split into numbers that running sums can take and numbers that they can't."""
    x = tl.load(image + y.to(tl.int64) * i_y + lane.to(tl.int64) * i_x, mask=lane < width, other=0)
    x = x.to(tl.float64)
    bad = (tl.abs(x) <= limit) == 0
    return tl.where(bad, 0.0, x), tl.where(bad, x, 0.0)


@triton.jit
def _across(column_sums, first, last):
    """The sums of `column_sums[first : last + 1]` for each lane."""
    prefix = tl.cumsum(column_sums, 0)
    before = tl.where(first > 0, tl.gather(prefix, tl.maximum(first - 1, 0), 0), 0)
    return tl.gather(prefix, last, 0) - before


@triton.jit
def _directly(image, begin, end, i_y, i_x, lane, width, first, last, limit):
    """Each lane's sums of bad numbers and of their squares, computed from scratch for its window."""
    sums, squares = tl.zeros_like(lane).to(tl.float64), tl.zeros_like(lane).to(tl.float64)
    for step in range(end - begin):
        _, bad = _row(image, begin + step, i_y, i_x, lane, width, limit)
        sums, squares = sums + bad, squares + bad * bad
    across, across_squares = tl.zeros_like(sums), tl.zeros_like(sums)
    for step in range(tl.max(last - first, 0) + 1):
        at = first + step
        here = at <= last
        at = tl.minimum(at, last)
        across += tl.where(here, tl.gather(sums, at, 0), 0.0)
        across_squares += tl.where(here, tl.gather(squares, at, 0), 0.0)
    return across, across_squares


@triton.jit(
    do_not_specialize=[
        "band", "radius_y", "radius_x", "unit_h", "unit_w", "grid_w", "eps", "limit",
    ]
)  # fmt: skip
def _normalize_window(
    image, i_b, i_c, i_y, i_x, out, o_b, o_c, o_y, o_x, std, mask, unit_h, unit_w, grid_w,
    height, width, band, radius_y, radius_x,
    eps: tl.int64, limit: tl.int64, CHANNELS: tl.constexpr, STD: tl.constexpr,
    SOME: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    bands = tl.cdiv(height, band)
    plane, top = program // bands, program % bands * band
    b, c = (plane // CHANNELS).to(tl.int64), (plane % CHANNELS).to(tl.int64)
    image += b * i_b + c * i_c
    out += b * o_b + c * o_c
    # Stored numbers are normalised: (x / 255 - mean) / std changes nothing but the units of eps.
    unit = tl.full((), 1.0, tl.float64)
    largest = float64(limit)
    if STD:
        unit = unit * tl.load(std + c).to(tl.float64)
    if image.dtype.element_ty == tl.uint8:
        unit = unit * 255
    if image.dtype.element_ty.is_floating():
        largest = largest * unit  # `limit` is for a deviation of 1
    least = unit * unit * float64(eps)
    lane = tl.arange(0, BLOCK)
    last = tl.minimum(tl.minimum(lane + radius_x, width - 1), BLOCK - 1)
    first = tl.minimum(tl.maximum(lane - radius_x, 0), last)
    sums = tl.zeros((BLOCK,), tl.float64)
    squares = tl.zeros((BLOCK,), tl.float64)
    lost = tl.zeros((BLOCK,), tl.int32)
    begin = tl.maximum(top - radius_y, 0)
    for step in range(tl.minimum(top + radius_y, height) - begin):
        x, bad = _row(image, begin + step, i_y, i_x, lane, width, largest)
        sums, squares, lost = sums + x, squares + x * x, lost + (bad != 0).to(tl.int32)
    for step in range(tl.minimum(band, height - top)):
        y = top + step
        if y + radius_y < height:
            x, bad = _row(image, y + radius_y, i_y, i_x, lane, width, largest)
            sums, squares, lost = sums + x, squares + x * x, lost + (bad != 0).to(tl.int32)
        end = tl.minimum(y + radius_y, height - 1) + 1
        begin = tl.maximum(y - radius_y, 0)
        s = _across(sums, first, last)
        q = _across(squares, first, last)
        if tl.max(lost, 0) > 0:
            more, more_squares = _directly(
                image, begin, end, i_y, i_x, lane, width, first, last, largest
            )
            s, q = s + more, q + more_squares
        # Both sides of the fraction times n and k = n - 1, which avoids dividing by k = 0; for a window
        # of one pixel n q - s^2 is 0 (or NaN).
        n = ((last - first + 1) * (end - begin)).to(tl.float64)
        k = tl.maximum(n - 1, 1.0)
        v = n * q - s * s
        v = tl.where(v < 0, 0.0, v)  # a NaN stays
        good, bad = _row(image, y, i_y, i_x, lane, width, largest)
        result = (n * (good + bad) - s) * k * tl.rsqrt(k * n * (v + least * n * k))
        place = y.to(tl.int64) * o_y + lane.to(tl.int64) * o_x
        wanted = lane < width
        if SOME:
            cell = unit_of(y, lane, unit_h, unit_w, grid_w) + b * (height // unit_h) * grid_w
            wanted = wanted & (tl.load(mask + cell, mask=wanted, other=0) != 0)
        store(out + place, result, wanted)
        if y - radius_y >= 0:
            x, bad = _row(image, y - radius_y, i_y, i_x, lane, width, largest)
            sums, squares, lost = sums - x, squares - x * x, lost - (bad != 0).to(tl.int32)


def window_normalized(
    image: Tensor,
    window: int,
    eps: float,
    std: Tensor | None,
    dtype: torch.dtype,
    mask: Tensor | None = None,
) -> Tensor:
    """The normalised image in `dtype`. With a contiguous mask `(B, gh, gw)` visible pixels are not
    written."""
    out = empty_image(image, dtype)
    batch, channels, height, width = image.shape
    if not out.numel():
        return out
    std = None if std is None else std.contiguous()
    planes = batch * channels
    band = max(cdiv(height, max(_PROGRAMS // planes, 1)), min(height, _LEAST_ROWS))
    block = power_of_two(width, 1 << 20)
    radius = window // 2
    grid_h, grid_w = (height, width) if mask is None else mask.shape[1:]
    limit = running_limit(image, eps)
    if image.dtype == torch.float64:  # no type of a GPU is wide enough for running sums
        limit = -1.0
    with on_device_of(image):
        _normalize_window[(planes * cdiv(height, band),)](
            image, *image.stride(), out, *out.stride(), std, mask, height // grid_h,
            width // grid_w, grid_w, height, width, band, min(radius, height - 1),
            min(radius, width - 1), bits_of(eps), bits_of(limit), CHANNELS=channels, STD=std is not None,
            SOME=mask is not None, BLOCK=block,
            num_warps=min(max(block // 64, 1), 16), **OPTIONS,
        )  # fmt: skip
    return out


def normalize_targets(image, window, eps, mean, std):
    return window_normalized(image, window, eps, std, target_dtype(image))
