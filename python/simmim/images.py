"""Image files: which there are, and how one becomes ``uint8 (C, H, W)``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from simmim.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}


class BadImageError(Exception):
    """An image file that cannot be used; the message says why."""


def find_images(folder: Path) -> list[Path]:
    """All image files under ``folder``, sorted by path so that the order is that of any machine.

    Raises:
        UserError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    found = [
        Path(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES
    ]
    if not found:
        raise UserError(
            f"no images in {folder}: it holds no file that ends in {', '.join(sorted(SUFFIXES))}"
        )
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def read_image(path: Path, channels: int) -> Tensor:
    """Decode one 8-bit image file to ``uint8 (channels, H, W)``, upright as its EXIF tag says.

    A transparent image is laid on white: what its colours are where nothing shows is arbitrary.

    Args:
        channels: 3 for RGB, 1 for gray.

    Raises:
        BadImageError: not an image, damaged or cut short, more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise BadImageError("more than 8 bits a channel")
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            pixels = np.array(image.convert("RGB" if channels == 3 else "L"))
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("not an image") from None
    # PIL's decoders raise whatever their format code meets: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise BadImageError((str(error) or type(error).__name__).splitlines()[0]) from error
    return torch.from_numpy(pixels).view(*pixels.shape[:2], channels).permute(2, 0, 1)
