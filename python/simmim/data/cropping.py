"""Which part of an image a sample is: a pure function of (seed, epoch, sample id)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from simmim.errors import require

transforms = require("torchvision.transforms.v2.functional")

#: separate sequences of random numbers
CROP, ORDER = 0, 1


def random_numbers(stream: int, seed: int, epoch: int, sample: int) -> np.random.Generator:
    """A generator whose numbers depend on these four and on nothing else (Philox4x64-10)."""
    bits = np.random.Philox(key=[seed % 2**64, stream], counter=[0, 0, epoch, sample])
    return np.random.Generator(bits)


def random_crop(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """``(top, left, height, width)`` of a random part of an image (Inception crop).

    Area drawn uniformly from ``scale`` of the image's, logarithm of the width-to-height ratio
    uniformly from that of ``ratio``; after ten draws that do not fit, the largest central part
    whose ratio is allowed.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    h, w = min(height, round(width / aspect)), min(width, round(height * aspect))
    return (height - h) // 2, (width - w) // 2, h, w


def central_crop(height: int, width: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest central part with the shape of ``size``, as ``(top, left, height, width)``."""
    shrink = min(height / size[0], width / size[1])
    h, w = max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))
    return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class Cropping:
    """How a crop is drawn from an image; ``central_first`` makes crop 0 of each image central."""

    size: tuple[int, int]
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: float
    seed: int
    central_first: bool = False

    def __call__(self, image: Tensor, epoch: int, sample: int, crop: int) -> Tensor:
        """``uint8 (C, H, W)``, resized bilinearly with antialiasing to ``size``."""
        height, width = image.shape[-2:]
        flip = False
        if self.central_first and crop == 0:
            part = central_crop(height, width, self.size)
        else:
            rng = random_numbers(CROP, self.seed, epoch, sample)
            part = random_crop(rng, height, width, self.scale, self.ratio)
            flip = rng.random() < self.flip
        image = transforms.resized_crop(image, *part, list(self.size), antialias=True)
        return transforms.horizontal_flip(image) if flip else image
