"""The masks of SPEC section 1 in NumPy, written from the definition and independent of the library."""

from __future__ import annotations

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
