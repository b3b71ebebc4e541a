"""PNG, JPEG and WebP: bit depth, bands, frames and opacity are what the file says; what is not read is
refused by name."""

from __future__ import annotations

import warnings

import imagecodecs
import numpy as np
import png
import pytest
from PIL import Image

from .pictures import GRAY, HEIGHT, RGB, WIDTH, as_rgb, read, refusal

KINDS = {"BMP": {}, "GIF": {}, "JPEG2000": {"irreversible": False}, "AVIF": {"quality": 95}}


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_png_of_16_bits(tmp_path, planes):
    """Gray, gray and opacity, RGB, RGBA: written by pypng."""
    deep = np.dstack([GRAY.astype(np.uint16) * 257] * planes)
    writer = png.Writer(WIDTH, HEIGHT, greyscale=planes < 3, alpha=planes % 2 == 0, bitdepth=16)
    with (tmp_path / "a.png").open("wb") as file:
        writer.write(file, deep.reshape(HEIGHT, -1).tolist())
    assert refusal(tmp_path / "a.png") == "16 bits a channel"
    if planes != 2:
        other = tmp_path / "other.png"
        other.write_bytes(imagecodecs.png_encode(deep.squeeze()))
        assert refusal(other) == "16 bits a channel"


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_png_gray_of_few_bits(tmp_path, depth):
    most = 2**depth - 1
    few = GRAY.astype(int) * most // 255
    path = tmp_path / "a.png"
    for transparent in (None, most // 2):
        writer = png.Writer(WIDTH, HEIGHT, greyscale=True, bitdepth=depth, transparent=transparent)
        with path.open("wb") as file:
            writer.write(file, few.tolist())
        stretched = few * 255 // most
        expected = (
            stretched if transparent is None else np.where(few == transparent, 255, stretched)
        )
        assert np.array_equal(read(path), as_rgb(expected))


def test_png_with_a_transparent_colour(tmp_path):
    colour = tuple(map(int, RGB[10, 10]))
    with (tmp_path / "a.png").open("wb") as file:
        png.Writer(WIDTH, HEIGHT, greyscale=False, transparent=colour).write(
            file, RGB.reshape(HEIGHT, -1).tolist()
        )
    expected = RGB.copy()
    expected[10, 10] = 255
    assert np.array_equal(read(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("suffix", ["webp", "png"])
def test_animations(tmp_path, suffix):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB), Image.fromarray(RGB)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert refusal(tmp_path / f"a.{suffix}") in (
        "3 frames (an animation)",
        "2 frames (an animation)",
    )
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, lossless=True)
    assert np.array_equal(read(tmp_path / f"a.{suffix}"), RGB)


def test_gif_shows_its_first_frame(tmp_path):
    frames = [Image.fromarray(GRAY), Image.fromarray(255 - GRAY)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="the first of 2 frames is used"):
        assert np.array_equal(read(tmp_path / "a.gif"), as_rgb(GRAY))


def test_jpeg_of_12_bits_and_lossless(tmp_path):
    path = tmp_path / "a.jpg"
    for pixels in (GRAY, RGB):
        path.write_bytes(imagecodecs.jpeg_encode(pixels.astype(np.uint16) * 16, bitspersample=12))
        assert refusal(path) == "12 bits a channel"
    path.write_bytes(imagecodecs.ljpeg_encode(GRAY.astype(np.uint16) * 256, bitspersample=16))
    assert refusal(path) == "16 bits a channel"


def test_several_pictures_in_a_jpeg_file(tmp_path):
    path = tmp_path / "a.jpg"
    first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    first.save(path, format="MPO", save_all=True, append_images=[second], quality=98)
    with pytest.warns(UserWarning, match="the first of 2 pictures"):
        assert np.abs(read(path).astype(int) - RGB).mean() < 4
    # the kind of the second picture is the lowest byte of its entry's attributes
    whole = path.read_bytes()
    for kind, words in ((0x20001, "2 pictures (Multi-Frame Image (Panorama))"), (0x10001, None)):
        path.write_bytes(with_second_kind(whole, kind))
        if words:
            assert refusal(path) == words
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                read(path)


def with_second_kind(content: bytes, kind: int) -> bytes:
    """An MPO file whose second picture is of another type (CIPA DC-007, 5.2.3.3.1)."""
    start = content.index(b"MPF\0") + 4
    order = "little" if content[start : start + 2] == b"II" else "big"
    at = start + int.from_bytes(content[start + 4 : start + 8], order) + 2
    while int.from_bytes(content[at : at + 2], order) != 0xB002:
        at += 12
    entry = start + int.from_bytes(content[at + 8 : at + 12], order) + 16
    return content[:entry] + kind.to_bytes(4, order) + content[entry + 4 :]


def test_more_pixels_than_are_decoded(tmp_path, monkeypatch):
    """It is not damaged, and what to do is said."""
    Image.fromarray(RGB).save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert refusal(tmp_path / "a.jpg").startswith("more than 2,000 pixels: reduce it or cut")


def test_kinds_by_content_not_by_suffix(tmp_path):
    image = Image.fromarray(RGB)
    for kind in ("PPM", "TGA", "ICO"):
        image.save(tmp_path / "a.jpg", format=kind)
        assert refusal(tmp_path / "a.jpg").endswith(("inside, a kind that is not read", "an image"))
    for kind, options in KINDS.items():
        image.save(tmp_path / "a.jpg", format=kind, **options)
        far = np.abs(read(tmp_path / "a.jpg").astype(int) - RGB).mean()
        assert far == 0 if kind in ("BMP", "JPEG2000") else far < 20, kind
    image.save(tmp_path / "a.jpg", format="PNG")
    assert np.array_equal(read(tmp_path / "a.jpg"), RGB)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (imagecodecs.jpegxl_encode(RGB), "JPEG XL inside, a kind that is not read"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC inside, a kind that is not read"),
        (bytes(128) + b"DICM\2\0\0\0UL", "DICOM inside, a kind that is not read"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a Git LFS pointer without its file inside, a kind that is not read",
        ),
        (b"<!DOCTYPE html>", "a web page inside, a kind that is not read"),
        (b"", "an empty file"),
        (b"text", "not an image"),
    ],
)
def test_what_is_often_named_as_a_picture_is_told(tmp_path, content, words):
    (tmp_path / "a.jpg").write_bytes(content)
    assert refusal(tmp_path / "a.jpg") == words
