"""Box masks and their index lists in one launch, one program a sample."""

from __future__ import annotations

import triton
import triton.language as tl

from simmim_kernels.backends._results import empty_lists
from simmim_kernels.backends._seed import BOX_STREAM, resolve_seed
from simmim_kernels.backends.triton import OPTIONS, on_device_of, power_of_two
from simmim_kernels.backends.triton._philox import draw, signed_words, uniform


@triton.jit(do_not_specialize=["grid_h", "grid_w", "box_h", "box_w", "epoch", "seed_lo", "seed_hi"])
def _box_mask(
    ids, mask, masked, visible, grid_h, grid_w, box_h, box_w, epoch, seed_lo, seed_hi,
    STREAM: tl.constexpr, CENTER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    spare_h, spare_w = grid_h - box_h, grid_w - box_w
    if CENTER:
        top, left = (spare_h // 2).to(tl.int64), (spare_w // 2).to(tl.int64)
    else:
        w0, w1, _, _ = draw(tl.load(ids + row), 0, STREAM, epoch, seed_lo, seed_hi)
        top, left = uniform(w0, spare_h + 1), uniform(w1, spare_w + 1)
    units = grid_h.to(tl.int64) * grid_w
    count = box_h.to(tl.int64) * box_w
    mask += row * units
    masked += row * count
    visible += row * (units - count)
    for start in range(0, units, BLOCK):
        unit = start + tl.arange(0, BLOCK).to(tl.int64)
        exists = unit < units
        y, x = unit // grid_w - top, unit % grid_w - left
        across = (y >= 0) & (y < box_h)
        take = exists & across & (x >= 0) & (x < box_w)
        # How many of the box's units come before this one.
        place = tl.minimum(tl.maximum(y, 0), box_h) * box_w
        place += tl.where(across, tl.minimum(tl.maximum(x, 0), box_w), 0)
        tl.store(mask + unit, take, mask=exists)
        tl.store(masked + place, unit.to(tl.int32), mask=take)
        tl.store(visible + unit - place, unit.to(tl.int32), mask=exists & (take == 0))


def box_mask(ids, grid_h, grid_w, box_h, box_w, center, seed, epoch):
    ids = ids.contiguous()
    batch, units = ids.shape[0], grid_h * grid_w
    mask, masked, visible = empty_lists(ids, grid_h, grid_w, box_h * box_w)
    seed = 0 if center else resolve_seed(seed, ids.device)
    if batch:
        with on_device_of(ids):
            _box_mask[(batch,)](
                ids, mask, masked, visible, grid_h, grid_w, box_h, box_w,
                *signed_words(epoch, seed, seed >> 32), STREAM=BOX_STREAM, CENTER=center,
                BLOCK=power_of_two(units, 1024), num_warps=4, **OPTIONS,
            )  # fmt: skip
    return mask, masked, visible
