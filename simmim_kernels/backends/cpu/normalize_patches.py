"""Per-patch normalisation in one visit to each row of patches: csrc/cpu/normalize_patches.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._elements import memory_format, target_dtype
from simmim_kernels.backends.cpu import address, element, kernels, threads


def normalize_patches(
    image: Tensor, patch: int, eps: float, mean: Tensor | None, std: Tensor | None
) -> Tensor:
    dtype, layout = target_dtype(image), memory_format(image)
    out = torch.empty(image.shape, dtype=dtype, device="cpu", memory_format=layout)
    mean = None if mean is None else mean.contiguous()
    std = None if std is None else std.contiguous()
    team = threads()
    size = kernels.normalize_patches_scratch(image.shape[3], element(image))
    scratch = torch.empty(team * size, dtype=torch.uint8, device="cpu")
    kernels.normalize_patches(
        image.data_ptr(),
        element(image),
        *image.stride(),
        out.data_ptr(),
        element(out),
        *out.stride(),
        *image.shape,
        patch,
        eps,
        address(mean),
        element(mean),
        address(std),
        element(std),
        scratch.data_ptr(),
        size,
        team,
    )
    return out
