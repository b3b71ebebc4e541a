"""Box masks and their index lists: csrc/cpu/box_mask.cpp."""

from __future__ import annotations

from simmim_kernels.backends._results import empty_lists
from simmim_kernels.backends._seed import resolve_seed
from simmim_kernels.backends.cpu import kernels, threads


def box_mask(ids, grid_h, grid_w, box_h, box_w, center, seed, epoch):
    outputs = empty_lists(ids, grid_h, grid_w, box_h * box_w)
    seed = 0 if center else resolve_seed(seed)
    kernels.box_mask(ids.contiguous(), box_h, box_w, center, seed, epoch, *outputs, threads())
    return outputs
