"""Sliding-window normalisation by running sums: csrc/cuda/normalize_targets.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._results import empty_image, target_dtype
from simmim_kernels.backends._window import running_limit
from simmim_kernels.backends.cuda import kernels, stream


def window_normalized(
    image: Tensor,
    window: int,
    eps: float,
    std: Tensor | None,
    dtype: torch.dtype,
    mask: Tensor | None = None,
) -> Tensor:
    """The normalised image in `dtype`; where there is a mask `(B, gh, gw)`, contiguous, no visible
    pixel is written."""
    out = empty_image(image, dtype)
    if not out.numel():
        return out
    std = None if std is None else std.contiguous()
    size = kernels.normalize_targets_scratch(image, window)
    scratch = torch.empty(size, dtype=torch.float64, device=image.device)
    limit = running_limit(image, eps)
    kernels.normalize_targets(image, std, mask, out, window, eps, limit, scratch, stream(image))
    return out


def normalize_targets(image, window, eps, mean, std):
    return window_normalized(image, window, eps, std, target_dtype(image))
