"""AvgDist: compares every masked pixel with every visible unit, in integer arithmetic."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from simmim_kernels.backends.triton import OPTIONS, cdiv, on_device_of, power_of_two
from simmim_kernels.backends.triton._grid import unit_of
from simmim_kernels.backends.triton._sums import add_rows

_PIXELS, _UNITS = 128, 32


@triton.jit
def _distances(mask, sums, grid_h, grid_w, unit, chunks, PIXELS: tl.constexpr, UNITS: tl.constexpr):
    program = tl.program_id(0)
    sample = (program // chunks).to(tl.int64)
    mask += sample * grid_h * grid_w
    pixel = (program % chunks * PIXELS + tl.arange(0, PIXELS)).to(tl.int64)
    width = grid_w * unit
    y, x = pixel // width, pixel % width
    exists = y < grid_h * unit
    cell = unit_of(y, x, unit, unit, grid_w)
    masked = exists & (tl.load(mask + cell, mask=exists, other=0) != 0)
    far: tl.constexpr = 1 << 60  # beyond the square of any image side
    nearest = tl.full((PIXELS,), far, tl.int64)
    for start in range(0, grid_h * grid_w, UNITS):
        other = start + tl.arange(0, UNITS)
        there = other < grid_h * grid_w
        visible = there & (tl.load(mask + other, mask=there, other=1) == 0)
        top, left = (other // grid_w * unit)[None, :], (other % grid_w * unit)[None, :]
        dy = tl.maximum(tl.maximum(top - y[:, None], y[:, None] - (top + unit - 1)), 0)
        dx = tl.maximum(tl.maximum(left - x[:, None], x[:, None] - (left + unit - 1)), 0)
        square = tl.where(visible[None, :], dy * dy + dx * dx, far)
        nearest = tl.minimum(nearest, tl.min(square, 1))
    distance = tl.where(nearest < far, tl.sqrt(nearest.to(tl.float64)), float("inf"))
    distance = tl.where(masked, distance, 0.0)
    tl.store(sums + 2 * program, tl.sum(distance, 0))
    tl.store(sums + 2 * program + 1, tl.sum(masked.to(tl.float64), 0))


def avg_dist(mask: Tensor, unit: int) -> Tensor:
    batch, grid_h, grid_w = mask.shape
    pixels = grid_h * grid_w * unit * unit
    block = power_of_two(pixels, _PIXELS)
    chunks = cdiv(pixels, block)
    sums = torch.empty((batch * chunks, 2), dtype=torch.float64, device=mask.device)
    total = torch.empty(2, dtype=torch.float64, device=mask.device)
    with on_device_of(mask):
        if batch:
            _distances[(batch * chunks,)](
                mask.contiguous().view(torch.uint8), sums, grid_h, grid_w, unit, chunks,
                PIXELS=block, UNITS=_UNITS, num_warps=4, **OPTIONS,
            )  # fmt: skip
        add_rows(sums, total)
    return total[0] / total[1].clamp(min=1)
