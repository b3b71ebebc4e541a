"""Philox4x32-10 (Salmon et al., SC'11) on int64 tensors that hold 32-bit words."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def philox(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """The four random words of each counter.

    Args:
        counter: four int64 tensors of one shape, each in `[0, 2^32)`.
        key: two words of the key.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The products wrap at 2^64; shifted and cut to 32 bits the halves are right all the same.
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c2 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, ((p0 >> 32) & _LOW) ^ c3 ^ k1
        c1, c3 = p1 & _LOW, p0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return [c0, c1, c2, c3]


def draw(ids: Tensor, first: Tensor, seed: int, epoch: int) -> Tensor:
    """Words `int64 (B, 4 * len(first))` of every sample for the counters `first` (`int64 (n,)`)."""
    batch, blocks = ids.shape[0], first.shape[0]
    ids = ids[:, None].expand(batch, blocks)
    counter = [
        first.expand(batch, blocks),
        torch.full_like(ids, epoch),
        ids & _LOW,
        (ids >> 32) & _LOW,
    ]
    words = philox(counter, (seed & _LOW, (seed >> 32) & _LOW))
    return torch.stack(words, -1).flatten(1)


def uniform(words: Tensor, n: int | Tensor) -> Tensor:
    """A whole number in `[0, n)` for each 32-bit word: the high word of `word * n`, `n < 2^31`."""
    return (words * n) >> 32
