"""Sliding-window normalisation by running sums: csrc/cpu/normalize_targets.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._elements import memory_format, target_dtype
from simmim_kernels.backends.cpu import address, element, kernels, threads


def normalize_targets(
    image: Tensor, window: int, eps: float, mean: Tensor | None, std: Tensor | None
) -> Tensor:
    dtype, layout = target_dtype(image), memory_format(image)
    out = torch.empty(image.shape, dtype=dtype, device="cpu", memory_format=layout)
    if image.numel() == 0:
        return out
    # The mean cancels in x - m and in the variance.
    std = None if std is None else std.contiguous()
    width, team = image.shape[3], threads()
    window = min(window, 2 * max(image.shape[2:]) - 1)
    size = kernels.normalize_targets_scratch(width, window, element(image))
    scratch = torch.empty(team * size, dtype=torch.uint8, device="cpu")
    kernels.normalize_targets(
        image.data_ptr(),
        element(image),
        *image.stride(),
        out.data_ptr(),
        element(out),
        *out.stride(),
        *image.shape,
        window,
        eps,
        address(std),
        element(std),
        scratch.data_ptr(),
        size,
        team,
    )
    return out
