"""Seeds that a user leaves open."""

from __future__ import annotations

import torch


def drawn(seed: int | None) -> int:
    """`seed` as an unsigned 64-bit number; where it is None, one drawn from PyTorch's default CPU
    generator. Drawn when the op runs, so that compiled code draws anew at every call."""
    if seed is None:
        seed = int(torch.empty((), dtype=torch.int64).random_().item())
    return seed & 0xFFFFFFFFFFFFFFFF
