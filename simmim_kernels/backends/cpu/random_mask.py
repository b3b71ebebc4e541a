"""Random masks and their index lists in one pass: csrc/cpu/random_mask.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._seed import drawn
from simmim_kernels.backends.cpu import kernels, threads

_PHILOX_WORDS = 64  # kPhiloxWords in csrc/cpu/philox_lanes.h


def random_mask(
    ids: Tensor, grid_h: int, grid_w: int, count: int, seed: int | None, epoch: int
) -> tuple[Tensor, Tensor, Tensor]:
    ids = ids.contiguous()
    batch, units, team = ids.shape[0], grid_h * grid_w, threads()
    mask = torch.empty((batch, grid_h, grid_w), dtype=torch.bool, device="cpu")
    masked = torch.empty((batch, count), dtype=torch.int32, device="cpu")
    visible = torch.empty((batch, units - count), dtype=torch.int32, device="cpu")
    padded = -(-units // _PHILOX_WORDS) * _PHILOX_WORDS
    scores = torch.empty((team, padded), dtype=torch.int32, device="cpu")
    kernels.random_mask(
        ids.data_ptr(),
        batch,
        units,
        count,
        drawn(seed),
        epoch,
        mask.data_ptr(),
        masked.data_ptr(),
        visible.data_ptr(),
        scores.data_ptr(),
        team,
    )
    return mask, masked, visible
