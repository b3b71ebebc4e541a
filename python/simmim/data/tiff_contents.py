"""The contents of a TIFF file by its tags, and whether they are an 8-bit picture."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from simmim.data.image_contents import BadImageError, OtherContentsError, note_unused
from simmim.errors import first_line, require

tifffile = require("tifffile")
# it logs whatever is odd in a file; what matters is in the errors below
logging.getLogger("tifffile").addHandler(logging.NullHandler())
logging.getLogger("tifffile").propagate = False

#: files with more pages than this are not asked what each page is
_MOST_PAGES = 64
#: colour bands of TIFF's colour models that are read, by PhotometricInterpretation
_COLOUR_BANDS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}
#: compressions that every libtiff has: none, CCITT, LZW, JPEG, deflate, PackBits
_COMMON_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946}
#: pixels of a picture that is read in parts where it can be
_SCENE = 2**24
_RGB, _PALETTE, _SEPARATED, _YCBCR = 2, 3, 5, 6
#: how ExtraSamples marks opacity with which colours are multiplied already, and with which not
_ASSOCIATED, _UNASSOCIATED = 1, 2
#: compressions whose decoder turns YCbCr into RGB
_JPEG = {6, 7, 33007, 34892}
_LERC = 34887


def open_tiff_picture(file: BinaryIO, channels: int, nodata: str = "") -> Image.Image | None:
    """Open a TIFF file whose contents can be used as 8-bit gray or colour.

    Args:
        nodata: the value of pixels without data, as text; empty for none.

    Returns:
        the picture, or ``None`` for one of more than ``_SCENE`` pixels that ``bands.open_tiff``
        reads the same, in parts.

    Raises:
        OtherContentsError: more than 8 bits a channel, bands beyond gray, RGB, CMYK and opacity, or
            several pictures.
        BadImageError: damaged, or a layout that is not read.
    """
    try:
        with tifffile.TiffFile(file) as tiff:
            reasons = [*page_reasons(tiff), *tag_reasons(tiff.pages.first)]
            if reasons:
                raise OtherContentsError(", ".join(reasons))
            page = tiff.pages.first
            if _is_scene(page, channels):
                return None
            note_unused_tags(page, nodata)
            # Pillow opens both and then knows no way to decode them, of YCbCr before Pillow 13
            apart = page.planarconfig == 2 and tag_values(page, 338, 0) == (_ASSOCIATED,)
            plain = page.compression == 1 and tag_values(page, 262, 0) == (_YCBCR,)
            # of tiles that were never written it reads whatever lies elsewhere in the file
            if not (apart or plain or 0 in page.databytecounts):
                try:
                    file.seek(0)
                    image = Image.open(file, formats=("TIFF",))
                    image.load()
                    return image
                except UnidentifiedImageError:
                    pass
                except OSError:
                    # "decoder error -2" is all that it says where its TIFF library lacks a codec
                    if page.compression in _COMMON_COMPRESSIONS:
                        raise
            return _decode_plain(page)
    except tifffile.TiffFileError as error:
        raise BadImageError(f"damaged: {first_line(error)}") from error


def note_unused_tags(page, nodata: str) -> None:
    """Name what a GeoTIFF says of its numbers that is not used: the value without data, unless
    ``nodata`` is the same, and what GDAL's users multiply by and add."""
    scaled = re.search(r'role="(scale|offset)"', tag_values(page, 42112, "")[0])
    _note_numbers(tag_values(page, 42113, "")[0].strip("\0 "), nodata, scaled=bool(scaled))


def note_side_files(path: Path, nodata: str) -> None:
    """Name what GDAL's files beside the TIFF file ``path`` say of its numbers that is not used."""
    if os.path.exists(f"{path}.msk"):
        note_unused("its mask, in the file .msk beside it, is not used")
    try:
        text = Path(f"{path}.aux.xml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    value = re.search(r"<NoDataValue\b[^>]*>([^<]*)<", text)
    scaled = "<Scale>" in text or "<Offset>" in text
    _note_numbers(value[1].strip() if value else "", nodata, scaled=scaled)


def _note_numbers(unused: str, nodata: str, *, scaled: bool) -> None:
    if unused and not _is_same_number(unused, nodata):
        note_unused(f"its value without data, {unused}, counts as a number: see --nodata")
    if scaled:
        note_unused("its numbers are read as stored: its scale and offset are not applied")


def _is_same_number(one: str, other: str) -> bool:
    try:
        with np.errstate(over="ignore"):
            return np.array_equal(np.float32(one), np.float32(other), equal_nan=True)
    # none, or whatever a writer puts there
    except ValueError:
        return False


def tag_values(page, code: int, default: int | str) -> tuple:
    """Values of a tag, ``default`` where the page lacks it."""
    tag = page.tags.get(code)
    value = default if tag is None else tag.value
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def unwritten_value(page) -> np.generic:
    """What GDAL reads where a tile or strip was never written: the value without data, as near as the type of
    the page's numbers has it. (tifffile takes 0 for some that it has, such as 32767 of int16.)"""
    try:
        value = float(tag_values(page, 42113, "0")[0].strip("\0 ").replace(",", "."))
    except ValueError:
        value = 0.0
    if page.dtype.kind != "f":
        limits = np.iinfo(page.dtype)
        value = 0 if math.isnan(value) else round(min(max(value, limits.min), limits.max))
    with np.errstate(over="ignore"):
        return page.dtype.type(value)


def decode_segment(page, content: bytes, index: int) -> np.ndarray:
    """Tile or strip ``index`` of a page, ``(1, height, width, bands)``, as GDAL reads it."""
    if page.compression == _LERC:
        pixels, valid = require("imagecodecs", "data").lerc_decode(content, masks=True)
        # tifffile leaves 0 where LERC keeps no number, and takes bands that differ in it for pixels
        if valid is not None:
            return _fill_lerc(pixels, valid, page.decode(None, index)[2])
    return page.decode(content, index, jpegtables=page.jpegtables)[0]


def _fill_lerc(pixels: np.ndarray, valid: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels of ``shape``, the mask ``valid`` put back into them: as NaN in floating-point numbers, else as the
    band of opacity, 0 or 255, if the pixels lack their last band."""
    if valid.ndim == 3:
        pixels, valid = np.moveaxis(pixels, 0, -1), np.moveaxis(valid, 0, -1)
    else:
        pixels, valid = np.atleast_3d(pixels), valid[..., None]
    if pixels.dtype.kind == "f":
        pixels = np.where(valid, pixels, pixels.dtype.type(np.nan))
    elif pixels.shape[-1] < shape[-1]:
        pixels = np.concatenate([pixels, np.where(valid, 255, 0).astype(pixels.dtype)], -1)
    return pixels.reshape(shape)


def _pictures(pages, depth: int = 0) -> Iterator[tuple]:
    """``(page, is it the first)`` of all full pictures and masks, smaller copies left out."""
    for number, page in enumerate(pages):
        if not page.is_reduced:
            yield page, depth == number == 0
        if page.subifds and depth < 3:
            yield from _pictures(page.pages, depth + 1)


def _is_scene(page, channels: int) -> bool:
    """Whether a page is large, and its numbers are the colours that are wanted."""
    plain = (page.photometric, page.samplesperpixel) in ((1, 1), (_RGB, 3))
    lossless = page.compression in (1, 8, 32946) or (
        page.compression not in (6, 7) and importlib.util.find_spec("imagecodecs") is not None
    )
    return (
        page.imagelength * page.imagewidth > _SCENE
        and plain
        and lossless
        and page.samplesperpixel in (1, channels)
        and set(tag_values(page, 258, 1)) == {8}
        and tag_values(page, 274, 1) == (1,)
    )


def page_reasons(tiff) -> list[str]:
    """Why a file holds not just one picture."""
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
            note_unused("its transparency mask is not used")
    if count == 1 and (tiff.is_imagej or tiff.is_shaped or tiff.is_stk):
        # these describe a stack behind a single page
        series = tiff.series[0]
        count = max(1, series.size // max(1, first.size))
    if count > 1:
        return [f"{count} pages"]
    depth = tag_values(first, 32997, 1)[0]
    return [f"a volume {depth} pixels deep"] if depth > 1 else []


def tag_reasons(page) -> list[str]:
    """What the tags of the picture say that is not read."""
    bands = int(tag_values(page, 277, 1)[0])
    bits = tag_values(page, 258, 1)
    numbers = set(tag_values(page, 339, 1))
    kinds = {2: "signed", 3: "floating-point", 5: "complex integer", 6: "complex"}
    size = " and ".join(map(str, sorted(set(bits))))
    reasons = [f"{kinds[n]} numbers of {size} bits" for n in sorted(numbers & kinds.keys())]
    if not reasons and not set(bits) <= {1, 2, 4, 8}:
        reasons.append(f"{size} bits a channel")
    if 262 not in page.tags:
        return [*reasons, "no word on its colours (PhotometricInterpretation)"]
    model = int(tag_values(page, 262, 0)[0])
    if model not in _COLOUR_BANDS:
        known = model in iter(tifffile.PHOTOMETRIC)
        return [*reasons, f"{tifffile.PHOTOMETRIC(model).name if known else model} colours"]
    further = bands - _COLOUR_BANDS[model]
    extra = tag_values(page, 338, 0)
    opacity = further == 1 and extra in ((_ASSOCIATED,), (_UNASSOCIATED,)) and model < _PALETTE
    if further and not opacity:
        why = ", the last not marked as opacity" if further == 1 and model == _RGB else ""
        why = " that are not marked as RGB" if (bands, model) in ((3, 0), (3, 1)) else why
        reasons.append(f"{bands} band{'s' if bands > 1 else ''}{why}")
    if model == _SEPARATED and tag_values(page, 332, 1) != (1,):
        reasons.append("inks that are not CMYK")
    if model == _YCBCR and page.compression == 1 and tag_values(page, 530, 2) not in ((1, 1), (1,)):
        reasons.append("uncompressed YCbCr with fewer colours than pixels")
    return reasons


def _decode_plain(page) -> Image.Image:
    """Gray or RGB, with or without opacity, or YCbCr, in a layout that Pillow does not know, such as
    a big-endian BigTIFF, or of which tiles or strips are left out.

    Raises:
        BadImageError: a compression that needs a package of its own.
    """
    model, bands = int(tag_values(page, 262, 0)[0]), page.samplesperpixel
    bits = set(tag_values(page, 258, 1))
    try:
        if model not in (0, 1, _RGB, _YCBCR) or bits != {8}:
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
    associated = tag_values(page, 338, 0) == (_ASSOCIATED,)
    mode = {1: "L", 2: "La" if associated else "LA", 3: "RGB", 4: "RGBa" if associated else "RGBA"}
    mode |= {3: "YCbCr"} if model == _YCBCR and page.compression not in _JPEG else {}
    size = (page.imagewidth, page.imagelength)
    image = Image.frombytes(mode[bands], size, np.ascontiguousarray(pixels).tobytes())
    if associated:
        image = image.convert(mode[bands].upper())
    image.getexif()[0x0112] = tag_values(page, 274, 1)[0]
    return image
