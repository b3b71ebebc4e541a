"""Image files: which there are in a folder, and how one becomes ``uint8 (C, H, W)``."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from simmim.data.image_contents import BadImageError, open_image
from simmim.data.listing import SUFFIXES, Listing, list_images
from simmim.errors import UserError, first_line, require

jpeg = require("torchvision.io")

__all__ = ["SUFFIXES", "BadImageError", "LostImageError", "find_images", "read_image"]

#: what keeps a single file from being read, on a machine and a disk that are all right
_OF_ONE_FILE = {
    *(errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
    # decoders that follow a damaged file's offsets
    *(errno.EINVAL, errno.EOVERFLOW, errno.EFBIG),
}


class LostImageError(BadImageError):
    """The system does not give us the file: it is gone, or the disk or the network is."""


def find_images(folder: Path, without: Iterable[Path] = ()) -> list[Path]:
    """All image files under ``folder``, in the order of ``list_images``.

    Args:
        without: folders to leave out.

    Raises:
        UserError: no such folder, one that may not be read, or no image in it.
    """
    return find_listing(folder, without).paths


def find_listing(folder: Path, without: Iterable[Path] = ()) -> Listing:
    """``list_images``, with an error where there is none.

    Raises:
        UserError: no such folder, one that may not be read, or no image in it.
    """
    listing = list_images(folder, without)
    check_any(listing)
    return listing


def check_any(listing: Listing) -> None:
    """Raise ``UserError`` where a folder holds no image that can be read."""
    folder = listing.folder
    if listing.paths:
        return
    if listing.left:
        raise UserError(
            f"no images in {folder} of the kinds that are read (JPEG, PNG, TIFF, WebP): it holds "
            f"{listing.left_out()}; convert them, for example to PNG"
        )
    raise UserError(
        f"no images in {folder}: it holds no file that ends in {', '.join(sorted(SUFFIXES))}"
    )


def read_image(path: Path, channels: int) -> Tensor:
    """Decode one 8-bit image file to ``uint8 (channels, H, W)``, upright as its EXIF tag says.

    A transparent image is laid on white: what its colours are where nothing shows is arbitrary.
    CMYK becomes RGB by Pillow's formula, without a colour profile, as in torchvision's
    ``ImageFolder``.

    Args:
        channels: 3 for RGB, 1 for gray.

    Warns:
        UnusedContentWarning: the file holds something else besides its picture.

    Raises:
        LostImageError: the system does not give us the file.
        BadImageError: not an image, damaged or cut short, or one of contents that are not read, see
            ``simmim.data.image_contents.open_image``.
    """
    try:
        with path.open("rb") as file, open_image(file) as image:
            decoded = _decode_jpeg(file, image, channels)
            if decoded is not None:
                return decoded
            pixels = _pixels(image, channels)
    except BadImageError:
        raise
    except OSError as error:
        # Pillow's own errors of this type carry no number of the system's
        if error.errno is None or error.errno in _OF_ONE_FILE or _is_forbidden(path, error):
            raise BadImageError(_damage(error)) from error
        raise LostImageError(error.strerror or first_line(error)) from error
    # PIL's decoders raise whatever their format code meets: SyntaxError, struct.error, ...
    except Exception as error:
        raise BadImageError(_damage(error)) from error
    return torch.from_numpy(pixels).view(*pixels.shape[:2], channels).permute(2, 0, 1)


#: what undoes each EXIF orientation of a ``(C, H, W)`` image, as ``ImageOps.exif_transpose`` does
_UPRIGHT: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda x: x.flip(2),
    3: lambda x: x.flip(1, 2),
    4: lambda x: x.flip(1),
    5: lambda x: x.mT,
    6: lambda x: x.mT.flip(2),
    7: lambda x: x.mT.flip(1, 2),
    8: lambda x: x.mT.flip(1),
}


def _decode_jpeg(file: BinaryIO, image: Image.Image, channels: int) -> Tensor | None:
    """The pixels that Pillow would give, without its copies and without holding the interpreter's
    lock, for a plain gray or colour JPEG; ``None`` where Pillow is to decide.

    Args:
        file: what ``image`` was opened from.
    """
    if image.format != "JPEG" or (image.mode, channels) not in (("RGB", 3), ("L", 3), ("L", 1)):
        return None
    orientation = image.getexif().get(0x0112, 1)
    file.seek(0)
    content = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    try:
        pixels = jpeg.decode_jpeg(content, mode=jpeg.ImageReadMode.UNCHANGED)
    # torchvision will leave its decoder out one day
    except (AttributeError, RuntimeError):
        return None
    pixels = _UPRIGHT.get(orientation, lambda x: x)(pixels)
    return pixels.expand(channels, -1, -1)


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    """``uint8 (H, W, 3)`` or ``(H, W)``."""
    if image.mode.startswith(("I", "F")):
        raise BadImageError("more than 8 bits a channel")
    image = ImageOps.exif_transpose(image)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB" if channels == 3 else "L"))


def _is_forbidden(path: Path, error: OSError) -> bool:
    """Whether the file's own permissions are what keeps it from being read.

    Where not even its size may be asked for, the whole disk is closed to us, as by a network drive's
    ticket that has run out.
    """
    if error.errno not in (errno.EACCES, errno.EPERM):
        return False
    try:
        path.stat()
    except OSError:
        return False
    return True


def _damage(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged: {first_line(error)}"
