"""Random masks and their index lists in one launch: csrc/cuda/random_mask.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._seed import drawn
from simmim_kernels.backends.cuda import kernels, stream


def random_mask(
    ids: Tensor, grid_h: int, grid_w: int, count: int, seed: int | None, epoch: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, units = ids.shape[0], grid_h * grid_w
    mask = torch.empty((batch, grid_h, grid_w), dtype=torch.bool, device=ids.device)
    masked = torch.empty((batch, count), dtype=torch.int32, device=ids.device)
    visible = torch.empty((batch, units - count), dtype=torch.int32, device=ids.device)
    outputs = mask, masked, visible
    kernels.random_mask(ids.contiguous(), drawn(seed, ids.device), epoch, *outputs, stream(ids))
    return outputs
