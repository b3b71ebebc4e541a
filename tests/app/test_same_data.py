"""A resumed run meets the images that it began with, or is refused; images that are gone end a run."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim.cli import main
from simmim.config.images import Reading
from simmim.config.pretrain import PretrainConfig
from simmim.data.crops import LOST_IN_A_ROW
from simmim.data.fingerprint import data_fingerprint, difference
from simmim.data.images import BadImageError, LostImageError, read_image
from simmim.errors import UserError
from simmim.evaluation.probe import probe
from simmim.training.finetune import Finetuner
from simmim.training.pretrain import Trainer

from .conftest import TINY, smooth_image
from .labels import finetuning, probing
from .pictures import find_images
from .test_cli import FAST


def fingerprint(folder: Path, classes=()):
    return data_fingerprint(find_images(folder), folder, classes)


def test_what_a_fingerprint_sees(photographs, tmp_path, monkeypatch):
    first = fingerprint(photographs, ["a", "b"])
    assert difference(first, first) == ""
    # elsewhere, and named otherwise
    moved = tmp_path / "elsewhere" / "data"
    shutil.copytree(photographs, moved)
    monkeypatch.chdir(moved)
    assert fingerprint(Path("."), ["a", "b"]) == fingerprint(moved, ["a", "b"]) == first
    monkeypatch.chdir(tmp_path)
    assert difference(fingerprint(moved, ["b", "a"]), first) == "other class names"
    # the same bare names in the same order
    (moved / "part0").rename(moved / "part00")
    assert difference(fingerprint(moved, ["a", "b"]), first) == "other file names or folders"
    (moved / "part00").rename(moved / "part0")
    with (moved / "part1" / "1.png").open("ab") as file:
        file.write(b"more")
    assert difference(fingerprint(moved, ["a", "b"]), first) == "files of other sizes"
    (moved / "part1" / "1.png").unlink()
    assert difference(fingerprint(moved), first) == "8 images then, 7 now"


def test_names_do_not_run_into_each_other(tmp_path):
    for number, names in enumerate((("ab", "c"), ("a", "bc"))):
        for name in names:
            path = tmp_path / str(number) / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"")
    one, other = (fingerprint(tmp_path / str(n), ["a", "bc"]) for n in range(2))
    assert one["paths"] != other["paths"]
    assert fingerprint(tmp_path / "0", ["ab", "c"])["classes"] != one["classes"]


def test_renamed_classes_are_no_resumption(labelled, tmp_path):
    config = finetuning(labelled, tmp_path / "run", epochs=1)
    Finetuner(config).fit()
    # sorted the other way round: all labels change, and no file name does
    (labelled / "dark").rename(labelled / "zero")
    with pytest.raises(UserError, match=r"the images are not those of .*other class names"):
        Finetuner(dataclasses.replace(config, resume=True))
    (labelled / "zero").rename(labelled / "dark")
    assert Finetuner(dataclasses.replace(config, resume=True)).update == 3


# images that cannot be read


def break_files(paths) -> None:
    for path in paths:
        path.write_bytes(b"no image")


def test_unreadable_images_are_in_no_accuracy_of_fine_tuning(labelled, tmp_path, capsys):
    test = tmp_path / "test"
    shutil.copytree(labelled, test)
    break_files(sorted(test.glob("dark/*"))[:5])
    config = finetuning(labelled, tmp_path / "run", val_data=test, epochs=1)
    counters = Finetuner(config).fit().counters
    assert counters.confusion.sum(1).tolist() == [1, 6, 6]
    assert counters.unread == 5
    right = int(counters.confusion.diagonal().sum())
    assert counters.accuracy == right / 13
    assert "5 images to test on could not be read and are not counted" in capsys.readouterr().err
    break_files(test.glob("*/*"))
    with pytest.raises(UserError, match="none of the 18 images to test on can be read"):
        Finetuner(dataclasses.replace(config, out=tmp_path / "none")).fit()


def test_accuracies_are_those_without_the_unreadable_images(labelled, tmp_path, capsys):
    test = tmp_path / "test"
    shutil.copytree(labelled, test)
    break_files(sorted(test.glob("dark/*"))[:3])
    break_files(sorted(labelled.glob("gray/*"))[:2])
    _, (some,) = probe(probing(labelled, tmp_path / "a", val_data=test, batch_size=4))
    assert (some.train, some.test) == (16, 15)
    for folder in (test, labelled):
        for path in folder.glob("*/*"):
            if path.read_bytes() == b"no image":
                path.unlink()
    _, (readable,) = probe(probing(labelled, tmp_path / "b", val_data=test, batch_size=4))
    for name in ("linear", "neighbours", "train", "test"):
        assert getattr(some, name) == getattr(readable, name)
    assert np.array_equal(some.confusion, readable.confusion)
    break_files(test.glob("*/*"))
    with pytest.raises(UserError, match=r"none of the 15 images can be read: 15 PNG \(not an"):
        probe(probing(labelled, tmp_path / "c", val_data=test))


def test_the_probe_counts_beside_its_figures(labelled, tmp_path, capsys):
    break_files(sorted(labelled.glob("gray/*"))[:2])
    arguments = ("--data", labelled, "--val-data", labelled, "--out", tmp_path / "out")
    more = ("--encoder", "cnn", "--img-size", 16, "--workers", 0, "--device", "cpu")
    assert main([str(a) for a in ("probe", *arguments, *more)]) == 0
    words = "3 classes, 16 (2 more could not be read) images to train on, 16 (2 more could not"
    assert words in capsys.readouterr().out


def test_a_validation_loss_is_that_of_the_readable_images(photographs, tmp_path):
    held_out = tmp_path / "held out"
    shutil.copytree(photographs, held_out)
    config = PretrainConfig(
        data=photographs, val_data=held_out, out=tmp_path / "a", batch_size=4, epochs=1, **TINY
    )
    # the last ones: the masks of the others stay what they are
    last = find_images(held_out)[-3:]
    break_files(last)
    some = Trainer(config).fit().counters
    for path in last:
        path.unlink()
    readable = Trainer(dataclasses.replace(config, out=tmp_path / "b")).fit().counters
    assert some.first_validation == pytest.approx(readable.first_validation, rel=1e-6)
    assert some.baseline == pytest.approx(readable.baseline, rel=1e-6)
    assert len(some.bad) == 3 and not readable.bad


# images that are gone


@pytest.fixture
def many(tmp_path) -> Path:
    folder = tmp_path / "disk" / "many"
    folder.mkdir(parents=True)
    for number in range(60):
        Image.fromarray(smooth_image(number % 8, 34, 36)).save(folder / f"{number:02d}.png")
    return folder


@pytest.mark.parametrize("workers", [0, 1, "auto"])
@pytest.mark.parametrize("how", ["unmounted", "emptied"])
def test_a_lost_disk_ends_the_run(how, workers, many, tmp_path, capsys, monkeypatch):
    tried = []

    def read(path, channels):
        tried.append(path)
        if len(tried) == 20:
            many.parent.rename(tmp_path / "lost")
            if how == "emptied":
                many.mkdir(parents=True)
        return read_image(path, channels)

    monkeypatch.setattr("simmim.data.crops.read_image", read)
    arguments = ("pretrain", "--data", many, "--out", tmp_path / "run", *FAST, "--epochs", 9)
    status = main([str(a) for a in (*arguments, "--batch-size", 8, "--workers", workers)])
    last = capsys.readouterr().err.splitlines()[-1]
    assert status == 2
    assert last.startswith(
        f"simmim: {LOST_IN_A_ROW} images in a row cannot be opened, the last is "
    )
    assert "No such file or directory; is the disk or the network drive still connected?" in last
    if not workers:
        assert len(tried) <= 20 + LOST_IN_A_ROW


@pytest.mark.parametrize("command", ["probe", "finetune", "pretrain"])
def test_lost_test_images(command, labelled, tmp_path, monkeypatch, capsys):
    test = tmp_path / "test"
    shutil.copytree(labelled, test)

    def read(path, channels):
        if path.is_relative_to(test) and test.exists():
            shutil.rmtree(test)
        return read_image(path, channels)

    monkeypatch.setattr("simmim.data.crops.read_image", read)
    arguments = ["--data", labelled, "--val-data", test, "--out", tmp_path / "run"]
    arguments += [
        *FAST[:2],
        "--img-size",
        32,
        *FAST[FAST.index("--encoder-args") :],
        "--workers",
        0,
    ]
    if command != "probe":
        arguments += ["--batch-size", 4, "--precision", "32-true", "--device", "cpu"]
    if command == "pretrain":
        arguments += ["--mask-unit", 8]
    status = main([str(a) for a in (command, *arguments)])
    last = capsys.readouterr().err.splitlines()[-1]
    assert (status, "images in a row cannot be opened" in last) == (2, True), last


def test_a_few_lost_files_are_passed_over(many, tmp_path):
    config = PretrainConfig(data=many, out=tmp_path / "run", batch_size=8, epochs=1, **TINY)
    trainer = Trainer(config)
    for path in find_images(many)[10 : 10 + LOST_IN_A_ROW - 1]:
        path.unlink()
    summary = trainer.fit()
    assert summary.updates == 7
    assert set(summary.counters.bad.values()) == {"No such file or directory"}


@pytest.mark.parametrize(
    ("number", "stat_fails", "kind"),
    [
        (errno.EACCES, False, BadImageError),
        (errno.EACCES, True, LostImageError),
        (errno.EINVAL, False, BadImageError),
        *((n, False, LostImageError) for n in (errno.EIO, errno.ESTALE, errno.EMFILE)),
    ],
)
def test_what_the_system_says(number, stat_fails, kind, photographs, monkeypatch):
    """A file's own permissions are its own matter; a ticket that has run out is that of the disk."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", fail)
    if stat_fails:
        monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(BadImageError) as caught:
        read_image(photographs / "part0" / "0.png", Reading(3))
    assert type(caught.value) is kind
    assert str(caught.value) == os.strerror(number)


def test_refused_files_are_opened_once(many, tmp_path, monkeypatch):
    """A long row of files that are not read costs each sample behind it no time."""
    opened = []
    monkeypatch.setattr(
        "simmim.data.crops.read_image", lambda p, c: opened.append(p) or read_image(p, c)
    )
    bad = find_images(many)[:40]
    break_files(bad)
    config = PretrainConfig(
        data=many, out=tmp_path / "run", batch_size=30, epochs=1, keep_rest=True, **TINY
    )
    summary = Trainer(config).fit()
    assert len(summary.counters.bad) == 40
    assert sum(path in bad for path in opened) == 40


def test_parts_that_are_not_used_are_named_once(many, tmp_path, capsys):
    first, second = (Image.fromarray(smooth_image(n, 40, 40)) for n in (1, 2))
    first.save(many / "00.jpg", format="MPO", save_all=True, append_images=[second])
    arguments = ("pretrain", "--data", many, "--out", tmp_path / "run", *FAST, "--epochs", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main([str(a) for a in arguments]) == 0
    out, err = capsys.readouterr()
    words = "the first of 2 pictures in the file is used"
    assert err.count(f"{many / '00.jpg'}: {words}") == 1
    assert f"used in part: 1 JPEG ({words})" in out


def test_of_many_files_used_in_part_two_are_named(many, tmp_path, capsys):
    first, second = (Image.fromarray(smooth_image(n, 40, 40)) for n in (1, 2))
    for n in range(5):
        path = many / f"{n:02}.jpg"
        first.save(path, format="MPO", save_all=True, append_images=[second])
    words = "the first of 2 pictures in the file is used"
    arguments = ("pretrain", "--data", many, "--out", tmp_path / "run", *FAST, "--epochs", 2)
    assert main([str(a) for a in arguments]) == 0
    out, err = capsys.readouterr()
    assert err.count(words) == 2 and err.count("more files like these are counted at the end") == 1
    assert f"used in part: 5 JPEG ({words})" in out
    assert main(["stats", "--data", str(many), "--out", str(tmp_path / "stats.json")]) == 0
    assert f"{many / '00.jpg'} and 4 more: {words}\n" in capsys.readouterr().err
