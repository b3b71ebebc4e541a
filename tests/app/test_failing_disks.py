"""Checkpoints on disks that fail: full, read-only, without links, or gone."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import stat
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from simmim.cli import main
from simmim.errors import UserError
from simmim.storage import checkpoint, files
from simmim.storage.run_folder import point_last_at
from simmim.training.records import Records

from .conftest import command, environment
from .test_checkpoint_file import FORMATS, small_state, started, write_pt
from .test_damage import pretrain, refused, snapshot


def fails(*_args, **_options):
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("lacking", [(), ("symlink",), ("symlink", "link")], ids=str)
def test_last_works_without_links(lacking, tmp_path, monkeypatch):
    for name in lacking:
        monkeypatch.setattr(os, name, fails)
    if "symlink" in lacking:
        monkeypatch.setattr(Path, "symlink_to", fails)
    last = tmp_path / "last.pt"
    for step in (1, 2):
        path = checkpoint.path_of(tmp_path, step)
        checkpoint.write(path, small_state() | {"update": step})
        point_last_at(path)
        point_last_at(path)
        assert checkpoint.load(last)["update"] == step
        assert torch.load(last, weights_only=True)["update"] == step
    assert last.is_symlink() == (not lacking)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "last.pt",
        "step-00000001.pt",
        "step-00000002.pt",
    ]


def test_folders_that_cannot_be_flushed(tmp_path, monkeypatch):
    genuine = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        genuine(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_pt(tmp_path / "x.pt")


def test_a_disk_that_fails_when_flushed(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    write_pt(path)
    before = path.read_bytes()

    def fsync(_descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match=r"cannot write .*x\.pt: Input/output error"):
        write_pt(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_what_the_disk_changes_never_takes_the_place_of_a_good_file(name, tmp_path, monkeypatch):
    path = tmp_path / name
    FORMATS[name](path)
    before = path.read_bytes()
    genuine = files.flush_file

    def flush(written: Path) -> None:
        content = bytearray(written.read_bytes())
        weight = small_state()["model"]["weight"].numpy().tobytes()
        content[content.index(weight)] ^= 1
        written.write_bytes(content)
        genuine(written)

    monkeypatch.setattr(files, "flush_file", flush)
    with pytest.raises(UserError, match="the disk gives back something else"):
        FORMATS[name](path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def assert_first_checkpoint_alone(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["last.pt", "step-00000001.pt"]
    assert checkpoint.load(folder / "last.pt")["update"] == 1


@pytest.mark.parametrize("numbers", [14_000, 30_000, 10**6])
def test_a_file_system_that_is_full(numbers, small_drive):
    with started(small_drive / "run") as folder:
        state = small_state() | {"update": 2}
        state["model"]["weight"] = torch.zeros(numbers)
        path = folder.checkpoints / "step-00000002.pt"
        with pytest.raises(UserError) as caught:
            folder.save(2, state, keep=1)
        assert str(caught.value) == f"cannot write {path}: No space left on device"
        assert_first_checkpoint_alone(folder.checkpoints)


def filled(drive: Path) -> Path:
    """A file that takes all room of a drive."""
    filler = drive / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 512):
            pass
    return filler


def test_a_file_system_without_room_for_records(small_drive, capsys):
    """TensorBoard's thread fails before the first record."""
    (small_drive / "tensorboard").mkdir()
    (small_drive / "metrics.csv").write_text("update,epoch,split\n" + 4000 * " ")
    filler, hook = filled(small_drive), threading.excepthook
    with filler.open("ab") as file:
        file.truncate(filler.stat().st_size - 4096)
    words = f"cannot write the records in {small_drive}: No space left on device"
    with pytest.raises(UserError, match=words):
        Records(small_drive, 4, 0, lambda update: update)
    assert threading.excepthook is hook
    assert "Traceback" not in capsys.readouterr().err


def test_a_file_system_without_room_for_anything(small_drive):
    with started(small_drive / "run") as folder:
        filler = filled(small_drive)
        with pytest.raises(UserError, match="No space left on device") as caught:
            folder.save(2, small_state() | {"update": 2}, keep=1)
        assert "\n" not in str(caught.value)
        assert_first_checkpoint_alone(folder.checkpoints)
        filler.unlink()
        folder.save(2, small_state() | {"update": 2}, keep=1)
        assert checkpoint.load(folder.checkpoints / "last.pt")["update"] == 2


def test_a_file_system_that_becomes_read_only(small_drive):
    with started(small_drive / "run") as folder:
        subprocess.run(["mount", "-o", "remount,ro", str(small_drive)], check=True)
        try:
            with pytest.raises(UserError, match="Read-only file system") as caught:
                folder.save(2, small_state() | {"update": 2}, keep=1)
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(small_drive)], check=True)
        assert "\n" not in str(caught.value)
        assert_first_checkpoint_alone(folder.checkpoints)


def test_a_folder_that_vanishes(tmp_path):
    out = tmp_path / "run"
    with started(out) as folder:
        out.rename(tmp_path / "moved")
        with pytest.raises(UserError, match=r"the folder .*run has vanished"):
            folder.save(2, small_state() | {"update": 2}, keep=1)
    assert not out.exists()
    assert_first_checkpoint_alone(tmp_path / "moved" / "checkpoints")


def test_a_folder_of_checkpoints_that_vanishes(tmp_path):
    with started(tmp_path / "run") as folder:
        folder.checkpoints.rename(tmp_path / "moved")
        with pytest.raises(UserError, match=r"step-00000002\.pt: No such file or directory"):
            folder.save(2, small_state() | {"update": 2}, keep=1)
    assert_first_checkpoint_alone(tmp_path / "moved")


def test_a_record_that_was_deleted_stops_no_run(tmp_path):
    with started(tmp_path / "run") as folder:
        shutil.rmtree(tmp_path / "run" / ".simmim")
        folder.save(2, small_state() | {"update": 2}, keep=1)
    assert [p.name for p in checkpoint.numbered(folder.checkpoints)] == ["step-00000002.pt"]


@pytest.mark.parametrize("name", ["checkpoints", ".simmim"])
def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    name, photographs, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "run"
    arguments = pretrain(photographs, out, "--epochs", 1)
    assert main(arguments) == 0
    capsys.readouterr()
    before, genuine = snapshot(out), os.scandir

    def scandir(path="."):
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return genuine(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        for flag in ("--resume", "--overwrite"):
            assert f"Permission denied: {out / name}" in refused(capsys, *arguments, flag)
    assert snapshot(out) == before


@pytest.mark.slow
def test_resuming_as_a_user_who_may_not_list_the_checkpoints(photographs, tmp_path):
    """In a process that has no right to read every folder, which root's have."""
    out = tmp_path / "run"
    arguments = pretrain(photographs, out, "--epochs", 1)
    assert main(arguments) == 0
    before = snapshot(out)
    started = command(*arguments, "--resume")
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not installed")
        started = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *started]
    (out / "checkpoints").chmod(0)
    try:
        ran = subprocess.run(started, env=environment(), text=True, capture_output=True)
    finally:
        (out / "checkpoints").chmod(0o755)
    assert ran.returncode == 2
    assert f"Permission denied: {out / 'checkpoints'}" in ran.stderr.splitlines()[-1]
    assert snapshot(out) == before


def test_what_the_machine_lacks_is_no_damage_of_a_checkpoint(tmp_path, monkeypatch):
    """A run would go on from an older one."""
    path = tmp_path / "x.pt"
    write_pt(path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(UserError, match=r"x\.pt may not be read: Too many open files") as few:
            checkpoint.read(path, None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    def load(*_args, **_options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(UserError, match=r"x\.pt does not fit into the memory") as small:
        checkpoint.read(path, None)
    assert not {few.type, small.type} & {checkpoint.DamagedError}


def test_a_deleted_working_folder(photographs, tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    error = refused(capsys, "stats", "--data", photographs, "--out", "stats.json")
    assert (
        error
        == "simmim: the folder that the command is given in was deleted: go to one that is there\n"
    )
    assert main(["stats", "--data", str(photographs), "--out", str(tmp_path / "stats.json")]) == 0


def test_links_to_nothing_are_named(photographs, tmp_path, capsys):
    loop, nothing, split = (tmp_path / name for name in ("loop", "nothing", "split"))
    for part in ("train", "val"):
        shutil.copytree(photographs, split / part)
    loop.symlink_to("loop")
    nothing.symlink_to("moved")
    for link in (loop, nothing):
        for arguments in (
            pretrain(photographs, link),
            pretrain(photographs, link / "run"),
            ("pack", "--data", photographs, "--out", link),
            ("pack", "--data", split, "--out", link),
        ):
            told = f"--out {link} is a link to nothing, {os.readlink(link)}: make the folder"
            assert main([str(a) for a in arguments]) == 2
            assert told in capsys.readouterr().err.splitlines()[-1]
        error = refused(capsys, "stats", "--data", link, "--out", tmp_path / "stats.json")
        assert f"no such file or folder: {link}: it is a link to {os.readlink(link)}" in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loop", "nothing", "photographs", "split"]
