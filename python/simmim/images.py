"""Image files: which there are, and how one becomes ``uint8 (C, H, W)``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from simmim.errors import UserError, first_line

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}


class BadImageError(Exception):
    """An image file that cannot be used; the message says why."""


def find_images(folder: Path) -> list[Path]:
    """All image files under ``folder``, sorted by path so that the order is that of any machine.

    Links to folders are followed, but into no folder that holds the link, and each link by itself:
    two links to one folder give its images twice.

    Raises:
        UserError: no such folder, one that may not be read, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    found = list(_walk(folder, (folder.resolve(),)))
    if not found:
        raise UserError(
            f"no images in {folder}: it holds no file that ends in {', '.join(sorted(SUFFIXES))}"
        )
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Image files under ``folder``, which, without links, is the last of ``above``."""
    try:
        entries = list(os.scandir(folder))
    except PermissionError:
        raise UserError(
            f"the folder {folder} may not be read: change its permissions, or name another folder"
        ) from None
    for entry in entries:
        path, linked = Path(folder, entry.name), entry.is_symlink()
        if entry.is_dir(follow_symlinks=False) or (linked and path.is_dir()):
            inner = path.resolve() if linked else above[-1] / entry.name
            if inner not in above:
                yield from _walk(path, (*above, inner))
        # a pipe would be waited for; a link to nothing is one more image that can't be read
        elif path.suffix.lower() in SUFFIXES and (
            entry.is_file(follow_symlinks=False) or path.is_file() or not path.exists()
        ):
            yield path


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
        raise BadImageError(first_line(error)) from error
    return torch.from_numpy(pixels).view(*pixels.shape[:2], channels).permute(2, 0, 1)
