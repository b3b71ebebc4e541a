"""AvgDist by an exact distance transform: csrc/cpu/avg_dist.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends.cpu import kernels, threads


def avg_dist(mask: Tensor, unit: int) -> Tensor:
    distance = kernels.avg_dist(mask.contiguous(), unit, threads())
    return torch.tensor(distance, dtype=torch.float64, device="cpu")
