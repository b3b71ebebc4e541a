"""Samples of tar archives that hold several images, such as a photograph and its mask."""

from __future__ import annotations

import io

import numpy as np
import pytest
import webdataset
from PIL import Image

from simmim.config.pretrain import PretrainConfig
from simmim.data.classes import split_classes
from simmim.data.splits import split_files
from simmim.errors import UserError

from .labels import probing

COUNT = 6


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def shards(tmp_path):
    for part in range(2):
        with webdataset.TarWriter(str(tmp_path / f"{part}.tar")) as writer:
            for number in range(COUNT):
                images = {"jpg": encoded("jpeg"), "seg.png": encoded("png")}
                key = f"{part}{number}"
                writer.write({"__key__": key, **images, "cls": str(number % 2)})
    return tmp_path


def test_all_images_are_used_and_named(shards, tmp_path):
    files = split_files(PretrainConfig(data=shards, out=tmp_path / "out"))
    assert len(files.train) == 4 * COUNT
    assert (
        "of 12 samples, some with several images (jpg, seg.png): --column jpg" in files.summary[0]
    )


@pytest.mark.parametrize("ending", ["jpg", "seg.png", ".JPG"])
def test_an_ending_picks_one_of_each(ending, shards, tmp_path):
    files = split_files(PretrainConfig(data=shards, out=tmp_path / "out", column=ending))
    assert len(files.train) == 2 * COUNT and "samples" not in files.summary[0]
    assert all(str(image).endswith(f".{ending.lower().lstrip('.')}") for image in files.train)
    classes = split_classes(probing(shards, tmp_path / "out", column=ending))
    assert classes.names == ["0", "1"]
    assert len(classes.train.paths) + len(classes.test.paths) == 2 * COUNT


def test_an_ending_that_no_image_has(shards, tmp_path):
    with pytest.raises(UserError, match=r"--column mask\.png: no image in .* jpg, seg\.png"):
        split_files(PretrainConfig(data=shards, out=tmp_path / "out", column="mask.png"))


def test_names_with_dots_are_no_samples(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(20):
            writer.write({"__key__": "scan", f"2020{number}.png": encoded("png")})
    files = split_files(PretrainConfig(data=tmp_path, out=tmp_path / "out"))
    assert len(files.train) == 20 and "samples" not in files.summary[0]
