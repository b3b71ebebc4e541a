"""Packs: what is read back, runs on them, and packing that is interrupted, refused or damaged."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from simmim.cli import main
from simmim.config.images import SourceConfig
from simmim.config.scan import StatsConfig
from simmim.data.arrays import ArraySource
from simmim.data.images import read_image
from simmim.data.packed import check_pack
from simmim.data.sources import find_source
from simmim.data.statistics import first_contents
from simmim.evaluation.probe import probe
from simmim.storage import checkpoint
from simmim.training.finetune import Finetuner
from simmim.training.pretrain import Trainer

from .conftest import smooth_image
from .labels import finetuning, probing
from .runs import run_command, start, start_command, train
from .sources import COLOURS, MULTISPECTRAL, settings, write
from .test_resume import assert_equal, assert_same_run


def run(*arguments: object) -> int:
    return main(list(map(str, arguments)))


def pack(data: Path, out: Path, *more: object) -> Path:
    assert run("pack", "--data", data, "--out", out, *more) == 0
    return out


def contents(pack: Path) -> list[bytes]:
    return [(pack / name).read_bytes() for name in ("pixels.npy", "index.csv", "pack.json")]


@pytest.mark.parametrize("name", [*COLOURS, *MULTISPECTRAL])
def test_a_pack_holds_what_the_source_holds(name, tmp_path):
    data = write(name, tmp_path / "a")
    found = find_source(pack(data, tmp_path / "pack"), SourceConfig())
    before = find_source(data, SourceConfig())
    wanted = first_contents(StatsConfig(data=data), before.paths)
    assert found.summary() == "8 images: 8 packed"
    for one, other in zip(before.paths, found.paths, strict=True):
        assert torch.equal(read_image(one, wanted)[:, :, :], read_image(other, wanted))
    assert run("pack", "--out", tmp_path / "pack", "--verify") == 0


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float16", "float32"])
def test_numpy_alone_reads_a_pack(dtype, tmp_path):
    """Of any type, with any number of bands and any sizes; the map is not copied."""
    rng, data = np.random.default_rng(0), tmp_path / "data"
    data.mkdir()
    images = [rng.integers(-90, 90, (13, 20 + 9 * n, 50 - 3 * n)).astype(dtype) for n in range(4)]
    images[3][:] = 100
    for number, image in enumerate(images):
        np.save(data / f"{number}.npy", image)
    found = find_source(pack(data, tmp_path / "pack", "--layout", "chw"), SourceConfig())
    pixels = np.load(tmp_path / "pack/pixels.npy", mmap_mode="r")
    with (tmp_path / "pack/index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, image, item in zip(rows, images, found.paths, strict=True):
        shape = [int(row[name]) for name in ("height", "width", "channels")]
        part = pixels[int(row["offset"]) :][: np.prod(shape)].reshape(shape).transpose(2, 0, 1)
        assert np.array_equal(part, image)
        tensor = item.read()
        assert (
            tensor.untyped_storage().data_ptr()
            == found.paths[0].read().untyped_storage().data_ptr()
        )
    assert [row["name"] for row in rows] == [f"{number}.npy" for number in range(4)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folder", "folder of TIFF", "saved dataset of arrays"])
def test_a_run_on_a_pack_is_that_on_the_source(name, tmp_path):
    on_source = settings(name, tmp_path / "a", out=tmp_path / "source", val_count=2)
    data = pack(on_source.data, tmp_path / "pack")
    on_pack = dataclasses.replace(on_source, data=data, out=tmp_path / "packed", workers=2)
    assert train(on_source) == train(on_pack) == 0
    one, other = (checkpoint.load(c.out / "checkpoints/last.pt") for c in (on_source, on_pack))
    assert_equal(one["model"], other["model"], "")


@pytest.mark.slow
def test_a_killed_run_on_a_pack_resumes_bitwise(tmp_path):
    config = settings("folder", tmp_path / "a", epochs=20, save_every=1, out=tmp_path / "whole")
    whole = dataclasses.replace(config, data=pack(config.data, tmp_path / "pack"))
    killed = dataclasses.replace(whole, out=tmp_path / "killed", resume=True, workers=2)
    assert train(whole) == 0
    process = start(killed)
    newest = killed.out / "checkpoints/step-00000007.pt"
    while not newest.exists():
        assert process.is_alive()
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (tmp_path / "pack").rename(tmp_path / "moved")
    assert train(dataclasses.replace(killed, data=tmp_path / "moved", workers=0)) == 0
    assert_same_run(whole.out, killed.out)


def test_labels_and_names_are_kept(labelled, tmp_path):
    data = pack(labelled, tmp_path / "pack")
    rows = list(csv.DictReader((data / "index.csv").open(newline="")))
    assert [row["label"] for row in rows] == ["dark"] * 6 + ["gray"] * 6 + ["light"] * 6
    assert rows[0]["name"] == "dark/0.png"
    results = [
        probe(probing(path, tmp_path / f"probe-{path.name}"))[1] for path in (labelled, data)
    ]
    assert [r.linear for r in results[0]] == [r.linear for r in results[1]]
    assert np.array_equal(results[0][0].confusion, results[1][0].confusion)
    models = []
    for path in (labelled, data):
        trainer = Finetuner(finetuning(path, tmp_path / f"tuned-{path.name}"))
        assert trainer.classes.names == ["dark", "gray", "light"]
        trainer.fit()
        models.append(trainer.model.state_dict())
    assert_equal(dict(models[0]), dict(models[1]), "")


def test_no_classes_in_a_pack_of_no_classes(tmp_path, capsys):
    data = pack(write("npy, channels first", tmp_path / "a"), tmp_path / "pack")
    assert run("probe", "--data", data, "--encoder", "cnn", "--out", tmp_path / "probe") == 2
    error = capsys.readouterr().err
    assert f"{data} holds images of 0 classes" in error and "pack --label-column" in error


def many(folder: Path) -> Path:
    """40 images that take some time to read, of three sizes, one of them damaged."""
    rng = np.random.default_rng(0)
    for number in range(40):
        path = folder / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (200 + 50 * (number % 3), 300, 3), np.uint8)
        Image.fromarray(pixels).save(path, compress_level=1)
    path.write_bytes(path.read_bytes()[:5000])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 12, 31])
def test_a_killed_packing_goes_on(rows, tmp_path):
    data = many(tmp_path / "data")
    whole, killed = pack(data, tmp_path / "whole"), tmp_path / "killed"
    arguments = ("pack", "--data", data, "--out", killed)
    output, errors = tmp_path / "output", tmp_path / "errors"
    process = start_command(*arguments, output=output, errors=tmp_path / "before")
    index = killed / "index.csv"
    while not index.exists() or index.read_bytes().count(b"\n") <= rows:
        assert process.is_alive()
        time.sleep(0.0005)
    process.kill()
    process.join()
    assert not (killed / "pixels.npy").exists()
    # as a machine that fails leaves it: a line that is cut, pixels without a line
    with index.open("a") as file:
        file.write('"cut\nin the')
    with (killed / "pixels.part").open("ab") as file:
        file.write(b"more")
    done = index.read_bytes().count(b"\n") - 2
    status, said = run_command(*arguments, output=output, errors=errors), errors.read_text()
    assert status == 0, said
    assert f"going on after {done} images" in said and "took over" in said
    assert contents(whole) == contents(killed)
    assert "left out" in said and "39 images" in output.read_text()


def test_a_pack_that_is_not_finished_is_no_source(tmp_path, capsys):
    data = pack(many(tmp_path / "data"), tmp_path / "pack")
    (data / "pixels.npy").rename(data / "pixels.part")
    assert run("pretrain", "--data", data, "--out", tmp_path / "run") == 2
    assert "is not packed to its end: run its simmim pack again" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["a byte", "the end", "all pixels"])
def test_damage_is_named_and_mended(where, tmp_path, capsys):
    data = pack(many(tmp_path / "data"), tmp_path / "pack")
    before = contents(data)
    with (data / "pixels.npy").open("r+b") as file:
        if where == "a byte":
            file.seek(at := 128 + 200 * 300 * 3 + 77)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))
        else:
            file.truncate(200_000 if where == "the end" else 0)
    capsys.readouterr()
    assert run("pack", "--out", data, "--verify") == 2
    error = capsys.readouterr().err
    expected = f"{data}/class 0/10.png" if where == "a byte" else f"{data} is damaged: "
    assert expected in error and error.count("\n") == 1
    pack(tmp_path / "data", data)
    assert "damaged: packed anew" in capsys.readouterr().err
    assert contents(data) == before
    assert run("pack", "--out", data, "--verify") == 0


def test_an_index_that_was_changed_is_refused(tmp_path, capsys):
    data = pack(many(tmp_path / "data"), tmp_path / "pack")
    index = (data / "index.csv").read_text()
    for old, new in (
        (",200,300,3,", ",201,300,3,"),
        ("name,label", "nam,label"),
        (",300,3", ",x,3"),
    ):
        (data / "index.csv").write_text(index.replace(old, new, 1))
        assert run("pretrain", "--data", data, "--out", tmp_path / "run") == 2
        assert "is damaged: " in capsys.readouterr().err.splitlines()[-1]


def test_refusals_cost_one_line(photographs, labelled, tmp_path, capsys):
    data = pack(photographs, tmp_path / "pack")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    mistakes = {
        "was begun with another source": ("--data", labelled, "--out", data),
        "was begun with another channels": ("--data", photographs, "--out", data, "--channels", 1),
        "was begun with another shortest_side": (
            *("--data", photographs, "--out", data, "--shortest-side", 20),
        ),
        "is not empty and holds no pack": ("--data", labelled, "--out", tmp_path / "other"),
        "say which images to pack": ("--out", tmp_path / "new"),
        "is no pack": ("--out", tmp_path / "other", "--verify"),
        "no such file or folder": ("--data", tmp_path / "nowhere", "--out", tmp_path / "new"),
        "--shortest-side must be at least 0": (
            *("--data", labelled, "--out", tmp_path / "new", "--shortest-side", -1),
        ),
        "would mix pixels without data": (
            *("--data", labelled, "--out", tmp_path / "new", "--nodata", 0, "--shortest-side", 9),
        ),
    }  # fmt: skip
    before = contents(data)
    for words, arguments in mistakes.items():
        capsys.readouterr()
        assert run("pack", *arguments) == 2, words
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("simmim: ") and words in error, error
    assert contents(data) == before and not (tmp_path / "new").exists()


def test_a_full_disk(photographs, small_drive, tmp_path, capsys):
    assert run("pack", "--data", photographs, "--out", small_drive / "pack") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in error and "the same command goes on from there" in error
    rows = (small_drive / "pack/index.csv").read_bytes().count(b"\n") - 1
    assert 1 <= rows < 8
    shutil.copytree(small_drive / "pack", tmp_path / "pack")
    pack(photographs, tmp_path / "pack")
    assert f"going on after {rows} images" in capsys.readouterr().err
    assert contents(tmp_path / "pack") == contents(pack(photographs, tmp_path / "whole"))


def test_output_that_takes_no_more_is_no_fault_of_the_pack(
    photographs, tmp_path, capsys, monkeypatch
):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run("pack", "--data", photographs, "--out", tmp_path / "pack") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "simmim: No space left on device"
    assert check_pack(tmp_path / "pack") == 8


def test_bad_images_can_stop_it(tmp_path, capsys):
    data = many(tmp_path / "data")
    assert run("pack", "--data", data, "--out", tmp_path / "a", "--on-bad-image", "error") == 2
    assert f"cannot read {data}/class 1/39.png" in capsys.readouterr().err.splitlines()[-1]


def test_images_that_vanish_stop_it(tmp_path, start_simmim):
    """As of a disk that is unmounted; it goes on when they are there again."""
    data = many(tmp_path / "data")
    arguments = ("pack", "--data", data, "--out", tmp_path / "pack", "--workers", 1)
    process = start_simmim(*arguments, stderr=subprocess.PIPE, text=True)
    index = tmp_path / "pack/index.csv"
    while not index.exists() or index.read_bytes().count(b"\n") <= 2:
        assert process.poll() is None
        time.sleep(0.0005)
    data.rename(tmp_path / "away")
    error = process.communicate()[1].splitlines()[-1]
    assert process.returncode == 2 and "No such file or directory; what is packed stays" in error
    (tmp_path / "away").rename(data)
    pack(data, tmp_path / "pack")
    assert contents(tmp_path / "pack") == contents(pack(data, tmp_path / "whole"))


def test_a_scene_that_is_cut_short_leaves_nothing(tmp_path, capsys):
    """It is packed in parts, so that some are written before the damage is met."""
    (tmp_path / "data").mkdir()
    scene = np.arange(4200 * 4200, dtype=np.uint16).reshape(4200, 4200)
    for number in range(2):
        tifffile.imwrite(tmp_path / f"data/{number}.tif", scene, tile=(512, 512))
    (tmp_path / "data/2.tif").write_bytes((tmp_path / "data/0.tif").read_bytes())
    with (tmp_path / "data/1.tif").open("r+b") as file:
        file.truncate(30_000_000)
    pack(tmp_path / "data", tmp_path / "pack")
    assert f"left out {tmp_path}/data/1.tif: damaged" in capsys.readouterr().err
    pixels = np.load(tmp_path / "pack/pixels.npy")
    assert np.array_equal(pixels.reshape(2, 4200, 4200), [scene, scene])
    assert run("pack", "--out", tmp_path / "pack", "--verify") == 0


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_shortest_side(dtype, tmp_path):
    """Smaller images stay as they are; the others are near Pillow's."""
    (tmp_path / "data").mkdir()
    scale = {"uint8": 1, "uint16": 200, "float32": 0.1}[dtype]
    for number, (height, width) in enumerate([(60, 90), (120, 60), (20, 30)]):
        pixels = (smooth_image(number, height, width)[..., 0] * scale).astype(dtype)
        tifffile.imwrite(tmp_path / f"data/{number}.tif", pixels)
    data = pack(tmp_path / "data", tmp_path / "pack", "--shortest-side", 30, "--channels", 1)
    images = [item.read() for item in find_source(data, SourceConfig()).paths]
    assert [tuple(image.shape) for image in images] == [(1, 30, 45), (1, 60, 30), (1, 20, 30)]
    original = tifffile.imread(tmp_path / "data/0.tif").astype(np.float32)
    resized = Image.fromarray(original).resize((45, 30), Image.Resampling.BILINEAR)
    assert np.abs(images[0][0].numpy() - np.asarray(resized)).max() <= (
        1 if dtype == "uint8" else scale
    )


def test_statistics_of_a_pack_are_those_of_the_source(tmp_path):
    data = write("folder of TIFF", tmp_path / "a")
    found = []
    for path in (data, pack(data, tmp_path / "pack")):
        assert run("stats", "--data", path, "--out", tmp_path / f"{path.name}.json") == 0
        found.append(json.loads((tmp_path / f"{path.name}.json").read_text()))
    assert found[0] == found[1]


def test_arrays_are_not_sent_to_the_processes_that_measure(tmp_path, monkeypatch):
    np.save(tmp_path / "images.npy", np.arange(100 * 8 * 8, dtype=np.uint16).reshape(100, 8, 8))

    def refuse(_: ArraySource) -> None:
        raise TypeError("it was sent")

    monkeypatch.setattr(ArraySource, "__reduce__", refuse)
    arguments = ("--data", tmp_path / "images.npy", "--out", tmp_path / "stats.json")
    assert run("stats", *arguments, "--workers", 2) == 0


def test_parts_are_packed_as_such(tmp_path):
    """train/ beside val/ of a folder become two packs, and are used as the folders would be."""
    for number in range(8):
        path = tmp_path / "data" / ("val" if number > 5 else "train") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth_image(number, 40, 50)).save(path)
    config = settings("folder", tmp_path / "a", epochs=1, out=tmp_path / "run")
    data = pack(tmp_path / "data", tmp_path / "data/pack")
    trainer = Trainer(dataclasses.replace(config, data=data))
    assert trainer.images == 6 and len(trainer.val_set) == 2
    assert run("pack", "--out", data, "--verify") == 0
    # a pack among the images is none of them
    again = find_source(tmp_path / "data", SourceConfig())
    assert len(again.paths) == 8 and "2 pack (not read)" in again.summary()
