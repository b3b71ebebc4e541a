"""Which part of each image is hidden: the strategies of ``simmim_kernels`` under one configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import simmim_kernels as sk
from simmim.errors import UserError
from simmim.models.encoders import check_divides
from simmim_kernels import PatchMask

STRATEGIES = {
    "random": sk.random_mask,
    "block": sk.block_mask,
    "inverse-block": sk.inverse_block_mask,
    "uniform": sk.uniform_mask,
    "box": sk.box_mask,
}
#: keeps the secondary masks apart from others of the same seed
_SECOND = 1 << 63


@dataclass(frozen=True)
class Masking:
    """Masks for images of one size.

    Attributes:
        strategy: a name of ``STRATEGIES``.
        unit: pixels a side of the squares that are hidden or shown as a whole.
        ratio: hidden fraction (of each side for ``"box"``), 0 to 1.
        img_size: ``(H, W)``, multiples of ``unit``.
        second_ratio: fraction of the visible units of a uniform mask that ``second`` hides.
    """

    strategy: str
    unit: int
    ratio: float
    img_size: tuple[int, int]
    second_ratio: float = 0.0

    def __post_init__(self) -> None:
        check_divides("mask unit", self.unit, self.img_size)
        if self.strategy == "uniform":
            check_divides("pair of mask units", 2 * self.unit, self.img_size)
            if 4 * self.ratio % 1:
                raise UserError(
                    f"--mask uniform hides the same of every four units: --mask-ratio {self.ratio:g} "
                    "must be 0.25, 0.5 or 0.75"
                )
        units, hidden = self.grid[0] * self.grid[1], self.hidden
        if hidden == 0:
            raise UserError(
                f"--mask-ratio {self.ratio:g} hides none of the {units} units, so there is nothing "
                "to predict: raise it"
            )
        if hidden == units:
            raise UserError(
                f"--mask-ratio {self.ratio:g} hides all {units} units, so there is nothing to "
                f"predict from: lower it, or --mask-unit, which is {self.unit} pixels"
            )

    @property
    def hidden(self) -> int:
        """Units that are hidden in each image."""
        if self.strategy == "box":
            return int(self.grid[0] * self.ratio) * int(self.grid[1] * self.ratio)
        return math.ceil(self.grid[0] * self.grid[1] * self.ratio)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of mask units."""
        return self.img_size[0] // self.unit, self.img_size[1] // self.unit

    def __call__(
        self, ids: Tensor, *, seed: int, epoch: int = 0, device: torch.device | None = None
    ) -> PatchMask:
        """The masks of samples ``ids`` (``int64 (B,)``): a pure function of (seed, epoch, id)."""
        draw = STRATEGIES[self.strategy]
        return draw(ids, self.grid, self.ratio, seed=seed, epoch=epoch, device=device)

    def second(
        self, ids: Tensor, *, seed: int, epoch: int, device: torch.device | None = None
    ) -> PatchMask:
        """The secondary masks of the samples, on the grid of a uniform mask's visible units."""
        grid = self.grid[0] // 2, self.grid[1] // 2
        return sk.random_mask(
            ids, grid, self.second_ratio, seed=seed ^ _SECOND, epoch=epoch, device=device
        )


def nothing_hidden(images: Tensor) -> PatchMask:
    """The mask under which an encoder sees all of ``images``."""
    return sk.random_mask(images.shape[0], (1, 1), 0.0, seed=0, device=images.device)
