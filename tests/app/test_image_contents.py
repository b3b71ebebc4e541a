"""PNG, JPEG, JPEG 2000 and WebP: bit depth, bands, frames and opacity are what the file says; what is not read is
refused by name."""

from __future__ import annotations

import warnings

import imagecodecs
import numpy as np
import pillow_heif
import png
import pydicom
import pytest
from PIL import Image

from simmim.config.images import Reading

from .pictures import GRAY, HEIGHT, RGB, RGBA, WIDTH, as_rgb, read, read_picture, refusal

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
        (imagecodecs.jpegxr_encode(RGB), "JPEG XR inside, a kind that is not read"),
        (imagecodecs.jpegls_encode(GRAY), "JPEG-LS inside, a kind that is not read"),
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


def test_dicom_and_heic_are_told(tmp_path):
    """As pydicom and pillow-heif write them; HEIC also of 10 bits, which has another brand."""
    path = tmp_path / "a.jpg"
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    file.save_as(path, enforce_file_format=True)
    assert refusal(path) == "DICOM inside, a kind that is not read"
    for mode, pixels in (("RGB", RGB), ("RGB;16", RGB.astype(np.uint16) * 257)):
        file = pillow_heif.from_bytes(mode, (WIDTH, HEIGHT), pixels.tobytes())
        file.save(path, format="HEIF")
        assert refusal(path) == "HEIC inside, a kind that is not read"


@pytest.mark.parametrize("codec", ["jp2", "j2k"])
@pytest.mark.parametrize(
    ("pixels", "bits", "reason"),
    [
        (GRAY, 8, ""),
        (RGB, 8, ""),
        (np.dstack([GRAY, GRAY]), 8, "2 bands"),
        (np.dstack([RGB, GRAY]), 8, "4 bands, the last not marked as opacity"),
        (np.dstack([RGB, GRAY, GRAY]), 8, "5 bands"),
        (GRAY >> 4, 4, "4 bits a channel"),
        (RGB.astype(np.uint16) << 4, 12, "12 bits a channel"),
        ((GRAY.astype(np.int16) - 128).astype(np.int8), 8, "signed numbers of 8 bits"),
        (GRAY.astype(np.int16) - 200, 16, "signed numbers of 16 bits"),
    ],
)
def test_jpeg_2000(tmp_path, codec, pixels, bits, reason):
    """Without colours its numbers are the file's, of any depth and number of bands."""
    path = tmp_path / "a.jp2"
    path.write_bytes(
        imagecodecs.jpeg2k_encode(
            pixels, codecformat=codec, reversible=True, level=0, bitspersample=bits
        )
    )
    if reason:
        assert refusal(path) == reason
    else:
        assert np.array_equal(read(path), pixels if pixels.ndim == 3 else as_rgb(pixels))
    bands = read_picture(path, Reading(None, dtype=None)).numpy()
    assert np.array_equal(bands, np.atleast_3d(pixels).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "CMYK"])
def test_opacity_and_cmyk_in_jpeg_2000(tmp_path, mode):
    path = tmp_path / "a.jp2"
    Image.fromarray(RGBA).convert(mode).save(path)
    with Image.open(path) as image:
        white = Image.new("RGBA", image.size, "white")
        colours = image.convert("RGB") if mode == "CMYK" else image.convert("RGBA")
        expected = colours if mode == "CMYK" else Image.alpha_composite(white, colours)
        assert np.array_equal(read(path), np.asarray(expected.convert("RGB")))
