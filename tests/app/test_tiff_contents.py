"""TIFF: what the tags say is what counts, whoever wrote the file and however it is laid out."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import png
import pytest
import tifffile
from PIL import Image

from .pictures import GRAY, HEIGHT, ON_WHITE, OPACITY, RGB, RGBA, WIDTH, X, Y, as_rgb, read, refusal


@pytest.fixture
def tiff(tmp_path):
    """Write a TIFF file with tifffile."""

    def write(pixels: np.ndarray, **options) -> Path:
        path = tmp_path / "image.tif"
        planar = options.get("planarconfig") == "separate"
        pixels = np.moveaxis(pixels, -1, 0) if planar and pixels.ndim == 3 else pixels
        tifffile.imwrite(path, pixels, **options)
        return path

    return write


LAYOUTS = [
    {"planarconfig": planar, "tile": tile, "bigtiff": big, "byteorder": order, "compression": code}
    for planar, tile, big, order, code in itertools.product(
        ("contig", "separate"),
        (None, (32, 32)),
        (False, True),
        "<>",
        (None, "zlib", "lzw", "zstd", "packbits"),
    )
    # Pillow's TIFF library is not for it, and tifffile itself has no zstd and no lzw
    if not (big and order == ">" and code in ("lzw", "zstd"))
]


def test_tiff_layouts_of_colour_and_gray(tiff):
    """Strips and tiles, bands together and apart, both byte orders, BigTIFF, all compressions."""
    for layout in LAYOUTS:
        path = tiff(RGB, photometric="rgb", rowsperstrip=None if layout["tile"] else 16, **layout)
        assert np.array_equal(read(path), RGB), layout
        if layout["planarconfig"] == "contig":
            for model in ("minisblack", "miniswhite"):
                path = tiff(GRAY, photometric=model, **layout)
                white = model == "miniswhite"
                assert np.array_equal(read(path), as_rgb(255 - GRAY if white else GRAY)), layout


@pytest.mark.parametrize("kind", ["uint16", "float32", "int16"])
def test_deep_tiffs_are_refused_in_every_layout(tiff, kind):
    words = {
        "uint16": "16 bits a channel",
        "float32": "floating-point numbers of 32 bits",
        "int16": "signed numbers of 16 bits",
    }
    for layout in LAYOUTS:
        if layout["compression"] not in (None, "zlib", "lzw"):
            continue
        deep = RGB.astype(kind) * 16
        assert refusal(tiff(deep, photometric="rgb", **layout)) == words[kind], layout
        if layout["planarconfig"] == "contig":
            assert refusal(tiff(deep[..., 0], photometric="minisblack", **layout)) == words[kind]


@pytest.mark.parametrize("predictor", [False, True])
def test_predictors(tiff, predictor):
    for compression in ("zlib", "lzw", "zstd"):
        path = tiff(RGB, photometric="rgb", compression=compression, predictor=predictor)
        assert np.array_equal(read(path), RGB)


def test_jpeg_inside_tiff(tiff):
    smooth = np.stack([X * 2 + 60, Y * 2 + 60, X + Y + 60], -1).astype(np.uint8)
    for tile in (None, (32, 32)):
        path = tiff(smooth, photometric="rgb", compression="jpeg", tile=tile)
        assert np.abs(read(path).astype(int) - smooth).mean() < 3


@pytest.mark.parametrize(
    ("options", "pixels", "words"),
    [
        (
            {"photometric": "rgb", "extrasamples": ["unspecified"]},
            4,
            "4 bands, the last not marked",
        ),
        ({"photometric": "rgb", "extrasamples": ["unspecified"] * 2}, 5, "5 bands"),
        ({"photometric": "rgb", "extrasamples": ["unassalpha", "unspecified"]}, 5, "5 bands"),
        ({"photometric": "minisblack"}, 4, "4 bands"),
        ({"photometric": "minisblack"}, 13, "13 bands"),
        ({"photometric": "minisblack"}, 3, "3 bands that are not marked as RGB"),
        ({"photometric": "minisblack"}, 2, "2 bands"),
        ({"photometric": "separated", "extrasamples": ["unspecified"]}, 5, "5 bands"),
        ({"photometric": "cielab"}, 3, "CIELAB colours"),
    ],
)
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_bands_that_are_no_colours(tiff, options, pixels, words, planar):
    bands = np.dstack([GRAY + 10 * n for n in range(pixels)]).astype(np.uint8)
    assert refusal(tiff(bands, planarconfig=planar, **options)).startswith(words)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_bands_marked_as_opacity_are_opacity(tiff, planar):
    own, associated = ({"extrasamples": [kind]} for kind in ("unassalpha", "assocalpha"))
    path = tiff(RGBA, photometric="rgb", planarconfig=planar, **own)
    assert np.array_equal(read(path), ON_WHITE)
    multiplied = np.dstack([RGB * (OPACITY[..., None] == 255), OPACITY])
    path = tiff(multiplied, photometric="rgb", planarconfig=planar, **associated)
    assert np.array_equal(read(path), ON_WHITE)
    if planar == "contig":
        for marked, gray in ((own, GRAY), (associated, multiplied[..., 0])):
            path = tiff(
                np.dstack([gray, OPACITY]), photometric="minisblack", planarconfig=planar, **marked
            )
            assert np.array_equal(read(path), as_rgb(np.where(OPACITY == 255, GRAY, 255)))


def test_other_numbers_and_depths(tiff):
    assert refusal(tiff((GRAY // 2).astype(np.int8))) == "signed numbers of 8 bits"
    assert refusal(tiff(GRAY.astype(np.uint32))) == "32 bits a channel"
    for kind in ("float16", "float64"):
        assert refusal(tiff(GRAY.astype(kind))).startswith("floating-point numbers of")
    assert refusal(tiff(GRAY.astype(np.complex64))).startswith("complex numbers of")
    ones = GRAY > 100
    for model in ("minisblack", "miniswhite"):
        bright = ones if model == "minisblack" else ~ones
        path = tiff(ones, photometric=model)
        assert np.array_equal(read(path), as_rgb(np.where(bright, 255, 0)))
    for depth in (10, 12):
        assert refusal(packed(tiff, depth)) == f"{depth} bits a channel"


def packed(tiff, depth):
    """A picture of `depth` bits a pixel, which tifffile itself reads and not always writes."""
    bits = np.unpackbits(GRAY.astype(">u2")[..., None].view(np.uint8), axis=-1)[..., 16 - depth :]
    path = tiff(np.packbits(bits.reshape(HEIGHT, -1), axis=-1), metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as file:
        tags = file.pages.first.tags
        tags["ImageWidth"].overwrite(WIDTH)
        tags["BitsPerSample"].overwrite(depth)
    assert np.array_equal(tifffile.imread(path), GRAY)
    return path


def test_unequal_bands(tiff):
    path = tiff(RGB, photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages.first.tags["BitsPerSample"].overwrite((8, 8, 16))
    assert refusal(path) == "8 and 16 bits a channel"


def test_palettes(tiff, tmp_path):
    colours = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 9)])
    path = tiff(GRAY, photometric="palette", colormap=(colours * 257).astype(np.uint16))
    assert np.array_equal(read(path), colours.T[GRAY])
    for depth in (1, 2, 4, 8):
        few = GRAY.astype(int) * (2**depth - 1) // 255
        palette = [(90 * n % 256, 200 - n % 200, 9, 0 if n == 0 else 255) for n in range(2**depth)]
        with (tmp_path / "a.png").open("wb") as file:
            png.Writer(WIDTH, HEIGHT, palette=palette, bitdepth=depth).write(file, few.tolist())
        expected = np.array([(*p[:3],) if p[3] else (255,) * 3 for p in palette])[few]
        assert np.array_equal(read(tmp_path / "a.png"), expected)


def test_cmyk_and_ycbcr(tiff, tmp_path):
    inks = np.dstack([255 - RGB, np.zeros_like(GRAY)])
    assert np.array_equal(read(tiff(inks, photometric="separated")), RGB)
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.jpg", quality=98)
    assert np.abs(read(tmp_path / "a.jpg").astype(int) - RGB).mean() < 3
    luminance = np.array(Image.fromarray(RGB).convert("YCbCr"))
    path = tiff(luminance, photometric="ycbcr")
    with tifffile.TiffFile(path, mode="r+b") as file:
        subsampled = file.pages.first.tags.valueof("YCbCrSubSampling") not in ((1, 1), None)
    if subsampled:
        assert "YCbCr" in refusal(path)
    else:
        assert np.abs(read(path).astype(int) - RGB).max() < 4


def test_pages_are_counted(tiff, tmp_path):
    stack = np.stack([GRAY] * 3)
    for options in ({}, {"imagej": True}, {"metadata": None}, {"metadata": {"axes": "ZYX"}}):
        path = tiff(
            stack, **({"photometric": "minisblack"} if "imagej" not in options else {}), **options
        )
        assert refusal(path) == "3 pages", options
    # a stack behind one page: the tag says three, the chain ends after the first
    path = tiff(stack, photometric="minisblack", truncate=True)
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == 1
    assert refusal(path) == "3 pages"
    pages = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    pages[0].save(tmp_path / "pillow.tif", save_all=True, append_images=pages[1:])
    assert refusal(tmp_path / "pillow.tif") == "2 pages"
    tifffile.imwrite(
        tmp_path / "many.tif", np.zeros((100, 8, 8), np.uint8), photometric="minisblack"
    )
    assert refusal(tmp_path / "many.tif") == "100 pages"


def test_everything_wrong_is_named(tiff):
    path = tiff(np.zeros((2, 8, 8, 4), np.uint16), photometric="rgb", extrasamples=["unspecified"])
    assert refusal(path) == "2 pages, 16 bits a channel, 4 bands, the last not marked as opacity"


@pytest.mark.parametrize("inside", [False, True], ids=["pages", "subifds"])
def test_smaller_copies_are_no_further_pictures(tmp_path, inside):
    path = tmp_path / "overviews.tif"
    with tifffile.TiffWriter(path) as file:
        options = {"photometric": "rgb", "tile": (16, 16)}
        file.write(RGB, subifds=2 if inside else 0, **options)
        for step in (2, 4):
            file.write(np.ascontiguousarray(RGB[::step, ::step]), subfiletype=1, **options)
    assert np.array_equal(read(path), RGB)
    with tifffile.TiffWriter(path) as file:
        file.write(np.ascontiguousarray(RGB[::4, ::4]), subfiletype=1, subifds=1, photometric="rgb")
        file.write(RGB, photometric="rgb")
    assert refusal(path) == "a picture behind a smaller copy of it"


def test_masks_are_named(tmp_path):
    path = tmp_path / "mask.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(RGB, photometric="rgb")
        file.write(OPACITY > 0, photometric="mask", subfiletype=4)
    with pytest.warns(UserWarning, match="its transparency mask is not used"):
        assert np.array_equal(read(path), RGB)


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_is_applied_once(tiff, turn):
    expected = np.array(
        Image.fromarray(RGB)
        if turn == 1
        else Image.fromarray(RGB).transpose(
            [None, None, *(Image.Transpose[n] for n in TURNS)][turn]
        )
    )
    for options in ({}, {"bigtiff": True, "byteorder": ">"}):
        path = tiff(RGB, photometric="rgb", extratags=[(274, 3, 1, turn, True)], **options)
        assert np.array_equal(read(path), expected)


TURNS = (
    *("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE"),
    "ROTATE_90",
)


def test_compressions_that_are_not_read_are_named(tiff, monkeypatch):
    path = tiff(RGB, photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages.first.tags["Compression"].overwrite(50123)
    assert refusal(path) == "a TIFF layout that is not read (compression 50123)"
    monkeypatch.setattr(tifffile.TiffPage, "asarray", need_a_package)
    path = tiff(np.ascontiguousarray(RGB[:32, :48]), photometric="rgb", compression="lerc")
    assert refusal(path) == "a TIFF layout that is not read (compression LERC)"


def need_a_package(page):
    raise ValueError("requires the 'imagecodecs' package")


def test_damaged_tiffs(tiff):
    path = tiff(RGB, photometric="rgb", compression="zlib")
    whole = path.read_bytes()
    for end in (4, 8, 40, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:end])
        assert refusal(path)
