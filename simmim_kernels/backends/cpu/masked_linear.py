"""Which tokens a head on masked tokens predicts: csrc/cpu/masked_linear.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends.cpu import kernels


def masked_positions(mask: Tensor, h: int, w: int, count: int) -> Tensor:
    positions = torch.empty(count, dtype=torch.int32, device="cpu")
    found = kernels.masked_tokens(mask.contiguous(), h, w, positions)
    if found > count:
        raise ValueError(f"count is {count}, but mask has {found} masked tokens")
    return positions
