"""JPEG files give the pixels that Pillow gives, and what Pillow refuses is refused in its words."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps
from skimage import data

from simmim.data import images
from simmim.data.images import BadImageError

from .pictures import read_image

PHOTOGRAPH = Image.fromarray(data.astronaut()[:149, :211])


def encoded(image: Image.Image = PHOTOGRAPH, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(exif=exif)


FILES = {
    **{f"subsampling {n}": encoded(subsampling=n, quality=60 + 15 * n) for n in range(3)},
    "progressive": encoded(progressive=True),
    "restart markers": encoded(restart_marker_rows=2),
    "RGB, not YCbCr": encoded(keep_rgb=True),
    "gray": encoded(PHOTOGRAPH.convert("L")),
    "CMYK": encoded(PHOTOGRAPH.convert("CMYK")),
    "zeros behind": encoded() + bytes(9),
    "two in a row": encoded() * 2,
    **{f"orientation {n}": turned(n) for n in range(10)},
}


def by_pillow(content: bytes, channels: int) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    pixels = np.array(image.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", FILES)
def test_the_pixels_are_pillows(tmp_path, kind, channels):
    path = tmp_path / "a.jpg"
    path.write_bytes(FILES[kind])
    got = read_image(path, channels).permute(1, 2, 0).numpy()
    assert np.array_equal(got, by_pillow(FILES[kind], channels))


def outcome(path: Path, channels: int) -> np.ndarray | str:
    try:
        return read_image(path, channels).numpy()
    except BadImageError as error:
        return str(error)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_end_as_with_pillow(tmp_path, monkeypatch, seed):
    """Cut, cut and ended, bytes changed anywhere or in the header."""
    rng, path = random.Random(seed), tmp_path / "a.jpg"
    decode = images._decode_jpeg
    for _ in range(40):
        whole = bytearray(rng.choice(list(FILES.values())))
        cut = rng.randrange(len(whole))
        head = bytearray(whole)
        head[rng.randrange(min(700, len(head)))] = rng.randrange(256)
        whole[rng.randrange(len(whole))] = rng.randrange(256)
        for content in (whole[:cut], whole[:cut] + b"\xff\xd9", whole, head):
            path.write_bytes(content)
            ours = outcome(path, 3)
            monkeypatch.setattr(images, "_decode_jpeg", lambda *_: None)
            assert np.array_equal(ours, outcome(path, 3))
            monkeypatch.setattr(images, "_decode_jpeg", decode)


def test_plain_files_are_not_decoded_by_pillow(tmp_path, monkeypatch):
    """It copies each image twice more."""
    (tmp_path / "a.jpg").write_bytes(FILES["orientation 6"])
    expected = by_pillow(FILES["orientation 6"], 3)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert np.array_equal(read_image(tmp_path / "a.jpg", 3).permute(1, 2, 0), expected)
