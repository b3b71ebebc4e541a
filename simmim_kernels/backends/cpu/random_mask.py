"""Random masks and their index lists in one pass: csrc/cpu/random_mask.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._seed import drawn
from simmim_kernels.backends.cpu import kernels, threads


def random_mask(
    ids: Tensor, grid_h: int, grid_w: int, count: int, seed: int | None, epoch: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, units = ids.shape[0], grid_h * grid_w
    mask = torch.empty((batch, grid_h, grid_w), dtype=torch.bool, device="cpu")
    masked = torch.empty((batch, count), dtype=torch.int32, device="cpu")
    visible = torch.empty((batch, units - count), dtype=torch.int32, device="cpu")
    kernels.random_mask(ids.contiguous(), drawn(seed), epoch, mask, masked, visible, threads())
    return mask, masked, visible
