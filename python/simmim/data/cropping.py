"""Which part of an image a sample is: a pure function of (seed, epoch, sample id)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from simmim.data.bands import Picture
from simmim.data.image_contents import BadImageError
from simmim_kernels import crop_resize, random_crops

#: separate sequences of random numbers
ORDER, AUGMENT = 1, 2


def random_numbers(stream: int, seed: int, epoch: int, sample: int) -> np.random.Generator:
    """A generator whose numbers depend on these four and on nothing else (Philox4x64-10)."""
    bits = np.random.Philox(key=[seed % 2**64, stream], counter=[0, 0, epoch, sample])
    return np.random.Generator(bits)


def central_crop(
    height: int, width: int, size: tuple[int, int], share: float = 1.0
) -> tuple[int, int, int, int]:
    """A central part with the shape of ``size``, as ``(top, left, height, width)``: of the largest one
    each side is made ``share`` as long."""
    shrink = share * min(height / size[0], width / size[1])
    h, w = max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))
    return (height - h) // 2, (width - w) // 2, h, w


class Crop(NamedTuple):
    """Part of an image.

    Attributes:
        pixels: ``(C, H, W)``.
        with_data: ``bool (H, W)``, the pixels that are made of data alone in every channel; ``None``
            where all are.
    """

    pixels: Tensor
    with_data: Tensor | None


#: how often a crop with too few pixels that hold data is drawn anew
DRAWS = 10


@dataclass(frozen=True)
class Cropping:
    """How a crop is drawn from an image.

    Attributes:
        size: ``(H, W)`` of the crop in pixels.
        scale, ratio: of ``simmim_kernels.random_crops``.
        flip: probability of mirroring.
        central_first: make crop 0 of each image central.
        nodata: value of pixels without data; ``None`` where all hold data.
        nodata_share: largest share of pixels without data in some channel with which a crop is not
            drawn anew.
        fill: what they become, one value a channel.
        clip: smallest and largest value of each channel; ``None`` leaves pixels as they are.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        central: share of the shorter side that a central crop has.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: float
    seed: int
    central_first: bool = False
    nodata: float | None = None
    nodata_share: float = 1.0
    fill: tuple[float, ...] = ()
    clip: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    interpolation: str = "bilinear"
    central: float = 1.0

    def __call__(self, image: Picture, epoch: int, sample: int, crop: int, areas: int = 1) -> Crop:
        """A crop of the image's type, resized with antialiasing to ``size``.

        Args:
            areas: how many parts of equal area ``scale`` is a share of one of.

        Raises:
            BadImageError: NaN or infinite numbers that ``nodata`` does not name.
        """
        height, width = image.shape[-2:]
        if self.central_first and crop == 0:
            box = central_crop(height, width, self.size, self.central)
            return self._finish(_cut(image, box), torch.tensor([False]))
        scale = self.scale[0] / areas, self.scale[1] / areas
        best, least, mirrored = None, math.inf, None
        for draw in range(1 if self.nodata is None else DRAWS):
            boxes, flips = random_crops(
                torch.tensor([sample]),
                (height, width),
                self.size,
                scale,
                self.ratio,
                flip=self.flip,
                # crops drawn anew have seeds that are no run's own
                seed=(self.seed + (draw << 32)) % 2**64,
                epoch=epoch,
            )
            part = _cut(image, tuple(boxes[0].tolist()))
            share = (
                0.0
                if self.nodata is None
                else self._without_data(part).any(0).float().mean().item()
            )
            if share < least:
                best, least, mirrored = part, share, flips
            if least <= self.nodata_share:
                break
        return self._finish(best, mirrored)

    def _without_data(self, part: Tensor) -> Tensor:
        if part.dtype.is_floating_point:
            return part.isnan() if math.isnan(self.nodata) else part == self.nodata
        limits = torch.iinfo(part.dtype)
        if not (limits.min <= self.nodata <= limits.max and float(self.nodata).is_integer()):
            return torch.zeros(part.shape, dtype=torch.bool)
        value = int(self.nodata)
        if part.dtype == torch.uint16:  # which PyTorch compares as a copy in float32
            part, value = part.view(torch.int16), value - (value >> 15 << 16)
        return part == value

    def _finish(self, part: Tensor, flip: Tensor) -> Crop:
        """A part resized, and mirrored where ``flip``, ``bool (1,)``, says so."""
        dtype, with_data = part.dtype, None
        if self.nodata is not None:
            # what is resized of any pixel without data is not 0
            lacking = self._without_data(part)
            with_data = self._resize(lacking.any(0, keepdim=True).float(), flip)[0] == 0
            fill = torch.tensor(self.fill)[:, None, None]
            fill = (fill if dtype.is_floating_point else fill.round()).to(dtype)
            part = torch.where(lacking, fill, part)
        if dtype.is_floating_point and not part.isfinite().all():
            raise BadImageError("NaN or infinite numbers; --nodata names what holds no data")
        part = self._resize(part, flip)
        if self.clip is not None:
            low, high = (torch.tensor(values)[:, None, None] for values in self.clip)
            part = part.float().clamp(low, high)
            part = part if dtype.is_floating_point else part.round().to(dtype)
        return Crop(part, with_data)

    def _resize(self, part: Tensor, flip: Tensor) -> Tensor:
        box = torch.tensor([[0, 0, *part.shape[-2:]]])
        return crop_resize([part], box, self.size, flip=flip, interpolation=self.interpolation)[0]


def _cut(image: Picture, box: tuple[int, int, int, int]) -> Tensor:
    top, left, height, width = box
    return image[:, top : top + height, left : left + width]
