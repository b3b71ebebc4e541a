"""Sliding-window normalisation by running sums: csrc/cuda/normalize_targets.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._elements import memory_format, target_dtype
from simmim_kernels.backends._window import running_limit
from simmim_kernels.backends.cuda import address, device_and_stream, element, kernels

_COLUMNS = 292  # that one block's windows may see, where its sums lie in shared memory
_STRIP = 64  # at least as many columns a block, else its sums lie in the GPU's memory
_BLOCKS = 528  # four for each of 132 multiprocessors: a band is as high as leaves that many
_LEAST_ROWS = 32  # of a band, which begins by adding up a window


def window_normalized(
    image: Tensor,
    window: int,
    eps: float,
    std: Tensor | None,
    dtype: torch.dtype,
    mask: Tensor | None = None,
) -> Tensor:
    """The normalised image in `dtype`; where there is a mask `(B, gh, gw)`, contiguous, no visible
    pixel is written."""
    layout = memory_format(image)
    out = torch.empty(image.shape, dtype=dtype, device=image.device, memory_format=layout)
    if not out.numel():
        return out
    batch, channels, height, width = image.shape
    radius_y, radius_x = min(window // 2, height - 1), min(window // 2, width - 1)
    strip = width if width <= _COLUMNS else _COLUMNS - 2 * radius_x
    wide = strip < min(width, _STRIP)
    strip = width if wide else strip
    columns = batch * channels * -(-width // strip)  # of bands
    band = max(-(-height // max(_BLOCKS // columns, 1)), min(height, _LEAST_ROWS))
    scratch = None
    if wide:
        blocks = columns * -(-height // band)
        scratch = torch.empty(blocks * 6 * (width + 1), dtype=torch.float64, device=image.device)
    std = None if std is None else std.contiguous()
    limit = running_limit(image, eps)
    device, stream = device_and_stream(image)
    kernels.normalize_targets(
        device,
        image.data_ptr(),
        element(image),
        *image.stride(),
        out.data_ptr(),
        element(out),
        *out.stride(),
        *image.shape,
        radius_y,
        radius_x,
        eps,
        limit,
        address(std),
        element(std),
        address(mask),
        *((1, 1) if mask is None else mask.shape[1:]),
        band,
        strip,
        address(scratch),
        stream,
    )
    return out


def normalize_targets(
    image: Tensor, window: int, eps: float, mean: Tensor | None, std: Tensor | None
) -> Tensor:
    return window_normalized(image, window, eps, std, target_dtype(image))
