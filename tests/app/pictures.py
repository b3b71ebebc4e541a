"""A small picture, and what comes of reading a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from simmim.config.images import Reading
from simmim.data.images import BadImageError
from simmim.data.images import read_image as read_picture
from simmim.data.listing import list_images

HEIGHT, WIDTH = 40, 56
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH]
RGB = np.stack([X * 4, Y * 6, X + Y], -1).astype(np.uint8)
GRAY = RGB[..., 0]
#: opaque on the left, transparent on the right
OPACITY = np.where(X < WIDTH // 2, 255, 0).astype(np.uint8)
RGBA = np.dstack([RGB, OPACITY])
#: what RGBA is on white
ON_WHITE = np.where(OPACITY[..., None] == 255, RGB, 255)


def find_images(folder: Path) -> list[Path]:
    return list_images(folder).paths


def read_image(path: Path, channels: int) -> torch.Tensor:
    return read_picture(path, Reading(channels))


def read(path: Path, channels: int = 3) -> np.ndarray:
    return read_image(path, channels).permute(1, 2, 0).numpy()


def as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, -1)


def refusal(path: Path) -> str:
    with pytest.raises(BadImageError) as caught:
        read_image(path, 3)
    return str(caught.value)
