"""Box masks and their index lists: csrc/cpu/box_mask.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._seed import drawn
from simmim_kernels.backends.cpu import kernels, threads


def box_mask(
    ids: Tensor,
    grid_h: int,
    grid_w: int,
    box_h: int,
    box_w: int,
    center: bool,
    seed: int | None,
    epoch: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, units, count = ids.shape[0], grid_h * grid_w, box_h * box_w
    mask = torch.empty((batch, grid_h, grid_w), dtype=torch.bool, device="cpu")
    masked = torch.empty((batch, count), dtype=torch.int32, device="cpu")
    visible = torch.empty((batch, units - count), dtype=torch.int32, device="cpu")
    seed = 0 if center else drawn(seed)
    outputs = mask, masked, visible
    kernels.box_mask(ids.contiguous(), box_h, box_w, center, seed, epoch, *outputs, threads())
    return outputs
