"""Visible patches straight from the image: csrc/cpu/masked_patch_embed.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._results import contiguous
from simmim_kernels.backends.cpu import kernels, threads
from simmim_kernels.backends.cpu.place_tokens import check_found


def gather_patches(
    image: Tensor,
    mask: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    patch_h: int,
    patch_w: int,
    count: int,
    dtype: torch.dtype,
) -> Tensor:
    width = image.shape[1] * patch_h * patch_w
    out = torch.empty((count, width), dtype=dtype, device="cpu")
    mask, mean, std = contiguous(mask, mean, std)
    found = kernels.gather_patches(image, mask, mean, std, out, patch_h, patch_w, threads())
    check_found(found, count)
    return out


def gather_patches_backward(
    grad: Tensor,
    mask: Tensor,
    std: Tensor | None,
    channels: int,
    h: int,
    w: int,
    patch_h: int,
    patch_w: int,
    dtype: torch.dtype,
) -> Tensor:
    size = mask.shape[0], channels, h * patch_h, w * patch_w
    image = torch.zeros(size, dtype=dtype, device="cpu")
    grad, mask, std = contiguous(grad, mask, std)
    found = kernels.gather_patches_backward(grad, mask, std, image, patch_h, patch_w, threads())
    check_found(found, grad.shape[0])
    return image
