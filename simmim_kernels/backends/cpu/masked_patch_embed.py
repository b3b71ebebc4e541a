"""Visible patches straight from the image: csrc/cpu/masked_patch_embed.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends.cpu import address, element, kernels, threads
from simmim_kernels.backends.cpu.place_tokens import check_found


def starts(mask: Tensor) -> Tensor:
    """Scratch for the number of visible units before each row of units."""
    return torch.empty(mask.shape[0] * mask.shape[1] + 1, dtype=torch.int64, device="cpu")


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
    batch, channels, height, width = image.shape
    out = torch.empty((count, channels * patch_h * patch_w), dtype=dtype, device="cpu")
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    mean = None if mean is None else mean.to(compute).contiguous()
    std = None if std is None else std.to(compute).contiguous()
    table = None
    if image.dtype == torch.uint8:
        # A byte has 256 values: normalised once each, whatever the number of pixels.
        table = torch.empty((channels, 256), dtype=compute, device="cpu")
    mask, scratch = mask.contiguous(), starts(mask)
    found = kernels.gather_patches(
        image.data_ptr(),
        element(image),
        *image.stride(),
        mask.data_ptr(),
        *mask.shape[1:],
        scratch.data_ptr(),
        address(mean),
        address(std),
        address(table),
        out.data_ptr(),
        element(out),
        count,
        batch,
        channels,
        height // patch_h,
        width // patch_w,
        patch_h,
        patch_w,
        threads(),
    )
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
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    std = None if std is None else std.to(compute).contiguous()
    grad, mask, scratch = grad.contiguous(), mask.contiguous(), starts(mask)
    found = kernels.gather_patches_backward(
        grad.data_ptr(),
        element(grad),
        mask.data_ptr(),
        *mask.shape[1:],
        scratch.data_ptr(),
        address(std),
        image.data_ptr(),
        element(image),
        grad.shape[0],
        mask.shape[0],
        channels,
        h,
        w,
        patch_h,
        patch_w,
        threads(),
    )
    check_found(found, grad.shape[0])
    return image
