"""Random boxes: csrc/cpu/random_crops.cpp."""

from __future__ import annotations

import math

import torch

from simmim_kernels.backends._crops import check_sizes
from simmim_kernels.backends._seed import resolve_seed
from simmim_kernels.backends.cpu import kernels


def random_crops(ids, sizes, least_scale, most_scale, least_ratio, most_ratio, flip, seed, epoch):
    check_sizes(sizes)
    boxes = torch.empty((ids.shape[0], 4), dtype=torch.int64, device="cpu")
    flips = torch.empty((ids.shape[0],), dtype=torch.bool, device="cpu")
    ids, sizes, span = ids.contiguous(), sizes.contiguous(), math.log(most_ratio / least_ratio)
    ranges = least_scale, most_scale, least_ratio, most_ratio, span, flip
    kernels.random_crops(ids, sizes, *ranges, resolve_seed(seed), epoch, boxes, flips)
    return boxes, flips
