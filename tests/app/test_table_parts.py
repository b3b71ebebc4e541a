"""A column of a table that says which rows are to train on: its words are used as train/ and val/ are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import datasets
import pandas
import pytest

from simmim.cli import main
from simmim.config.pretrain import PretrainConfig
from simmim.data.classes import split_classes
from simmim.data.splits import split_files
from simmim.errors import UserError

from .labelled_tables import rows_of
from .labels import finetuning, probing

pytestmark = pytest.mark.usefixtures("no_cache_of_the_users")
WORDS = ["train", "Train", "training", "val", "test", ""]


@pytest.fixture
def table(labelled) -> pandas.DataFrame:
    rows = rows_of(labelled)
    return pandas.DataFrame(
        {
            "path": [str(path) for path, _ in rows],
            "label": [name for _, name in rows],
            # three classes take turns
            "split": [WORDS[number // 3 % 6] for number in range(len(rows))],
        }
    )


def write(table: pandas.DataFrame, at: Path, kind: str) -> Path:
    path = at / f"list{kind}"
    if kind == ".csv":
        table.to_csv(path, index=False)
    elif kind == ".parquet":
        table.to_parquet(path)
    else:
        contents = [Path(path).read_bytes() for path in table["path"]]
        columns = {"image": contents, "label": list(table["label"]), "split": list(table["split"])}
        datasets.Dataset.from_dict(columns).save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", [".csv", ".parquet", ""])
def test_rows_are_used_as_folders_are(kind, table, tmp_path):
    data = write(table, tmp_path, kind)
    parts = {
        "train": [n for n, word in enumerate(table["split"]) if word.lower().startswith("train")],
        "val": [n for n, word in enumerate(table["split"]) if word == "val"],
    }
    assert parts["val"] and len(parts["train"]) + len(parts["val"]) < len(table)

    def numbers(images) -> set[int]:
        places = {path: number for number, path in enumerate(table["path"])}
        return {places[str(i)] if isinstance(i, Path) else i.number for i in images}

    for config in (finetuning(data, tmp_path / "out"), probing(data, tmp_path / "out")):
        classes = split_classes(config)
        for part, found in (("train", classes.train), ("val", classes.test)):
            assert numbers(found.paths) == set(parts[part])
            for image, label in zip(found.paths, found.labels.tolist(), strict=True):
                assert table["label"][numbers([image]).pop()] == classes.names[label]
        assert "; the rows of train in the column split (" in classes.summary[0]
    files = split_files(PretrainConfig(data=data, out=tmp_path / "out"))
    assert (numbers(files.train), numbers(files.validation)) == tuple(map(set, parts.values()))
    assert "; the rows of validation in the column split (" in files.summary[-1]


def test_rows_to_test_on_where_none_are_to_validate_on(table, tmp_path):
    data = write(table[~table["split"].isin(["val", ""])], tmp_path, ".csv")
    held_out = split_files(PretrainConfig(data=data, out=tmp_path / "out")).validation
    assert {*map(str, held_out)} == {*table["path"][table["split"] == "test"]}


def test_other_images_to_validate_on(labelled, table, tmp_path):
    data = write(table, tmp_path, ".csv")
    config = PretrainConfig(data=data, out=tmp_path / "out", val_data=labelled)
    files = split_files(config)
    assert len(files.validation) == len(table) > len(files.train)
    with pytest.raises(UserError, match="says in its column split which rows are for what"):
        split_files(dataclasses.replace(config, data=labelled, val_data=data))
    with pytest.raises(UserError, match="a column of it says which to validate on"):
        split_files(dataclasses.replace(config, val_data=None, val_count=2))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [("val", "dev", "has 'dev' in its column split"), ("[Tt]rain.*", "val", "none is train")],
)
def test_words_that_say_no_part(before, after, said, table, tmp_path):
    table["split"] = table["split"].str.replace(before, after, regex=True)
    with pytest.raises(UserError, match=said):
        split_classes(finetuning(write(table, tmp_path, ".csv"), tmp_path / "out"))


@pytest.mark.parametrize("words", [["train"], ["north", "south"], [1, 2], [0.5, 1.5]])
@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_a_column_that_says_nothing_of_parts(words, kind, table, tmp_path):
    table["split"] = [words[n % len(words)] for n in range(len(table))]
    files = split_files(PretrainConfig(data=write(table, tmp_path, kind), out=tmp_path / "out"))
    assert len(files.train) == len(table) and not files.validation


def test_commands_for_all_images(table, tmp_path, capsys):
    data = write(table, tmp_path, ".csv")
    assert main(["stats", "--data", str(data), "--out", str(tmp_path / "stats.json")]) == 0
    assert "; all rows, whatever the column split says (" in capsys.readouterr().err
    assert main(["pack", "--data", str(data), "--out", str(tmp_path / "pack")]) == 2
    assert "write those that are wanted here into a table" in capsys.readouterr().err


def test_rows_of_one_image_stay_in_one_part(table, tmp_path):
    """As tables with a row for each finding have them: none is trained on and tested on, and the test counts
    it once."""
    found = table[["path", "label"]]
    data = write(found.loc[found.index.repeat([1, 2, 3] * 6)], tmp_path, ".csv")
    classes = split_classes(probing(data, tmp_path / "out", val_share=0.5))
    files = split_files(PretrainConfig(data=data, out=tmp_path / "out", val_count=9))
    for train, held in ((classes.train.paths, classes.test.paths), (files.train, files.validation)):
        assert len(held) == len(set(held)) == 9 and len(train) > len(set(train)) == 9
        assert not set(train) & set(held)
    for summary in (classes.summary, files.summary):
        assert summary[-1].startswith("18 rows name an image again: ")
    pack = tmp_path / "pack"
    given = ("--data", data, "--label-column", "label", "--out", pack)
    assert main(["pack", *map(str, given)]) == 0
    packed = split_classes(probing(pack, tmp_path / "out", val_share=0.5))
    for part, of_pack in ((classes.train, packed.train), (classes.test, packed.test)):
        assert [i.name for i in part.paths] == [Path(str(i)).name for i in of_pack.paths]
    labels = dict(zip(table["path"], table["label"], strict=True))
    for part in (classes.train, classes.test):
        for image, label in zip(part.paths, part.labels.tolist(), strict=True):
            assert labels[str(image)] == classes.names[label]


def test_images_in_both_parts_are_counted(table, tmp_path):
    held = table["split"] == "val"
    data = write(pandas.concat([table, table[held].assign(split="train")]), tmp_path, ".csv")
    classes = split_classes(probing(data, tmp_path / "out"))
    files = split_files(PretrainConfig(data=data, out=tmp_path / "out"))
    for summary in (classes.summary, files.summary):
        assert summary[-1].startswith(f"{held.sum()} images to train on are held out, too")
