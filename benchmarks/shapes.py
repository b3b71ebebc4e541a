"""The shapes of the tables."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """An image, its mask unit and its tokens.

    Attributes:
        channels, size: the image is `channels x size x size`.
        unit: pixels along a side of the mask unit.
        stride: pixels along a side of one predicted token.
        tokens, width: the encoder's first token map is `tokens x tokens x width`.
    """

    name: str
    channels: int
    size: int
    unit: int
    stride: int
    tokens: int
    width: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.size // self.unit, self.size // self.unit

    @property
    def masked(self) -> float:
        """The part of the units that is masked at the ratio of the tables."""
        units = self.grid[0] * self.grid[1]
        return -(-units * RATIO // 1) / units


RATIO = 0.6
BATCHES = (16, 32)
VIT_B = Shape("vit-b", 3, 224, 32, 16, 14, 768)
SWIN_B = Shape("swin-b", 3, 192, 32, 32, 48, 128)
MULTISPECTRAL = Shape("multispectral", 13, 120, 24, 12, 10, 768)
SHAPES = (VIT_B, SWIN_B, MULTISPECTRAL)
