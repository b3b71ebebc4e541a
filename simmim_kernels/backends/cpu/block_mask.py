"""Block-wise masks and their index lists: csrc/cpu/block_mask.cpp."""

from __future__ import annotations

import torch

from simmim_kernels.backends._block import ROOT_ASPECT, block_areas
from simmim_kernels.backends._results import empty_lists
from simmim_kernels.backends._seed import resolve_seed
from simmim_kernels.backends.cpu import kernels, threads

_ROOT_ASPECT = torch.tensor(ROOT_ASPECT, device="cpu")


def block_mask(ids, grid_h, grid_w, count, seed, epoch):
    outputs, areas = empty_lists(ids, grid_h, grid_w, count), block_areas(grid_h, grid_w)
    kernels.block_mask(
        ids.contiguous(), _ROOT_ASPECT, *areas, resolve_seed(seed), epoch, *outputs, threads()
    )
    return outputs
