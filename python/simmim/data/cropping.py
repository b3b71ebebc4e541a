"""The crop of an image for each sample: a pure function of (seed, epoch, sample id)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    """Part of an image: pixels ``(C, H, W)``, and ``bool (H, W)`` which of them are made of data
    alone in every channel; ``None`` where all are."""

    pixels: Tensor
    with_data: Tensor | None


class Draw(NamedTuple):
    """Which crop of an image is drawn.

    Attributes:
        epoch, sample: of the run.
        crop: number of the crop among those of its image.
        areas: how many parts of equal area the crop's scale is a share of one of.
    """

    epoch: int
    sample: int
    crop: int
    areas: int = 1


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
        augment: what becomes of a crop's pixels in a draw; ``None`` leaves them as they are.
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
    augment: Callable[[Tensor, Draw], Tensor] | None = None

    def __call__(self, image: Picture, *draw: int) -> Crop:
        """A crop of the image's type, resized with antialiasing to ``size``, of a ``Draw``; raises
        ``BadImageError`` for NaN or infinite numbers that ``nodata`` does not name."""
        which = Draw(*draw)
        if self.takes_several(image):
            return Crop(self.several([image], [which])[0], None)
        best, least = None, math.inf
        for number in range(DRAWS):
            boxes, flips = self._boxes([image.shape[-2:]], [which], number)
            top, left, height, width = boxes[0].tolist()
            part = image[:, top : top + height, left : left + width]
            share = 0.0
            if self.nodata is not None and not self._is_central(which):
                share = self._without_data(part).any(0).float().mean().item()
            if share < least:
                best, least = (part, flips), share
            if least <= self.nodata_share:
                break
        crop = self._finish(*best)
        return crop._replace(pixels=self.augment(crop.pixels, which)) if self.augment else crop

    def takes_several(self, image: Picture) -> bool:
        """Whether ``several`` takes the image: it is in memory, and nothing in it can be refused."""
        return (
            self.nodata is None
            and isinstance(image, Tensor)
            and not image.dtype.is_floating_point
            and image.numel() > 0
        )

    def several(self, images: Sequence[Tensor], draws: Sequence[Draw]) -> Sequence[Tensor]:
        """The crops ``(C, *size)`` of images ``(C, H, W)``, as ``__call__`` makes each."""
        boxes, flips = self._boxes([image.shape[1:] for image in images], draws)
        crops = self._clip(self._resize(images, boxes, flips))
        return list(map(self.augment, crops, draws)) if self.augment else crops

    def _is_central(self, draw: Draw) -> bool:
        return self.central_first and draw.crop == 0

    def _boxes(
        self, sizes: Sequence[tuple[int, int]], draws: Sequence[Draw], number: int = 0
    ) -> tuple[Tensor, Tensor]:
        """What ``random_crops`` gives for images of these sizes, or central boxes, after ``number``
        draws that were refused."""
        boxes = torch.empty(len(draws), 4, dtype=torch.int64)
        flips = torch.zeros(len(draws), dtype=torch.bool)
        alike: dict[tuple[int, int], list[int]] = {}
        for place, draw in enumerate(draws):
            if self._is_central(draw):
                boxes[place] = torch.tensor(central_crop(*sizes[place], self.size, self.central))
            else:
                alike.setdefault((draw.epoch, draw.areas), []).append(place)
        for (epoch, areas), places in alike.items():
            boxes[places], flips[places] = random_crops(
                torch.tensor([draws[place].sample for place in places]),
                torch.tensor([sizes[place] for place in places]),
                self.size,
                (self.scale[0] / areas, self.scale[1] / areas),
                self.ratio,
                flip=self.flip,
                # crops drawn anew have seeds that are no run's own
                seed=(self.seed + (number << 32)) % 2**64,
                epoch=epoch,
            )
        return boxes, flips

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
            with_data = self._resize_whole(lacking.any(0, keepdim=True).float(), flip)[0] == 0
            fill = torch.tensor(self.fill)[:, None, None]
            fill = (fill if dtype.is_floating_point else fill.round()).to(dtype)
            part = torch.where(lacking, fill, part)
        if dtype.is_floating_point and not part.isfinite().all():
            raise BadImageError("NaN or infinite numbers; --nodata names what holds no data")
        return Crop(self._clip(self._resize_whole(part, flip)), with_data)

    def _clip(self, pixels: Tensor) -> Tensor:
        if self.clip is None:
            return pixels
        low, high = (torch.tensor(values)[:, None, None] for values in self.clip)
        clipped = pixels.float().clamp(low, high)
        return (clipped if pixels.is_floating_point() else clipped.round()).to(pixels.dtype)

    def _resize_whole(self, part: Tensor, flip: Tensor) -> Tensor:
        return self._resize([part], torch.tensor([[0, 0, *part.shape[-2:]]]), flip)[0]

    def _resize(self, images: Sequence[Tensor], boxes: Tensor, flips: Tensor) -> Tensor:
        return crop_resize(images, boxes, self.size, flip=flips, interpolation=self.interpolation)
