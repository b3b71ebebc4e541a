"""Labels in tables, beside the images of tar archives, and in packs of these: runs on them equal runs on
class folders."""

from __future__ import annotations

import csv
import dataclasses
import signal
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from simmim.cli import main
from simmim.config.images import Reading
from simmim.data.classes import split_classes
from simmim.data.images import read_image
from simmim.data.item import Item
from simmim.errors import UserError
from simmim.evaluation.probe import probe
from simmim.storage import checkpoint
from simmim.training import finetune
from simmim.training.finetune import Finetuner

from .labelled_tables import (
    KINDS,
    NAMES,
    dataset_of,
    rows_of,
    save_list,
    save_table,
    write,
    write_csv,
)
from .labels import finetuning, probing
from .runs import stop_at
from .sources import BANDS, COUNT
from .test_labels import flags
from .test_resume import assert_equal, assert_same_run

pytestmark = pytest.mark.usefixtures("no_cache_of_the_users")


def folders_in_order(labelled: Path, names: list[str]) -> None:
    """Name the class folders so that they are in the order of ``names``."""
    for number, name in enumerate(names):
        if name in NAMES:
            (labelled / name).rename(labelled / f"{number} {name}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_equals_that_on_class_folders(kind, labelled, tmp_path, capsys):
    rows = rows_of(labelled)
    data, settings, names = write(kind, rows, tmp_path / "table")
    trainer = Finetuner(finetuning(data, tmp_path / "one", **settings))
    assert trainer.classes.names == names
    kept = trainer.fit().checkpoint
    assert checkpoint.read(kept, "finetune")["classes"] == names
    accuracy = probe(probing(data, tmp_path / "probe", **settings))[1][0]
    assert "; labels from " in capsys.readouterr().err
    # lists name the images where they lie
    if names[0] in NAMES[1:]:
        folders_in_order(labelled, names)
    other = Finetuner(finetuning(labelled, tmp_path / "other"))
    assert torch.equal(trainer.classes.train.labels, other.classes.train.labels)
    other.fit()
    assert_equal(dict(trainer.model.state_dict()), dict(other.model.state_dict()), "")
    expected = probe(probing(labelled, tmp_path / "probe"))[1][0]
    assert np.array_equal(accuracy.confusion, expected.confusion)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_keeps_labels(kind, labelled, tmp_path):
    data, settings, names = write(kind, rows_of(labelled), tmp_path / "table")
    packs = [tmp_path / "pack", tmp_path / "again"]
    arguments = flags(data=data, out=packs[0], **{**settings, "label_column": KINDS[kind][1]})
    assert main(["pack", *arguments]) == main(["pack", *flags(data=packs[0], out=packs[1])]) == 0
    wanted = split_classes(finetuning(data, tmp_path / "run", **settings))
    for path in packs:
        found = split_classes(finetuning(path, tmp_path / "run"))
        assert found.names == wanted.names == names
        for one, other in ((found.train, wanted.train), (found.test, wanted.test)):
            assert torch.equal(one.labels, other.labels)
            assert all(map(torch.equal, map(pixels_of, one.paths), map(pixels_of, other.paths)))


def pixels_of(image: Path | Item) -> torch.Tensor:
    return torch.as_tensor(read_image(image, Reading())[:, :, :])


def test_a_pack_is_not_gone_on_with_under_other_labels(labelled, tmp_path, capsys):
    rows = rows_of(labelled)
    data, out = write_csv(rows, tmp_path), tmp_path / "pack"
    arguments = ["pack", *flags(data=data, out=out)]
    assert main([*arguments, "--label-column", "Label"]) == 0
    write_csv([(path, "dark" if name == "gray" else name) for path, name in rows], tmp_path)
    for more in ((), ("--label-column", "Label"), ("--label-column", "note")):
        capsys.readouterr()
        assert main([*arguments, *more]) == 2
        assert "was begun with another " in capsys.readouterr().err
    assert main(["pack", *flags(data=labelled, out=tmp_path / "new", label_column="x")]) == 2
    assert "FOLDER/cat/1.png or 1.npy, without --label-column" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "saved dataset", "shards"])
def test_further_settings(kind, labelled, tmp_path):
    rows = rows_of(labelled)
    data, settings, names = write(kind, rows, tmp_path / "a")
    few = split_classes(finetuning(data, tmp_path / "run", per_class=2, **settings))
    assert torch.bincount(few.train.labels).tolist() == [2] * 3
    assert torch.bincount(few.test.labels).tolist() == [2] * 3
    assert not {*map(str, few.train.paths)} & {*map(str, few.test.paths)}
    # the same kind beside it, whose first image is of another class
    val_data, *_ = write(kind, rows[2::-1], tmp_path / "b")
    both = split_classes(finetuning(data, tmp_path / "run", val_data=val_data, **settings))
    assert (both.names, len(both.train.paths), both.test.labels.tolist()) == (names, 18, [0, 1, 2])
    if kind != "shards":
        folders = split_classes(finetuning(data, tmp_path / "run", val_data=labelled, **settings))
        assert folders.names == names
        assert [path.parent.name for path in folders.test.paths[::6]] == names


def test_splits_of_a_dataset(labelled, tmp_path):
    rows = rows_of(labelled)
    parts = datasets.DatasetDict(train=dataset_of(rows[:12]), test=dataset_of(rows[12:]))
    parts.save_to_disk(str(tmp_path / "saved"))
    for name, part in parts.items():
        (tmp_path / f"files/{name}").mkdir(parents=True)
        part.to_parquet(str(tmp_path / f"files/{name}/0.parquet"))
    for folder in ("saved", "files"):
        classes = split_classes(finetuning(tmp_path / folder, tmp_path / "run"))
        assert classes.names == ["light", "dark", "gray"]
        assert torch.bincount(classes.train.labels).tolist() == [4] * 3
        assert torch.bincount(classes.test.labels).tolist() == [2] * 3


@pytest.mark.parametrize("kind", ["csv", "parquet of datasets", "shards"])
def test_a_resumed_run_is_the_same(kind, labelled, tmp_path):
    data, settings, _ = write(kind, rows_of(labelled), tmp_path / "a")
    whole = finetuning(data, tmp_path / "whole", **settings)
    Finetuner(whole).fit()
    stopped = Finetuner(dataclasses.replace(whole, out=tmp_path / "stopped"))
    stop_at(stopped, 2)
    assert stopped.fit().signal == signal.SIGTERM
    # a name for the column that was found before is no other run
    resumed = dataclasses.replace(stopped.config, resume=True, label_column=KINDS[kind][1])
    trainer = Finetuner(resumed)
    assert trainer.update == 2
    trainer.fit()
    assert_same_run(tmp_path / "whole", tmp_path / "stopped", "finetune")


def test_other_labels_are_no_resumption(labelled, tmp_path):
    """Where neither names nor numbers of files tell: an image at the end of a class in the next one."""
    rows = sorted(rows_of(labelled), key=lambda row: row[1])
    data, *_ = write("csv", rows, tmp_path / "a")
    config = finetuning(data, tmp_path / "run", val_data=labelled, epochs=1)
    Finetuner(config).fit()
    assert rows[5][1] == "dark" and rows[6][1] == "gray"
    write_csv([*rows[:5], (rows[5][0], "gray"), *rows[6:]], tmp_path / "a")
    with pytest.raises(UserError, match=r"the images are not those of .* \(other labels\)"):
        Finetuner(dataclasses.replace(config, resume=True))
    write_csv(rows, tmp_path / "a")
    assert Finetuner(dataclasses.replace(config, resume=True)).update == 4


def test_a_run_from_before_labels_were_compared_is_resumed(labelled, tmp_path, monkeypatch):
    config = finetuning(labelled, tmp_path / "run", epochs=1)
    genuine = finetune.data_fingerprint
    monkeypatch.setattr(finetune, "data_fingerprint", lambda *args: genuine(*args[:3]))
    Finetuner(config).fit()
    monkeypatch.undo()
    assert Finetuner(dataclasses.replace(config, resume=True)).update == 3


def test_whole_numbers_are_in_their_order(labelled, tmp_path):
    paths = [path for path, _ in rows_of(labelled)]
    for data in (
        save_list(tmp_path, paths, [10, 9, -1] * 6),
        save_table(tmp_path, path=list(map(str, paths)), label=[10, 9, -1] * 6),
    ):
        assert split_classes(probing(data, tmp_path / "out")).names == ["-1", "9", "10"]


def test_classes_are_those_of_predictions(labelled, tmp_path):
    data, *_ = write("saved dataset", rows_of(labelled), tmp_path / "a")
    tuned = Finetuner(finetuning(data, tmp_path / "run")).fit().checkpoint
    out = tmp_path / "predictions.csv"
    assert main(["predict", *flags(checkpoint=tuned, data=data, out=out, workers=0)]) == 0
    rows = list(csv.DictReader(out.open(newline="")))
    assert len(rows) == 18 and {row["class_3"] for row in rows} <= {"light", "dark", "gray"}


def test_labels_of_arrays_as_the_refusal_advises(tmp_path):
    labels = ["a", "b"] * (COUNT // 2)
    np.save(tmp_path / "images.npy", BANDS)
    settings = {"channels": 4, "pixel_type": "uint16", "mean": (2500.0,) * 4, "std": (1400.0,) * 4}
    with pytest.raises(UserError, match="holds no column of labels"):
        split_classes(finetuning(tmp_path / "images.npy", tmp_path / "run", **settings))
    table = datasets.Dataset.from_dict({"image": list(BANDS), "label": labels})
    table.save_to_disk(str(tmp_path / "saved"))
    for number, (image, label) in enumerate(zip(BANDS, labels, strict=True)):
        (tmp_path / "folders" / label).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "folders" / label / f"{number}.npy", image)
    np.savez(tmp_path / "arrays.npz", images=BANDS, labels=labels)
    models = []
    for name in ("saved", "folders", "arrays.npz"):
        config = finetuning(tmp_path / name, tmp_path / f"run of {name}", **settings)
        trainer = Finetuner(config)
        assert trainer.classes.names == ["a", "b"] and len(trainer.classes.train.paths) == 6
        trainer.fit()
        models.append(dict(trainer.model.state_dict()))
    assert_equal(models[0], models[1], "")
    assert_equal(models[0], models[2], "")


def test_names_that_are_no_utf_8(labelled, tmp_path):
    """As spreadsheets write them: they stay what they are, in packs too."""
    rows = rows_of(labelled)
    data = write_csv([(path, name.replace("a", "\xe4")) for path, name in rows], tmp_path)
    data.write_bytes(data.read_text().encode("latin-1"))
    names = ["d\udce4rk", "gr\udce4y", "light"]
    tuned = Finetuner(finetuning(data, tmp_path / "run", epochs=1)).fit().checkpoint
    assert checkpoint.read(tuned, "finetune")["classes"] == names
    assert main(["pack", *flags(data=data, out=tmp_path / "pack", label_column="Label")]) == 0
    assert split_classes(finetuning(tmp_path / "pack", tmp_path / "out")).names == names


def test_a_dataset_that_was_saved_with_a_format(labelled, tmp_path):
    table = dataset_of(rows_of(labelled)).with_format("numpy", columns=["image"])
    table.save_to_disk(str(tmp_path / "saved"))
    classes = split_classes(finetuning(tmp_path / "saved", tmp_path / "run"))
    assert classes.names == ["light", "dark", "gray"]
