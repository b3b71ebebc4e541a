"""Counts and sums of the masked losses: the factor and the value of each result."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from simmim_kernels.backends import _pixel_loss
from simmim_kernels.backends.triton import OPTIONS, cdiv, on_device_of
from simmim_kernels.backends.triton._scalars import float64

HALF_SLOPE = tl.constexpr(_pixel_loss.HALF_SLOPE)
_COUNTED = 1 << 15  # mask units counted by one program


@triton.jit
def sample_of(row, named, batch, per_sample, units):
    """The sample and unit of row `row` of an index list with entry `named`; -1 for padding."""
    if per_sample > 0:
        sample, unit = row // per_sample, named
    else:
        sample, unit = named // units, named % units
    valid = (named >= 0) & (unit < units) & (sample < batch)
    return tl.where(valid, sample, -1), unit


@triton.jit(do_not_specialize=["rows", "batch", "per_sample", "units"])
def mark(index, marks, rows, batch, per_sample, units, BLOCK: tl.constexpr):
    """Sets the marks of all units that an index list names."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    named = tl.load(index + row, mask=row < rows, other=-1).to(tl.int64)
    sample, unit = sample_of(row, named, batch, per_sample, units)
    tl.store(marks + sample * units + unit, tl.full((BLOCK,), 1, tl.uint8), mask=sample >= 0)


@triton.jit(do_not_specialize=["n"])
def count(mask, counts, n, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """Counts the masked ones of `n` units, with one count for each chunk."""
    first = tl.program_id(0).to(tl.int64) * CHUNK
    total = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, CHUNK, BLOCK):
        at = first + start + tl.arange(0, BLOCK)
        total += (tl.load(mask + at, mask=at < n, other=0) != 0).to(tl.int64)
    tl.store(counts + tl.program_id(0), tl.sum(total, 0))


@triton.jit(
    do_not_specialize=["n", "known", "batch", "per_sample", "units", "pixels", "eps", "factor"]
)
def scales(
    counts, index, scale, scale_out, mean, std, affine,
    n, known, batch, per_sample, units, pixels, eps: tl.int64, factor: tl.int64,
    LISTED: tl.constexpr, EACH: tl.constexpr, COUNTS: tl.constexpr, MEAN: tl.constexpr,
    CHANNELS: tl.constexpr, STORE: tl.constexpr, AFFINE: tl.constexpr,
    UNIT: tl.constexpr, STATS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Result r's scale factor / ((masked pixels + eps) * channels), or 0 where nothing is masked.

    Of masked units there are `known`, plus the sum of `counts[r * n : (r + 1) * n]`, or as many as
    of the `n` rows of the list belong to sample r. With AFFINE the first program also leaves what
    makes (x - offset) * scale of a stored number x, (x / UNIT - mean) / std: the scale of each
    channel, then the offsets, so that no pixel is divided.
    """
    result = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.int64) + tl.where(lane == 0, known, 0)
    if COUNTS:
        for start in range(0, n, BLOCK):
            at = start + lane
            if LISTED:
                named = tl.load(index + at, mask=at < n, other=-1).to(tl.int64)
                mine = (named >= 0) & (named < units * batch.to(tl.int64))
                if EACH:
                    mine = mine & (named // units == result)
                total += mine.to(tl.int64)
            else:
                total += tl.load(counts + result * n + at, mask=at < n, other=0).to(tl.int64)
    denominator = tl.full((), 1.0, tl.float64)
    if MEAN:
        # 0 where nothing is masked, for 1 / eps may overflow float32.
        masked = tl.sum(total, 0).to(tl.float64)
        denominator = tl.where(masked == 0, 0.0, (masked * pixels + float64(eps)) * CHANNELS)
    found = tl.where(denominator == 0, 0.0, float64(factor) / denominator)
    tl.store(scale + result, found)
    if STORE:
        tl.store(scale_out + result, (found / HALF_SLOPE).to(scale_out.dtype.element_ty))
    if AFFINE:
        for start in range(0, CHANNELS, BLOCK):
            channel = start + lane
            mine = channel < tl.where(result == 0, CHANNELS, 0)
            spread = tl.full((BLOCK,), UNIT, tl.float64)
            offset = tl.zeros((BLOCK,), tl.float64)
            if STATS:
                offset = spread * tl.load(mean + channel, mask=mine, other=0.0).to(tl.float64)
                spread = spread * tl.load(std + channel, mask=mine, other=1.0).to(tl.float64)
            tl.store(affine + channel, (1 / spread).to(affine.dtype.element_ty), mask=mine)
            tl.store(affine + CHANNELS + channel, offset.to(affine.dtype.element_ty), mask=mine)


@triton.jit(do_not_specialize=["n", "each", "batch", "per_sample", "units"])
def finish(
    partial, index, scale, loss, n, each, batch, per_sample, units,
    FILTER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """loss[r] = scale[r] * the sum of `partial[r * n : (r + 1) * n]`, or with FILTER of those of all
    `n` partial sums whose row of the list (`each` partial sums a row) belongs to sample r."""
    result = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n, BLOCK):
        at = start + lane
        mine = at < n
        if FILTER:
            named = tl.load(index + at // each, mask=mine, other=-1).to(tl.int64)
            mine = mine & (named >= 0) & (named // units == result)
            total += tl.load(partial + at, mask=mine, other=0.0)
        else:
            total += tl.load(partial + result * n + at, mask=mine, other=0.0)
    result_value = tl.sum(total, 0) * tl.load(scale + result)
    tl.store(loss + result, result_value.to(loss.dtype.element_ty))


def masked_units(mask: Tensor, results: int) -> tuple[Tensor, int]:
    """Partial counts, whose sum over `[r * n : (r + 1) * n]` is the masked units of result r, and n."""
    n = mask.numel() // max(results, 1)
    chunks = cdiv(n, _COUNTED)
    if results != 1 or chunks <= 1:
        return mask, n
    counts = torch.empty(chunks, dtype=torch.int64, device=mask.device)
    count[(chunks,)](mask, counts, n, BLOCK=1024, CHUNK=_COUNTED, num_warps=4, **OPTIONS)
    return counts, chunks


def listed_units(index: Tensor, batch: int, h: int, w: int) -> Tensor:
    """`bool (B, h, w)`: the units that a contiguous index list names."""
    scored = torch.zeros((batch, h, w), dtype=torch.bool, device=index.device)
    if index.numel():
        with on_device_of(index):
            mark[(cdiv(index.numel(), 256),)](
                index, scored.view(torch.uint8), index.numel(), batch,
                index.shape[1] if index.dim() == 2 else 0, h * w,
                BLOCK=256, num_warps=4, **OPTIONS,
            )  # fmt: skip
    return scored
