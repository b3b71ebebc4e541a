"""Visible patches as rows of a matrix, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends.reference.normalize_targets import normalized_pixels
from simmim_kernels.backends.reference.place_tokens import visible_order
from simmim_kernels.grid import scale_of


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
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    pixels = normalized_pixels(image, mean, std, compute)
    batch, channels, height, width = image.shape
    h, w = scale_of((height, width), (patch_h, patch_w))
    patches = pixels.reshape(batch, channels, h, patch_h, w, patch_w).permute(0, 2, 4, 1, 3, 5)
    rows = patches.reshape(batch * h * w, channels * patch_h * patch_w)
    order, visible = visible_order(mask, h, w, count)
    return rows[order].masked_fill(~visible, 0).to(dtype)


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
    batch = mask.shape[0]
    order, visible = visible_order(mask, h, w, grad.shape[0])
    rows = grad.new_zeros((batch * h * w, grad.shape[1]))
    rows[order] = grad.masked_fill(~visible, 0)
    patches = rows.view(batch, h, w, channels, patch_h, patch_w).permute(0, 3, 1, 4, 2, 5)
    image = patches.reshape(batch, channels, h * patch_h, w * patch_w)
    if std is not None:
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        image = image.to(compute) / std.to(compute)[:, None, None]
    return image.to(dtype).contiguous()
