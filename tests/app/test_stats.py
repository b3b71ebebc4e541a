"""What ``simmim stats`` measures, and the runs that take it."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from simmim.cli import main
from simmim.config.images import PERCENTILES
from simmim.config.pretrain import PretrainConfig
from simmim.data.statistics import FLOAT_ERROR
from simmim.errors import UserError
from simmim.evaluation.reconstruct import load_model
from simmim.models.classifier import load_classifier
from simmim.training.pretrain import Trainer

from .test_cli import FAST


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def scenes(folder: Path, dtype: str, count: int = 6, bands: int = 5) -> np.ndarray:
    """Files of ``(bands, 40, 48)``, and what they hold, ``(C, N)``."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:40, 0:48]
    found = []
    for number in range(count):
        offsets = rng.normal(0, 300, (bands, 1, 1)) + 400 * np.arange(bands)[:, None, None]
        pixels = offsets + 8 * x + 5 * y + rng.normal(0, 9, (bands, 40, 48))
        if not dtype.startswith(("float", "int")):
            pixels = np.abs(pixels)
        pixels = (pixels / (12 if dtype == "uint8" else 1)).astype(dtype)
        tifffile.imwrite(
            folder / f"{number}.tif", pixels, photometric="minisblack", planarconfig="separate"
        )
        found.append(pixels.reshape(bands, -1))
    return np.concatenate(found, 1)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_statistics_are_numpys(dtype, tmp_path, monkeypatch):
    values = scenes(tmp_path / "data", dtype).astype(np.float64)
    monkeypatch.setattr("simmim.data.statistics._PIECE", 2)
    monkeypatch.setattr("simmim.data.statistics._ROWS", 16)
    texts = []
    for workers in (0, 2):
        out = tmp_path / f"{workers}.json"
        assert run("stats", "--data", tmp_path / "data", "--out", out, "--workers", workers) == 0
        texts.append(out.read_text())
    assert texts[0] == texts[1]
    found = json.loads(texts[0])
    assert (found["pixel_type"], found["channels"], found["images"]) == (dtype, 5, 6)
    np.testing.assert_allclose(found["mean"], values.mean(1), rtol=1e-12)
    np.testing.assert_allclose(found["std"], values.std(1), rtol=1e-10)
    assert found["min"] == values.min(1).tolist() and found["max"] == values.max(1).tolist()
    for percentile in PERCENTILES:
        expected = np.percentile(values, percentile, 1, method="inverted_cdf")
        error = FLOAT_ERROR if dtype == "float32" else 0
        np.testing.assert_allclose(found["percentiles"][str(percentile)], expected, rtol=error)


def test_deviations_that_are_small_beside_the_mean(tmp_path, monkeypatch):
    """As of elevations in millimetres or times: the mean of the squares would lose them."""
    values = (1e6 + np.random.default_rng(0).normal(0, 0.1, (5, 40, 40))).astype(np.float32)
    (tmp_path / "data").mkdir()
    for number, image in enumerate(values):
        tifffile.imwrite(tmp_path / "data" / f"{number}.tif", image)
    monkeypatch.setattr("simmim.data.statistics._PIECE", 2)
    monkeypatch.setattr("simmim.data.statistics._ROWS", 16)
    found = json.loads(measure(tmp_path / "data", tmp_path / "stats.json").read_text())
    np.testing.assert_allclose(found["std"], values.astype(np.float64).std(), rtol=1e-8)


def test_values_without_data_are_counted_apart(tmp_path):
    values = scenes(tmp_path / "data", "float32", 1)
    path = tmp_path / "data" / "0.tif"
    for nodata, written in (("-9999", -9999), ("nan", np.nan)):
        pixels = tifffile.imread(path)
        pixels[1, :7, :9] = written
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="separate")
        out = tmp_path / f"{nodata}.json"
        assert run("stats", "--data", path, "--nodata", nodata, "--out", out) == 0
        found = json.loads(out.read_text())
        assert found["nodata_pixels"] == [0, 63, 0, 0, 0]
        kept = (
            pixels[1][pixels[1] != written] if written == -9999 else pixels[1][~np.isnan(pixels[1])]
        )
        np.testing.assert_allclose(found["mean"][1], kept.astype(float).mean(), rtol=1e-12)
    assert values.shape == (5, 40 * 48)


def test_images_of_several_types_are_refused(tmp_path, capsys):
    scenes(tmp_path / "data", "uint16", 3)
    scenes(tmp_path / "data" / "more", "float32", 2)
    scenes(tmp_path / "data" / "other", "uint16", 1, bands=4)
    assert run("stats", "--data", tmp_path / "data", "--out", tmp_path / "a.json") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "3 are as the first" in error
    assert "move the others elsewhere, or name those that are wanted in a list" in error
    assert "2 with float32 numbers, not uint16" in error and "1 with 4 bands, not 5" in error
    assert not (tmp_path / "a.json").exists()


def test_bands_that_are_no_colours_stay_bands(tmp_path, capsys):
    """Three bands of 8 bits that the file does not call RGB are refused until they are measured."""
    scenes(tmp_path / "data", "uint8", 8, bands=3)
    arguments = ("pretrain", "--data", tmp_path / "data", "--out", tmp_path / "run", *FAST)
    arguments += ("--epochs", 1)
    assert run(*arguments) == 2
    assert "3 bands that are not marked as RGB" in capsys.readouterr().err
    stats = measure(tmp_path / "data", tmp_path / "stats.json")
    assert json.loads(stats.read_text())["bands"] == [1, 2, 3]
    assert run(*arguments, "--stats", stats, "--compile", "off") == 0


def measure(folder: Path, out: Path, *more: object) -> Path:
    assert run("stats", "--data", folder, "--out", out, *more) == 0
    return out


def test_a_run_without_statistics_names_the_command(tmp_path, capsys):
    scenes(tmp_path / "data", "uint16")
    arguments = ("pretrain", "--data", tmp_path / "data", "--out", tmp_path / "run", *FAST)
    assert run(*arguments) == 2
    words = (
        f"run  simmim stats --data {tmp_path / 'data'} --out stats.json  and add --stats stats.json"
    )
    assert words in capsys.readouterr().err
    assert run(*arguments, "--bands", "4,3,2") == 2
    assert f"--data {tmp_path / 'data'} --bands 4,3,2 --out stats.json" in capsys.readouterr().err
    assert run(*arguments, "--channels", 13) == 2
    assert "simmim stats" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("plain", [False, True])
def test_training_on_bands(dtype, plain, tmp_path, capsys):
    """The loss is about 0.8 of a deviation at the start, as of all normalised data."""
    scenes(tmp_path / "data", dtype, 8)
    stats = measure(tmp_path / "data", tmp_path / "stats.json", "--bands", "4,3,2,1")
    arguments = ("pretrain", "--data", tmp_path / "data", "--out", tmp_path / "run", *FAST)
    more = ("--stats", stats, "--val-count", 2, "--picture", 2, "--epochs", 2)
    assert run(*arguments, *more, *(["--plain"] if plain else [])) == 0
    model, config = load_model(tmp_path / "run/checkpoints/last.pt")
    assert (config.channels, config.pixel_type, config.bands) == (4, dtype, (4, 3, 2, 1))
    found = json.loads(stats.read_text())
    unit = 255 if dtype == "uint8" else 1
    torch.testing.assert_close(model.mean, torch.tensor(found["mean"]) / unit)
    assert (tmp_path / "run/reconstruction.png").stat().st_size > 1000
    first = float(capsys.readouterr().out.partition("validation loss ")[2].split()[0])
    assert 0.3 < first < 1.5


def test_other_statistics_are_no_resumption(tmp_path):
    scenes(tmp_path / "data", "uint16", 8)
    stats = measure(tmp_path / "data", tmp_path / "stats.json")
    arguments = ("pretrain", "--data", tmp_path / "data", "--out", tmp_path / "run", *FAST)
    arguments += ("--epochs", 1)
    assert run(*arguments, "--stats", stats) == 0
    text = json.loads(stats.read_text())
    moved = tmp_path / "moved.json"
    moved.write_text(json.dumps(text))
    assert run(*arguments, "--stats", moved, "--resume") == 0
    text["mean"][0] += 1
    moved.write_text(json.dumps(text))
    assert run(*arguments, "--stats", moved, "--resume") == 2


def test_wrong_statistics_are_refused(tmp_path, capsys):
    scenes(tmp_path / "data", "uint16", 2)
    stats = measure(tmp_path / "data", tmp_path / "stats.json")
    arguments = ("pretrain", "--data", tmp_path / "data", "--out", tmp_path / "run", *FAST)
    for more, words in (
        (("--bands", "1,2"), "was measured with --bands (none)"),
        (("--channels", 4), "has 5 channels, not 4"),
        (("--channels", 3), "has 5 channels, not 3: leave out --channels"),
        (("--clip-percentile", 3, 98), "--clip-percentile 3 is none of those that are measured"),
        (("--no-normalize",), "--no-normalize is for 8-bit images"),
        (("--show-bands", 1, 9), "give one or three"),
    ):
        assert run(*arguments, "--stats", stats, *more) == 2
        assert words in capsys.readouterr().err, more
    stats.write_text("{}")
    assert run(*arguments, "--stats", stats) == 2
    assert "is no file of simmim stats" in capsys.readouterr().err


def test_settings_by_hand_take_the_place_of_a_file(tmp_path):
    scenes(tmp_path / "data", "uint16", 8, bands=2)
    config = PretrainConfig(
        data=tmp_path / "data",
        out=tmp_path / "run",
        channels=2,
        pixel_type="uint16",
        mean=(500.0, 900.0),
        std=(300.0, 300.0),
        encoder="cnn",
        img_size=16,
        mask_unit=8,
        batch_size=4,
        epochs=1,
        workers=0,
        device="cpu",
    )
    assert Trainer(config).fit().updates == 2
    with pytest.raises(UserError, match="--mean has 2 numbers for 3 channels"):
        Trainer(PretrainConfig(data=tmp_path, mean=(1.0, 2.0), std=(1.0, 2.0)))


@pytest.fixture
def classes(tmp_path) -> Path:
    """Three classes of six images of 4 bands, which differ in brightness."""
    for number, name in enumerate(("dark", "gray", "light")):
        scenes(tmp_path / "classes" / name, "uint16", 6, bands=4)
        for path in (tmp_path / "classes" / name).iterdir():
            pixels = tifffile.imread(path) + np.uint16(4000 * number)
            tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="separate")
    return tmp_path / "classes"


@pytest.mark.slow
def test_a_checkpoint_brings_its_statistics(classes, tmp_path, capsys):
    """To probe, finetune and reconstruct; the command line wins for other images."""
    stats = measure(classes, tmp_path / "stats.json", "--bands", "3,1")
    arguments = (
        "--data",
        classes,
        "--out",
        tmp_path / "run",
        *FAST,
        "--img-size",
        32,
        "--epochs",
        1,
    )
    assert run("pretrain", *arguments, "--stats", stats) == 0
    start = ("--data", classes, "--checkpoint", tmp_path / "run/checkpoints/last.pt")
    small = ("--workers", 0, "--device", "cpu")
    assert run("probe", *start, *small, "--out", tmp_path / "probe") == 0
    assert "3 classes, 15 images to train on, 3 to test on" in capsys.readouterr().out
    more = ("--epochs", 1, "--batch-size", 4, "--precision", "32-true", "--warmup-epochs", 0)
    assert run("finetune", *start, *small, *more, "--out", tmp_path / "tuned") == 0
    model, config = load_classifier(tmp_path / "tuned/checkpoints/last.pt")
    found = json.loads(stats.read_text())
    assert (config.bands, config.pixel_type, config.channels) == ((3, 1), "uint16", 2)
    torch.testing.assert_close(model.encoder.mean, torch.tensor(found["mean"]))
    picture = ("--out", tmp_path / "a.png", "--show-bands", 2)
    assert run("reconstruct", *start, *picture) == 0
    other = measure(classes, tmp_path / "other.json", "--bands", "2,4")
    assert run("probe", *start, *small, "--stats", other, "--out", tmp_path / "other") == 0
    assert run("probe", *start, *small, "--bands", "9,1", "--out", tmp_path / "no") == 2
    assert "4 bands, there is no band 9" in capsys.readouterr().err
    random = ("--encoder", "cnn", "--img-size", 16, "--data", classes, *small)
    assert run("probe", *random, "--stats", other, "--out", tmp_path / "random") == 0
    assert run("probe", *random, "--out", tmp_path / "no") == 2
    assert "run  simmim stats --data" in capsys.readouterr().err


def test_a_disk_that_is_lost_ends_it(tmp_path, monkeypatch, capsys):
    """Statistics of the images before would be those of other data."""
    scenes(tmp_path / "data", "uint8", count=12, bands=3)
    genuine, opened = Path.open, []

    def open_until_it_is_lost(path, *args, **options):
        if path.suffix == ".tif":
            opened.append(path)
            if len(opened) > 4:
                raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return genuine(path, *args, **options)

    monkeypatch.setattr(Path, "open", open_until_it_is_lost)
    out = tmp_path / "stats.json"
    assert run("stats", "--data", tmp_path / "data", "--workers", 1, "--out", out) == 2
    assert "8 images in a row cannot be opened, the last is" in capsys.readouterr().err
    assert not out.exists()
