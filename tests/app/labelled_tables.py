"""Labelled images as tables and archives, written by the formats' own libraries."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pandas
import pyarrow.parquet
import pytest
import webdataset
from PIL import Image

NAMES = ["dark", "gray", "light"]
#: an order that is not that of the alphabet, with a class that has no image
CLASS_LABEL = datasets.ClassLabel(names=["light", "none", "dark", "gray"])


def rows_of(labelled: Path) -> list[tuple[Path, str]]:
    """Files and their classes, the classes mixed."""
    files = sorted(labelled.glob("*/*.png"), key=lambda path: (path.name, path.parent.name))
    return [(path, path.parent.name) for path in files]


def numbered(rows: list) -> list[int]:
    return [NAMES.index(name) for _, name in rows]


def write_csv(rows: list, at: Path) -> Path:
    with (at / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerows([("Label", "note", "path"), *((f" {n}", "x", p) for p, n in rows)])
    return at / "list.csv"


def write_pandas(rows: list, at: Path) -> Path:
    table = pandas.DataFrame({"file": [str(path) for path, _ in rows], "class": numbered(rows)})
    table.to_csv(at / "list.csv")
    return at / "list.csv"


def write_paths(rows: list, at: Path) -> Path:
    table = {
        "path": [str(path) for path, _ in rows],
        "label": pandas.Categorical([name for _, name in rows]),
    }
    pandas.DataFrame(table).to_parquet(at / "list.parquet")
    return at / "list.parquet"


def write_contents(rows: list, at: Path) -> Path:
    """Two files in one folder."""
    (at / "data").mkdir()
    content, texts = [path.read_bytes() for path, _ in rows], [name for _, name in rows]
    for number, part in enumerate((slice(0, 7), slice(7, None))):
        table = pyarrow.table({"content": content[part], "category": texts[part]})
        pyarrow.parquet.write_table(table, at / f"data/{number}.parquet")
    return at / "data"


def dataset_of(rows: list, feature=CLASS_LABEL) -> datasets.Dataset:
    columns = {"image": [str(path) for path, _ in rows], "labels": [name for _, name in rows]}
    features = datasets.Features({"image": datasets.Image(), "labels": feature})
    return datasets.Dataset.from_dict(columns, features)


def write_dataset(rows: list, at: Path) -> Path:
    dataset_of(rows).save_to_disk(str(at / "saved"), num_shards=2)
    return at / "saved"


def write_dataset_parquet(rows: list, at: Path) -> Path:
    dataset_of(rows).to_parquet(str(at / "images.parquet"))
    return at / "images.parquet"


def write_shards(rows: list, at: Path) -> Path:
    (at / "data").mkdir()
    with webdataset.ShardWriter(str(at / "data/%04d.tar"), maxcount=7, verbose=0) as writer:
        for number, ((path, _), label) in enumerate(zip(rows, numbered(rows), strict=True)):
            content = {"__key__": f"{number:05d}", "jpg.png": path.read_bytes(), "json": {"a": 1}}
            writer.write({**content, "cls": label})
    return at / "data"


def write_text_shards(rows: list, at: Path) -> Path:
    with webdataset.TarWriter(str(at / "images.tar")) as writer:
        for number, (path, name) in enumerate(rows):
            sample = {"__key__": f"a.b/{number}", "png": path.read_bytes(), "cls.txt": f"{name}\n"}
            writer.write(sample)
    return at / "images.tar"


def write_json_shards(rows: list, at: Path) -> Path:
    """As img2dataset and others write what they know of an image."""
    with webdataset.TarWriter(str(at / "images.tar")) as writer:
        for number, (path, name) in enumerate(rows):
            about = {"key": str(number), "species": name, "size": [4, 4]}
            writer.write({"__key__": str(number), "png": path.read_bytes(), "json": about})
    return at / "images.tar"


def write_zarr(rows: list, at: Path) -> Path:
    """Images and labels side by side in a group."""
    zarr = pytest.importorskip("zarr", reason="needs Python 3.11")
    group = zarr.open_group(at / "images.zarr", mode="w")
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in rows])
    for name, values in (("images", pixels), ("species", np.array(numbered(rows), "int64"))):
        array = group.create_array(name, shape=values.shape, dtype=values.dtype)
        array[...] = values
    return at / "images.zarr"


def write_npz(rows: list, at: Path) -> Path:
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in rows])
    np.savez_compressed(at / "images.npz", images=pixels, labels=np.array(numbered(rows))[:, None])
    return at / "images.npz"


NUMBERS = ["0", "1", "2"]
#: the writer, the column of the labels, names of the classes
KINDS: dict[str, tuple[Callable[[list, Path], Path], str, list[str]]] = {
    "csv": (write_csv, "Label", NAMES),
    "csv by pandas": (write_pandas, "class", NUMBERS),
    "parquet of paths": (write_paths, "label", NAMES),
    "parquet of contents": (write_contents, "category", NAMES),
    "parquet of datasets": (write_dataset_parquet, "labels", ["light", "dark", "gray"]),
    "saved dataset": (write_dataset, "labels", ["light", "dark", "gray"]),
    "zarr group": (write_zarr, "species", NUMBERS),
    "npz": (write_npz, "labels", NUMBERS),
    "shards": (write_shards, "cls", NUMBERS),
    "shards of text": (write_text_shards, "cls.txt", NAMES),
    "shards of JSON": (write_json_shards, "json:species", NAMES),
}
#: where the column is named
NAMED = ("saved dataset", "shards of text", "shards of JSON", "zarr group")


def write(kind: str, rows: list, at: Path) -> tuple[Path, dict, list[str]]:
    """The data, settings that go with them, and names of the classes."""
    at.mkdir(exist_ok=True)
    writer, column, names = KINDS[kind]
    settings = {"label_column": column} if kind in NAMED else {}
    settings |= {"column": "images"} if kind == "zarr group" else {}
    return writer(rows, at), settings, names


def save_table(at: Path, **columns: object) -> Path:
    pandas.DataFrame(columns).to_parquet(at / "table.parquet")
    return at / "table.parquet"


def save_list(at: Path, paths: list, labels: list) -> Path:
    pandas.DataFrame({"path": paths, "label": labels}).to_csv(at / "list.csv", index=False)
    return at / "list.csv"
