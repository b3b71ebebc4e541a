"""Channels on pages of their own, as microscopes write them: OME-TIFF and ImageJ say which axis the pages are."""

from __future__ import annotations

import tifffile

from tests.app.test_bands import check_same, numbers, read, refused


def test_channels_on_pages_of_their_own(tmp_path):
    pixels, path = numbers("uint16", 4), tmp_path / "a.ome.tif"
    for options in (
        {"metadata": {"axes": "CYX"}, "ome": True},
        {"metadata": {"axes": "CYX"}, "ome": True, "tile": (32, 32), "compression": "zlib"},
        {"metadata": {"axes": "CYX"}, "imagej": True},
        {"metadata": {"axes": "CYX"}},
    ):
        tifffile.imwrite(path, pixels, photometric="minisblack", **options)
        check_same(read(path, 4, "uint16"), pixels)
        check_same(read(path, 2, "uint16", bands=(4, 1)), pixels[[3, 0]])
    for axes in ("ZYX", "TYX"):
        tifffile.imwrite(path, pixels, photometric="minisblack", metadata={"axes": axes}, ome=True)
        assert refused(path, 4, "uint16") == "4 pages"


def test_channels_in_several_files_are_no_picture(tmp_path):
    """OME lets each file name the pages of all of them, which tifffile then opens and closes."""
    pixels, files = numbers("uint16", 4), ("a.ome.tif", "b.ome.tif")
    planes = "".join(
        f'<TiffData IFD="{c % 2}" FirstC="{c}"><UUID FileName="{files[c // 2]}">urn:uuid:{c // 2}</UUID>'
        "</TiffData>"
        for c in range(4)
    )
    size = f'SizeX="{pixels.shape[2]}" SizeY="{pixels.shape[1]}" SizeC="4" SizeZ="1" SizeT="1"'
    for place, name in enumerate(files):
        text = (
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{place}"><Image ID="Image:0"><Pixels ID="Pixels:0" Type="uint16" '
            f'DimensionOrder="XYCZT" {size}>{planes}</Pixels></Image></OME>'
        )
        with tifffile.TiffWriter(tmp_path / name) as file:
            for part in pixels[2 * place : 2 * place + 2]:
                file.write(part, description=text, metadata=None, photometric="minisblack")
                text = None
    assert tifffile.imread(tmp_path / files[0]).shape == pixels.shape
    for name in files:
        assert refused(tmp_path / name, 4, "uint16") == "2 pages"
