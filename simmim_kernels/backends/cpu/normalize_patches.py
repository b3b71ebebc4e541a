"""Per-patch normalisation in one visit to each row of patches: csrc/cpu/normalize_patches.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._results import memory_format, target_dtype
from simmim_kernels.backends.cpu import contiguous, kernels, threads


def normalize_patches(
    image: Tensor, patch: int, eps: float, mean: Tensor | None, std: Tensor | None
) -> Tensor:
    dtype, layout = target_dtype(image), memory_format(image)
    out = torch.empty(image.shape, dtype=dtype, device="cpu", memory_format=layout)
    mean, std = contiguous(mean, std)
    kernels.normalize_patches(image, mean, std, out, patch, eps, threads())
    return out
