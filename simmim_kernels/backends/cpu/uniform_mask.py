"""Uniform masks and their index lists: csrc/cpu/uniform_mask.cpp."""

from __future__ import annotations

from simmim_kernels.backends._results import empty_lists
from simmim_kernels.backends._seed import resolve_seed
from simmim_kernels.backends.cpu import kernels, threads


def uniform_mask(ids, grid_h, grid_w, hidden, seed, epoch):
    outputs = empty_lists(ids, grid_h, grid_w, grid_h * grid_w // 4 * hidden)
    kernels.uniform_mask(ids.contiguous(), hidden, resolve_seed(seed), epoch, *outputs, threads())
    return outputs
