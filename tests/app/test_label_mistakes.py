"""Labels that are missing or none, and columns that hold something else: one line each, or a count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
import webdataset

from simmim.cli import main
from simmim.data.classes import split_classes

from .labelled_tables import NAMES, dataset_of, rows_of, save_list, save_table
from .labels import probing
from .test_labels import SMALL, flags

pytestmark = pytest.mark.usefixtures("no_cache_of_the_users")


def shards_without(at: Path, paths: list, **beside: object) -> Path:
    with webdataset.TarWriter(str(at / "images.tar")) as writer:
        for number, path in enumerate(paths):
            writer.write({"__key__": f"{number}", "png": Path(path).read_bytes(), **beside})
    return at / "images.tar"


def two_files(at: Path, paths: list) -> Path:
    """Of which the second numbers its classes otherwise."""
    (at / "data").mkdir()
    for number, names in enumerate((["cat", "dog"], ["dog", "cat"])):
        rows = [(path, name) for path, name in zip(paths, ["cat", "dog"] * 9, strict=True)]
        part = dataset_of(rows, datasets.ClassLabel(names=names))
        part.to_parquet(str(at / f"data/{number}.parquet"))
    return at / "data"


def parts_with_other_columns(at: Path, paths: list) -> Path:
    rows = [(path, "dark") for path in paths]
    dataset_of(rows).save_to_disk(str(at / "saved/a"))
    dataset_of(rows).rename_column("labels", "label").save_to_disk(str(at / "saved/b"))
    return at / "saved"


HALVES = ["a"] * 9 + ["b"] * 9
#: what writes the data, further arguments, what the line says
MISTAKES: dict[str, tuple[Callable[[Path, list], Path], dict, str]] = {
    "no column": (
        lambda at, paths: save_list(at, paths, HALVES),
        {"label_column": "kind"},
        "has the columns path, label: say with --label-column which holds the labels",
    ),
    "two labels of one image": (
        lambda at, paths: save_list(at, [paths[0], *paths[:17]], ["b", *HALVES[:17]]),
        {},
        "two labels in the column label: 'b' and 'a'",
    ),
    "none that is obvious": (
        lambda at, paths: save_table(at, path=paths, kind=HALVES),
        {},
        "has the columns path, kind: say with --label-column",
    ),
    "two that are": (
        lambda at, paths: save_table(at, path=paths, label=HALVES, Class=HALVES),
        {},
        "has the columns path, label, Class: say with --label-column",
    ),
    "parts without it": (
        parts_with_other_columns,
        {},
        "saved has the columns image: say with --label-column",
    ),
    "one class": (
        lambda at, paths: save_list(at, paths, ["a"] * 18),
        {},
        "list.csv holds images of 1 classes in the column label, and a classifier needs two",
    ),
    "no label at all": (
        lambda at, paths: save_list(at, paths, [None] * 18),
        {},
        "holds images of 0 classes in the column label",
    ),
    "a class of one": (
        lambda at, paths: save_list(at, paths, ["a"] * 17 + ["b"]),
        {},
        "class 'b' has one image",
    ),
    "floats": (
        lambda at, paths: save_table(at, path=paths, label=[0.0, 1.0, None] * 6),
        {},
        "has float64 in its column label, and classes are names or whole numbers: convert it",
    ),
    "fractions as text": (
        lambda at, paths: save_list(at, paths, [0.0, 1.0, None] * 6),
        {},
        "has fractions, such as 0.0, in the column label, and classes are names",
    ),
    "lists": (
        lambda at, paths: save_table(at, path=paths, label=[[1]] * 18),
        {},
        "in its column label, and classes are names or whole numbers",
    ),
    "several numberings": (two_files, {}, "data/1.parquet has other classes in its column labels"),
    "no cls": (
        lambda at, paths: shards_without(at, paths, json={"a": 1}, txt="x"),
        {},
        "has beside its images files that end in txt, json:a: say with --label-column",
    ),
    "whole objects": (
        lambda at, paths: shards_without(at, paths, json={"a": 1}),
        {"label_column": "json"},
        "has beside its images files that end in json:a: say with --label-column",
    ),
    "lists in JSON": (
        lambda at, paths: shards_without(at, paths, json={"a": [1]}),
        {"label_column": "json:a"},
        "images.tar/0.json holds list in a, and so no label",
    ),
    "nothing beside": (shards_without, {}, "files that end in (none): say with --label-column"),
    "no text": (
        lambda at, paths: shards_without(at, paths, bin=b"\xff"),
        {"label_column": "bin"},
        "images.tar/0.bin is no text, and so no label",
    ),
    "other classes to test on": (
        lambda at, paths: save_list(at, paths, HALVES),
        {"val_data": "FOLDERS"},
        "class 'a' is in",
    ),
    "a missing label": (
        lambda at, paths: save_list(at, paths, [*HALVES[1:], None]),
        {"on_bad_image": "error"},
        "5.png has no label in the column label",
    ),
}


@pytest.mark.parametrize("command", ["finetune", "probe"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_cost_one_line(command, mistake, labelled, tmp_path, capsys):
    writer, settings, words = MISTAKES[mistake]
    data = writer(tmp_path, [str(path) for path, _ in rows_of(labelled)])
    settings = {n: labelled if v == "FOLDERS" else v for n, v in settings.items()}
    out = tmp_path / "out"
    arguments = [str(out) if a == "OUT" else a for a in SMALL] + flags(data=data, **settings)
    capsys.readouterr()
    assert main([command, *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1, error


MISSING = {
    "csv": lambda at, paths: save_list(at, paths, [*HALVES[:8], None, " ", *HALVES[10:]]),
    "nan": lambda at, paths: save_list(at, paths, [*HALVES[:8], "nan", "NaN", *HALVES[10:]]),
    "parquet": lambda at, paths: save_table(
        at, path=paths, label=[*HALVES[:8], None, "", *HALVES[10:]]
    ),
    "numbers": lambda at, paths: save_table(
        at, path=paths, label=pandas.array([7] * 8 + [None, None] + [10] * 8, "Int64")
    ),
    "class label": lambda at, paths: dataset_at(at, paths, [0] * 8 + [-1, None] + [2] * 8),
}


def dataset_at(at: Path, paths: list, numbers: list) -> Path:
    dataset_of(list(zip(paths, numbers, strict=True))).save_to_disk(str(at / "saved"))
    return at / "saved"


@pytest.mark.parametrize("kind", MISSING)
def test_images_without_a_label_are_left_out(kind, labelled, tmp_path):
    data = MISSING[kind](tmp_path, [str(path) for path, _ in rows_of(labelled)])
    classes = split_classes(probing(data, tmp_path / "out"))
    expected = {"numbers": ["7", "10"], "class label": ["light", "dark"]}
    assert classes.names == expected.get(kind, ["a", "b"])
    assert len(classes.train.paths) + len(classes.test.paths) == 16
    column = "labels" if kind == "class label" else "label"
    end = f"; labels from the column {column}: {', '.join(classes.names)}; left: 2 without a label"
    assert f"{end} (not read)" in classes.summary[0], classes.summary


def test_samples_without_a_label_file(labelled, tmp_path):
    paths = [path for path, _ in rows_of(labelled)]
    with webdataset.TarWriter(str(tmp_path / "images.tar")) as writer:
        for number, path in enumerate(paths):
            label = {} if number == 3 else {"cls": number % 2}
            writer.write({"__key__": f"{number}", "png": path.read_bytes(), **label})
    classes = split_classes(probing(tmp_path / "images.tar", tmp_path / "out"))
    assert "left: 1 without a label (not read)" in classes.summary[0]
    assert len(classes.train.paths) + len(classes.test.paths) == 17


def test_arrays_beside_pictures_have_no_labels_of_their_own(labelled, tmp_path):
    with webdataset.TarWriter(str(tmp_path / "images.tar")) as writer:
        for number, (path, name) in enumerate(rows_of(labelled)):
            content = {"npy": np.zeros(3), "png": path.read_bytes(), "cls": NAMES.index(name)}
            writer.write({"__key__": f"{number}", **content})
    classes = split_classes(probing(tmp_path / "images.tar", tmp_path / "out"))
    assert "18 NumPy beside pictures" in classes.summary[0]
    for label, image in zip(classes.train.labels.tolist(), classes.train.paths, strict=True):
        assert int(Path(str(image)).stem) % 3 == label
