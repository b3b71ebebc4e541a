"""The masks of SPEC section 1 in NumPy, written from the definition and independent of the library."""

from __future__ import annotations

import math
from decimal import Decimal
from functools import cache

import numpy as np

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 on arrays (or scalars) of 32-bit words held in uint64."""
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in (c0, c1, c2, c3))
    k0, k1 = int(k0), int(k1)
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c0
        p1 = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def words(sample, counters, seed, epoch):
    """The four words for each of `counters` (first word of the counter) of one sample."""
    sample &= 0xFFFFFFFFFFFFFFFF
    counters = np.asarray(counters, np.uint64)
    full = np.ones_like(counters)
    drawn = philox(
        counters,
        full * np.uint64(epoch),
        full * np.uint64(sample & 0xFFFFFFFF),
        full * np.uint64(sample >> 32),
        seed & 0xFFFFFFFF,
        seed >> 32,
    )
    return np.stack(drawn, -1)


def random_mask(sample, units, count, seed, epoch):
    """Flat mask, masked and visible positions: the `count` smallest `(score, position)`."""
    scores = words(sample, np.arange((units + 3) // 4), seed, epoch).ravel()[:units]
    order = sorted(range(units), key=lambda i: (scores[i], i))
    mask = np.zeros(units, bool)
    mask[order[:count]] = True
    return mask, np.flatnonzero(mask), np.flatnonzero(~mask)


def uniform(word, n):
    """A whole number in `[0, n)` from a 32-bit word."""
    return int(word) * n >> 32


def box_mask(sample, grid, box, seed, epoch):
    """Mask `(gh, gw)` of one random rectangle."""
    word = words(sample, [0x81000000], seed, epoch)[0]
    top, left = (uniform(word[i], grid[i] - box[i] + 1) for i in range(2))
    mask = np.zeros(grid, bool)
    mask[top : top + box[0], left : left + box[1]] = True
    return mask


def block(word, wanting, grid):
    """The rectangle `(top, left, h, w)` of one attempt at a block-wise mask, or None."""
    short = min(grid)
    widest = short * (10 * short // 3)
    least = max(1, min(16, 16 * grid[0] * grid[1] // 196, widest))
    most = max(least, min(wanting, widest))
    side = math.isqrt((least + uniform(word[0], most - least + 1)) << 16)
    aspect = int(word[1]) >> 26
    h, w = (
        (side * int((65536 * ratio.sqrt()).to_integral_value()) + (1 << 23)) >> 24
        for ratio in (aspect_ratio(aspect), aspect_ratio(63 - aspect))
    )
    if h > grid[0] or w > grid[1] or h * w < least or not 0.3 <= h / w <= 1 / 0.3:
        return None
    return uniform(word[2], grid[0] - h + 1), uniform(word[3], grid[1] - w + 1), h, w


@cache
def aspect_ratio(a):
    """The a-th of 64 aspect ratios, log-uniform in `[0.3, 1/0.3]`, in 28 decimal digits."""
    return Decimal("0.3") ** (1 - Decimal(2 * a + 1) / 64)


def uniform_mask(sample, grid, hidden, seed, epoch):
    """Mask `(gh, gw)` with `hidden` units of every 2 x 2, the smallest of four words each."""
    mask = np.zeros(grid, bool)
    for y in range(0, grid[0], 2):
        for x in range(0, grid[1], 2):
            cell = y // 2 * (grid[1] // 2) + x // 2
            scores = words(sample, [0xA0000000 + cell], seed, epoch)[0]
            for unit in sorted(range(4), key=lambda i: (scores[i], i))[:hidden]:
                mask[y + unit // 2, x + unit % 2] = True
    return mask


def block_mask(sample, grid, count, seed, epoch):
    """Mask `(gh, gw)` of rectangles, exactly `count` units, and how many attempts it took."""
    mask = np.zeros(grid, bool)
    for attempt in range(256):
        wanting = count - int(mask.sum())
        if wanting == 0:
            return mask, attempt
        rectangle = block(words(sample, [0x82000000 + attempt], seed, epoch)[0], wanting, grid)
        if rectangle is not None:
            top, left, h, w = rectangle
            inside = np.zeros(grid, bool)
            inside[top : top + h, left : left + w] = True
            mask.ravel()[np.flatnonzero(inside & ~mask)[:wanting]] = True
    mask.ravel()[np.flatnonzero(~mask)[: count - int(mask.sum())]] = True
    return mask, 256


def random_crop(sample, height, width, scale, ratio, flip, seed, epoch):
    """`(top, left, height, width)` and whether it is mirrored: the Inception crop."""
    draws = words(sample, 0x83000000 + np.arange(11), seed, epoch)
    mirrored = int(draws[10, 0]) / 2**32 < flip
    for area, aspect, top, left in draws[:10]:
        pixels = height * width * (scale[0] + int(area) / 2**32 * (scale[1] - scale[0]))
        part = int(aspect) / 2**32
        shape = math.exp((1 - part) * math.log(ratio[0]) + part * math.log(ratio[1]))
        w, h = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < w <= width and 0 < h <= height:
            return (uniform(top, height - h + 1), uniform(left, width - w + 1), h, w), mirrored
    h, w = height, width
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    return ((height - h) // 2, (width - w) // 2, h, w), mirrored
