"""The contents of a picture file by its own headers, and whether simmim reads them.

Pillow's mode does not tell: it opens files of 16 bits a channel as ``RGB`` and drops bands without
a word. So bit depth, bands, pages and opacity are read from the file: PNG's header, TIFF's tags
(``tiff_contents``), the number of frames. What a file says wrongly cannot be told: a band of near infrared that its writer
marked as opacity is opacity.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import BinaryIO

from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from simmim.errors import first_line


class BadImageError(Exception):
    """An image file that cannot be used; the message says why."""


class OtherContentsError(BadImageError):
    """Its numbers, bands or pages are others than are wanted; with other settings it may do."""


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


def note_unused(text: str) -> None:
    notes = _collected.get()
    if notes is None:
        warnings.warn(UnusedContentWarning(text), stacklevel=3)
    else:
        notes.append(text)


#: how the kinds that are read begin
_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "BMP": rb"BM",
    "GIF": rb"GIF8[79]a",
    "WEBP": rb"RIFF....WEBP",
    "AVIF": rb"....ftypavi[fs]",
    "JPEG2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "NPY": rb"\x93NUMPY",
    "NPZ": rb"PK\x03\x04",
}

#: what lies in data sets under the names of pictures and is none that Pillow knows: where it is told
#: from others, by what
_UNREAD = (
    *((4, brand, "HEIC") for brand in (b"ftyphe", b"ftypmif1", b"ftypmsf1")),
    *((0, start, "JPEG XL") for start in (b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    (0, b"II\xbc", "JPEG XR"),
    (128, b"DICM", "DICOM"),
    (0, b"version https://git-lfs", "a Git LFS pointer without its file"),
    *((0, start, "a web page") for start in (b"<!DOCTYPE", b"<!doctype", b"<html")),
)


def kind_of(file: BinaryIO) -> str:
    """What kind of file this is, by how it begins; leaves ``file`` at its beginning, raises
    ``BadImageError`` for none that is read."""
    start = file.read(32)
    file.seek(0)
    kinds = (kind for kind, begin in _SIGNATURES.items() if re.match(begin, start, re.DOTALL))
    kind = next(kinds, None)
    if kind is None:
        raise BadImageError(_describe_other(file))
    return kind


def inspect_channels(file: BinaryIO, kind: str) -> tuple[int, str]:
    """Bits a channel that a PNG, JPEG 2000 or AVIF file says it has, 8 for other kinds, and why it is no
    picture of 8 bits in gray, colours and opacity; empty if it is one."""
    if kind not in ("PNG", "JPEG2000", "AVIF"):
        return 8, ""
    start = file.read(1 << 20)
    file.seek(0)
    if kind == "PNG":
        if start[12:16] != b"IHDR":
            raise BadImageError("not a PNG file: it does not begin with a header")
        return start[24], f"{start[24]} bits a channel" if start[24] > 8 else ""
    # ISO/IEC 15444-1, A.5.1: marker, then 36 bytes of sizes, the number of components, their depths
    mark, offset = (b"\xff\x4f\xff\x51", 42) if kind == "JPEG2000" else (b"av1C", 6)
    at = start.find(mark) + offset
    if at < offset or at >= len(start):
        raise BadImageError("damaged: it does not say how many bits a channel has")
    if kind == "JPEG2000":
        reasons = _jpeg2000_reasons(start[: at - offset], start[at - 2 :])
        return (start[at] & 0x7F) + 1, ", ".join(reasons)
    # AV1-ISOBMFF, 2.3.3
    depth = 8 if not start[at] & 0x40 else 12 if start[at] & 0x20 else 10
    return depth, f"{depth} bits a channel" if depth > 8 else ""


def _jpeg2000_reasons(boxes: bytes, components: bytes) -> list[str]:
    """Why a JPEG 2000 file is no picture of 8 bits in gray, colours and opacity, by the ``boxes``
    before its codestream, and its ``components``: their number, and three bytes of each."""
    bands = int.from_bytes(components[:2], "big")
    sizes = components[2 : 2 + 3 * bands : 3]
    bits = " and ".join(map(str, sorted({(size & 0x7F) + 1 for size in sizes})))
    reasons = []
    if any(size & 0x80 for size in sizes):
        reasons.append(f"signed numbers of {bits} bits")
    elif bits != "8":
        # those of fewer bits Pillow shifts to the left
        reasons.append(f"{bits} bits a channel")
    # ISO/IEC 15444-1, I.5.3.6: the number of channels, then six bytes each, of which two say the type
    _, _, channels = boxes.partition(b"cdef")
    opacity = {1, 2} & {*channels[5 : 2 + 6 * int.from_bytes(channels[:2], "big") : 6]}
    cmyk = b"colr\1\0\0\0\0\0\x0c" in boxes
    if bands > 4 or (bands in (2, 4) and not opacity and not (cmyk and bands == 4)):
        reasons.append(f"{bands} bands" + ", the last not marked as opacity" * (bands == 4))
    return reasons


def open_image(file: BinaryIO, kind: str, depth: int) -> Image.Image:
    """Open a picture of 8 bits a channel that is no TIFF file.

    Args:
        file: opened for reading, at its beginning.
        kind, depth: what ``kind_of`` and ``inspect_channels`` say.

    Warns:
        UnusedContentWarning: the file holds something else besides its picture.

    Raises:
        BadImageError: damaged, bands beyond gray, RGB, CMYK and opacity, or several pictures.
    """
    try:
        image = Image.open(file, formats=(kind,))
    except UnidentifiedImageError:
        raise BadImageError(_reason_of_refusal(file, kind)) from None
    frames = getattr(image, "n_frames", 1)
    if kind == "JPEG":
        _check_pictures(image)
    elif kind == "GIF" and frames > 1:
        note_unused(f"the first of {frames} frames is used")
    elif frames > 1:
        raise BadImageError(f"{frames} frames (an animation)")
    if kind == "PNG" and image.mode == "L" and image.info.get("transparency") is not None:
        # Pillow stretches the gray values of 2 and 4 bits to 8, but not the transparent one
        image.info["transparency"] *= 255 // (2**depth - 1)
    return image


def _describe_other(file: BinaryIO) -> str:
    """What a file that begins as none of the kinds we read is."""
    start = file.read(160)
    file.seek(0)
    if not start:
        return "an empty file"
    name = next((name for at, mark, name in _UNREAD if start[at:].startswith(mark)), None)
    if name is not None:
        return f"{name} inside, a kind that is not read"
    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            return f"{image.format} inside, a kind that is not read"
    # whatever Pillow's many readers meet
    except Exception:
        return "not an image"


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
        file.seek(0)
        # ISO/IEC 14495-1, C.1.1: its frame's marker
        if b"\xff\xf7" in file.read(1 << 16):
            return "JPEG-LS inside, a kind that is not read"
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
        note_unused(f"the first of {1 + len(more)} pictures in the file is used")
