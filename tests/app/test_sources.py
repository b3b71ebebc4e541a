"""Every source of images: what is found, that it is read as it was written, and resumed bitwise.

Files are written by the formats' own libraries.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import tifffile
import torch
import webdataset
from PIL import Image

from simmim.cli import main
from simmim.config.images import Reading, SourceConfig
from simmim.data.crops import training_crops
from simmim.data.fingerprint import data_fingerprint
from simmim.data.images import BadImageError, read_image
from simmim.data.order import Order, Remaining
from simmim.data.read_ahead import Way, end_reading, read_batches
from simmim.data.sources import find_source
from simmim.data.splits import split_files
from simmim.errors import UserError
from simmim.training.pretrain import Trainer

from .sources import (
    BANDS,
    COLOURS,
    COUNT,
    MULTISPECTRAL,
    PICTURES,
    png,
    settings,
    wanted,
    write,
    write_csv,
    write_image_parquet,
    write_scene,
)
from .test_resume import assert_same_run

LAYOUTS = [*COLOURS, *MULTISPECTRAL]
EVERY = pytest.mark.parametrize("name", LAYOUTS)


@pytest.fixture(scope="module", autouse=True)
def no_cache_of_the_users(tmp_path_factory):
    """datasets keeps an Arrow copy of parquet files."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@EVERY
def test_images_are_what_was_written(name, tmp_path):
    listing = find_source(write(name, tmp_path / "a"), SourceConfig())
    assert len(listing.paths) == COUNT and f"{COUNT} images: {COUNT} " in listing.summary()
    assert len({str(path) for path in listing.paths}) == COUNT
    for path, picture, bands in zip(listing.paths, PICTURES, BANDS, strict=True):
        got = read_image(path, wanted(name))[:, :, :].numpy()
        expected = picture.transpose(2, 0, 1) if name in COLOURS else bands
        assert got.dtype == expected.dtype and np.array_equal(got, expected)


@EVERY
def test_a_fingerprint_is_that_of_the_contents(name, tmp_path):
    found = {}
    for place in ("a", "b"):
        listing = find_source(write(name, tmp_path / place), SourceConfig())
        found[place] = data_fingerprint(listing.paths, listing.folder)
    if name not in ("list, txt", "list, parquet"):  # with absolute paths
        assert found["a"].difference(found["b"].state()) == ""
    fewer = data_fingerprint(listing.paths[1:], listing.folder)
    assert fewer.difference(found["b"].state()) == "8 images then, 7 now"


@pytest.mark.slow
@EVERY
def test_who_reads_does_not_matter(name, tmp_path):
    config = settings(name, tmp_path / "a")
    listing = find_source(config.data, config)
    found = []
    for way in (Way("processes", 0), Way("processes", 2), Way("threads", 2)):
        order = Order(samples=COUNT, batch=3, accumulate=1, seed=3, epochs=2, keep_rest=True)
        batches = read_batches(training_crops(config, listing.paths), Remaining(order, 0), way)
        found.append([batch.images for batch in batches])
        end_reading(batches)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other)) and len(other) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "crops"), [(name, (2, "auto")[i % 2]) for i, name in enumerate(LAYOUTS)]
)
def test_resuming_is_bitwise(name, crops, tmp_path):
    """Stopped by a signal in the middle of an epoch, and gone on with by other readers."""
    changes = {"batch_size": 2, "epochs": 2, "val_count": 2, "crops_per_image": crops}
    whole = settings(name, tmp_path / "a", out=tmp_path / "whole", **{**changes, "workers": 2})
    stopped = dataclasses.replace(whole, out=tmp_path / "stopped", workers="auto")
    Trainer(whole).fit()
    trainer = Trainer(stopped)
    step = trainer.optimizer.step

    def stop_at_the_fifth() -> None:
        if trainer.update == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        step()

    trainer.optimizer.step = stop_at_the_fifth
    assert trainer.fit().signal == signal.SIGTERM
    resumed = Trainer(dataclasses.replace(stopped, resume=True, workers=1))
    assert resumed.update == 5
    resumed.fit()
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_runs_on_other_images_are_no_resumption(tmp_path):
    config = settings("npy, channels first", tmp_path / "a", out=tmp_path / "run", epochs=1)
    Trainer(config).fit()
    np.save(config.data, BANDS[:, :, :30])
    with pytest.raises(UserError, match="files of other sizes"):
        Trainer(dataclasses.replace(config, resume=True))


@pytest.mark.parametrize("name", ["tar shards", "npy, channels first", "saved dataset of images"])
def test_validation_images_from_a_source_of_their_own(name, tmp_path):
    config = settings(name, tmp_path / "a", out=tmp_path / "run", epochs=1)
    other = write(name, tmp_path / "b")
    counters = Trainer(dataclasses.replace(config, val_data=other)).fit().counters
    assert 0.1 < counters.first_validation < 2
    assert not counters.bad


def test_parts_of_a_saved_dataset_are_used_as_such(tmp_path):
    tables = {
        name: datasets.Dataset.from_dict({"image": [Image.fromarray(p) for p in pictures]})
        for name, pictures in (("train", PICTURES[:6]), ("test", PICTURES[6:]))
    }
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "saved"))
    config = settings("folder", tmp_path / "a", out=tmp_path / "run")
    files = split_files(dataclasses.replace(config, data=tmp_path / "saved"))
    assert (len(files.train), len(files.validation)) == (6, 2)


def test_a_saved_dataset_is_read_whole_where_nothing_splits_it(tmp_path):
    """By commands that know no parts, and of one part alone, as ``load_dataset`` often gives it."""
    for names in (("test", "train"), ("train",)):
        table = datasets.Dataset.from_dict({"image": [Image.fromarray(p) for p in PICTURES[:3]]})
        saved = tmp_path / "-".join(names)
        datasets.DatasetDict(dict.fromkeys(names, table)).save_to_disk(str(saved))
        paths = find_source(saved, SourceConfig()).paths
        assert list(map(str, paths)) == [f"{saved}/{name}[{i}]" for name in names for i in range(3)]
    config = settings("folder", tmp_path / "a", out=tmp_path / "run")
    assert len(split_files(dataclasses.replace(config, data=saved)).train) == 3


def test_a_damaged_member_is_named(tmp_path, capsys):
    data = write("tar shards", tmp_path / "a")
    archive = data / "0000.tar"
    content = bytearray(archive.read_bytes())
    at = content.index(b"IDAT") + 30
    content[at : at + 300] = bytes(300)
    archive.write_bytes(content)
    config = settings("folder", tmp_path / "b", out=tmp_path / "run", epochs=1)
    counters = Trainer(dataclasses.replace(config, data=data)).fit().counters
    assert list(counters.bad) == [str(archive / "00000.png")]
    assert counters.bad[str(archive / "00000.png")].startswith("damaged")


def test_an_index_is_made_once_and_anew_for_another_archive(tmp_path, monkeypatch):
    path = write("tar of TIFF", tmp_path / "a")
    first = find_source(path, SourceConfig())
    index = json.loads((tmp_path / "a/images.tar.index.json").read_text())
    assert len(index["members"]) == COUNT
    monkeypatch.setattr(tarfile, "open", lambda *_: pytest.fail("indexed anew"))
    again = find_source(path, SourceConfig())
    assert list(map(str, again.paths)) == list(map(str, first.paths))
    monkeypatch.undo()
    with tarfile.open(path, "a") as archive:
        tifffile.imwrite(
            tmp_path / "more.tif", BANDS[0], planarconfig="separate", photometric="minisblack"
        )
        archive.add(tmp_path / "more.tif", "more.tif")
    assert len(find_source(path, SourceConfig()).paths) == COUNT + 1


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
    "dimensions": (lambda at: array_at(at / "a.npy", np.zeros((4, 4))), (), "of 2 dimensions"),
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


def table_at(path: Path, values: list) -> Path:
    pyarrow.parquet.write_table(pyarrow.table({"images": values}), path)
    return path


def parts_at(folder: Path) -> Path:
    """Files as a data set on the Hub has them."""
    folder.mkdir()
    for part in ("train", "test"):
        table_at(folder / f"{part}-0.parquet", [png(PICTURES[0])])
    return folder


def test_a_row_without_a_file_is_an_empty_file(tmp_path):
    path = table_at(tmp_path / "a.parquet", [{"bytes": b"", "path": None}])
    with pytest.raises(BadImageError, match="an empty file"):
        read_image(find_source(path, SourceConfig()).paths[0], Reading())


def test_shards_of_one_part_with_two_words_in_their_names_are_read(tmp_path):
    for number in range(2):
        table_at(tmp_path / f"train-val-{number}.parquet", [png(PICTURES[0])])
    assert len(find_source(tmp_path, SourceConfig()).paths) == 2


def array_at(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def shards_at(folder: Path, compression: str) -> Path:
    folder.mkdir(exist_ok=True)
    suffix = f"tar.{compression}".rstrip(".")
    with webdataset.TarWriter(str(folder / f"{len(list(folder.iterdir()))}.{suffix}")) as writer:
        writer.write({"__key__": "0", "png": png(PICTURES[0])})
    return folder


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


def test_what_lies_beside_shards_is_named(tmp_path):
    """And shards are found as image files are: through links, whatever the case of their names."""
    for compression in ("", "", "gz"):
        shards_at(tmp_path / "elsewhere", compression)
    (tmp_path / "elsewhere/0.tar").rename(tmp_path / "elsewhere/0.TAR")
    (tmp_path / "elsewhere/other.parquet").write_bytes(b"")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
    found = find_source(tmp_path / "data", SourceConfig())
    assert len(found.paths) == 2
    assert found.left == {".tar.gz": 1, ".parquet": 1}


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


def test_crops_of_a_scene_are_as_many_as_it_has_areas(tmp_path):
    """One scene of 320 x 48 beside one image of 40 x 48, crops of 16: 60 crops and 8."""
    write_scene(tmp_path)
    tifffile.imwrite(
        tmp_path / "small.tif", BANDS[0], planarconfig="separate", photometric="minisblack"
    )
    config = settings("folder of TIFF", tmp_path / "a", img_size=16, crops_per_image="auto")
    listing = find_source(tmp_path, dataclasses.replace(config, data=tmp_path))
    paths = [path for path in listing.paths if path.parent == tmp_path]
    assert [path.name for path in paths] == ["scene.tif", "small.tif"]
    crops = training_crops(dataclasses.replace(config, crop_scale=(1.0, 1.0), flip=0.0), paths)
    assert len(crops) == 60 + 8
    samples = [crops[0, sample] for sample in range(68)]
    assert [sample.source for sample in samples] == [0] * 60 + [1] * 8
    # an area is about that of a crop: pixels keep about their size, and with it their contrast
    spread = torch.stack([sample.image for sample in samples]).float().std()
    assert 0.6 * BANDS.std() < spread < 1.1 * BANDS.std()
    assert torch.equal(crops[3, 65].image, crops[3, 65].image)
    assert not torch.equal(crops[3, 65].image, crops[4, 65].image)


def test_a_single_image_is_a_source(tmp_path):
    listing = find_source(write_scene(tmp_path), SourceConfig())
    assert [path.name for path in listing.paths] == ["scene.tif"]
