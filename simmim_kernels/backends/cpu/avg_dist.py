"""AvgDist by an exact distance transform: csrc/cpu/avg_dist.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends.cpu import kernels, threads


def avg_dist(mask: Tensor, unit: int) -> Tensor:
    mask, team = mask.contiguous(), threads()
    batch, grid_h, grid_w = mask.shape
    sums = torch.zeros(max(batch * grid_h, 1), dtype=torch.float64, device="cpu")
    scratch = torch.empty((team, (unit + 2) * grid_w), dtype=torch.int64, device="cpu")
    kernels.avg_dist(
        mask.data_ptr(), batch, grid_h, grid_w, unit, sums.data_ptr(), scratch.data_ptr(), team
    )
    return sums[0]
