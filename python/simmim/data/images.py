"""Reading of images, from files or parts of them, as pixels ``(C, H, W)``."""

from __future__ import annotations

import errno
import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from simmim.config.images import Reading
from simmim.data import bands
from simmim.data.bands import Picture
from simmim.data.image_contents import (
    BadImageError,
    OtherContentsError,
    inspect_channels,
    kind_of,
    open_image,
)
from simmim.data.item import Item
from simmim.data.tiff_contents import note_side_files, open_tiff_picture
from simmim.errors import MissingPackageError, UnreadableImageError, first_line, require

jpeg = require("torchvision.io")

#: what keeps a single file from being read, on a machine and a disk that are all right
_OF_ONE_FILE = {
    *(errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
    # decoders that follow a damaged file's offsets
    *(errno.EINVAL, errno.EOVERFLOW, errno.EFBIG),
}


#: files that the system does not give us, one after the other, until we take the disk for lost
LOST_IN_A_ROW = 8


class LostImageError(BadImageError):
    """A file that the system cannot open: it, its disk or its network is gone."""


def lost_images(path: str, reason: str) -> UnreadableImageError:
    """The error of ``LOST_IN_A_ROW`` files that cannot be opened, the last of them ``path``."""
    return UnreadableImageError(
        f"{LOST_IN_A_ROW} images in a row cannot be opened, the last is {path}: {reason}; is "
        "the disk or the network drive still connected?"
    )


@contextmanager
def file_errors(path: Path | Item) -> Iterator[None]:
    """Turn whatever reading an image meets into the two errors below.

    Raises:
        LostImageError: the system does not give us the file.
        BadImageError: all else.
    """
    try:
        yield
    except BadImageError:
        raise
    except MissingPackageError as error:
        raise BadImageError(first_line(error)) from error
    except MemoryError as error:
        raise BadImageError("too large for the memory that is free") from error
    except Image.DecompressionBombError as error:
        most = 2 * Image.MAX_IMAGE_PIXELS
        raise BadImageError(
            f"more than {most:,} pixels: reduce it or cut it into tiles, or make it a TIFF file, of "
            "which parts are read"
        ) from error
    except OSError as error:
        # Pillow's own errors of this type carry no number of the system's
        if error.errno is None or error.errno in _OF_ONE_FILE or _is_forbidden(path, error):
            raise BadImageError(_damage(error)) from error
        raise LostImageError(error.strerror or first_line(error)) from error
    # decoders raise whatever their format code meets: SyntaxError, struct.error, ...
    except Exception as error:
        raise BadImageError(_damage(error)) from error


def read_image(path: Path | Item, wanted: Reading) -> Picture:
    """One image as ``(C, H, W)``, upright as its EXIF tag says.

    Of 8-bit pictures as gray or RGB: a transparent image is laid on white, for what its colours are
    where nothing shows is arbitrary; CMYK becomes RGB by Pillow's formula, without a colour profile,
    as in torchvision's ``ImageFolder``. Of all else the bands as they are.

    Returns:
        the pixels, or a ``Window`` through which parts are read.

    Warns:
        UnusedContentWarning: the file holds something else besides its picture.

    Raises:
        LostImageError: the system does not give us the file.
        OtherContentsError: it holds other numbers or bands than are wanted.
        BadImageError: not an image, damaged or cut short.
    """
    with file_errors(path):
        if isinstance(path, Path):
            return _read_file(partial(path.open, "rb"), path, wanted)
        content = path.read()
        if isinstance(content, Tensor):
            return bands.from_tensor(content, path.source.wanted_here(wanted))
        if isinstance(content, np.ndarray):
            return bands.from_array(content, wanted)
        return _read_file(partial(io.BytesIO, content), None, wanted)


def area_of(path: Path | Item, wanted: Reading) -> int:
    """Pixels of an image, of which no more is decoded than they ask for; raises ``BadImageError``
    as ``read_image``, where that is needed."""
    with file_errors(path):
        if isinstance(path, Path):
            with path.open("rb") as file:
                if kind_of(file) not in ("TIFF", "NPY", "NPZ"):
                    return math.prod(Image.open(file).size)
        return math.prod(read_image(path, wanted).shape[-2:])


def _read_file(opener: Callable[[], BinaryIO], path: Path | None, wanted: Reading) -> Picture:
    with opener() as file:
        kind = kind_of(file)
        if kind in ("NPY", "NPZ"):
            return bands.open_array(file, path, wanted)
        if kind == "TIFF" and path is not None:
            note_side_files(path, wanted.nodata)
        if kind == "TIFF" and not wanted.colours:
            return bands.open_tiff(file, opener, wanted)
        depth, reason = inspect_channels(file, kind)
        if reason:
            if wanted.colours or kind == "AVIF":
                raise OtherContentsError(reason)
            return bands.open_deep(file, kind, wanted)
        if kind == "TIFF":
            image = open_tiff_picture(file, wanted.channels, wanted.nodata)
        else:
            image = open_image(file, kind, depth)
        if image is None:
            file.seek(0)
            return bands.open_tiff(file, opener, wanted)
        with image:
            if not wanted.colours:
                return bands.open_picture(image, wanted)
            decoded = _decode_jpeg(file, image, wanted.channels)
            if decoded is not None:
                return decoded
            pixels = _pixels(image, wanted.channels)
    return torch.from_numpy(pixels).view(*pixels.shape[:2], wanted.channels).permute(2, 0, 1)


def _decode_jpeg(file: BinaryIO, image: Image.Image, channels: int) -> Tensor | None:
    """The pixels that Pillow would give, without its copies and without holding the interpreter's
    lock, for a plain gray or colour JPEG, which ``image`` was opened from; ``None`` where Pillow is
    to decide."""
    if image.format != "JPEG" or (image.mode, channels) not in (("RGB", 3), ("L", 3), ("L", 1)):
        return None
    if "progressive" in image.info:  # what of one is missing, each version smooths in its own way
        return None
    orientation = image.getexif().get(0x0112, 1)
    file.seek(0)
    content = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    try:
        pixels = jpeg.decode_jpeg(content, mode=jpeg.ImageReadMode.UNCHANGED)
    # torchvision will leave its decoder out one day
    except (AttributeError, RuntimeError):
        return None
    pixels = bands.UPRIGHT.get(orientation, lambda x: x)(pixels)
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


def _is_forbidden(path: Path | Item, error: OSError) -> bool:
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
    if "requires the 'imagecodecs' package" in str(error):
        return f'{first_line(error)}: pip install "simmim-kernels[data]"'
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged: {first_line(error)}"
