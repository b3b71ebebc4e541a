"""The mask that every op takes: a bool grid of mask units with its index lists."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from simmim_kernels.grid import whole_scale


class PatchMask(NamedTuple):
    """A mask on the grid of mask units, with the positions of its units.

    Attributes:
        mask: `bool (B, gh, gw)`, `True` = masked.
        masked: `int32 (B, K)`, row-major positions of the masked units, ascending.
        visible: `int32 (B, gh * gw - K)`, those of the visible units, ascending.

    Every sample has the same number `K` of masked units, so all three shapes are known without
    looking at the data. A `NamedTuple` passes through `torch.compile`, data loaders and pytrees.
    """

    mask: Tensor
    masked: Tensor
    visible: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PatchMask:
        """The same mask on `device`."""
        return PatchMask(*(part.to(device, non_blocking=non_blocking) for part in self))

    def on_grid(self, grid: tuple[int, int]) -> PatchMask:
        """The same mask on a finer grid `(h, w)`, for instance that of the encoder's tokens.

        Needs no synchronisation. Raises `ValueError` where `h` or `w` is no whole multiple of
        this mask's own grid.
        """
        own = self.mask.shape[1:]
        scale_y = whole_scale("grid height", grid[0], "mask grid height", own[0])
        scale_x = whole_scale("grid width", grid[1], "mask grid width", own[1])
        if scale_y == scale_x == 1:
            return self
        fine = self.mask.repeat_interleave(scale_y, 1).repeat_interleave(scale_x, 2)
        count = self.masked.shape[1] * scale_y * scale_x
        order = torch.argsort(~fine.flatten(1), dim=1, stable=True).int()
        return PatchMask(fine, order[:, :count], order[:, count:])


def mask_grid(mask: PatchMask | Tensor) -> Tensor:
    """The bool grid of a `PatchMask`, or the plain tensor itself."""
    return mask.mask if isinstance(mask, PatchMask) else mask
