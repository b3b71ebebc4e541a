"""Trained models applied to images where something fails: numbers, disks, names of files."""

from __future__ import annotations

import functools
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pandas
import pytest
import tifffile

from simmim.storage import files

from .conftest import write_labelled
from .runs import kill_readers, run_command
from .test_apply import FAST, TRAIN, fine_tune, rows_of, run


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("tuned")
    return fine_tune(write_labelled(place / "labelled"), place / "run")


def write_floats(folder: Path, largest: float) -> Path:
    """Two classes of four images with one band, of which the first has one pixel of ``largest``."""
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = rng.normal(number % 2, 1, (36, 40)).astype(np.float32)
        pixels[18, 20] = largest if number == 0 else pixels[18, 20]
        path = folder / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, pixels)
    return folder


def test_images_for_which_a_result_is_not_finite(tmp_path, capsys):
    """As of GeoTIFFs whose pixels without data hold the smallest number, and do not say so."""
    stats = ("--mean", 0, "--std", 1, "--channels", 1, "--pixel-type", "float32")
    checkpoint = fine_tune(write_floats(tmp_path / "good", 0), tmp_path / "tuned", "vit", *stats)
    bad = write_floats(tmp_path / "bad", np.finfo(np.float32).min)
    start = ("--checkpoint", checkpoint, "--data", bad, *FAST)
    words = f"{bad}/a/0.tif: the model gives no finite numbers for it"
    table, features = tmp_path / "a.csv", tmp_path / "b.npy"
    capsys.readouterr()
    assert run("predict", *start, "--out", table) == 0
    assert f"left out {words}" in capsys.readouterr().err and len(rows_of(table)) == 7
    assert run("features", *start, "--out", features) == 0
    assert f"left out {words}" in capsys.readouterr().err and np.load(features).shape == (7, 16)
    assert run("probe", *start, "--val-data", bad, "--out", tmp_path / "probe") == 0
    assert capsys.readouterr().out.count("7 (1 more could not be read)") == 2
    assert run("predict", *start, "--overwrite", "--out", table, "--on-bad-image", "error") == 2
    assert words in capsys.readouterr().err and len(rows_of(table)) == 7
    tune = (*start, *TRAIN[:-2], "--val-data", bad, "--out", tmp_path / "further")
    assert run("finetune", *tune) == 2
    assert "is not finite before the first update: look for numbers" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_features_on_a_full_disk(kind, tuned, labelled, tmp_path):
    """The disk is full near the end: neither they nor their names take the place of those before."""
    start = ("features", "--checkpoint", tuned, *FAST, "--overwrite")
    out, said = tmp_path / f"results/features.{kind}", tmp_path / "said.txt"
    assert run(*start, "--data", labelled / "dark", "--out", out) == 0
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    limited = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1200, 1200))
    arguments = (*start, "--data", labelled, "--out", out)
    assert run_command(*arguments, output=said, errors=said, prepare=limited) == 2
    assert f"cannot write {out}: File too large" in said.read_text()
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before


def end_when_written(number: int) -> None:
    """Have the process sent a signal before a finished file takes its place."""
    files.flush_file = lambda path: os.kill(os.getpid(), number)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_leave_no_temporary_file(number, tuned, labelled, tmp_path):
    said = tmp_path / "said.txt"
    start = ("--checkpoint", tuned, "--data", labelled, *FAST)
    commands = {
        "a.csv": ("predict", *start),
        "b.npy": ("features", *start),
        "c.pth": ("export", "--checkpoint", tuned, "--project", "timm"),
        "d.json": ("stats", "--data", labelled),
    }
    for name, command in commands.items():
        out = tmp_path / "results" / name
        end = functools.partial(end_when_written, number)
        status = run_command(*command, "--out", out, output=said, errors=said, prepare=end)
        assert (status, list(out.parent.iterdir())) == (128 + number, []), said.read_text()


def test_places_where_nothing_can_be_written(tuned, labelled, small_drive, capsys):
    """That is said before the images are read."""
    files = {"predict": "a.csv", "features": "b.npy", "export": "c.pth", "stats": "d.json"}
    more = {"stats": ("--data", labelled), "export": ("--project", "timm")}
    (small_drive / "file").touch()
    subprocess.run(["mount", "-o", "remount,ro", str(small_drive)], check=True)
    try:
        for command, name in files.items():
            start = (command, *more.get(command, ("--data", labelled)))
            start += () if command == "stats" else ("--checkpoint", tuned)
            for folder, words in (("new", "may not be written to"), ("file", "is no folder")):
                capsys.readouterr()
                assert run(*start, "--out", small_drive / folder / name) == 2
                error = capsys.readouterr().err
                assert error.count("\n") == 1 and words in error, error
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_drive)], check=True)


def test_folders_are_made_for_results(labelled, tmp_path):
    out = tmp_path / "new/folder/stats.json"
    assert run("stats", "--data", labelled, "--out", out) == 0 and out.exists()


def test_results_never_replace_the_list_of_images(tuned, labelled, tmp_path, capsys):
    listed = tmp_path / "features.csv"
    listed.write_text("".join(f"{line}\n" for line in ("path", *labelled.glob("dark/*"))))
    before = listed.read_text()
    for command, out in (("predict", listed), ("features", tmp_path / "features.npy")):
        start = (command, "--checkpoint", tuned, "--data", listed, "--out", out, "--overwrite")
        assert run(*start, *FAST) == 2
        assert f"{listed} is the file that is read" in capsys.readouterr().err
    assert listed.read_text() == before


def test_a_reader_that_is_killed(tuned, labelled, tmp_path, capsys, monkeypatch):
    kill_readers(monkeypatch)
    for command, name in (("predict", "a.csv"), ("features", "a.npy")):
        start = (command, "--checkpoint", tuned, "--data", labelled, "--out", tmp_path / name)
        assert run(*start, "--workers", 1, "--device", "cpu") == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("simmim: a process that reads images was killed"), last


def test_names_of_files_in_parquet(tuned, labelled, tmp_path):
    """Those that macOS gives to pictures of the screen have a narrow space, which does not print."""
    data, out = tmp_path / "data", tmp_path / "features.parquet"
    data.mkdir()
    names = ["3.04\u202fPM.png", "a\nb.png", os.fsdecode(b"\xff.png")]
    for name in names:
        shutil.copy(labelled / "dark/0.png", data / name)
    assert run("features", "--checkpoint", tuned, "--data", data, "--out", out, *FAST) == 0
    assert list(pandas.read_parquet(out)["file"]) == [*names[:2], "\\udcff.png"]
