"""Packs of some bands and of reduced images: what statistics and settings of their source mean there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from simmim.cli import main
from simmim.config.images import Reading
from simmim.data.image_contents import OtherContentsError
from simmim.data.images import read_image
from simmim.data.packed import list_pack


@pytest.fixture
def scenes(tmp_path) -> Path:
    """Two scenes of three bands, of 0, 100 and 200 each, with some noise."""
    (tmp_path / "scenes").mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        levels = np.array([0, 100, 200])[:, None, None]
        pixels = (levels + rng.integers(0, 50, (3, 40, 40))).astype(np.uint16)
        tifffile.imwrite(
            tmp_path / f"scenes/{number}.tif",
            pixels,
            photometric="minisblack",
            planarconfig="separate",
        )
    return tmp_path / "scenes"


def run(*arguments: object) -> int:
    return main(list(map(str, arguments)))


def pack(data: Path, out: Path, *more: object) -> Path:
    assert run("pack", "--data", data, "--out", out, *more) == 0
    return out


def wanted(*bands: int, nodata: str = "") -> Reading:
    return Reading(None, bands, "uint16", nodata=nodata)


def means(pack: Path, wanted: Reading) -> list[int]:
    pixels = read_image(list_pack(pack).paths[0], wanted)[:, :, :].float()
    return (pixels.mean((1, 2)) / 100).int().tolist()


def test_bands_are_those_of_what_was_packed(scenes, tmp_path):
    """Taken from the pack's own places they would be turned round twice."""
    turned = pack(scenes, tmp_path / "turned", "--bands", "3,2,1")
    two = pack(turned, tmp_path / "two", "--bands", "3,1")
    for path in (turned, pack(turned, tmp_path / "again")):
        assert means(path, wanted()) == means(path, wanted(3, 2, 1)) == [2, 1, 0]
        assert means(path, wanted(1, 3)) == [0, 2]
    assert means(two, wanted()) == means(two, wanted(3, 1)) == [2, 0]
    with pytest.raises(OtherContentsError, match="packed with --bands 3,1, there is no band 2"):
        means(two, wanted(2))


def test_statistics_of_the_source_serve_its_pack(scenes, tmp_path):
    found = []
    for path in (scenes, pack(scenes, tmp_path / "pack", "--bands", "3,1")):
        out = tmp_path / f"{path.name}.json"
        assert run("stats", "--data", path, "--bands", "3,1", "--out", out) == 0
        found.append(json.loads(out.read_text()))
    assert found[0] == found[1]


def test_values_without_data_in_reduced_images_are_refused(scenes, tmp_path, capsys):
    reduced = pack(scenes, tmp_path / "reduced", "--shortest-side", 20)
    for path in (reduced, pack(reduced, tmp_path / "again")):
        arguments = ("stats", "--data", path, "--out", tmp_path / "a.json", "--overwrite")
        assert run(*arguments) == run(*arguments, "--nodata", "nan") == 0
        capsys.readouterr()
        assert run(*arguments, "--nodata", 0) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert "packed with --shortest-side, which mixed pixels without data into others" in last
