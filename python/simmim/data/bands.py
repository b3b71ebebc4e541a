"""Images of any number of bands, with the numbers of their files, of the types in ``KEPT``.

A large image is not decoded whole for one crop: of a TIFF file the tiles or strips are read that the
crop touches, of an array on disk its part.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from simmim.config.images import Reading
from simmim.data.image_contents import BadImageError, OtherContentsError, note_unused
from simmim.data.tiff_contents import (
    decode_segment,
    note_unused_tags,
    page_reasons,
    tag_values,
    tifffile,
    unwritten_value,
)
from simmim.errors import first_line, require

#: types that are read, with those that they become, exactly but for float64
KEPT = {
    **{name: name for name in ("uint8", "uint16", "int16", "float32")},
    **{"int8": "int16", "float16": "float32", "float64": "float32"},
}
#: what undoes each EXIF orientation of a ``(C, H, W)`` image, as ``ImageOps.exif_transpose`` does
UPRIGHT: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda x: x.flip(2),
    3: lambda x: x.flip(1, 2),
    4: lambda x: x.flip(1),
    5: lambda x: x.mT,
    6: lambda x: x.mT.flip(2),
    7: lambda x: x.mT.flip(1, 2),
    8: lambda x: x.mT.flip(1),
}
#: what a PNG file that says how it is to be turned holds
_EXIF_IN_PNG = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
_PALETTE = "a palette, which holds no bands"


@dataclass(frozen=True)
class Window:
    """An image ``(C, H, W)`` that reads only the parts it is indexed with.

    Attributes:
        load: gives the part of the rows ``top:bottom`` and the columns ``left:right``.
    """

    shape: tuple[int, int, int]
    dtype: torch.dtype
    load: Callable[[int, int, int, int], np.ndarray]

    def __getitem__(self, part: tuple[slice, slice, slice]) -> Tensor:
        """``image[:, top:bottom, left:right]``."""
        (top, bottom, _), (left, right, _) = (
            s.indices(size) for s, size in zip(part[1:], self.shape[1:], strict=True)
        )
        return _tensor(self.load(top, bottom, left, right))


Picture = Tensor | Window


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(pixels, KEPT[pixels.dtype.name], order="C"))


def choose_bands(dtype: np.dtype | str, bands: int, wanted: Reading) -> list[int]:
    """The places of the bands that become channels; one band becomes gray or RGB, as is wanted.
    Raises ``OtherContentsError`` for numbers of another type, or other bands, than are wanted."""
    name = np.dtype(dtype).name
    kept = KEPT.get(name)
    if kept is None:
        raise OtherContentsError(
            f"numbers of type {name}; read are {', '.join(KEPT)}: convert them, for example to "
            "float32"
        )
    if wanted.dtype not in (None, kept):
        raise OtherContentsError(f"{kept} numbers, not {wanted.dtype}")
    if wanted.bands and max(wanted.bands) > bands:
        raise OtherContentsError(f"{bands} bands, there is no band {max(wanted.bands)}")
    if wanted.colours and bands == 1:
        return [0] * wanted.channels
    chosen = [band - 1 for band in wanted.bands] or list(range(bands))
    if wanted.channels not in (None, len(chosen)):
        raise OtherContentsError(
            f"{len(chosen)} band{'s' * (len(chosen) > 1)}, not {wanted.channels}"
        )
    return chosen


def from_array(array: np.ndarray, wanted: Reading) -> Picture:
    """One image ``(H, W)``, ``(C, H, W)`` or ``(H, W, C)``, in memory or on disk; raises
    ``OtherContentsError`` for other dimensions, or bands on an axis that cannot be told."""
    if array.ndim == 2:
        array = array[None]
    elif array.ndim != 3:
        many = (
            ": a file of many images (npy, npz, zarr) is read if --data names it, not its folder"
            * (array.ndim == 4)
        )
        raise OtherContentsError(f"an array of {array.ndim} dimensions, which is no image{many}")
    elif _layout(array.shape, wanted.layout) == "hwc":
        array = array.transpose(2, 0, 1)
    chosen = choose_bands(array.dtype, array.shape[0], wanted)
    every = chosen == list(range(array.shape[0]))

    def load(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        part = np.asarray(array[:, top:bottom, left:right])
        return part if every else part[chosen]

    dtype = getattr(torch, KEPT[array.dtype.name])
    return Window((len(chosen), *array.shape[1:]), dtype, load)


def from_tensor(image: Tensor, wanted: Reading) -> Picture:
    """One image ``(C, H, W)`` in memory or in a memory map, of which nothing is copied here."""
    chosen = choose_bands(str(image.dtype).removeprefix("torch."), len(image), wanted)
    if chosen == list(range(len(image))):
        return image
    if not any(chosen):
        return image[:1].expand(len(chosen), -1, -1)

    def load(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        return image[:, top:bottom, left:right].numpy()[chosen]

    return Window((len(chosen), *image.shape[1:]), image.dtype, load)


def _layout(shape: tuple[int, ...], layout: str) -> str:
    if layout != "auto":
        return layout
    for name, bands, others in (("chw", shape[0], shape[1:]), ("hwc", shape[2], shape[:2])):
        if 2 * bands <= min(others):
            return name
    size = " x ".join(map(str, shape))
    raise OtherContentsError(
        f"an array of {size}, of which it cannot be told where its bands lie: say --layout chw or "
        "--layout hwc"
    )


def open_array(file: BinaryIO, path: Path | None, wanted: Reading) -> Picture:
    """The image in an npy or npz file; ``path`` is that of the file on disk, from which parts can
    be read, ``None`` for one in memory."""
    zipped = zipfile.is_zipfile(file)
    file.seek(0)
    try:
        found = np.load(path or file, mmap_mode="r" if path else None, allow_pickle=False)
        if zipped:
            names = found.files
            held = ", ".join(names)
            if wanted.column not in names and len(names) != 1:
                raise OtherContentsError(
                    f"{len(names)} arrays, of which --column names one: {held}; a file of many images is "
                    "read if --data names it, not its folder"
                )
            # for an npz file inside a table, --column names the column of the table
            if path and wanted.column and wanted.column not in names:
                raise OtherContentsError(f"no array {wanted.column}: it holds {held}")
            found = found[wanted.column if wanted.column in names else names[0]]
    except (ValueError, EOFError) as error:
        raise BadImageError(f"damaged or of Python objects: {first_line(error)}") from error
    return from_array(found, wanted)


def open_picture(image: Image.Image, wanted: Reading) -> Tensor:
    """The bands of an 8-bit picture that Pillow has opened."""
    if image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        kinds = {"1": "one bit a pixel, which is no band", "P": _PALETTE, "PA": _PALETTE}
        raise OtherContentsError(kinds.get(image.mode, f"{image.mode} colours, which are no bands"))
    pixels = np.asarray(ImageOps.exif_transpose(image))
    pixels = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
    return _tensor(pixels[choose_bands(pixels.dtype, len(pixels), wanted)])


def open_deep(file: BinaryIO, kind: str, wanted: Reading) -> Tensor:
    """A PNG or JPEG 2000 file of more than 8 bits a channel."""
    content, turn = file.read(), None
    if kind == "PNG" and b"tRNS" in content[:4096]:
        note_unused("its transparent colour is not used")
    # only where it may be there, for Pillow decodes the picture to find it
    if kind == "PNG" and any(mark in content for mark in _EXIF_IN_PNG):
        turn = UPRIGHT.get(Image.open(io.BytesIO(content)).getexif().get(0x0112, 1))
    # torchvision's decoder of PNG ends the process at some damaged files
    codecs = require("imagecodecs", "data")
    pixels = (codecs.png_decode if kind == "PNG" else codecs.jpeg2k_decode)(content)
    pixels = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
    image = _tensor(pixels[choose_bands(pixels.dtype, len(pixels), wanted)])
    return image if turn is None else _turned(image, turn)


def open_tiff(file: BinaryIO, opener: Callable[[], BinaryIO], wanted: Reading) -> Picture:
    """The bands of a TIFF file, laid out however, in ``KEPT`` types; ``opener`` opens it again for
    the parts that are read later."""
    with tifffile.TiffFile(file) as tiff:
        page, reasons = tiff.pages.first, page_reasons(tiff)
        # the last question: afterwards pages may know less of themselves
        pages = _channel_pages(tiff)
        if len(pages) > 1:
            reasons = []
        bits = tag_values(page, 258, 1)
        if set(bits) & {1, 2, 4} or len(set(bits)) > 1 or page.dtype is None:
            reasons.append(f"{' and '.join(map(str, sorted(set(bits))))} bits a channel")
        # of Lab two bands are signed, which no tag says
        kinds = {3: _PALETTE, 8: "CIELAB colours, which are no bands"}
        if page.photometric in kinds:
            reasons.append(kinds[page.photometric])
        if reasons:
            raise OtherContentsError(", ".join(reasons))
        count = page.samplesperpixel * len(pages)
        chosen = choose_bands(page.dtype, count, wanted)
        shape, dtype = (len(chosen), page.imagelength, page.imagewidth), page.dtype
        note_unused_tags(page, wanted.nodata)
        turn = UPRIGHT.get(int(tag_values(page, 274, 1)[0]))

    def load(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        with opener() as again, tifffile.TiffFile(again) as tiff:
            pages, box = _channel_pages(tiff), (top, bottom, left, right)
            if len(pages) == 1:
                return _read_segments(pages[0], chosen, box)
            return np.concatenate([_read_segments(pages[band], [0], box) for band in chosen])

    window = Window(shape, getattr(torch, KEPT[np.dtype(dtype).name]), load)
    return window if turn is None else _turned(window[:, :, :], turn)


def _turned(image: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
    # PyTorch before 2.13 flips no uint16
    same_size = torch.int16 if image.dtype == torch.uint16 else image.dtype
    return turn(image.view(same_size)).contiguous().view(image.dtype)


def _channel_pages(tiff) -> list:
    """The first page, or, where the file says so (OME, ImageJ), the pages that hold the channels of
    one picture, one each."""
    if len(tiff.pages) > 1 and len(tiff.series) == 1:
        series = tiff.series[0]
        axes = [axis for axis, size in zip(series.axes, series.shape, strict=True) if size > 1]
        pages = list(series.pages)
        # of a picture in several files each file alone holds but some of the channels
        single = all(
            page is not None and page.parent is tiff and page.keyframe.samplesperpixel == 1
            for page in pages
        )
        if axes == ["C", "Y", "X"] and single and len(pages) == max(series.shape[:-2]):
            return pages
    return [tiff.pages.first]


def _read_segments(page, chosen: list[int], box: tuple[int, int, int, int]) -> np.ndarray:
    """``(C, h, w)``: the bands ``chosen`` of a part, from the tiles or strips that it touches."""
    top, bottom, left, right = box
    # bands in planes of their own, or one beside the other
    key = page.keyframe
    planar = key.planarconfig == 2 and key.samplesperpixel > 1
    if planar:
        # a plane is no colour picture, for which the decoder of JPEG would take it
        key.photometric = tifffile.PHOTOMETRIC.MINISBLACK
    places = {band: [i for i, b in enumerate(chosen) if b == band] for band in set(chosen)}
    pixels = np.full((len(chosen), bottom - top, right - left), unwritten_value(key), key.dtype)
    source = key.parent.filehandle
    if len(page.dataoffsets) < math.prod(key.chunked):
        raise BadImageError("damaged: not all of its tiles or strips are there")
    for index, (offset, count) in enumerate(
        zip(page.dataoffsets, page.databytecounts, strict=True)
    ):
        _, (plane, _, y, x, _), (_, height, width, _) = key.decode(None, index)
        outside = y >= bottom or x >= right or y + height <= top or x + width <= left
        if outside or not count or (planar and plane not in places):
            continue
        source.seek(offset)
        content = source.read(count)
        if len(content) < count:
            raise BadImageError("damaged: cut short")
        segment = decode_segment(key, content, index)
        inner = slice(max(top - y, 0), bottom - y), slice(max(left - x, 0), right - x)
        part = np.moveaxis(segment[0, :height, :width][inner], -1, 0)
        row, column = max(y - top, 0), max(x - left, 0)
        where = slice(row, row + part.shape[1]), slice(column, column + part.shape[2])
        if planar:
            pixels[(places[plane], *where)] = part[0]
        else:
            pixels[(slice(None), *where)] = part[chosen]
    return pixels
