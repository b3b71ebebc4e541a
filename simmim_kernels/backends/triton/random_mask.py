"""Random masks and their index lists in one launch, one program a sample."""

from __future__ import annotations

import triton
import triton.language as tl

from simmim_kernels.backends._results import empty_lists
from simmim_kernels.backends._seed import resolve_seed
from simmim_kernels.backends.triton import OPTIONS, on_device_of, power_of_two
from simmim_kernels.backends.triton._philox import signed_words, word

_BLOCK = 1024  # scores that one program holds in registers; larger grids compute them several times


@triton.jit
def _below(scores, unit, units, candidate):
    return tl.sum(((scores < candidate) & (unit < units)).to(tl.int32), 0)


@triton.jit(do_not_specialize=["units", "count", "epoch", "seed_lo", "seed_hi"])
def _random_mask(
    ids, mask, masked, visible, units, count, epoch, seed_lo, seed_hi,
    SINGLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    sample = tl.load(ids + row)
    units = units.to(tl.int64)
    count = count.to(tl.int64)
    lane = tl.arange(0, BLOCK).to(tl.int64)
    scores = word(lane, 0, epoch, sample, seed_lo, seed_hi)

    # The count-th smallest score, bit by bit: the largest threshold with fewer than `count` scores
    # below it. 32 counting passes over registers, as in the C++ kernel; not yet timed on a GPU.
    threshold = tl.zeros((), tl.uint32)
    below = tl.zeros((), tl.int64)
    bit = tl.full((), 0x80000000, tl.uint32)
    for _ in range(32):
        candidate = threshold | bit
        smaller = tl.zeros((), tl.int64)
        if SINGLE:
            smaller += _below(scores, lane, units, candidate)
        else:
            for start in range(0, units, BLOCK):
                unit = start + lane
                chunk = word(unit, 0, epoch, sample, seed_lo, seed_hi)
                smaller += _below(chunk, unit, units, candidate)
        fits = smaller < count
        threshold = tl.where(fits, candidate, threshold)
        below = tl.where(fits, smaller, below)
        bit = bit >> 1

    # Of equal scores the lowest positions are masked.
    ties = count - below
    taken = tl.zeros((), tl.int64)
    tied = tl.zeros((), tl.int64)
    mask += row * units
    masked += row * count
    visible += row * (units - count)
    for start in range(0, units, BLOCK):
        unit = start + lane
        if not SINGLE:
            scores = word(unit, 0, epoch, sample, seed_lo, seed_hi)
        exists = unit < units
        tie = exists & (scores == threshold)
        tie_place = tied + tl.cumsum(tie.to(tl.int32), 0)
        take = (exists & (scores < threshold)) | (tie & (tie_place <= ties))
        place = taken + tl.cumsum(take.to(tl.int32), 0)
        tl.store(mask + unit, take, mask=exists)
        tl.store(masked + place - 1, unit.to(tl.int32), mask=take)
        tl.store(visible + unit - place, unit.to(tl.int32), mask=exists & (take == 0))
        tied += tl.sum(tie.to(tl.int32), 0)
        taken += tl.sum(take.to(tl.int32), 0)


def random_mask(ids, grid_h, grid_w, count, seed, epoch):
    ids = ids.contiguous()
    batch, units = ids.shape[0], grid_h * grid_w
    mask, masked, visible = empty_lists(ids, grid_h, grid_w, count)
    seed = resolve_seed(seed, ids.device)
    block = power_of_two(units, _BLOCK)
    if batch:
        with on_device_of(ids):
            _random_mask[(batch,)](
                ids, mask, masked, visible, units, count, *signed_words(epoch, seed, seed >> 32),
                SINGLE=units <= block, BLOCK=block, num_warps=1 if block <= 256 else 4, **OPTIONS,
            )  # fmt: skip
    return mask, masked, visible
