"""Visible patches straight from the image: csrc/cpu/masked_patch_embed.cpp."""

from __future__ import annotations

import torch

from simmim_kernels.backends._results import contiguous
from simmim_kernels.backends.cpu import kernels, threads
from simmim_kernels.backends.cpu.place_tokens import check_found


def gather_patches(image, mask, mean, std, patch_h, patch_w, count, dtype):
    width = image.shape[1] * patch_h * patch_w
    out = torch.empty((count, width), dtype=dtype, device="cpu")
    mask, mean, std = contiguous(mask, mean, std)
    found = kernels.gather_patches(image, mask, mean, std, out, patch_h, patch_w, threads())
    check_found(found, count)
    return out


def gather_patches_backward(grad, mask, std, channels, h, w, patch_h, patch_w, dtype):
    size = mask.shape[0], channels, h * patch_h, w * patch_w
    image = torch.zeros(size, dtype=dtype, device="cpu")
    grad, mask, std = contiguous(grad, mask, std)
    found = kernels.gather_patches_backward(grad, mask, std, image, patch_h, patch_w, threads())
    check_found(found, grad.shape[0])
    return image
