"""Checkpoints, folders and machines that are not as they should be: one line, nothing half done."""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from simmim.cli import main
from simmim.data import images
from simmim.data.listing import list_images
from simmim.errors import UserError
from simmim.storage import checkpoint
from simmim.training.failures import explained

from .conftest import write_photographs
from .pictures import find_images
from .runs import kill_readers, run_command
from .test_cli import FAST


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory) -> Path:
    """The folder of images and of a finished run of two updates on them."""
    place = tmp_path_factory.mktemp("trained")
    photographs = write_photographs(place / "photographs")
    assert main(pretrain(photographs, place / "run")) == 0
    return place


@pytest.fixture
def photographs(run_of_two, tmp_path) -> Path:
    return shutil.copytree(run_of_two / "photographs", tmp_path / "photographs")


@pytest.fixture
def trained(run_of_two, tmp_path) -> Path:
    """A copy of the run, which a test may damage."""
    return shutil.copytree(run_of_two / "run", tmp_path / "run", symlinks=True)


def pretrain(data: Path, out: Path, *more: object) -> list[str]:
    flags = ("--epochs", 1, "--val-count", 1, "--batch-size", 3, *more)
    return [str(a) for a in ("pretrain", "--data", data, "--out", out, *FAST, *flags)]


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and "events." not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(capsys, *arguments: object) -> str:
    """The one line that a command ends with."""
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("simmim: "), error
    return error


def with_settings(**changes):
    def change(state):
        state["config"] = json.dumps(json.loads(state["config"]) | changes)

    return change


DAMAGE = {
    "missing": (lambda s: s["model"].pop("encoder.mask_token"), "missing "),
    "surplus": (
        lambda s: s["model"].update({"encoder.more": torch.zeros(1)}),
        "surplus ",
    ),
    "shapes": (
        lambda s: s["model"].update({"encoder.mask_token": torch.zeros(1, 1, 2)}),
        "mask_token (1, 1, 2) for (1, 1, 16)",
    ),
    "newer": (with_settings(speed=3), "no setting speed: use the version that wrote it"),
}
#: what no checksum is looked at for
OTHERS = {
    "another version": (lambda s: s.update(version=2), "has checkpoint version 2"),
    "of others": (lambda s: s.pop("version"), "simmim import"),
    "without checksums": (lambda s: s.pop("checksums"), "does not hold what was written"),
}
FILES = {
    "cut": (lambda content: content[:1000], "it is damaged or cut short"),
    "empty": (lambda content: b"", "it is damaged or cut short"),
    "text": (lambda content: b"weights", "it is no file of tensors"),
}
READERS = {
    "reconstruct": ("reconstruct", "--out", "OUT/picture.png"),
    "export": ("export", "--project", "timm", "--out", "OUT/weights.safetensors"),
    "probe": ("probe", "--data", "DATA", "--out", "OUT/probe", "--workers", 0),
    "finetune": ("finetune", "--data", "DATA", "--out", "OUT/tuned", "--workers", 0),
}


def damage(path: Path, how: str) -> str:
    """Damage the checkpoint ``path``; returns the words that tell of it."""
    if how in FILES:
        change, words = FILES[how]
        path.write_bytes(change(path.read_bytes()))
    else:
        change, words = (DAMAGE | OTHERS)[how]
        if how in DAMAGE:
            state = checkpoint.read(path, None)
            change(state)
            checkpoint.write(path, state)
        else:
            state = torch.load(path, weights_only=True)
            change(state)
            torch.save(state, path)
    return words


@pytest.mark.slow
@pytest.mark.parametrize("how", [*DAMAGE, *OTHERS, *FILES])
def test_damaged_checkpoints_are_refused_by_all_who_read_them(
    how, trained, photographs, tmp_path, capsys
):
    path = checkpoint.numbered(trained / "checkpoints")[-1]
    words = damage(path, how)
    before = snapshot(tmp_path)
    places = {"DATA": str(photographs), "OUT": str(tmp_path / "results")}
    for arguments in READERS.values():
        filled = [
            functools.reduce(lambda a, p: a.replace(*p), places.items(), str(a)) for a in arguments
        ]
        error = refused(capsys, *filled, "--checkpoint", path)
        assert words in error and path.name in error
    assert words in refused(capsys, *pretrain(photographs, trained, "--resume"))
    assert snapshot(tmp_path) == before


def test_a_copy_under_another_number_is_no_checkpoint_of_that_update(trained, photographs, capsys):
    path = checkpoint.numbered(trained / "checkpoints")[-1]
    checkpoint.write(path, checkpoint.read(path, None) | {"update": 1})
    error = refused(capsys, *pretrain(photographs, trained, "--resume"))
    assert "it holds update 1, not that of its name" in error


def test_a_run_is_not_replaced_before_an_image_can_be_read(trained, tmp_path, capsys):
    unreadable = tmp_path / "unreadable"
    unreadable.mkdir()
    for number in range(4):
        (unreadable / f"{number}.png").write_text("no image")
    before = snapshot(trained)
    error = refused(capsys, *pretrain(unreadable, trained, "--overwrite"))
    assert "no image can be read" in error
    assert snapshot(trained) == before


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(photographs, tmp_path):
    """Files may not grow beyond what the system allows, which then fails as a full disk does."""
    out = tmp_path / "run"
    arguments = pretrain(photographs, out, "--save-every", 1, "--batch-size", 1)
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, 20_000))
    errors = tmp_path / "errors"
    status = run_command(*arguments, output=tmp_path / "output", errors=errors, prepare=limit)
    assert status == 2
    last = errors.read_text().splitlines()[-1]
    assert last.startswith(f"simmim: cannot write {out / 'checkpoints' / 'step-00000001.pt'}: ")
    assert "File too large" in last
    assert list((out / "checkpoints").iterdir()) == []


def test_what_stood_there_survives_a_failed_write(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_text("old")
    told = pytest.raises(UserError, match=r"cannot write .*weights\.pt: no room")
    with told, checkpoint.replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError("no room")
    with pytest.raises(KeyboardInterrupt), checkpoint.replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pt"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("name", ["picture.xyz", "picture"])
def test_pictures_of_no_format(name, trained, photographs, tmp_path, capsys):
    error = refused(
        capsys,
        *("reconstruct", "--checkpoint", trained / "checkpoints" / "last.pt"),
        *("--data", photographs, "--out", tmp_path / name),
    )
    assert name in error and ".png" in error


def test_our_own_format_is_safetensors(trained, tmp_path, capsys):
    source = trained / "checkpoints" / "last.pt"
    arguments = ("export", "--checkpoint", source, "--project", "simmim", "--out")
    assert "must end in .safetensors" in refused(capsys, *arguments, tmp_path / "ours.pt")
    assert not (tmp_path / "ours.pt").exists()


@pytest.mark.slow
def test_a_reader_that_is_killed(photographs, tmp_path, capsys, monkeypatch):
    kill_readers(monkeypatch)
    assert main(pretrain(photographs, tmp_path / "run", "--workers", 1)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "a process that reads images was killed" in last and "--workers" in last


def test_an_image_that_does_not_fit_into_memory_is_not_damaged():
    bad = pytest.raises(images.BadImageError, match="too large for the memory")
    with bad, images.file_errors(Path("a.png")):
        np.empty(2**50)


def test_no_memory_left():
    with pytest.raises(UserError, match="lower --batch-size"), explained():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
    with pytest.raises(UserError, match="lower --batch-size"), explained():
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"Unable to allocate .*: lower --batch-size"), explained():
        np.empty(2**50)
    with pytest.raises(RuntimeError, match="else"), explained():
        raise RuntimeError("something else")


def test_links_that_lead_back(photographs):
    found = find_images(photographs)
    (photographs / "part0" / "up").symlink_to(photographs)
    (photographs / "self").symlink_to("self")
    assert find_images(photographs) == found
    (photographs / "again").symlink_to(photographs / "part1")
    (photographs / "lost.png").symlink_to("nowhere.png")
    os.mkfifo(photographs / "pipe.png")
    names = [path.name for path in find_images(photographs)]
    assert len(names) == len(found) + 4 and "pipe.png" not in names
    assert "lost.png" not in names
    assert list_images(photographs).dangling == [photographs / "lost.png"]
    shutil.rmtree(photographs / "part1")
    assert "again" not in {path.parent.name for path in find_images(photographs)}


def test_a_folder_that_may_not_be_read(photographs, monkeypatch):
    genuine = os.scandir

    def scandir(path):
        if Path(path).name == "part1":
            raise PermissionError(13, "Permission denied", str(path))
        return genuine(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match="part1 may not be read: change its permissions"):
        find_images(photographs)
