"""Per-patch normalisation in one visit to each row of patches: csrc/cpu/normalize_patches.cpp."""

from __future__ import annotations

from simmim_kernels.backends._results import contiguous, empty_image, target_dtype
from simmim_kernels.backends.cpu import kernels, threads


def normalize_patches(image, patch, eps, mean, std):
    out = empty_image(image, target_dtype(image))
    mean, std = contiguous(mean, std)
    kernels.normalize_patches(image, mean, std, out, patch, eps, threads())
    return out
