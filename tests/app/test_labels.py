"""Labelled folders and the commands that need them: the split, mistakes, what is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from simmim.cli import main
from simmim.data.classes import split_classes

from .labels import finetuning
from .sources import write, write_tiffs


def test_each_class_is_split(labelled, tmp_path):
    classes = split_classes(finetuning(labelled, tmp_path))
    assert classes.names == ["dark", "gray", "light"]
    for part, count in ((classes.train, 4), (classes.test, 2)):
        assert [path.parent.name for path in part.paths] == [
            classes.names[label] for label in part.labels
        ]
        assert torch.bincount(part.labels).tolist() == [count] * 3
    assert not set(classes.train.paths) & set(classes.test.paths)
    few = [split_classes(finetuning(labelled, tmp_path, per_class=2, seed=s)) for s in range(5)]
    assert all(torch.bincount(c.train.labels).tolist() == [2] * 3 for c in few)
    assert all(c.test.paths == few[0].test.paths for c in few)
    assert len({tuple(c.train.paths) for c in few}) > 1
    whole = split_classes(finetuning(labelled, tmp_path, val_data=labelled))
    assert len(whole.train.paths) == len(whole.test.paths) == 18


@pytest.mark.parametrize("above", ["..", "."], ids=["inside a class", "as a class"])
def test_links_to_the_whole_folder_are_not_followed(labelled, tmp_path, above):
    """A class's images would be those of all classes."""
    place = labelled / "dark" if above == ".." else labelled
    (place / "everything").symlink_to(above)
    classes = split_classes(finetuning(labelled, tmp_path))
    assert classes.names == ["dark", "gray", "light"]
    assert torch.bincount(classes.train.labels).tolist() == [4] * 3


def test_a_pack_among_the_classes_is_none(labelled, tmp_path, capsys):
    assert main(["pack", "--data", str(labelled), "--out", str(labelled / "pack")]) == 0
    classes = split_classes(finetuning(labelled, tmp_path))
    assert classes.names == ["dark", "gray", "light"]
    assert "left: 1 pack (not read)" in classes.summary[0]


def test_packs_of_lists_in_any_order(labelled, tmp_path):
    """Lists are shuffled; each image goes on having the class of its folder, in both parts."""
    images = [path.relative_to(labelled) for path in sorted(labelled.rglob("*.png"))]
    for name, part in (("train", images[::-2]), ("test", [*images[8::2], *images[:8:2]])):
        (labelled / f"{name}.txt").write_text("\n".join(map(str, part)))
        start = ["pack", "--data", labelled / f"{name}.txt", "--out", tmp_path / name]
        assert main(list(map(str, start))) == 0
    classes = split_classes(
        finetuning(tmp_path / "train", tmp_path / "run", val_data=tmp_path / "test")
    )
    assert classes.names == ["dark", "gray", "light"]
    for part in (classes.train, classes.test):
        assert len(part.paths) == 9
        for image, label in zip(part.paths, part.labels.tolist(), strict=True):
            assert str(image).split("/")[-2] == classes.names[label]


def test_a_pack_of_a_pack_keeps_the_classes(labelled, tmp_path, capsys):
    """An image outside the class folders has none, and is counted."""
    shutil.copy(labelled / "dark/0.png", labelled / "stray.png")
    for data, name in ((labelled, "large"), (tmp_path / "large", "small")):
        pack = {
            "data": data,
            "out": tmp_path / name,
            "shortest_side": 36 if data == labelled else 20,
        }
        assert main(["pack", *flags(**pack)]) == 0
    for data in (labelled, tmp_path / "large", tmp_path / "small"):
        classes = split_classes(finetuning(data, tmp_path / "run"))
        assert classes.names == ["dark", "gray", "light"] and len(classes.train.paths) == 12
        assert "left: 1 " in classes.summary[0], classes.summary


def test_parts_of_a_data_set_are_no_classes_of_a_pack(labelled, tmp_path, capsys):
    """As in folders: here of a list that names images of both parts."""
    for part in ("train", "val"):
        shutil.copytree(labelled, tmp_path / "data" / part)
    images = [str(path) for path in sorted((tmp_path / "data").rglob("*.png"))]
    (tmp_path / "data/list.txt").write_text("\n".join(images))
    pack = {"data": tmp_path / "data/list.txt", "out": tmp_path / "pack"}
    assert main(["pack", *flags(**pack)]) == 0
    arguments = flags(data=tmp_path / "pack", encoder="cnn", device="cpu", out=tmp_path / "out")
    assert main(["probe", *arguments]) == 2
    assert "train/, which is a part of a data set and no class" in capsys.readouterr().err


def flags(**values: object) -> list[str]:
    return [s for n, v in values.items() for s in (f"--{n.replace('_', '-')}", *str(v).split())]


SMALL = flags(encoder="cnn", img_size=16, workers=0, device="cpu", out="OUT")


def keep_one(folder: Path) -> None:
    for path in sorted(folder.glob("dark/*"))[1:]:
        path.unlink()


def keep_none(folder: Path) -> None:
    for path in folder.glob("dark/*"):
        path.unlink()


def keep_no_folder(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path)


#: what is done to the folder, arguments besides --data, what the line says


MISTAKES = {
    "one image": (keep_one, (), "class 'dark' has one image"),
    "empty class": (keep_none, (), "dark: it holds no file that ends in"),
    "what to do": (keep_none, (), "add images of this class or remove its folder"),
    "no classes": (keep_no_folder, (), "holds 0 class folders"),
    "a list": (None, ("--data", "LIST"), "list.txt holds no column of labels: name a table"),
    "a column": (None, ("--label-column", "x"), "holds a folder per class: leave it out"),
    "few": (None, ("--per-class", "9"), "fewer than --per-class 9"),
    "test classes": (None, ("--val-data", "OTHER"), "class 'light' is in"),
    "no checkpoint": (None, ("--checkpoint", "NOWHERE"), "no such checkpoint"),
    "other encoder": (
        None,
        ("--checkpoint", "PRETRAINED"),
        "holds an encoder with --encoder vit_tiny_patch16_224, not cnn: leave out --encoder",
    ),
    "share": (None, ("--val-share", "1.5"), "--val-share must be"),
}


@pytest.mark.parametrize("command", ["finetune", "probe"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_cost_one_line(command, mistake, labelled, pretrained, tmp_path, capsys):
    spoil, arguments, words = MISTAKES[mistake]
    shutil.copytree(labelled, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "light")
    if spoil:
        spoil(labelled)
    places = {"OUT": tmp_path / "out", "OTHER": tmp_path / "other"}
    places |= {"NOWHERE": tmp_path / "nowhere.pt", "PRETRAINED": pretrained}
    places["LIST"] = tmp_path / "list.txt"
    places["LIST"].write_text("a.png\n")
    (tmp_path / "a.png").touch()
    capsys.readouterr()
    data = () if "--data" in arguments else ("--data", labelled)
    arguments = [command, *data, *SMALL, *arguments]
    status = main([str(places.get(a, a)) for a in arguments])
    err = capsys.readouterr().err
    assert (status, err.count("\n")) == (2, 1), err
    assert err.startswith("simmim: ")
    assert words in err


def test_colours_of_bands_are_not_distorted(tmp_path, capsys):
    """What the images are is known by the statistics or the checkpoint alone, or set by a preset."""
    data = write_tiffs(tmp_path)
    for number, path in enumerate(sorted(data.iterdir())):
        (data / f"class{number % 2}").mkdir(exist_ok=True)
        path.rename(data / f"class{number % 2}" / path.name)
    stats, out = tmp_path / "stats.json", tmp_path / "run"
    assert main(["stats", *flags(data=data, out=stats)]) == 0
    start = ["finetune", *flags(data=data, workers=0, device="cpu", batch_size=4, epochs=1)]
    small = flags(encoder="cnn", img_size=16, stats=stats)
    assert main([*start, *small, *flags(out=out, warmup_epochs=0, drop_path=0)]) == 0
    policy = flags(auto_augment="rand-m9-mstd0.5-inc1", out=tmp_path / "distorted")
    published = ["--preset", "mae-vit-b", "--out", str(tmp_path / "published")]
    began = flags(checkpoint=out / "checkpoints/last.pt")
    for arguments in ([*small, *policy], [*began, *policy], [*small, *published]):
        capsys.readouterr()
        assert main([*start, *arguments]) == 2
        error = capsys.readouterr().err
        assert "--auto-augment is for 8-bit images of 1 or 3 channels" in error, error


def test_a_preset_for_other_encoders(labelled, pretrained, tmp_path, capsys):
    arguments = flags(data=labelled, checkpoint=pretrained, preset="vit-b", out=tmp_path / "run")
    assert main(["finetune", *arguments]) == 2
    words = "--preset vit-b is for checkpoints of pretrain --preset vit-b"
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["npy, channels first", "zarr group"])
def test_arrays_hold_no_labels(name, tmp_path, capsys):
    data = write(name, tmp_path / "source")
    capsys.readouterr()
    arguments = flags(data=data, encoder="cnn", device="cpu", out=tmp_path / "out")
    assert main(["probe", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "holds no column of labels: name a table" in error, error
    assert (
        "put the images of each class into a folder of its own, as in FOLDER/cat/1.png or" in error
    )


def test_nothing_to_start_from(labelled, capsys):
    assert main(["probe", "--data", str(labelled)]) == 2
    assert "--checkpoint FILE, or --encoder NAME" in capsys.readouterr().err


def test_commands_write_what_they_name(labelled, tmp_path, capsys):
    encoder = flags(img_size=16, encoder="cnn", workers=0, device="cpu", data=labelled)
    runs = {
        "finetune": flags(
            epochs=2, batch_size=8, precision="32-true", drop_path=0, warmup_epochs=0
        ),
        "probe": flags(blocks="1 3"),
    }
    for command, arguments in runs.items():
        out = tmp_path / command
        assert main([command, *encoder, *arguments, "--out", str(out)]) == 0
        text = capsys.readouterr().out
        named = [line.split()[-1] for line in text.splitlines() if line.startswith("  ")]
        written = [Path(name) for name in named if name.startswith("/")]
        assert len(written) == {"finetune": 6, "probe": 3}[command]
        for path in written:
            assert path.exists(), path
        assert (out / "confusion.png").stat().st_size > 1000
