"""Block-wise masks and their index lists: csrc/cpu/block_mask.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._block import ROOT_ASPECT, block_areas
from simmim_kernels.backends._seed import drawn
from simmim_kernels.backends.cpu import kernels, threads

_ROOT_ASPECT = torch.tensor(ROOT_ASPECT, device="cpu")


def block_mask(
    ids: Tensor, grid_h: int, grid_w: int, count: int, seed: int | None, epoch: int
) -> tuple[Tensor, Tensor, Tensor]:
    ids = ids.contiguous()
    batch, units = ids.shape[0], grid_h * grid_w
    mask = torch.empty((batch, grid_h, grid_w), dtype=torch.bool, device="cpu")
    masked = torch.empty((batch, count), dtype=torch.int32, device="cpu")
    visible = torch.empty((batch, units - count), dtype=torch.int32, device="cpu")
    kernels.block_mask(
        ids.data_ptr(),
        batch,
        grid_h,
        grid_w,
        count,
        *block_areas(grid_h, grid_w),
        _ROOT_ASPECT.data_ptr(),
        drawn(seed),
        epoch,
        mask.data_ptr(),
        masked.data_ptr(),
        visible.data_ptr(),
        threads(),
    )
    return mask, masked, visible
