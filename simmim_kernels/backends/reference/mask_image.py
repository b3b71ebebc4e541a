"""Masking of pixels in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._results import memory_format
from simmim_kernels.backends.reference.normalize_targets import normalized_pixels
from simmim_kernels.grid import refine


def _pixel_mask(image: Tensor, mask: Tensor) -> Tensor:
    """`bool (B, 1, H, W)`."""
    return refine(mask, image.shape[2:])[:, None]


def mask_image_forward(
    image: Tensor,
    mask: Tensor,
    fill: Tensor | None,
    value: float,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    compute = torch.float64 if torch.float64 in (image.dtype, dtype) else torch.float32
    pixels = normalized_pixels(image, mean, std, compute)
    colour = value if fill is None else fill.to(compute)[:, None, None]
    out = torch.where(_pixel_mask(image, mask), colour, pixels)
    return out.to(dtype).contiguous(memory_format=memory_format(image))


def mask_image_backward(
    grad: Tensor,
    mask: Tensor,
    std: Tensor | None,
    image_dtype: torch.dtype | None,
    fill_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    masked = _pixel_mask(grad, mask)
    d_image, d_fill = (grad.new_empty((0,), dtype=dtype) for dtype in (image_dtype, fill_dtype))
    if image_dtype:
        d_image = grad.masked_fill(masked, 0)
        if std is not None:
            compute = torch.float64 if torch.float64 in (grad.dtype, image_dtype) else torch.float32
            d_image = d_image.to(compute) / std.to(compute)[:, None, None]
        d_image = d_image.to(image_dtype)
        d_image = d_image.contiguous(memory_format=memory_format(grad))
    if fill_dtype:
        d_fill = grad.double().masked_fill(~masked, 0).sum((0, 2, 3)).to(fill_dtype)
    return d_image, d_fill
