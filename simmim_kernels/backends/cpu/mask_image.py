"""Masking of pixels in one pass: csrc/cpu/mask_image.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._elements import memory_format
from simmim_kernels.backends.cpu import address, element, kernels, threads


def _units(image: Tensor, mask: Tensor) -> tuple[int, ...]:
    """Address, element type and strides of `image`, and how `mask` (contiguous) cuts it."""
    batch, channels, height, width = image.shape
    _, grid_h, grid_w = mask.shape
    return (
        image.data_ptr(),
        element(image),
        *image.stride(),
        mask.data_ptr(),
        grid_h,
        grid_w,
        height // grid_h,
        width // grid_w,
        batch,
        channels,
    )


def _write(
    image: Tensor,
    mask: Tensor,
    fill: Tensor | None,
    value: float,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    layout = memory_format(image)
    out = torch.empty(image.shape, dtype=dtype, device="cpu", memory_format=layout)
    kernels.mask_image(
        *_units(image, mask),
        address(fill),
        element(fill),
        value,
        address(mean),
        element(mean),
        address(std),
        element(std),
        out.data_ptr(),
        element(out),
        layout is torch.channels_last,
        threads(),
    )
    return out


def mask_image_forward(
    image: Tensor,
    mask: Tensor,
    fill: Tensor | None,
    value: float,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    fill, mean, std = (None if t is None else t.contiguous() for t in (fill, mean, std))
    return _write(image, mask.contiguous(), fill, value, mean, std, dtype)


def mask_image_backward(
    grad: Tensor,
    mask: Tensor,
    std: Tensor | None,
    image_dtype: torch.dtype | None,
    fill_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    mask, std = mask.contiguous(), None if std is None else std.contiguous()
    d_image, d_fill = grad.new_empty((0,)), grad.new_empty((0,))
    if image_dtype:
        d_image = _write(grad, mask, None, 0.0, None, std, image_dtype)
    if fill_dtype:
        bands = max(mask.shape[0] * mask.shape[1], 1)
        sums = torch.zeros((bands, grad.shape[1]), dtype=torch.float64, device="cpu")
        kernels.mask_image_fill_gradient(*_units(grad, mask), sums.data_ptr(), threads())
        d_fill = sums[0].to(fill_dtype)
    return d_image, d_fill
