"""Uniform masks and their index lists in one launch, one program a sample."""

from __future__ import annotations

import triton
import triton.language as tl

from simmim_kernels.backends._results import empty_lists
from simmim_kernels.backends._seed import UNIFORM_STREAM, resolve_seed
from simmim_kernels.backends.triton import OPTIONS, on_device_of, power_of_two
from simmim_kernels.backends.triton._philox import draw, signed_words


@triton.jit(do_not_specialize=["units", "grid_w", "count", "hidden", "epoch", "seed_lo", "seed_hi"])
def _uniform_mask(
    ids, mask, masked, visible, units, grid_w, count, hidden, epoch, seed_lo, seed_hi,
    STREAM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    sample = tl.load(ids + row)
    lane = tl.arange(0, BLOCK)
    taken = tl.zeros((), tl.int64)
    mask += row * units
    masked += row * count
    visible += row * (units - count)
    for start in range(0, units, BLOCK):
        unit = start + lane.to(tl.int64)
        exists = unit < units
        y, x = unit // grid_w, unit % grid_w
        cell = y // 2 * (grid_w // 2) + x // 2
        none = tl.zeros_like(cell)
        first, second, third, fourth = draw(
            sample + none, cell, STREAM, epoch + none, seed_lo, seed_hi
        )
        place = y % 2 * 2 + x % 2
        own = tl.where(place == 0, first, tl.where(place == 1, second, third))
        own = tl.where(place == 3, fourth, own)
        # Of equal scores the first one is the smaller.
        rank = ((first < own) | ((first == own) & (place > 0))).to(tl.int32)
        rank += ((second < own) | ((second == own) & (place > 1))).to(tl.int32)
        rank += ((third < own) | ((third == own) & (place > 2))).to(tl.int32)
        rank += (fourth < own).to(tl.int32)
        take = exists & (rank < hidden)
        at = taken + tl.cumsum(take.to(tl.int32), 0)
        tl.store(mask + unit, take, mask=exists)
        tl.store(masked + at - 1, unit.to(tl.int32), mask=take)
        tl.store(visible + unit - at, unit.to(tl.int32), mask=exists & (take == 0))
        taken += tl.sum(take.to(tl.int32), 0)


def uniform_mask(ids, grid_h, grid_w, hidden, seed, epoch):
    ids = ids.contiguous()
    batch, units, count = ids.shape[0], grid_h * grid_w, grid_h * grid_w // 4 * hidden
    mask, masked, visible = empty_lists(ids, grid_h, grid_w, count)
    seed = resolve_seed(seed, ids.device)
    if batch:
        with on_device_of(ids):
            _uniform_mask[(batch,)](
                ids, mask, masked, visible, units, grid_w, count, hidden,
                *signed_words(epoch, seed, seed >> 32), STREAM=UNIFORM_STREAM,
                BLOCK=power_of_two(units, 1024), num_warps=4, **OPTIONS,
            )  # fmt: skip
    return mask, masked, visible
