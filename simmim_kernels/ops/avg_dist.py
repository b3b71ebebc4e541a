"""AvgDist: how far the masked pixels of a mask lie from the visible ones."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels._numbers import to_int
from simmim_kernels.masks import PatchMask, mask_grid
from simmim_kernels.ops._check import is_mask, is_tensor
from simmim_kernels.ops._define import define

_LARGEST = 1 << 30


def _check(mask: Tensor, unit: int) -> None:
    is_tensor("mask", mask, (torch.bool,))
    is_mask(mask, mask.shape[0] if mask.dim() else 0)
    if not 1 <= unit * max(mask.shape[1:]) < _LARGEST or unit < 1:
        raise ValueError(f"unit is {unit}; allowed: 1 or more pixels, image sides below 2^30")


_avg_dist = define(
    "avg_dist(Tensor mask, SymInt unit) -> Tensor",
    module="avg_dist",
    check=_check,
    fake=lambda mask, unit: mask.new_empty((), dtype=torch.float64),
)


def avg_dist(mask: PatchMask | Tensor, unit: int) -> float:
    """The mean Euclidean distance, in pixels, from a masked pixel to the nearest visible pixel of
    the same sample, over the masked pixels of all samples.

    Distances run between the centres of pixels and are exact (a distance transform in two passes,
    along columns and then along rows). Reading the result waits for the device.

    Args:
        mask: `PatchMask` or `bool (B, gh, gw)`.
        unit: pixels along each side of a mask unit.

    Returns:
        A number of pixels; 0 where nothing is masked, infinity where a sample has no visible pixel.

    Raises:
        TypeError: a mask that is not bool.
        RuntimeError: a mask on `meta`.
        ValueError: a unit below 1, an empty grid, an image side of 2^30 pixels or more.

    Source: AvgDist in SimMIM (Xie et al., CVPR 2022), which finds accuracy highest for 10 to 20.
    """
    grid = mask_grid(mask)
    if isinstance(grid, Tensor) and grid.is_meta:
        raise RuntimeError("mask is on meta, where a tensor has no values to measure")
    return _avg_dist(grid, to_int("unit", unit)).item()
