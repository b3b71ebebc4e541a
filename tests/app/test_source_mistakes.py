"""Sources of images that cannot be used: each mistake costs one line, which says what to do.

Files are written by the formats' own libraries.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import tifffile

from simmim.cli import main

from .sources import (
    BANDS,
    PICTURES,
    png,
    shards_at,
    table_at,
    write,
    write_csv,
    write_image_parquet,
)

pytestmark = pytest.mark.usefixtures("no_cache_of_the_users")
MISTAKES = {
    "two columns": (write_csv, ("--column", "nothing"), "say with --column which one holds paths"),
    "no column": (write_image_parquet, ("--column", "x"), "say with --column which of image holds"),
    "a number": (
        write_image_parquet,
        ("--column", "label"),
        "image, label: say with --column which",
    ),
    "nested images": (
        lambda at: table_at(at / "a.parquet", [[png(PICTURES[0])]]),
        ("--column", "images"),
        "has the columns images: none of them holds images",
    ),
    "no source": (lambda at: png_at(at / "a.doc"), (), "is no source of images"),
    "no image": (
        lambda at: text_at(at / "a.txt", "b.doc"),
        (),
        "'b.doc', is no image that is read",
    ),
    "an empty list": (lambda at: text_at(at / "a.txt", ""), (), "it names no image"),
    "dimensions": (
        lambda at: array_at(at / "a.npy", np.zeros((4, 4))),
        (),
        "(N, H, W, C). Write an array of that shape",
    ),
    "one image": (
        lambda at: array_at(at / "a.npy", np.zeros((40, 44, 3), np.uint8)),
        (),
        "an array of 40 x 44 x 3: one image (H, W, C), it seems",
    ),
    "compressed": (
        lambda at: text_at(at / "a.tar", "x" * 999),
        (),
        "is no tar archive, or a compressed one",
    ),
    "an archive cut off": (
        lambda at: tar_at(at, lambda c, end: c[:end]),
        (),
        "tar is cut off: it has",
    ),
    "a damaged header": (
        lambda at: tar_at(at, lambda c, end: c[:end] + b"x" * 512 + c[end:]),
        (),
        "images.tar is damaged: what should be a member at byte",
    ),
    "two archives in one": (
        lambda at: tar_at(at, lambda c, _: c + c),
        (),
        "images.tar goes on after its end mark",
    ),
    "a format": (lambda at: text_at(at / "a.tar.gz", ""), (), "a.tar.gz is no source of images"),
    "shards": (lambda at: shards_at(at / "data", "gz"), (), "it holds 1 .tar.gz (not read)"),
    "several parts": (
        lambda at: parts_at(at / "data"),
        (),
        "data holds shards of several parts, such as test-0.parquet and train-0.parquet",
    ),
    "no row": (lambda at: array_at(at / "a.npy", np.zeros((0, 4, 4))), (), "a.npy: it is empty"),
    "nowhere": (lambda at: at / "nowhere.npy", (), "no such file or folder"),
    "an address": (lambda at: "s3://a/b", (), "it is an address, and only files of this machine"),
    "a home": (lambda at: "~/none", (), "the shell left ~ as it is"),
    "a pattern": (lambda at: at / "*.png", (), "patterns are not expanded"),
    "text": (lambda at: text_at(at / "a.npy", "some text"), (), "the magic string is not"),
}


def png_at(path: Path) -> Path:
    path.write_bytes(png(PICTURES[0]))
    return path


def text_at(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def tar_at(at: Path, edit) -> Path:
    """An archive whose bytes ``edit`` makes of those of a whole one and where that one's members end."""
    path = write("tar of TIFF", at)
    with tarfile.open(path) as archive:
        archive.getmembers()
        path.write_bytes(edit(path.read_bytes(), archive.offset))
    return path


def parts_at(folder: Path) -> Path:
    """Files as a data set on the Hub has them."""
    folder.mkdir()
    for part in ("train", "test"):
        table_at(folder / f"{part}-0.parquet", [png(PICTURES[0])])
    return folder


def array_at(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_cost_one_line(name, tmp_path, capsys):
    make, more, words = MISTAKES[name]
    data = make(tmp_path)
    capsys.readouterr()
    assert main(["pretrain", "--data", str(data), "--out", str(tmp_path / "run"), *more]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1, error


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch, capsys):
    data = table_at(tmp_path / "a.parquet", [png(PICTURES[0])])
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file/cache")
    assert main(["stats", "--data", str(data), "--out", str(tmp_path / "out.json")]) == 2
    error = capsys.readouterr().err
    assert "HF_DATASETS_CACHE names the folder that it writes to" in error, error


@pytest.mark.parametrize("command", ["stats", "pack"])
def test_an_array_without_images_is_refused(command, tmp_path, capsys):
    data = array_at(tmp_path / "a.npy", np.zeros((0, 3, 8, 8), np.uint8))
    assert main([command, "--data", str(data), "--out", str(tmp_path / "out.json")]) == 2
    assert capsys.readouterr().err == f"simmim: no images in {data}: it is empty\n"


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("zarr", "zarr"),
        ("datasets", "parquet of images"),
        ("imagecodecs", "jpeg 2000"),
        ("imagecodecs", "png"),
    ],
)
def test_a_missing_package_is_one_line(package, name, tmp_path, capsys, monkeypatch):
    data, more = tmp_path / "data", ()
    if package == "imagecodecs":
        data.mkdir()
        import imagecodecs

        encode = {"jpeg 2000": imagecodecs.jpeg2k_encode, "png": imagecodecs.png_encode}[name]
        suffix = {"jpeg 2000": "jp2", "png": "png"}[name]
        (data / f"a.{suffix}").write_bytes(encode(BANDS[0, 0]))
        more = ("--pixel-type", "uint16", "--mean", "1", "--std", "1", "--channels", "1")
    else:
        data = write(name, tmp_path / "a")
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["pretrain", "--data", str(data), "--out", str(tmp_path / "run"), *more,
                 "--batch-size", "1", "--encoder", "cnn", "--device", "cpu"]) == 2  # fmt: skip
    assert 'pip install "simmim-kernels[data]"' in capsys.readouterr().err.splitlines()[-1]


def test_codecs_that_tifffile_misses(tmp_path, simmim, monkeypatch):
    """As where imagecodecs is not installed."""
    (tmp_path / "data").mkdir()
    tifffile.imwrite(tmp_path / "data/a.tif", BANDS[0, 0], compression="lzw")
    package = tmp_path / "stub/imagecodecs/__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("raise ModuleNotFoundError(name='imagecodecs')")
    monkeypatch.setenv("PYTHONPATH", str(package.parents[1]))
    run = simmim("stats", "--data", tmp_path / "data", "--out", tmp_path / "a.json")
    last = run.stderr.splitlines()[-1]
    assert run.returncode == 2 and 'pip install "simmim-kernels[data]"' in last, last


def test_a_relative_path_says_from_where_it_is_seen(tmp_path, monkeypatch, capsys):
    """A run keeps paths as they were given, and may be resumed from another folder."""
    monkeypatch.chdir(tmp_path)
    assert main(["stats", "--data", "photos", "--out", "stats.json"]) == 2
    assert f"no such file or folder: photos, seen from {tmp_path}\n" in capsys.readouterr().err
