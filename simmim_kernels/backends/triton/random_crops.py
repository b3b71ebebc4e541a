"""Random boxes in one launch, a lane a sample."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from simmim_kernels.backends._crops import CROP_ATTEMPTS, EXP_TERMS, WHOLE
from simmim_kernels.backends._seed import CROP_STREAM, resolve_seed
from simmim_kernels.backends.triton import OPTIONS, cdiv, on_device_of
from simmim_kernels.backends.triton._philox import draw, signed_words, uniform
from simmim_kernels.backends.triton._scalars import bits_of, float64

_BLOCK = 128


@triton.jit
def _part(word):
    """A number in [0, 1) from a random word, in float64."""
    return word.to(tl.int64).to(tl.float64) * (1 / 4294967296)


@triton.jit
def _exp(x, TERMS: tl.constexpr):
    part, value = x * (1 / 256), x * 0
    for i in tl.static_range(len(TERMS)):
        value = value * part + tl.full((), TERMS[i], tl.float64)
    for _ in tl.static_range(8):
        value = value * value
    return value


@triton.jit(
    do_not_specialize=[
        *("batch", "least_scale", "scales", "least_ratio", "most_ratio", "ratios", "flip"),
        *("epoch", "seed_lo", "seed_hi"),
    ]
)
def _random_crops(
    ids, sizes, boxes, flips, batch,
    least_scale: tl.int64, scales: tl.int64, least_ratio: tl.int64, most_ratio: tl.int64,
    ratios: tl.int64, flip: tl.int64, epoch, seed_lo, seed_hi,
    STREAM: tl.constexpr, ATTEMPTS: tl.constexpr, TERMS: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = lane < batch
    sample = tl.load(ids + lane, mask=exists, other=0)
    rows = tl.load(sizes + 2 * lane, mask=exists, other=1)
    columns = tl.load(sizes + 2 * lane + 1, mask=exists, other=1)
    rows = tl.minimum(tl.maximum(rows, 1), 0x7FFFFFFF)
    columns = tl.minimum(tl.maximum(columns, 1), 0x7FFFFFFF)
    height, width = rows.to(tl.float64), columns.to(tl.float64)
    epoch, least, most = epoch + lane * 0, float64(least_ratio), float64(most_ratio)

    ratio = width / height
    box_h = tl.where(ratio < least, tl.maximum((width / least + WHOLE) - WHOLE, 1), height)
    box_w = tl.where(ratio > most, tl.maximum((height * most + WHOLE) - WHOLE, 1), width)
    top, left = (rows - box_h.to(tl.int64)) // 2, (columns - box_w.to(tl.int64)) // 2
    found = lane < 0
    for attempt in range(ATTEMPTS):
        w0, w1, w2, w3 = draw(sample, attempt + lane * 0, STREAM, epoch, seed_lo, seed_hi)
        area = height * width * (float64(least_scale) + _part(w0) * float64(scales))
        aspect = least * _exp(_part(w1) * float64(ratios), TERMS)
        w = (tl.sqrt(area * aspect) + WHOLE) - WHOLE
        h = (tl.sqrt(area / aspect) + WHOLE) - WHOLE
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height) & (found == 0)
        box_h, box_w = tl.where(fits, h, box_h), tl.where(fits, w, box_w)
        top = tl.where(fits, uniform(w2, rows - box_h.to(tl.int64) + 1), top)
        left = tl.where(fits, uniform(w3, columns - box_w.to(tl.int64) + 1), left)
        found = found | fits
    w0, _, _, _ = draw(sample, ATTEMPTS + lane * 0, STREAM, epoch, seed_lo, seed_hi)
    tl.store(boxes + 4 * lane, top, mask=exists)
    tl.store(boxes + 4 * lane + 1, left, mask=exists)
    tl.store(boxes + 4 * lane + 2, box_h.to(tl.int64), mask=exists)
    tl.store(boxes + 4 * lane + 3, box_w.to(tl.int64), mask=exists)
    tl.store(flips + lane, _part(w0) < float64(flip), mask=exists)


def random_crops(ids, sizes, least_scale, most_scale, least_ratio, most_ratio, flip, seed, epoch):
    batch, device = ids.shape[0], ids.device
    boxes = torch.empty((batch, 4), dtype=torch.int64, device=device)
    flips = torch.empty((batch,), dtype=torch.bool, device=device)
    numbers = (
        *(least_scale, most_scale - least_scale, least_ratio, most_ratio),
        *(math.log(most_ratio / least_ratio), flip),
    )
    seed = resolve_seed(seed, device)
    if batch:
        with on_device_of(ids):
            _random_crops[(cdiv(batch, _BLOCK),)](
                ids.contiguous(), sizes.contiguous(), boxes, flips, batch,
                *map(bits_of, numbers), *signed_words(epoch, seed, seed >> 32),
                STREAM=CROP_STREAM, ATTEMPTS=CROP_ATTEMPTS, TERMS=EXP_TERMS, WHOLE=WHOLE,
                BLOCK=_BLOCK, num_warps=4, **OPTIONS,
            )  # fmt: skip
    return boxes, flips
