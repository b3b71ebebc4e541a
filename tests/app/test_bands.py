"""Images as the numbers that their files hold: bands, types, and parts of large ones."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import imagecodecs
import numpy as np
import png
import pytest
import rasterio
import tifffile
import torch
from PIL import Image

from simmim.config.images import Reading
from simmim.data.images import BadImageError, OtherContentsError, file_errors, read_image

from .test_tiff_contents import TURNS

HEIGHT, WIDTH = 70, 90
RNG = np.random.default_rng(0)


def numbers(dtype: str, count: int = 5) -> np.ndarray:
    """``(C, H, W)`` over the whole range of the type."""
    if dtype.startswith("float"):
        return RNG.normal(0, 1e3, (count, HEIGHT, WIDTH)).astype(dtype)
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, (count, HEIGHT, WIDTH), dtype, endpoint=True)


def read(path: Path, channels: int | None, dtype: str | None, **settings) -> torch.Tensor:
    return read_image(path, Reading(channels, dtype=dtype, **settings))[:, :, :]


def check_same(got: torch.Tensor, expected: np.ndarray) -> None:
    assert got.numpy().dtype == expected.dtype
    assert np.array_equal(got.numpy(), expected)


def refused(path: Path, channels: int | None, dtype: str | None, **settings) -> str:
    with pytest.raises(OtherContentsError) as caught:
        read(path, channels, dtype, **settings)
    return str(caught.value)


LAYOUTS = [
    {"planarconfig": planar, "byteorder": order, "compression": code, **blocks}
    for planar, order, code, blocks in itertools.product(
        ("contig", "separate"),
        "<>",
        (None, "zlib", "lzw", "zstd"),
        ({"tile": (32, 48)}, {"rowsperstrip": 16}, {}),
    )
]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_tiff_of_any_layout(dtype, tmp_path):
    """Written by tifffile: tiles and strips, interleaved and planar, both byte orders."""
    pixels, path = numbers(dtype), tmp_path / "a.tif"
    for layout in LAYOUTS:
        planar = layout["planarconfig"] == "separate"
        data = pixels if planar else np.ascontiguousarray(pixels.transpose(1, 2, 0))
        tifffile.imwrite(path, data, photometric="minisblack", **layout)
        check_same(read(path, 5, dtype), pixels)
        check_same(read(path, 3, dtype, bands=(4, 3, 4)), pixels[[3, 2, 3]])
        window = read_image(path, Reading(5, dtype=dtype))[:, 20:61, 33:88]
        check_same(window, pixels[:, 20:61, 33:88])


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "uint8"])
def test_geotiff_of_rasterio(dtype, tmp_path):
    pixels = numbers(dtype, 13)
    for options in (
        {},
        {"tiled": True, "blockxsize": 16, "blockysize": 32, "compress": "deflate", "predictor": 2},
        {"interleave": "pixel", "compress": "lzw"},
        {"driver": "COG", "blocksize": 128},
    ):
        path = tmp_path / "a.tif"
        settings = {"driver": "GTiff", "count": 13, "height": HEIGHT, "width": WIDTH, **options}
        with rasterio.open(path, "w", dtype=dtype, nodata=0, **settings) as file:
            file.write(pixels)
        with pytest.warns(UserWarning, match="its value without data, 0"):
            check_same(read(path, 13, dtype), pixels)
        check_same(read(path, 3, dtype, bands=(4, 3, 2), nodata="0"), pixels[[3, 2, 1]])


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_png_of_16_bits(planes, tmp_path):
    """Written by pypng; Pillow would give the high bytes alone."""
    pixels = numbers("uint16", planes)
    writer = png.Writer(WIDTH, HEIGHT, greyscale=planes < 3, alpha=planes % 2 == 0, bitdepth=16)
    with (tmp_path / "a.png").open("wb") as file:
        writer.write(file, pixels.transpose(1, 2, 0).reshape(HEIGHT, -1).tolist())
    check_same(read(tmp_path / "a.png", planes, "uint16"), pixels)
    check_same(read(tmp_path / "a.png", 1, "uint16", bands=(planes,)), pixels[-1:])
    assert refused(tmp_path / "a.png", 7, "uint16") == f"{planes} band{'s' * (planes > 1)}, not 7"


def test_damaged_files_are_refused(tmp_path):
    """Cut short, or with bytes changed: a reason, never another error, never the process's end."""
    pixels, path, rng = numbers("uint16", 3), tmp_path / "a", random.Random(0)
    last = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    tiled, plain = tmp_path / "tiled.tif", tmp_path / "plain.npy"
    tifffile.imwrite(tiled, last, photometric="rgb", tile=(32, 32), compression="lzw")
    np.save(plain, pixels)
    whole = [tiled.read_bytes(), plain.read_bytes(), imagecodecs.png_encode(last)]
    whole.append(imagecodecs.jpeg2k_encode(last, reversible=True))
    refusals = 0
    for number in range(240):
        content = bytearray(whole[number % 4])
        if rng.random() < 0.3:
            content = content[: rng.randrange(len(content))]
        for _ in range(rng.choice((1, 3, 20)) if content else 0):
            content[rng.randrange(min(len(content), rng.choice((400, 10**9))))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            with file_errors(path):
                image = read_image(path, Reading(None, dtype=None))
                if image.shape[1] * image.shape[2] < 10**7:
                    image[:, :, :]
        except BadImageError as error:
            refusals += 1
            assert str(error)
    assert 60 < refusals < 240


def test_png_of_8_bits_as_bands(tmp_path):
    pixels = numbers("uint8", 4)
    path = tmp_path / "a.png"
    Image.fromarray(pixels.transpose(1, 2, 0), "RGBA").save(path)
    check_same(read(path, 4, "uint8"), pixels)
    check_same(read(path, 2, "uint8", bands=(4, 1)), pixels[[3, 0]])
    for mode, reason in (
        ("P", "a palette, which holds no bands"),
        ("1", "one bit a pixel, which is no band"),
    ):
        Image.fromarray(pixels[0]).convert(mode).save(path)
        assert refused(path, 1, "uint8", bands=(1,)) == reason


def test_jpeg_2000_of_16_bits(tmp_path):
    path = tmp_path / "a.jp2"
    for count in (1, 3):
        pixels = numbers("uint16", count)
        data = np.ascontiguousarray(pixels.transpose(1, 2, 0)).squeeze()
        for form in ("jp2", "j2k"):
            path.write_bytes(imagecodecs.jpeg2k_encode(data, reversible=True, codecformat=form))
            assert refused(path, 3, "uint8") == "16 bits a channel"
            check_same(read(path, count, "uint16"), pixels)


def test_avif_of_10_and_12_bits(tmp_path):
    for depth in (8, 10, 12):
        pixels = numbers("uint16", 3) >> (16 - depth)
        data = pixels.transpose(1, 2, 0).astype(np.uint8 if depth == 8 else np.uint16)
        path = tmp_path / "a.avif"
        path.write_bytes(imagecodecs.avif_encode(np.ascontiguousarray(data), bitspersample=depth))
        if depth == 8:
            assert read(path, 3, "uint8").shape == (3, HEIGHT, WIDTH)
        else:
            assert refused(path, 3, "uint8") == f"{depth} bits a channel"


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", ">u2", ">f4", "float64"])
def test_npy_and_npz(dtype, tmp_path):
    pixels = numbers(np.dtype(dtype).name).astype(dtype)
    kept = {"float64": "float32"}.get(np.dtype(dtype).name, np.dtype(dtype).name)
    path, zipped = tmp_path / "a.npy", tmp_path / "a.npz"
    for data in (pixels, pixels.transpose(1, 2, 0)):
        np.save(path, data)
        np.savez(zipped, image=data)
        for each in (path, zipped):
            check_same(read(each, 5, kept), pixels.astype(kept))
        check_same(
            read_image(path, Reading(5, dtype=kept))[:, 3:9, 4:5], pixels[:, 3:9, 4:5].astype(kept)
        )
    np.save(path, pixels[0])
    check_same(read(path, 1, kept), pixels[:1].astype(kept))
    np.savez(zipped, a=pixels, b=pixels[::-1])
    assert refused(zipped, 5, kept) == (
        "2 arrays, of which --column names one: a, b; a file of many images is read if --data names it, "
        "not its folder"
    )
    check_same(read(zipped, 5, kept, column="b"), pixels[::-1].astype(kept))
    # another array, such as a mask, does not stand in for one that is not there
    np.savez(zipped, a=pixels)
    assert refused(zipped, 5, kept, column="b") == "no array b: it holds a"


def test_where_bands_lie_is_asked(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((20, 24, 12), np.float32))
    assert "--layout chw or --layout hwc" in refused(path, 12, "float32")
    assert read(path, 12, "float32", layout="hwc").shape == (12, 20, 24)
    assert read(path, 20, "float32", layout="chw").shape == (20, 24, 12)
    np.save(path, np.zeros((2, 3, 4, 5)))
    assert refused(path, 3, None).startswith(
        "an array of 4 dimensions, which is no image: a file of many"
    )
    np.save(path, np.array([None]), allow_pickle=True)
    with pytest.raises(BadImageError, match="Python objects"):
        read(path, 3, None)


@pytest.mark.parametrize("dtype", ["uint32", "int32", "int64", "complex64", "bool"])
def test_other_types_are_refused(dtype, tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((9, 9), dtype))
    assert refused(path, 1, None).startswith(f"numbers of type {dtype}; read are uint8, uint16")
    if dtype in ("uint32", "int32", "complex64"):
        tifffile.imwrite(
            tmp_path / "a.tif",
            np.zeros((5, 9, 9), dtype),
            photometric="minisblack",
            planarconfig="separate",
        )
        assert f"numbers of type {dtype}" in refused(tmp_path / "a.tif", 5, None)
    np.save(path, np.zeros((9, 9), "uint16"))
    assert refused(path, 1, "float32") == "uint16 numbers, not float32"
    assert refused(path, 3, "uint8") == "uint16 numbers, not uint8"
    assert refused(path, 1, "uint16", bands=(2,)) == "1 bands, there is no band 2"


def test_small_types_become_larger_ones_exactly(tmp_path):
    path = tmp_path / "a.tif"
    for dtype, kept in (("int8", "int16"), ("float16", "float32"), ("float64", "float32")):
        pixels = numbers(dtype, 1)
        tifffile.imwrite(path, pixels[0])
        check_same(read(path, 1, kept), pixels.astype(kept))


def test_a_scene_is_not_decoded_whole(tmp_path, monkeypatch):
    """All tiles but the two that the part touches are overwritten."""
    monkeypatch.setattr("simmim.data.tiff_contents._SCENE", 1000)
    path = tmp_path / "a.tif"
    for dtype, model in (("uint16", "minisblack"), ("uint8", "rgb")):
        pixels = RNG.integers(0, 200, (160, 160, 3), dtype)
        options = {"photometric": model, "planarconfig": "contig", "compression": "zlib"}
        tifffile.imwrite(path, pixels, tile=(16, 16), **options)
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            tiles = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        content = bytearray(path.read_bytes())
        for number, (offset, count) in enumerate(tiles):
            if number not in (13, 14):
                content[offset : offset + count] = b"x" * count
        path.write_bytes(content)
        image = read_image(path, Reading(3, dtype=dtype))
        check_same(image[:, 20:30, 50:76], pixels.transpose(2, 0, 1)[:, 20:30, 50:76])
        with pytest.raises(BadImageError, match="damaged"), file_errors(path):
            image[:, :, :]


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_of_bands(turn, tmp_path):
    pixels = numbers("uint16", 1)
    tifffile.imwrite(tmp_path / "a.tif", pixels[0], extratags=[(274, "H", 1, turn, True)])
    deep = Image.fromarray(pixels[0].astype(np.int32))
    if turn > 1:
        deep = deep.transpose([None, None, *(Image.Transpose[n] for n in TURNS)][turn])
    assert np.array_equal(read(tmp_path / "a.tif", 1, "uint16")[0].numpy(), np.array(deep))
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(pixels[0]).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png", 1, "uint16")[0].numpy(), np.array(deep))


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("blocks", [{"rowsperstrip": 16}, {"tile": (32, 48)}, {}])
def test_a_file_that_is_cut_short_is_refused(planar, blocks, tmp_path):
    """Also where its numbers are not compressed, and what is missing would pass for zeros."""
    pixels, path = numbers("uint16"), tmp_path / "a.tif"
    data = pixels if planar == "separate" else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    tifffile.imwrite(path, data, photometric="minisblack", planarconfig=planar, **blocks)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 900])
    with pytest.raises(BadImageError, match="damaged"), file_errors(path):
        read(path, 5, "uint16")
    with tifffile.TiffFile(path, mode="r+b") as file:
        tags = file.pages.first.tags
        name = "TileOffsets" if "tile" in blocks else "StripOffsets"
        if tags[name].count > 2:
            for tag in (tags[name], tags[name.replace("Offsets", "ByteCounts")]):
                tag.overwrite(tag.value[:-2])
    with pytest.raises(BadImageError, match="damaged"), file_errors(path):
        read(path, 5, "uint16")


def test_lab_is_no_bands(tmp_path):
    """Two of its bands are signed, which no tag says."""
    tifffile.imwrite(
        tmp_path / "a.tif", np.moveaxis(numbers("uint8", 3), 0, -1), photometric="cielab"
    )
    assert refused(tmp_path / "a.tif", 3, None, bands=(1, 2, 3)).startswith("CIELAB colours")
