"""Which tokens a head on masked tokens predicts: csrc/cpu/masked_linear.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends.cpu import kernels


def masked_positions(mask: Tensor, h: int, w: int, count: int) -> Tensor:
    mask = mask.contiguous()
    positions = torch.empty(count, dtype=torch.int32, device="cpu")
    batch, grid_h, grid_w = mask.shape
    found = kernels.masked_tokens(
        mask.data_ptr(), grid_h, grid_w, positions.data_ptr(), count, batch, h, w
    )
    if found > count:
        raise ValueError(f"count is {count}, but mask has {found} masked tokens")
    return positions
