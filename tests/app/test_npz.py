"""npz files of many images, laid out as MedMNIST (``train_images``, ``train_labels``, ...) and Keras
(``x_train``, ``y_train``, ...) do, and of one image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simmim.cli import main
from simmim.config.images import Reading, SourceConfig
from simmim.data.classes import split_classes
from simmim.data.images import read_image
from simmim.data.labels import read_labels
from simmim.data.sources import find_source
from simmim.data.splits import split_files
from simmim.errors import UserError

from .labels import finetuning
from .sources import settings
from .test_labels import flags

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (12, 28, 28), np.uint8)
COLOUR = RNG.integers(0, 256, (12, 28, 28, 3), np.uint8)
LABELS = np.arange(12, dtype=np.uint8)[:, None] % 3
PARTS = {"train": slice(0, 6), "val": slice(6, 9), "test": slice(9, 12)}


def write_medmnist(path: Path, images=COLOUR, labels=LABELS, parts=PARTS, **more) -> Path:
    arrays = {f"{part}_images": images[rows] for part, rows in parts.items()}
    arrays |= {f"{part}_labels": labels[rows] for part, rows in parts.items()}
    np.savez_compressed(path, **arrays, **more)
    return path


def read(paths: list) -> np.ndarray:
    return np.stack([read_image(path, Reading())[:, :, :].numpy() for path in paths])


@pytest.mark.parametrize("images", [COLOUR, GRAY], ids=["colour", "gray"])
def test_parts_and_labels_of_medmnist(images, tmp_path):
    data = write_medmnist(tmp_path / "a.npz", images, train_weights=np.ones((6, 2)))
    files = split_files(settings("folder", tmp_path / "b", data=data, out=tmp_path / "run"))
    assert (
        files.summary[0]
        == f"{data} is split: training on train_images, validating on {data}/val_images"
    )
    assert files.summary[1] == "arrays that are not used: test_images"
    expected = COLOUR.transpose(0, 3, 1, 2) if images is COLOUR else GRAY[:, None].repeat(3, 1)
    assert np.array_equal(read(files.train), expected[:6])
    assert np.array_equal(read(files.validation), expected[6:9])
    classes = split_classes(finetuning(data, tmp_path / "run"))
    assert classes.names == ["0", "1", "2"]
    assert [image.number for image in classes.train.paths] == [0, 3, 1, 4, 2, 5]
    chosen = finetuning(data, tmp_path / "run", val_data=Path(f"{data}/test_images"))
    assert str(split_classes(chosen).test.paths[0]) == f"{data}/test_images[0]"


def test_parts_and_labels_of_keras(tmp_path):
    arrays = {
        "x_train": GRAY[:6],
        "y_train": LABELS[:6, 0],
        "x_test": GRAY[6:],
        "y_test": LABELS[6:, 0],
    }
    np.savez(tmp_path / "mnist.npz", **arrays)
    config = finetuning(tmp_path / "mnist.npz", tmp_path / "run", label_column="y")
    classes = split_classes(config)
    assert classes.names == ["0", "1", "2"]
    assert (len(classes.train.paths), len(classes.test.paths)) == (6, 6)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_what_was_written(save, order, tmp_path):
    """Under names with slashes, too; read in parts where they are not compressed."""
    arrays = {"a/b": np.asarray(COLOUR, order=order), "c": np.asarray(COLOUR[::-1], order=order)}
    save(tmp_path / "a.npz", **arrays)
    for name, array in arrays.items():
        listing = find_source(tmp_path / "a.npz" / name, SourceConfig())
        assert np.array_equal(read(listing.paths), array.transpose(0, 3, 1, 2))
        mapped = isinstance(listing.paths[0].source.read(0), np.memmap)
        assert mapped == (save is np.savez)


@pytest.mark.parametrize(
    "arrays", [{"a": GRAY[0]}, {"a": GRAY[:3]}, {"image": COLOUR[0], "mask": GRAY[0]}]
)
def test_an_image_in_an_npz_file_is_a_source(arrays, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    assert find_source(tmp_path / "a.npz", SourceConfig()).paths == [tmp_path / "a.npz"]


def test_masks_beside_images_are_no_images(tmp_path):
    data = write_medmnist(tmp_path / "a.npz", train_masks=GRAY[:6], val_masks=GRAY[6:9])
    files = split_files(settings("folder", tmp_path / "b", data=data, out=tmp_path / "run"))
    assert str(files.train[0]) == f"{data}/train_images[0]"


def test_an_array_named_by_column_is_taken_alone(tmp_path):
    data = write_medmnist(tmp_path / "a.npz")
    config = settings(
        "folder", tmp_path / "b", data=data, out=tmp_path / "run", column="test_images"
    )
    files = split_files(config)
    assert np.array_equal(read(files.train), COLOUR[9:].transpose(0, 3, 1, 2))
    assert files.validation == []


@pytest.mark.parametrize("labels", [["b", "a", "", "a"], [b"b", b"a", b"", b"a"]])
def test_labels_of_text(labels, tmp_path):
    np.savez(tmp_path / "a.npz", images=COLOUR[:4], species=np.array(labels), boxes=np.ones((4, 4)))
    config = finetuning(tmp_path / "a.npz", tmp_path / "run", label_column="species")
    listing = find_source(tmp_path / "a.npz", config)
    assert read_labels(listing, tmp_path / "a.npz", config) == (["b", "a", "", "a"], ["a", "b"])


def test_a_folder_of_files_of_many_images_is_explained(tmp_path, capsys):
    write_medmnist(tmp_path / "a.npz")
    for more in ((), ("--column", "train_images")):
        arguments = flags(data=tmp_path, out=tmp_path / "stats.json")
        assert main(["stats", *arguments, *more]) == 2
        error = capsys.readouterr().err
        assert "is read if --data names it, not its folder" in error, error


def test_labels_of_many_classes_each_are_refused(tmp_path):
    data = write_medmnist(tmp_path / "a.npz", labels=np.ones((12, 14), np.uint8))
    with pytest.raises(UserError, match=r"a\.npz/train_images holds no column of labels"):
        split_classes(finetuning(data, tmp_path / "run"))


MISTAKES = {
    "several arrays": ("a.npz", (), "a.npz holds the arrays train_images, val_images,"),
    "no such array": ("a.npz/other", (), "a.npz has no array other: it holds train_images,"),
    "labels": ("a.npz/val_labels", (), "a.npz/val_labels is an array of 2 dimensions"),
    "column and array": ("a.npz/val_images", ("--column", "c"), "--column c is for tables"),
    "cut off": ("cut.npz/val_images", (), "cut.npz cannot be opened: File is not a zip file"),
    "damaged": ("damaged.npz/val_images", (), "damaged.npz cannot be opened: Bad CRC-32"),
    "objects": ("objects.npz/a", (), "objects.npz cannot be opened: Object arrays cannot be loaded"),
    "empty": ("empty.npz/a", (), "no images in"),
    "one image": ("one.npz/a", (), "one.npz/a is an array of 28 x 28 x 3: one image (H, W, C)"),
    "nowhere": ("b.npz/val_images", (), "no such file or folder: "),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_cost_one_line(name, tmp_path, capsys):
    content = write_medmnist(tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:-100])
    # compressed ones are held to their checksums as they are read
    np.savez_compressed(tmp_path / "damaged.npz", val_images=COLOUR)
    damaged = bytearray((tmp_path / "damaged.npz").read_bytes())
    damaged[900] ^= 255
    (tmp_path / "damaged.npz").write_bytes(damaged)
    np.savez(tmp_path / "objects.npz", a=np.array([[[{}]]], dtype=object))
    np.savez(tmp_path / "empty.npz", a=COLOUR[:0])
    np.savez(tmp_path / "one.npz", a=COLOUR[0])
    source, more, expected = MISTAKES[name]
    arguments = flags(data=tmp_path / source, out=tmp_path / "stats.json")
    assert main(["stats", *arguments, *more]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and expected in error, error


def test_a_file_that_is_read_is_not_replaced(tmp_path, capsys):
    data = write_medmnist(tmp_path / "a.npz")
    arguments = flags(data=f"{data}/val_images", out=data)
    assert main(["stats", *arguments, "--overwrite"]) == 2
    assert "is the file that is read" in capsys.readouterr().err
