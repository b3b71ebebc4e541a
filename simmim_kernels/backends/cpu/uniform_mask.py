"""Uniform masks and their index lists: csrc/cpu/uniform_mask.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._seed import drawn
from simmim_kernels.backends.cpu import kernels, threads


def uniform_mask(
    ids: Tensor, grid_h: int, grid_w: int, hidden: int, seed: int | None, epoch: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, units, count = ids.shape[0], grid_h * grid_w, grid_h * grid_w // 4 * hidden
    mask = torch.empty((batch, grid_h, grid_w), dtype=torch.bool, device="cpu")
    masked = torch.empty((batch, count), dtype=torch.int32, device="cpu")
    visible = torch.empty((batch, units - count), dtype=torch.int32, device="cpu")
    seed = drawn(seed)
    kernels.uniform_mask(ids.contiguous(), hidden, seed, epoch, mask, masked, visible, threads())
    return mask, masked, visible
