"""Masking of pixels in one pass: csrc/cpu/mask_image.cpp."""

from __future__ import annotations

import torch

from simmim_kernels.backends._results import contiguous, empty_image
from simmim_kernels.backends.cpu import kernels, threads


def mask_image_forward(image, mask, fill, value, mean, std, dtype):
    mask, fill, mean, std = contiguous(mask, fill, mean, std)
    out = empty_image(image, dtype)
    kernels.mask_image(image, mask, fill, value, mean, std, out, threads())
    return out


def mask_image_backward(grad, mask, std, image_dtype, fill_dtype):
    mask = mask.contiguous()
    d_image, d_fill = grad.new_empty((0,)), grad.new_empty((0,))
    if image_dtype:
        d_image = mask_image_forward(grad, mask, None, 0.0, None, std, image_dtype)
    if fill_dtype:
        d_fill = torch.empty(grad.shape[1], dtype=fill_dtype, device="cpu")
        kernels.mask_image_fill_gradient(grad, mask, d_fill, threads())
    return d_image, d_fill
