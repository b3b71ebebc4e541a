"""Packs whose classes stand in tables, groups and archives, written by the formats' own libraries."""

from __future__ import annotations

import csv

import datasets
import numpy as np
import pandas
import pytest
import webdataset

from simmim.cli import main
from simmim.data.classes import split_classes

from .labels import finetuning
from .sources import PICTURES, png, write_pictures

pytestmark = pytest.mark.usefixtures("no_cache_of_the_users")

#: of the eight pictures; one has no class, and numbers are no text
NAMES = ["dog", "cat", "dog", None, "cat", "dog", "cat", "\u732b"]
NUMBERS = [10, 2, 10, 2, 2, 10, 2, 0]


def run(*arguments: object) -> int:
    return main(list(map(str, arguments)))


def packed(data, tmp_path, *more: object) -> list[tuple[str, str]]:
    """Names and labels in the pack of a source, whose first part of a name is its number."""
    assert run("pack", "--data", data, "--out", tmp_path / "pack", *more) == 0
    with (tmp_path / "pack/index.csv").open(newline="", encoding="utf-8") as file:
        return [row["label"] for row in csv.DictReader(file)]


def table(at, name):
    paths = [str(path) for path in write_pictures(at / "pictures")]
    frame = pandas.DataFrame({"id": range(8), "path": paths, "class": NAMES, "number": NUMBERS})
    frame["rare"] = [None if n == 3 else number for n, number in enumerate(NUMBERS)]
    if name == "csv":
        frame.to_csv(at / "list.csv", index=False, lineterminator="\r\n")
    elif name == "semicolons":
        frame.to_csv(at / "list.csv", index=False, sep=";", encoding="utf-16")
    else:
        frame.to_parquet(at / "list.parquet")
    return at / ("list.parquet" if name == "parquet" else "list.csv")


@pytest.mark.parametrize("name", ["csv", "semicolons", "parquet"])
def test_columns_of_tables(name, tmp_path, capsys):
    more = ("--column", "path", "--labels")
    assert packed(table(tmp_path, name), tmp_path, *more, "class") == [n or "" for n in NAMES]
    classes = split_classes(
        finetuning(tmp_path / "pack", tmp_path / "run", val_data=tmp_path / "pack")
    )
    assert classes.names == ["cat", "dog", "\u732b"]
    assert classes.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert [image.number for image in classes.train.paths] == [1, 4, 6, 0, 2, 5, 7]
    assert "left: 1 image without a class" in classes.summary[0]
    again = ("pack", "--data", tmp_path / f"list.{'parquet' if name == 'parquet' else 'csv'}")
    assert run(*again, "--out", tmp_path / "pack", *more, "number") == 2
    assert "was begun with another source" in capsys.readouterr().err
    assert run(*again, "--out", tmp_path / "other", *more, "what") == 2
    assert "has the columns id, path, class, number, rare, and no --labels what" in (
        capsys.readouterr().err
    )


def test_numbers_with_gaps_stay_whole(tmp_path):
    """pandas makes them floating-point numbers."""
    found = packed(table(tmp_path, "parquet"), tmp_path, "--column", "path", "--labels", "rare")
    assert found == ["" if n == 3 else str(number) for n, number in enumerate(NUMBERS)]


@pytest.mark.parametrize("name", ["saved", "parquet"])
def test_class_labels_of_datasets(name, tmp_path):
    """By their names; -1 is what test sets have in place of one."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["wolf", "ant", "bee"])}
    )
    rows = {"image": [str(p) for p in write_pictures(tmp_path / "pictures")]}
    rows["label"] = [0, 1, 2, -1, None, 1, 0, 2]
    found = datasets.Dataset.from_dict(rows, features)
    if name == "saved":
        found.save_to_disk(str(tmp_path / "data"))
    else:
        (tmp_path / "data").mkdir()
        found.to_parquet(str(tmp_path / "data/0.parquet"))
    labels = packed(tmp_path / "data", tmp_path, "--labels", "label")
    assert labels == ["wolf", "ant", "bee", "", "", "ant", "wolf", "bee"]


def test_a_split_dataset(tmp_path):
    rows = {"image": [png(p) for p in PICTURES], "label": NUMBERS}
    parts = {part: datasets.Dataset.from_dict(rows) for part in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "data"))
    arguments = ("--data", tmp_path / "data", "--labels", "label", "--out", tmp_path / "pack")
    assert run("pack", *arguments) == 0
    classes = split_classes(finetuning(tmp_path / "pack", tmp_path / "run"))
    assert classes.names == ["0", "10", "2"] and len(classes.test.paths) == 8


def test_webdataset(tmp_path, capsys):
    """In shards, beside the images; a sample may lack one."""
    (tmp_path / "data").mkdir()
    pattern = str(tmp_path / "data/%04d.tar")
    with webdataset.ShardWriter(pattern, maxcount=3, verbose=0) as writer:
        for number, pixels in enumerate(PICTURES):
            sample = {"__key__": f"part.1/{number:05d}", "left.png": png(pixels)}
            writer.write(sample | ({} if number == 3 else {"cls": NUMBERS[number]}))
    found = packed(tmp_path / "data", tmp_path, "--labels", "cls")
    assert found == ["" if n == 3 else str(number) for n, number in enumerate(NUMBERS)]


def test_an_array_of_a_zarr_group(tmp_path, capsys):
    zarr = pytest.importorskip("zarr", reason="needs Python 3.11")
    zarr.save_group(str(tmp_path / "group"), images=np.stack(PICTURES), labels=np.array(NUMBERS))
    more = ("--column", "images", "--labels")
    assert packed(tmp_path / "group", tmp_path, *more, "labels") == list(map(str, NUMBERS))
    start = ("pack", "--data", tmp_path / "group", "--out", tmp_path / "other", *more)
    assert run(*start, "images") == 2
    assert "has 8 images, and --labels images (8, 40, 48, 3)" in capsys.readouterr().err


def test_labels_that_cannot_be(tmp_path, capsys):
    folder = write_pictures(tmp_path / "pictures")[0].parent
    start = ("pack", "--out", tmp_path / "pack", "--labels", "label", "--data")
    assert run(*start, folder) == 2
    assert (
        f"is for tables, zarr groups and tar archives, and {folder} is none"
        in capsys.readouterr().err
    )
    assert run("pack", "--data", folder, "--out", tmp_path / "before") == 0
    assert run(*start, tmp_path / "before") == 2
    assert "a pack of a pack keeps its classes" in capsys.readouterr().err
    (folder / "list.csv").write_text("path,label\n0.png,a\n1.png,b\n0.png,b\n")
    assert run(*start, folder / "list.csv") == 2
    assert "0.png has the classes 'a' and 'b'" in capsys.readouterr().err
    several = datasets.Dataset.from_dict({"image": [png(PICTURES[0])], "label": [[0, 1]]})
    several.save_to_disk(str(tmp_path / "data"))
    assert run(*start, tmp_path / "data", "--column", "image") == 2
    assert "holds [0, 1], and a class is text or a whole number" in capsys.readouterr().err
    assert not (tmp_path / "pack").exists()
