"""Philox4x32-10 in Triton: twin of csrc/common/philox.h."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """The four random words of each counter; everything is uint32."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, tl.full((), 0xD2511F53, tl.uint32)), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, tl.full((), 0xCD9E8D57, tl.uint32)), c2 * 0xCD9E8D57
        c0 = high1 ^ c1 ^ k0
        c2 = high0 ^ c3 ^ k1
        c1 = low1
        c3 = low0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def word(index, counter_bits, epoch, sample, seed_lo, seed_hi):
    """Word `index % 4` of block `index // 4` of a sample's random numbers, for each index."""
    block = (index // 4).to(tl.uint32) | counter_bits
    epoch = epoch.to(tl.uint32)
    id_lo = (sample & 0xFFFFFFFF).to(tl.uint32)
    id_hi = ((sample >> 32) & 0xFFFFFFFF).to(tl.uint32)
    none = tl.zeros_like(block)
    w0, w1, w2, w3 = philox(
        block,
        epoch + none,
        id_lo + none,
        id_hi + none,
        seed_lo.to(tl.uint32),
        seed_hi.to(tl.uint32),
    )
    lane = index % 4
    return tl.where(lane == 0, w0, tl.where(lane == 1, w1, tl.where(lane == 2, w2, w3)))


@triton.jit
def draw(sample, block, STREAM: tl.constexpr, epoch, seed_lo, seed_hi):
    """The four words of one block of a strategy's own range of counters."""
    return philox(
        (tl.full((), STREAM, tl.int64) + block).to(tl.uint32),
        epoch.to(tl.uint32),
        (sample & 0xFFFFFFFF).to(tl.uint32),
        ((sample >> 32) & 0xFFFFFFFF).to(tl.uint32),
        seed_lo.to(tl.uint32),
        seed_hi.to(tl.uint32),
    )


@triton.jit
def uniform(word, n):
    """A whole number in `[0, n)` from a 32-bit word: the high word of `word * n`, `n < 2^31`."""
    return (word.to(tl.int64) * n) >> 32


def signed_words(*values: int) -> list[int]:
    """32-bit words as signed numbers, so that every value has one argument type in Triton."""
    return [(value & 0xFFFFFFFF) - ((value & 0x80000000) << 1) for value in values]
