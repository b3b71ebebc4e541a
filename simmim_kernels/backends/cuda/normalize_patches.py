"""Per-patch normalisation, one block a patch: csrc/cuda/normalize_patches.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._results import contiguous, empty_image, target_dtype
from simmim_kernels.backends.cuda import kernels, stream


def patch_normalized(
    image: Tensor,
    patch: int,
    eps: float,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
    mask: Tensor | None = None,
) -> Tensor:
    """The normalised image in `dtype`; where there is a mask `(B, gh, gw)`, contiguous, no visible
    pixel is written."""
    out = empty_image(image, dtype)
    mean, std = contiguous(mean, std)
    kernels.normalize_patches(image, mean, std, mask, out, patch, eps, stream(image))
    return out


def normalize_patches(image, patch, eps, mean, std):
    return patch_normalized(image, patch, eps, mean, std, target_dtype(image))
