"""Per-patch normalisation, one block a patch: csrc/cuda/normalize_patches.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._elements import memory_format, target_dtype
from simmim_kernels.backends.cuda import address, device_and_stream, element, kernels


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
    layout = memory_format(image)
    out = torch.empty(image.shape, dtype=dtype, device=image.device, memory_format=layout)
    mean, std = (None if t is None else t.contiguous() for t in (mean, std))
    device, stream = device_and_stream(image)
    kernels.normalize_patches(
        device,
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
        address(mask),
        *((1, 1) if mask is None else mask.shape[1:]),
        stream,
    )
    return out


def normalize_patches(
    image: Tensor, patch: int, eps: float, mean: Tensor | None, std: Tensor | None
) -> Tensor:
    return patch_normalized(image, patch, eps, mean, std, target_dtype(image))
