"""Every source of images: what is found, that it is read as it was written, and resumed bitwise.

Files are written by the formats' own libraries.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
import tifffile
import torch
import webdataset
from PIL import Image

from simmim.cli import main
from simmim.config.images import Reading, SourceConfig
from simmim.config.pretrain import PretrainConfig
from simmim.data.crops import training_crops
from simmim.data.fingerprint import data_fingerprint
from simmim.data.images import read_image
from simmim.data.order import Order, Remaining
from simmim.data.read_ahead import Way, end_reading, read_batches
from simmim.data.sources import find_source
from simmim.data.splits import split_files
from simmim.errors import UserError
from simmim.training.pretrain import Trainer

from .conftest import TINY, smooth_image
from .test_resume import assert_same_run

COUNT = 8
SIZE = 40, 48
PICTURES = [smooth_image(number, *SIZE) for number in range(COUNT)]
RNG = np.random.default_rng(0)
#: ``(N, C, H, W)``: four bands of 16 bits
BANDS = RNG.integers(0, 5000, (COUNT, 4, *SIZE), np.uint16)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_pictures(folder: Path) -> list[Path]:
    folder.mkdir()
    for number, pixels in enumerate(PICTURES):
        (folder / f"{number}.png").write_bytes(png(pixels))
    return sorted(folder.iterdir())


def write_folder(at: Path) -> Path:
    write_pictures(at / "data")
    return at / "data"


def write_tiffs(at: Path) -> Path:
    (at / "data").mkdir()
    for number, pixels in enumerate(BANDS):
        tifffile.imwrite(
            at / f"data/{number}.tif", pixels, planarconfig="separate", photometric="minisblack"
        )
    return at / "data"


def write_npy_files(at: Path) -> Path:
    (at / "data").mkdir()
    for number, pixels in enumerate(BANDS):
        np.save(at / f"data/{number}.npy", pixels.transpose(1, 2, 0))
    return at / "data"


def write_txt(at: Path) -> Path:
    paths = write_pictures(at / "pictures")
    lines = [path.relative_to(at) if n % 2 else path for n, path in enumerate(paths)]
    (at / "list.txt").write_text("\n".join(map(str, lines)) + "\n\n")
    return at / "list.txt"


def write_csv(at: Path) -> Path:
    paths = write_pictures(at / "pictures")
    with (at / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "path"])
        writer.writerows([n, path.relative_to(at)] for n, path in enumerate(paths))
    return at / "list.csv"


def write_list_parquet(at: Path) -> Path:
    paths = write_pictures(at / "pictures")
    pandas.DataFrame({"label": range(COUNT), "path": [str(p) for p in paths]}).to_parquet(
        at / "list.parquet"
    )
    return at / "list.parquet"


def write_npy(at: Path) -> Path:
    np.save(at / "images.npy", BANDS)
    return at / "images.npy"


def write_npy_last(at: Path) -> Path:
    np.save(at / "images.npy", BANDS.transpose(0, 2, 3, 1))
    return at / "images.npy"


def write_zarr(at: Path) -> Path:
    zarr = pytest.importorskip("zarr", reason="needs Python 3.11")
    array = zarr.open(
        str(at / "images.zarr"), mode="w", shape=BANDS.shape, chunks=(1, 4, 16, 16), dtype="uint16"
    )
    array[:] = BANDS
    return at / "images.zarr"


def write_zarr_group(at: Path) -> Path:
    zarr = pytest.importorskip("zarr", reason="needs Python 3.11")
    zarr.save_group(str(at / "group"), images=BANDS.transpose(0, 2, 3, 1))
    return at / "group"


def write_shards(at: Path) -> Path:
    (at / "data").mkdir()
    with webdataset.ShardWriter(str(at / "data/%04d.tar"), maxcount=3, verbose=0) as writer:
        for number, pixels in enumerate(PICTURES):
            sample = {"__key__": f"{number:05d}", "png": png(pixels), "cls": number}
            writer.write(sample)
    return at / "data"


def write_tar_of_tiffs(at: Path) -> Path:
    write_tiffs(at)
    with tarfile.open(at / "images.tar", "w") as archive:
        archive.add(at / "data", "data")
    shutil.rmtree(at / "data")
    return at / "images.tar"


def write_image_parquet(at: Path) -> Path:
    (at / "data").mkdir()
    for part in range(2):
        rows = [Image.fromarray(p) for p in PICTURES[part * 4 : part * 4 + 4]]
        table = datasets.Dataset.from_dict({"image": rows, "label": list(range(4))})
        table.to_parquet(str(at / f"data/{part}.parquet"))
    return at / "data"


def write_bytes_parquet(at: Path) -> Path:
    pandas.DataFrame({"content": [png(p) for p in PICTURES], "text": "x"}).to_parquet(
        at / "images.parquet"
    )
    return at / "images.parquet"


def write_saved_images(at: Path) -> Path:
    paths = [str(path) for path in write_pictures(at / "pictures")]
    table = datasets.Dataset.from_dict({"image": paths, "label": list(range(COUNT))})
    table.cast_column("image", datasets.Image()).save_to_disk(str(at / "saved"))
    return at / "saved"


def write_saved_arrays(at: Path) -> Path:
    features = datasets.Features({"bands": datasets.Array3D((4, *SIZE), "uint16")})
    table = datasets.Dataset.from_dict({"bands": list(BANDS)}, features)
    table.save_to_disk(str(at / "saved"))
    return at / "saved"


def write_scene(at: Path) -> Path:
    scene = np.concatenate(BANDS, 1)
    tifffile.imwrite(
        at / "scene.tif", scene, planarconfig="separate", photometric="minisblack", tile=(16, 16)
    )
    return at / "scene.tif"


COLOURS: dict[str, Callable[[Path], Path]] = {
    "folder": write_folder,
    "list, txt": write_txt,
    "list, csv": write_csv,
    "list, parquet": write_list_parquet,
    "tar shards": write_shards,
    "parquet of images": write_image_parquet,
    "parquet of bytes": write_bytes_parquet,
    "saved dataset of images": write_saved_images,
}
MULTISPECTRAL: dict[str, Callable[[Path], Path]] = {
    "folder of TIFF": write_tiffs,
    "folder of npy": write_npy_files,
    "npy, channels first": write_npy,
    "npy, channels last": write_npy_last,
    "zarr": write_zarr,
    "zarr group": write_zarr_group,
    "tar of TIFF": write_tar_of_tiffs,
    "saved dataset of arrays": write_saved_arrays,
}
EVERY = pytest.mark.parametrize("name", [*COLOURS, *MULTISPECTRAL])


@pytest.fixture(scope="module", autouse=True)
def no_cache_of_the_users(tmp_path_factory):
    """datasets keeps an Arrow copy of parquet files."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    yield
    datasets.config.HF_DATASETS_CACHE = before


def write(name: str, at: Path) -> Path:
    at.mkdir(exist_ok=True)
    return {**COLOURS, **MULTISPECTRAL}[name](at)


def wanted(name: str) -> Reading:
    return Reading() if name in COLOURS else Reading(4, dtype="uint16")


def settings(name: str, at: Path, **changes) -> PretrainConfig:
    bands = {}
    if name not in COLOURS:
        mean, std = BANDS.mean((0, 2, 3)).tolist(), BANDS.std((0, 2, 3)).tolist()
        bands = {"channels": 4, "pixel_type": "uint16", "mean": tuple(mean), "std": tuple(std)}
    settings = {"data": write(name, at), "batch_size": 4, "epochs": 2, **TINY, **bands, **changes}
    return PretrainConfig(**settings)


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
@EVERY
@pytest.mark.parametrize("crops", [2, "auto"])
def test_resuming_is_bitwise(name, crops, tmp_path):
    """Stopped by a signal in the middle of an epoch, and gone on with by other readers."""
    changes = {"batch_size": 2, "epochs": 3, "val_count": 2, "crops_per_image": crops}
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
    "no column": (write_image_parquet, ("--column", "x"), "has the columns image, label: say with"),
    "no source": (lambda at: png_at(at / "a.doc"), (), "is no source of images"),
    "no image": (lambda at: text_at(at / "a.txt", "b.doc"), (), "b.doc is no image that is read"),
    "an empty list": (lambda at: text_at(at / "a.txt", ""), (), "it names no image"),
    "dimensions": (lambda at: array_at(at / "a.npy", np.zeros((4, 4))), (), "of 2 dimensions"),
    "compressed": (lambda at: text_at(at / "a.tar", "x" * 999), (), "is no plain tar archive"),
    "nowhere": (lambda at: at / "nowhere.npy", (), "no such folder"),
}


def png_at(path: Path) -> Path:
    path.write_bytes(png(PICTURES[0]))
    return path


def text_at(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def array_at(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_cost_one_line(name, tmp_path, capsys):
    make, more, words = MISTAKES[name]
    data = make(tmp_path)
    assert main(["pretrain", "--data", str(data), "--out", str(tmp_path / "run"), *more]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    ("package", "name"),
    [("zarr", "zarr"), ("datasets", "parquet of images"), ("imagecodecs", "jpeg 2000")],
)
def test_a_missing_package_is_one_line(package, name, tmp_path, capsys, monkeypatch):
    if name == "jpeg 2000":
        data = tmp_path / "data"
        data.mkdir()
        import imagecodecs

        (data / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(BANDS[0, 0], reversible=True))
        more = ("--pixel-type", "uint16", "--mean", "1", "--std", "1", "--channels", "1")
    else:
        data, more = write(name, tmp_path / "a"), ()
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["pretrain", "--data", str(data), "--out", str(tmp_path / "run"), *more,
                 "--batch-size", "1", "--encoder", "cnn", "--device", "cpu"]) == 2  # fmt: skip
    assert 'pip install "simmim-kernels[data]"' in capsys.readouterr().err.splitlines()[-1]


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
