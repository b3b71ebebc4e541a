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
    ids = ids.contiguous()
    batch, units, count = ids.shape[0], grid_h * grid_w, box_h * box_w
    mask = torch.empty((batch, grid_h, grid_w), dtype=torch.bool, device="cpu")
    masked = torch.empty((batch, count), dtype=torch.int32, device="cpu")
    visible = torch.empty((batch, units - count), dtype=torch.int32, device="cpu")
    kernels.box_mask(
        ids.data_ptr(),
        batch,
        grid_h,
        grid_w,
        box_h,
        box_w,
        center,
        0 if center else drawn(seed),
        epoch,
        mask.data_ptr(),
        masked.data_ptr(),
        visible.data_ptr(),
        threads(),
    )
    return mask, masked, visible
