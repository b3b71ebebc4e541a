"""Sliding-window normalisation in plain PyTorch, in float64 throughout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_kernels.backends._results import memory_format, target_dtype


def normalized_pixels(
    image: Tensor, mean: Tensor | None, std: Tensor | None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """`image` in `dtype`: uint8 divided by 255, then `(image - mean) / std`."""
    x = image.to(dtype)
    if image.dtype == torch.uint8:
        x = x / 255
    if mean is not None:
        x = (x - mean.to(dtype)[:, None, None]) / std.to(dtype)[:, None, None]
    return x


def _clipped(size: int, window: int) -> int:
    """A window that reaches past both ends of the axis sees no more than this one does."""
    return min(window, 2 * size - 1)


def _box_mean(x: Tensor, window: int) -> Tensor:
    """Mean over the square cut at the border: over its columns, then over its rows. Direct sums, so
    that a NaN stays in the squares that hold it."""
    for axis in (0, 1):
        kernel = [1, 1]
        kernel[axis] = _clipped(x.shape[2 + axis], window)
        padding = [side // 2 for side in kernel]
        x = F.avg_pool2d(x, kernel, 1, padding, count_include_pad=False)
    return x


def _counts(size: int, window: int, device: torch.device) -> Tensor:
    """How many of a window's pixels lie on an axis of `size`, for each position of its centre."""
    radius = _clipped(size, window) // 2
    at = torch.arange(size, device=device)
    return (at + radius).clamp(max=size - 1) - (at - radius).clamp(min=0) + 1


def normalize_targets(
    image: Tensor, window: int, eps: float, mean: Tensor | None, std: Tensor | None
) -> Tensor:
    dtype, layout = target_dtype(image), memory_format(image)
    x = normalized_pixels(image, mean, std)
    if x.numel() == 0:
        return x.to(dtype).contiguous(memory_format=layout)
    height, width = (_counts(size, window, image.device) for size in image.shape[2:])
    n = (height[:, None] * width).double()
    m = _box_mean(x, window)
    bessel = torch.where(n > 1, n / (n - 1), 0.0)
    v = ((_box_mean(x * x, window) - m * m) * bessel).clamp(min=0)
    return ((x - m) / torch.sqrt(v + eps)).to(dtype).contiguous(memory_format=layout)
