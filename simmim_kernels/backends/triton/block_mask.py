"""Block-wise masks and their index lists in one launch, one program a sample."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from simmim_kernels.backends._block import BLOCK_ATTEMPTS, ROOT_ASPECT, block_areas
from simmim_kernels.backends._results import empty_lists
from simmim_kernels.backends._seed import BLOCK_STREAM, resolve_seed
from simmim_kernels.backends.triton import OPTIONS, on_device_of, power_of_two
from simmim_kernels.backends.triton._philox import draw, signed_words, uniform


@triton.jit
def _whole_root(n):
    """`floor(sqrt(n))` for `0 <= n < 2^48`."""
    root = tl.zeros((), tl.int64)
    bit = tl.full((), 1 << 23, tl.int64)
    for _ in range(24):
        candidate = root | bit
        root = tl.where(candidate * candidate <= n, candidate, root)
        bit = bit >> 1
    return root


@triton.jit
def _take(mask, top, left, h, w, wanting, units, grid_w, BLOCK: tl.constexpr):
    """Masks up to `wanting` visible units of a rectangle, in row-major order; returns how many are
    still wanting."""
    for start in range(0, units, BLOCK):
        unit = start + tl.arange(0, BLOCK).to(tl.int64)
        exists = unit < units
        y, x = unit // grid_w - top, unit % grid_w - left
        free = tl.load(mask + unit, mask=exists, other=1) == 0
        new = free & (y >= 0) & (y < h) & (x >= 0) & (x < w)
        new = new & (tl.cumsum(new.to(tl.int32), 0) <= wanting)
        # On a small grid several warps hold copies of the units, and one of them stores.
        tl.debug_barrier()
        tl.store(mask + unit, tl.full((BLOCK,), 1, tl.uint8), mask=new)
        wanting -= tl.sum(new.to(tl.int64), 0)
    tl.debug_barrier()  # other threads may read these units next
    return wanting


@triton.jit(do_not_specialize=[
    "grid_h", "grid_w", "count", "least", "widest", "epoch", "seed_lo", "seed_hi",
])  # fmt: skip
def _block_mask(
    ids, mask, masked, visible, grid_h, grid_w, count, least, widest, epoch, seed_lo, seed_hi,
    STREAM: tl.constexpr, ATTEMPTS: tl.constexpr, ROOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    sample = tl.load(ids + row)
    units = grid_h.to(tl.int64) * grid_w
    wanting = count.to(tl.int64)
    least, widest = least.to(tl.int64), widest.to(tl.int64)
    mask += row * units
    masked += row * count
    visible += row * (units - count)
    for start in range(0, units, BLOCK):
        unit = start + tl.arange(0, BLOCK).to(tl.int64)
        tl.store(mask + unit, tl.zeros((BLOCK,), tl.uint8), mask=unit < units)
    tl.debug_barrier()
    attempt = tl.zeros((), tl.int32)
    while (attempt < ATTEMPTS) & (wanting > 0):
        w0, w1, w2, w3 = draw(sample, attempt, STREAM, epoch, seed_lo, seed_hi)
        most = tl.maximum(tl.minimum(wanting, widest), least)
        side = _whole_root((least + uniform(w0, most - least + 1)) << 16)
        # The table is compiled into the code, because copying it to the GPU would synchronise. Both
        # roots, each below 2^20, are looked up together.
        aspect, roots = w1 >> 26, tl.zeros((), tl.int64)
        for i in tl.static_range(64):
            roots = tl.where(aspect == i, (ROOTS[i] << 20) + ROOTS[63 - i], roots)
        h = (side * (roots >> 20) + (1 << 23)) >> 24
        w = (side * (roots & 0xFFFFF) + (1 << 23)) >> 24
        fits = (h <= grid_h) & (w <= grid_w) & (h * w >= least)
        fits = fits & (10 * h >= 3 * w) & (10 * w >= 3 * h)
        if fits:
            top, left = uniform(w2, grid_h - h + 1), uniform(w3, grid_w - w + 1)
            wanting = _take(mask, top, left, h, w, wanting, units, grid_w, BLOCK)
        attempt += 1
    _take(mask, 0, 0, grid_h, grid_w, wanting, units, grid_w, BLOCK)
    taken = tl.zeros((), tl.int64)
    for start in range(0, units, BLOCK):
        unit = start + tl.arange(0, BLOCK).to(tl.int64)
        exists = unit < units
        take = tl.load(mask + unit, mask=exists, other=0) != 0
        place = taken + tl.cumsum(take.to(tl.int32), 0)
        tl.store(masked + place - 1, unit.to(tl.int32), mask=take)
        tl.store(visible + unit - place, unit.to(tl.int32), mask=exists & (take == 0))
        taken += tl.sum(take.to(tl.int64), 0)


def block_mask(ids, grid_h, grid_w, count, seed, epoch):
    ids = ids.contiguous()
    batch, units = ids.shape[0], grid_h * grid_w
    mask, masked, visible = empty_lists(ids, grid_h, grid_w, count)
    seed = resolve_seed(seed, ids.device)
    if batch:
        with on_device_of(ids):
            _block_mask[(batch,)](
                ids, mask.view(torch.uint8), masked, visible,
                grid_h, grid_w, count, *block_areas(grid_h, grid_w),
                *signed_words(epoch, seed, seed >> 32), STREAM=BLOCK_STREAM,
                ATTEMPTS=BLOCK_ATTEMPTS, ROOTS=ROOT_ASPECT, BLOCK=power_of_two(units, 1024), num_warps=4, **OPTIONS,
            )  # fmt: skip
    return mask, masked, visible
