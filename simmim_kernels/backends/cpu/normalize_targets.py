"""Sliding-window normalisation by running sums: csrc/cpu/normalize_targets.cpp."""

from __future__ import annotations

from simmim_kernels.backends._results import empty_image, target_dtype
from simmim_kernels.backends.cpu import kernels, threads


def normalize_targets(image, window, eps, mean, std):
    out = empty_image(image, target_dtype(image))
    if image.numel() == 0:
        return out
    # The mean cancels in x - m and in the variance. Past the image's other end a window gains
    # nothing.
    std = None if std is None else std.contiguous()
    window = min(window, 2 * max(image.shape[2:]) - 1)
    kernels.normalize_targets(image, std, out, window, eps, threads())
    return out
