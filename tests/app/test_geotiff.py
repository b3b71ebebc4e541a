"""GeoTIFF as GDAL writes it: tiles that were never written, values without data, JPEG inside."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from simmim.cli import main
from simmim.config.images import Reading, check_nodata
from simmim.data.image_contents import collected_notes
from simmim.data.images import read_image
from simmim.errors import UserError

HEIGHT, WIDTH = 96, 128
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH]
RGB = np.stack([X * 2, Y * 2, X + Y]).astype(np.uint8)


def write(path: Path, pixels: np.ndarray, window: Window | None = None, **options) -> np.ndarray:
    """Write bands ``(C, H, W)``; returns them as rasterio reads them again."""
    settings = {"driver": "GTiff", "width": WIDTH, "height": HEIGHT, "count": len(pixels)}
    with rasterio.open(path, "w", **settings, dtype=pixels.dtype, **options) as file:
        file.write(pixels, window=window)
    with rasterio.open(path) as file:
        return file.read()


def read(path: Path, **wanted) -> np.ndarray:
    return read_image(path, Reading(**wanted))[:, :, :].numpy()


@pytest.mark.parametrize("tiled", [{}, {"tiled": True, "blockxsize": 32, "blockysize": 32}])
@pytest.mark.parametrize("compress", [{}, {"compress": "deflate"}, {"compress": "lzw"}])
@pytest.mark.parametrize("model", ["RGB", "MINISBLACK", "MINISWHITE"])
@pytest.mark.filterwarnings("ignore:its value without data")
def test_tiles_that_were_never_written(tmp_path, model, compress, tiled):
    """They hold the value without data, 0 where the file names none, and nothing of other tiles."""
    pixels, path = RGB if model == "RGB" else RGB[:1], tmp_path / "sparse.tif"
    part = Window(0, 32, WIDTH, 32)
    for nodata in ({}, {"nodata": 200}):
        options = {**compress, **tiled, **nodata, "photometric": model, "sparse_ok": True}
        written = write(path, np.ascontiguousarray(pixels[:, 32:64]), part, **options)
        assert (written[:, :32] == nodata.get("nodata", 0)).all()
        assert np.array_equal(
            read(path, channels=None, bands=tuple(range(1, len(pixels) + 1))), written
        )
        colours = 255 - written if model == "MINISWHITE" else written
        assert np.array_equal(read(path), np.broadcast_to(colours, (3, HEIGHT, WIDTH)))


@pytest.mark.filterwarnings("ignore:its value without data")
def test_tiles_that_were_never_written_hold_any_value_without_data(tmp_path):
    values = {
        "int8": (-128, 5),
        "int16": (32767, 300, -9999),
        "uint16": (300, 65535),
        "float32": (-9999.5, 1e20, np.nan),
    }
    options = {"tiled": True, "blockxsize": 32, "blockysize": 32, "sparse_ok": True}
    for dtype, nodatas in values.items():
        for nodata in nodatas:
            path, pixels = tmp_path / f"{dtype}{nodata}.tif", np.ones((2, 32, 32), dtype)
            written = write(path, pixels, Window(0, 0, 32, 32), **options, nodata=nodata)
            assert np.array_equal(written[0, 40, 40], np.array(nodata, dtype), equal_nan=True)
            assert np.array_equal(read(path, channels=None, dtype=None), written, equal_nan=True)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("compress", ["lerc", "lerc_deflate", "lerc_zstd"])
def test_numbers_that_lerc_does_not_keep(tmp_path, compress, interleave):
    """It tells NaN, and opacity that is all or nothing, by a mask in place of a number."""
    if interleave == "pixel" and rasterio.__gdal_version__.startswith("3.9."):
        pytest.skip("GDAL 3.9 cannot read the file that it writes here")
    path, options = tmp_path / "a.tif", {"compress": compress, "interleave": interleave}
    for lacking in (np.s_[:, 3:9], np.s_[0, 3:9, 7:30], np.s_[:]):
        bands = RGB.astype(np.float32)
        bands[lacking] = np.nan
        written = write(path, bands, **options, nodata=np.nan)
        assert np.isnan(written[lacking]).all()
        found = read(path, channels=None, dtype=None, nodata="nan")
        assert np.array_equal(found, written, equal_nan=True)
    for colours in (RGB[:1], RGB):
        written = write(
            path, np.concatenate([colours, [(X > 40) * np.uint8(255)]]), alpha="yes", **options
        )
        bands = tuple(range(1, len(written) + 1))
        assert np.array_equal(read(path, channels=None, bands=bands), written)


@pytest.mark.parametrize("order", ["LITTLE", "BIG"])
@pytest.mark.parametrize("big", ["NO", "YES"])
def test_colours_of_jpeg_in_every_byte_order(tmp_path, order, big):
    path = tmp_path / "a.tif"
    options = {"compress": "jpeg", "photometric": "YCbCr", "ENDIANNESS": order, "BIGTIFF": big}
    written = write(path, RGB, **options)
    for bands in ((), (1, 2, 3)):
        assert np.abs(read(path, bands=bands).astype(int) - written).max() < 12


def test_planes_of_jpeg(tmp_path):
    path = tmp_path / "a.tif"
    written = write(path, RGB, compress="jpeg", photometric="RGB", interleave="band")
    for bands in ((), (1, 2, 3)):
        assert np.abs(read(path, bands=bands).astype(int) - written).max() < 4


def test_a_value_without_data_of_colours_is_named(tmp_path):
    path = tmp_path / "a.tif"
    write(path, RGB, photometric="RGB", nodata=255)
    for other in ("", "0", "nan"):
        with pytest.warns(UserWarning, match="its value without data, 255, counts as a number"):
            read(path, nodata=other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(path, nodata="255.0")


def test_a_value_without_data_is_compared_as_float32(tmp_path):
    for value, same in (("-3.4028234663852886e+38", "-3.4028235e38"), ("nan", "NaN")):
        path = tmp_path / "a.tif"
        write(path, RGB.astype(np.float32), nodata=float(value))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(path, channels=None, dtype=None, nodata=same)


def test_scale_and_offset_are_named_and_not_applied(tmp_path):
    path = tmp_path / "a.tif"
    written = write(path, RGB, photometric="RGB")
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.1, 0.2, 0.3), (-5, 1, 2)
    for bands in ((), (1, 2, 3)):
        with pytest.warns(UserWarning, match="its scale and offset are not applied"):
            assert np.array_equal(read(path, bands=bands), written)


def test_what_lies_beside_a_file_is_no_image_and_is_named(tmp_path, capsys):
    """GDAL keeps masks in .msk, and in .aux.xml what it may not write into the file."""
    path, size = tmp_path / "a.tif", {"width": WIDTH, "height": HEIGHT, "count": 3}
    options = {"photometric": "RGB", "PROFILE": "BASELINE", "TFW": "YES"}
    options["transform"] = rasterio.Affine(10, 0, 0, 0, -10, 0)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="NO", TIFF_USE_OVR="YES"):
        with rasterio.open(path, "w", driver="GTiff", dtype="uint8", **size, **options) as file:
            file.write(RGB)
            file.scales = (0.1, 0.2, 0.3)
            file.write_mask(X > 3)
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2], rasterio.enums.Resampling.nearest)
    # as gdal_edit -ro -a_nodata writes it
    beside = tmp_path / "a.tif.aux.xml"
    value = "<NoDataValue>7</NoDataValue>\n    <Scale>"
    beside.write_text(beside.read_text().replace("<Scale>", value))
    with rasterio.open(path) as file:
        assert (file.nodata, file.scales) == (7, (0.1, 0.2, 0.3))
    endings = {file.name.removeprefix("a.") for file in tmp_path.iterdir()}
    assert endings == {"tif", "tfw", "tif.aux.xml", "tif.msk", "tif.msk.ovr", "tif.ovr"}
    for wanted, named in (({}, 3), ({"nodata": "7"}, 2), ({"bands": (1, 2, 3)}, 3)):
        with collected_notes() as notes:
            read(path, **wanted)
        assert len(notes) == named and "its mask, in the file .msk beside it" in notes[0]
    assert main(["stats", "--data", str(tmp_path), "--out", str(tmp_path / "stats.json")]) == 0
    said = capsys.readouterr().err
    assert "1 image: 1 TIFF\n" in said and "value without data, 7, counts as a number" in said


@pytest.mark.parametrize(("dtype", "value"), [("uint16", "70000"), ("uint8", "-1")])
def test_a_value_that_no_number_can_have_is_refused(tmp_path, capsys, dtype, value):
    path = tmp_path / "a.tif"
    write(path, RGB.astype(dtype))
    arguments = ["stats", "--data", str(path), "--out", str(tmp_path / "stats.json"), "--nodata"]
    assert main([*arguments, value]) == 2
    assert f"--nodata {value} is no value of {dtype} images" in capsys.readouterr().err
    assert main([*arguments, "3"]) == 0


def test_values_that_numbers_can_have():
    for value, dtype in (("0.5", "uint8"), ("inf", "int16"), ("32768", "int16")):
        with pytest.raises(UserError, match="is no value of"):
            check_nodata(value, dtype)
    for value in ("", "nan", "0", "-0.0", "255", "1e2"):
        check_nodata(value, "uint8")
    check_nodata("-32768", "int16")
    check_nodata("-1.7976931348623157e+308", "float32")
