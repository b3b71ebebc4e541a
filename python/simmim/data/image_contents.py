"""What an image file says that it holds, and whether that is what simmim reads.

Pillow's mode does not tell: it opens files of 16 bits a channel as ``RGB`` and drops bands without
a word. So bit depth, bands, pages and opacity are read from the file: PNG's header, TIFF's tags, the
number of frames. What a file says wrongly cannot be told: a band of near infrared that its writer
marked as opacity is opacity.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import BinaryIO

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from simmim.errors import first_line, require

tifffile = require("tifffile")
# it logs whatever is odd in a file; what matters is in the errors below
logging.getLogger("tifffile").addHandler(logging.NullHandler())
logging.getLogger("tifffile").propagate = False


class BadImageError(Exception):
    """An image file that cannot be used; the message says why."""


class UnusedContentWarning(UserWarning):
    """A part of an image file that is not used."""


_collected: ContextVar[list[str] | None] = ContextVar("_collected", default=None)


@contextmanager
def collected_notes() -> Iterator[list[str]]:
    """What files hold that is not used, collected in this thread instead of warned about.

    (``warnings.catch_warnings`` would catch what other threads read.)
    """
    notes: list[str] = []
    token = _collected.set(notes)
    try:
        yield notes
    finally:
        _collected.reset(token)


def _note_unused(text: str) -> None:
    notes = _collected.get()
    if notes is None:
        warnings.warn(UnusedContentWarning(text), stacklevel=3)
    else:
        notes.append(text)


_SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
#: files with more pages than this are not asked what each page is
_MOST_PAGES = 64
#: colour bands of TIFF's colour models that are read, by PhotometricInterpretation
_COLOUR_BANDS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}
#: compressions that every libtiff has: none, CCITT, LZW, JPEG, deflate, PackBits
_COMMON_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946}
_RGB, _PALETTE, _SEPARATED, _YCBCR = 2, 3, 5, 6
#: how ExtraSamples marks opacity with which colours are multiplied already, and with which not
_ASSOCIATED, _UNASSOCIATED = 1, 2


def open_image(file: BinaryIO) -> Image.Image:
    """Open an image whose contents can be used as 8-bit gray or colour.

    Args:
        file: opened for reading, at its beginning.

    Warns:
        UnusedContentWarning: the file holds something else besides its picture.

    Raises:
        BadImageError: no image, of a kind that is not read, or what it holds is more than 8 bits a
            channel, bands beyond gray, RGB, CMYK and opacity, or several pictures.
    """
    start = file.read(32)
    file.seek(0)
    kind = next((k for k, begin in _SIGNATURES.items() if start.startswith(begin)), None)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        kind = "WEBP"
    if kind is None:
        raise BadImageError(_describe_other(file))
    if kind == "PNG":
        _check_png(start)
    if kind == "TIFF":
        return _open_tiff(file)
    try:
        image = Image.open(file, formats=(kind,))
    except UnidentifiedImageError:
        raise BadImageError(_reason_of_refusal(file, kind)) from None
    if kind == "JPEG":
        _check_pictures(image)
    elif getattr(image, "n_frames", 1) > 1:
        raise BadImageError(f"{image.n_frames} frames (an animation)")
    if kind == "PNG" and image.mode == "L" and image.info.get("transparency") is not None:
        # Pillow stretches the gray values of 2 and 4 bits to 8, but not the transparent one
        image.info["transparency"] *= 255 // (2 ** start[24] - 1)
    return image


def _describe_other(file: BinaryIO) -> str:
    """What a file that begins as none of the kinds we read is."""
    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            return f"{image.format} inside, a kind that is not read"
    # whatever Pillow's many readers meet
    except Exception:
        return "not an image"


def _check_png(start: bytes) -> None:
    """Refuse more than 8 bits a channel; the header is at a fixed place."""
    if start[12:16] != b"IHDR":
        raise BadImageError("not a PNG file: it does not begin with a header")
    if start[24] > 8:
        raise BadImageError(f"{start[24]} bits a channel")


def _reason_of_refusal(file: BinaryIO, kind: str) -> str:
    if kind != "JPEG":
        return "damaged or cut short"
    file.seek(0)
    try:
        JpegImagePlugin.JpegImageFile(file)
    except Exception as error:
        refused = re.search(r"(\d+)-(bit|layer)", str(error))
        if refused:
            return f"{refused[1]} {'bits a channel' if refused[2] == 'bit' else 'bands'}"
        return f"damaged: {first_line(error)}"
    return "damaged or cut short"


def _check_pictures(image: Image.Image) -> None:
    """Refuse a JPEG file of several equal pictures; name what else one holds (CIPA DC-007)."""
    kinds = [
        entry["Attribute"]["MPType"]
        for entry in (getattr(image, "mpinfo", None) or {}).get(0xB002, ())
    ]
    # a smaller copy for a quick look is no further picture
    more = [kind for kind in kinds[1:] if not kind.startswith("Large Thumbnail")]
    if any(kind.startswith("Multi-Frame") for kind in more):
        raise BadImageError(f"{1 + len(more)} pictures ({more[0]})")
    if more:
        _note_unused(f"the first of {1 + len(more)} pictures in the file is used")


def _open_tiff(file: BinaryIO) -> Image.Image:
    try:
        with tifffile.TiffFile(file) as tiff:
            reasons = [*_page_reasons(tiff), *_tag_reasons(tiff.pages.first)]
            if reasons:
                raise BadImageError(", ".join(reasons))
            page = tiff.pages.first
            if page.planarconfig == 2 and _values(page, 338, 0) == (_ASSOCIATED,):
                # Pillow opens it and then knows no way to decode it
                return _decode_plain(page)
            try:
                file.seek(0)
                image = Image.open(file, formats=("TIFF",))
                image.load()
                return image
            except UnidentifiedImageError:
                return _decode_plain(page)
            except OSError:
                # "decoder error -2" is all that Pillow says where its TIFF library lacks a codec
                if page.compression in _COMMON_COMPRESSIONS:
                    raise
                return _decode_plain(page)
    except tifffile.TiffFileError as error:
        raise BadImageError(f"damaged: {first_line(error)}") from error


def _values(page, code: int, default: int) -> tuple:
    """Values of a tag, ``default`` where the page lacks it."""
    tag = page.tags.get(code)
    value = default if tag is None else tag.value
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _pictures(pages, depth: int = 0) -> Iterator[tuple]:
    """``(page, is it the first)`` of all full pictures and masks, smaller copies left out."""
    for number, page in enumerate(pages):
        if not page.is_reduced:
            yield page, depth == number == 0
        if page.subifds and depth < 3:
            yield from _pictures(page.pages, depth + 1)


def _page_reasons(tiff) -> list[str]:
    count = len(tiff.pages)
    first = tiff.pages.first
    if count <= _MOST_PAGES:
        found = list(_pictures(tiff.pages))
        masks = [page for page, _ in found if page.is_mask]
        pictures = [is_first for page, is_first in found if not page.is_mask]
        count = len(pictures)
        if count == 1 and not pictures[0]:
            return ["a picture behind a smaller copy of it"]
        if not count:
            return ["no picture, but a smaller copy of one" if not masks else "a transparency mask"]
        if masks:
            _note_unused("its transparency mask is not used")
    if count == 1 and (tiff.is_imagej or tiff.is_shaped or tiff.is_stk):
        # these describe a stack behind a single page
        series = tiff.series[0]
        count = max(1, series.size // max(1, first.size))
    if count > 1:
        return [f"{count} pages"]
    depth = _values(first, 32997, 1)[0]
    return [f"a volume {depth} pixels deep"] if depth > 1 else []


def _tag_reasons(page) -> list[str]:
    """What the tags of the picture say that is not read."""
    bands = int(_values(page, 277, 1)[0])
    bits = _values(page, 258, 1)
    numbers = set(_values(page, 339, 1))
    reasons = []
    kinds = {2: "signed", 3: "floating-point", 5: "complex integer", 6: "complex"}
    size = _join(sorted(set(bits)))
    for name in (kinds[n] for n in sorted(numbers & kinds.keys())):
        reasons.append(f"{name} numbers of {size} bits")
    if not reasons and not set(bits) <= {1, 2, 4, 8}:
        reasons.append(f"{size} bits a channel")
    if 262 not in page.tags:
        return [*reasons, "no word on its colours (PhotometricInterpretation)"]
    model = int(_values(page, 262, 0)[0])
    if model not in _COLOUR_BANDS:
        known = model in iter(tifffile.PHOTOMETRIC)
        return [*reasons, f"{tifffile.PHOTOMETRIC(model).name if known else model} colours"]
    further = bands - _COLOUR_BANDS[model]
    extra = _values(page, 338, 0)
    opacity = further == 1 and extra in ((_ASSOCIATED,), (_UNASSOCIATED,)) and model < _PALETTE
    if further and not opacity:
        why = ", the last not marked as opacity" if further == 1 and model == _RGB else ""
        why = " that are not marked as RGB" if (bands, model) in ((3, 0), (3, 1)) else why
        reasons.append(f"{bands} band{'s' if bands > 1 else ''}{why}")
    if model == _SEPARATED and _values(page, 332, 1) != (1,):
        reasons.append("inks that are not CMYK")
    if model == _YCBCR and page.compression == 1 and _values(page, 530, 2) not in ((1, 1), (1,)):
        reasons.append("uncompressed YCbCr with fewer colours than pixels")
    return reasons


def _join(numbers: list) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last


def _decode_plain(page) -> Image.Image:
    """Gray or RGB, with or without opacity, in a layout that Pillow does not know, such as a
    big-endian BigTIFF.

    Raises:
        BadImageError: a compression that needs a package of its own.
    """
    model, bits, bands = (
        int(_values(page, 262, 0)[0]),
        set(_values(page, 258, 1)),
        page.samplesperpixel,
    )
    try:
        if model not in (0, 1, _RGB) or bits != {8}:
            raise ValueError("not plain")
        pixels = page.asarray()
    except Exception as error:
        name = getattr(page.compression, "name", page.compression)
        raise BadImageError(f"a TIFF layout that is not read (compression {name})") from error
    if page.planarconfig == 2 and bands > 1:
        pixels = np.moveaxis(pixels, 0, -1)
    pixels = pixels.reshape(page.imagelength, page.imagewidth, bands)
    if model == 0:
        pixels = np.concatenate([255 - pixels[..., :1], pixels[..., 1:]], -1)
    associated = _values(page, 338, 0) == (_ASSOCIATED,)
    mode = {1: "L", 2: "La" if associated else "LA", 3: "RGB", 4: "RGBa" if associated else "RGBA"}
    size = (page.imagewidth, page.imagelength)
    image = Image.frombytes(mode[bands], size, np.ascontiguousarray(pixels).tobytes())
    if associated:
        image = image.convert(mode[bands].upper())
    image.getexif()[0x0112] = _values(page, 274, 1)[0]
    return image
