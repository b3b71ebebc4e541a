"""Every source of images: what is found, that it is read as it was written, and resumed bitwise.

Files are written by the formats' own libraries.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import tarfile

import datasets
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from simmim.config.images import Reading, SourceConfig
from simmim.data.crops import training_crops
from simmim.data.fingerprint import data_fingerprint, difference
from simmim.data.images import BadImageError, read_image
from simmim.data.order import Order
from simmim.data.read_ahead import Way, end_reading, read_batches
from simmim.data.sources import find_source
from simmim.data.splits import split_files
from simmim.errors import UserError
from simmim.training.pretrain import Trainer

from .runs import stop_at
from .sources import (
    BANDS,
    COLOURS,
    COUNT,
    MULTISPECTRAL,
    PICTURES,
    png,
    settings,
    shards_at,
    table_at,
    wanted,
    write,
    write_scene,
)
from .test_resume import assert_same_run

pytestmark = pytest.mark.usefixtures("no_cache_of_the_users")
LAYOUTS = [*COLOURS, *MULTISPECTRAL]
EVERY = pytest.mark.parametrize("name", LAYOUTS)


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
        assert difference(found["a"], found["b"]) == ""
    fewer = data_fingerprint(listing.paths[1:], listing.folder)
    assert difference(fewer, found["b"]) == "8 images then, 7 now"


@pytest.mark.slow
@EVERY
def test_who_reads_does_not_matter(name, tmp_path):
    config = settings(name, tmp_path / "a")
    listing = find_source(config.data, config)
    found = []
    for way in (Way("processes", 0), Way("processes", 2), Way("threads", 2)):
        order = Order(samples=COUNT, batch=3, accumulate=1, seed=3, epochs=2, keep_rest=True)
        batches = read_batches(training_crops(config, listing.paths), order.batches(0), way)
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
    stop_at(trainer, 5)
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


def test_a_row_without_a_file_is_an_empty_file(tmp_path):
    path = table_at(tmp_path / "a.parquet", [{"bytes": b"", "path": None}])
    with pytest.raises(BadImageError, match="an empty file"):
        read_image(find_source(path, SourceConfig()).paths[0], Reading())


def test_shards_of_one_part_with_two_words_in_their_names_are_read(tmp_path):
    for number in range(2):
        table_at(tmp_path / f"train-val-{number}.parquet", [png(PICTURES[0])])
    assert len(find_source(tmp_path, SourceConfig()).paths) == 2


def test_shards_of_several_parts_in_folders_of_their_own_are_read(tmp_path):
    """By commands that know no parts, as folders of images and saved datasets are."""
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        table_at(tmp_path / part / f"{part}-0.parquet", [png(PICTURES[0])])
    assert len(find_source(tmp_path, SourceConfig()).paths) == 2
    table_at(tmp_path / "train/test-1.parquet", [png(PICTURES[0])])
    with pytest.raises(UserError, match=r"such as test-1\.parquet and train-0\.parquet: put"):
        find_source(tmp_path, SourceConfig())


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
