"""Sources that hold other things beside the images: groups of arrays, archives with labels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import webdataset

from simmim.config.images import Reading, SourceConfig
from simmim.data.images import read_image
from simmim.data.sources import find_source
from simmim.errors import UserError

from .sources import BANDS, COUNT, PICTURES, png


def write_group(path: Path, **arrays: np.ndarray) -> Path:
    zarr = pytest.importorskip("zarr", reason="needs Python 3.11")
    group = zarr.open_group(str(path), mode="w")
    for name, array in arrays.items():
        group.create_array(name, data=array)
    group.create_group("inner").create_array("bands", data=BANDS[:, :2])
    return path


def find(path: Path, column: str = ""):
    return find_source(path, SourceConfig(column=column)).paths


def test_an_array_of_a_group_within_a_group(tmp_path):
    path = write_group(tmp_path / "a.zarr", images=BANDS)
    for column, expected in (("", BANDS), ("images", BANDS), ("inner/bands", BANDS[:, :2])):
        images = find(path, column)
        pixels = read_image(images[3], Reading(None, dtype="uint16"))[:, :, :]
        assert len(images) == COUNT and np.array_equal(pixels.numpy(), expected[3])


@pytest.mark.parametrize("column", ["image", "inner", "inner/image"])
def test_an_array_that_is_not_there_is_not_taken_for_the_only_one(tmp_path, column):
    path = write_group(tmp_path / "a.zarr", images=BANDS)
    with pytest.raises(UserError, match="holds the arrays images: name one with --column"):
        find(path, column)


def test_a_group_without_arrays(tmp_path):
    with pytest.raises(UserError, match="is a group without arrays"):
        find(write_group(tmp_path / "a.zarr"))


def write_shards(folder: Path, *, pictures: bool = True) -> Path:
    """Each sample a picture, a mask of the same size and a row of features."""
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%04d.tar"), maxcount=3, verbose=0) as writer:
        for number, pixels in enumerate(PICTURES):
            arrays = {"mask.npy": npy(pixels[..., 0]), "npz": npz(pixels[..., 0])}
            sample = {"__key__": f"{number:05d}", **arrays}
            writer.write(sample | ({"png": png(pixels)} if pictures else {}))
    return folder


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


def test_arrays_beside_pictures_in_archives_are_left(tmp_path):
    found = find_source(write_shards(tmp_path / "data"), SourceConfig())
    assert [str(image)[-9:] for image in found.paths] == [f"{n:05d}.png" for n in range(COUNT)]
    assert found.left == {"NumPy beside pictures": 2 * COUNT}
    alone = find_source(write_shards(tmp_path / "alone", pictures=False), SourceConfig())
    assert len(alone.paths) == 2 * COUNT and not alone.left
