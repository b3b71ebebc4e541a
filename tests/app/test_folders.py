"""Which files of a folder are used, which are left, and that the log says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from simmim.cli import main
from simmim.config.pretrain import PretrainConfig
from simmim.data.classes import split_classes
from simmim.data.splits import split_files
from simmim.errors import UserError

from .conftest import smooth_image
from .labels import finetuning, probing
from .test_cli import FAST

PICTURE = Image.fromarray(smooth_image(3, 24, 24))


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main([str(a) for a in arguments])
    return status, *capsys.readouterr()


def add_other_kinds(folder: Path) -> None:
    """Images that are not read, written by Pillow, and other things."""
    folder.mkdir(exist_ok=True)
    for suffix in ("ppm", "tga", "ico", "icns"):
        PICTURE.save(folder / f"a.{suffix}")
    PICTURE.save(folder / "b.PPM")
    (folder / "a.zarr" / "0").mkdir(parents=True)
    PICTURE.save(folder / "a.zarr" / "0" / "chunk.png")


KINDS = ("2 .ppm", "1 .tga", "1 .ico", "1 .icns", "1 .zarr")


def test_the_log_says_what_is_used_and_left(photographs, tmp_path, capsys):
    add_other_kinds(photographs / "part0")
    np.save(photographs / "part0" / "labels.npy", np.zeros(3))
    PICTURE.save(photographs / "part1" / "a.jpg")
    PICTURE.save(photographs / "part1" / "a.JPEG")
    deep = np.zeros((20, 20, 3), np.uint16)
    for name in ("a.tif", "b.tiff"):
        tifffile.imwrite(photographs / name, deep, photometric="rgb")
    tifffile.imwrite(photographs / "c.tif", deep[..., 0].astype(np.uint8))
    (photographs / "gone.png").symlink_to("nowhere.png")
    arguments = ("pretrain", "--data", photographs, "--out", tmp_path / "run", *FAST)
    status, out, err = run(capsys, *arguments, "--epochs", 2)
    assert status == 0
    start = "13 images: 8 PNG, 3 TIFF, 2 JPEG; left: 2 .ppm (not read), "
    (line,) = (line for line in err.splitlines() if line.startswith(start))
    assert all(kind in line for kind in (*KINDS, "1 NumPy beside pictures"))
    assert f"1 link to nothing ({photographs / 'gone.png'})" in line
    assert f"skipped {photographs / 'a.tif'}: 16 bits a channel" in err
    assert "2 of 13 images could not be read and were skipped: 2 TIFF (16 bits a channel)" in out
    assert run(capsys, *arguments, "--on-bad-image", "error", "--overwrite")[0] == 2


@pytest.mark.parametrize("command", ["pretrain", "probe", "finetune"])
def test_a_folder_of_other_kinds_alone_names_them(command, tmp_path, capsys):
    for name in ("one", "other"):
        add_other_kinds(tmp_path / name)
        (tmp_path / name).rename(tmp_path / f"_{name}")
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / f"_{name}").rename(tmp_path / "data" / name)
    status, _, err = run(capsys, command, "--data", tmp_path / "data", "--encoder", "cnn")
    assert (status, err.count("\n")) == (2, 1)
    assert "no images in" in err and ".ppm" in err and "convert them, for example to PNG" in err
    assert ".zarr" in err and "suffix" not in err


@pytest.fixture
def split(labelled, tmp_path) -> Path:
    """Classes in train/ and val/, of which the second holds two images each."""
    folder = tmp_path / "split"
    for path in sorted(labelled.glob("*/*.png")):
        part = "val" if path.stem in "01" else "train"
        target = folder / part / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


def found(command: str, data: Path, tmp_path: Path, **changes):
    """``(files to train on, files to validate on, summary)`` of a command."""
    if command == "pretrain":
        files = split_files(PretrainConfig(data=data, out=tmp_path / "run", **changes))
        return files.train, files.validation, " ".join(files.summary)
    config = {"probe": probing, "finetune": finetuning}[command](data, tmp_path / "run", **changes)
    classes = split_classes(config)
    assert classes.names == ["dark", "gray", "light"]
    return classes.train.paths, classes.test.paths, " ".join(classes.summary)


COMMANDS = pytest.mark.parametrize("command", ["pretrain", "probe", "finetune"])


@COMMANDS
@pytest.mark.parametrize(
    "names", [("train", "val"), ("Train", "validation"), ("training", "test"), ("train", "Valid")]
)
def test_split_folders_are_used_as_such(command, names, split, tmp_path):
    for path, name in zip([split / "train", split / "val"], names, strict=True):
        path.rename(split / f"{name}.tmp")
        (split / f"{name}.tmp").rename(split / name)
    train, held_out, summary = found(command, split, tmp_path)
    assert {path.relative_to(split).parts[0] for path in train} == {names[0]}
    assert {path.relative_to(split).parts[0] for path in held_out} == {names[1]}
    assert (len(train), len(held_out)) == (12, 6)
    assert f"training on {names[0]}/, validating on {split / names[1]}" in summary
    # as with both flags
    named = found(command, split / names[0], tmp_path, val_data=split / names[1])
    assert (train, held_out) == named[:2]


@COMMANDS
def test_what_lies_beside_the_parts_is_named(command, split, tmp_path):
    for name in ("test", "extra"):
        shutil.copytree(split / "val", split / name)
    train, held_out, summary = found(command, split, tmp_path)
    assert (len(train), len(held_out)) == (12, 6)
    assert {path.relative_to(split).parts[0] for path in held_out} == {"val"}
    assert f"not used: {split / 'extra'}, {split / 'test'}" in summary
    _, held_out, summary = found(command, split, tmp_path, val_data=split / "test")
    assert {path.relative_to(split).parts[0] for path in held_out} == {"test"}
    assert f"{split / 'val'}" in summary


@COMMANDS
def test_parts_are_never_classes_nor_trained_on(command, split, labelled, tmp_path):
    shutil.copytree(split / "val", labelled / "Test")
    with pytest.raises(UserError, match=r"holds Test/ but no train/: .*--data FOLDER --val-data"):
        found(command, labelled, tmp_path)
    # the flags that the message names work
    train, held_out, _ = found(command, labelled, tmp_path, val_data=labelled / "Test")
    assert (len(train), len(held_out)) == (18, 6)
    (split / "Training").mkdir()
    with pytest.raises(UserError, match="which mean the same"):
        found(command, split, tmp_path)
    with pytest.raises(UserError, match=r"name the folder to validate on, .*val"):
        (split / "Training").rmdir()
        found(command, labelled, tmp_path, val_data=split)


def test_further_ways_of_splitting(split, tmp_path):
    with pytest.raises(UserError, match=r"leave out --val-count, or give --data .*train"):
        found("pretrain", split, tmp_path, val_count=2)
    shutil.rmtree(split / "val")
    assert len(found("pretrain", split, tmp_path, val_count=2)[0]) == 10
    for command in ("probe", "finetune"):
        assert sum(map(len, found(command, split, tmp_path)[:2])) == 12
    # classes above parts
    inside = tmp_path / "inside"
    for path in split.glob("train/*/*"):
        for part in ("train", "val"):
            target = inside / path.parent.name / part / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    with pytest.raises(UserError, match=r"holds train/ and val/: put the parts above the classes"):
        found("probe", inside, tmp_path)


@pytest.mark.slow
def test_outputs_are_no_inputs_of_the_next_run(labelled, capsys):
    """Every command writes into the folder of the images, and the next ones do not see it."""
    small = ("--workers", 0, "--device", "cpu")
    tiny = ("--img-size", 32, "--encoder", "cnn", *small)
    fast = (
        "--epochs",
        1,
        "--drop-path",
        0,
        "--batch-size",
        4,
        "--warmup-epochs",
        0,
        "--precision",
        "32-true",
    )
    commands = {
        "pretrain": (*FAST, "--epochs", 1, "--val-count", 2, "--picture", 1),
        "finetune": (*tiny, *fast),
        "probe": tiny,
    }
    before = sorted(labelled.rglob("*.png"))
    for _ in range(2):
        for command, arguments in commands.items():
            out = labelled / "results" / command
            places = ("--data", labelled, "--out", out, "--overwrite")
            status, _, err = run(capsys, command, *places, *arguments)
            assert status == 0, err
            assert f"{len(before)} images: 18 PNG" in err
    assert len(list(labelled.rglob("*.png"))) > len(before)
    assert f"the run in {labelled / 'results' / 'finetune'}" in err and "the run in" in err
    checkpoint = labelled / "results" / "pretrain" / "checkpoints" / "last.pt"
    arguments = ("reconstruct", "--checkpoint", checkpoint, "--data", labelled, "--overwrite")
    for place in ("dark/new.png", "new.JPG", "dark/0.png"):
        status, _, err = run(capsys, *arguments, "--out", labelled / place)
        assert status == 2 and "lies among the images" in err
    for place in ("new.pdf", "results/pretrain/new.png", "../new.png"):
        assert run(capsys, *arguments, "--out", labelled / place)[0] == 0


@COMMANDS
def test_results_among_the_images_are_refused(command, labelled, capsys):
    arguments = ("--data", labelled, "--out", labelled / "." / "dark" / "..")
    status, _, err = run(capsys, command, *arguments, "--encoder", "cnn")
    assert (status, err.count("\n")) == (2, 1) and "choose another --out" in err


def test_images_outside_the_class_folders_are_counted(labelled, tmp_path):
    PICTURE.save(labelled / "loose.png")
    _, _, summary = found("probe", labelled, tmp_path)
    assert "1 image outside the class folders" in summary


def test_settings_of_the_validation_go_with_parts_that_are_there(photographs, tmp_path, capsys):
    """``--val-data`` and ``--val-count`` were asked for where train/ lies beside val/."""
    options = {"--picture": 1, "--val-crops": 2, "--val-every": 2}
    given = [part for option in options.items() for part in option]
    arguments = ("pretrain", "--data", photographs, "--out", tmp_path / "run", *FAST)
    for option in options.items():
        status, _, errors = run(capsys, *arguments, *option)
        assert (status, errors.splitlines()[-1]) == (
            2,
            f"simmim: {option[0]} needs validation images: give --val-data or --val-count",
        )
        status, _, errors = run(capsys, "pretrain", "--data", tmp_path / "photo", *option)
        assert status == 2 and "no such file or folder" in errors.splitlines()[-1]
    arguments = (*arguments, *given)
    (photographs / "part0").rename(photographs / "train")
    (photographs / "part1").rename(photographs / "val")
    status, _, errors = run(capsys, *arguments, "--epochs", 3)
    assert status == 0
    assert [line.split()[1] for line in errors.splitlines() if "validation loss" in line] == [
        *("0/3", "2/3", "3/3")
    ]
    assert "no picture is drawn" not in errors
    assert (tmp_path / "run" / "reconstruction.png").exists()
