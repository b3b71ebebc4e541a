"""Random masks and their index lists in one pass: csrc/cpu/random_mask.cpp."""

from __future__ import annotations

from simmim_kernels.backends._results import empty_lists
from simmim_kernels.backends._seed import resolve_seed
from simmim_kernels.backends.cpu import kernels, threads


def random_mask(ids, grid_h, grid_w, count, seed, epoch):
    outputs = empty_lists(ids, grid_h, grid_w, count)
    kernels.random_mask(ids.contiguous(), resolve_seed(seed), epoch, *outputs, threads())
    return outputs
