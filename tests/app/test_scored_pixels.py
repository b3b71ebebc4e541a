"""Pixels without data in a run on GeoTIFF files: no loss scores or counts them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import rasterio
import tifffile
import torch
from rasterio.transform import from_origin

from simmim.config.pretrain import PretrainConfig
from simmim.data.batches import collate
from simmim.data.splits import VALIDATION_SEED
from simmim.models.published import local_statistics, normalized, on_grid
from simmim.models.targets import as_image
from simmim.training.metrics import read_metrics
from simmim.training.pretrain import Trainer

from .runs import train_together
from .test_cli import FAST
from .test_stats import measure, run

SIDE, BANDS, NODATA = 32, 3, -9999
#: in every file: a corner in all bands, and a strip in one of them
CORNER, STRIP = np.s_[:, :13, :21], np.s_[1, 18:20, :]
WHOLE = ("--crop-scale", 1, 1, "--crop-ratio", 1, 1, "--flip", 0, "--nodata-share", 1)
CNN = ("--encoder", "cnn", "--encoder-args", "widths", "4,4,4")
SWIN = (
    *("--encoder", "swin_tiny_patch4_window7_224", "--encoder-args", "embed_dim", 8),
    *("depths", "1,1", "num_heads", "1,2", "window_size", 4),
)
MAE = ("--method", "mae", "--decoder-width", 16, "--decoder-depth", 1, "--decoder-heads", 2)
RUNS = {
    "hidden tokens": (),
    "whole image": CNN,
    "swin": SWIN,
    "published arithmetic": ("--plain",),
    "mae": (*MAE, "--loss", "mse"),
    "mae, published arithmetic": (*MAE, "--plain"),
    "low pass": ("--target", "lowpass"),
    "gradients": ("--target", "hog"),
    "window": ("--target-norm", "window", "--target-window", 7, "--loss", "smooth_l1"),
    "patch": ("--target-norm", "patch"),
    "patch, published arithmetic": ("--target-norm", "patch", "--plain"),
}


@pytest.fixture(scope="module")
def stats(tmp_path_factory):
    """What is measured of GeoTIFF files with a corner and a strip without data."""
    folder = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    (folder / "data").mkdir()
    for number in range(6):
        pixels = rng.integers(0, 3000, (BANDS, SIDE, SIDE)).astype(np.int16)
        pixels[CORNER] = pixels[STRIP] = NODATA
        with rasterio.open(
            *(folder / "data" / f"{number}.tif", "w"),
            driver="GTiff",
            count=BANDS,
            height=SIDE,
            width=SIDE,
            dtype="int16",
            nodata=NODATA,
            compress="deflate",
            crs="EPSG:32633",
            transform=from_origin(500000, 5500000, 10, 10),
        ) as file:
            file.write(pixels)
    return measure(folder / "data", folder / "stats.json", "--nodata", NODATA)


def train(stats, out, *options) -> Trainer:
    """A run of one epoch from the command line, loaded again."""
    data = stats.parent / "data"
    arguments = ("pretrain", "--data", data, "--stats", stats, *FAST, *WHOLE, "--epochs", 1)
    assert run(*arguments, "--out", out, "--val-count", 2, *options) == 0
    config = PretrainConfig.from_json((out / "config.json").read_text())
    return Trainer(config.__class__(**{**vars(config), "resume": True}))


def with_data() -> torch.Tensor:
    found = np.ones((BANDS, SIDE, SIDE), bool)
    found[CORNER] = found[STRIP] = False
    return torch.from_numpy(found.all(0))


def expected_loss(model, prediction, images, mask) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each image, the published arithmetic in float64 over the pixels that hold data: the sum, and
    of how many numbers it is."""
    target = as_image(model.make_target(images), model._grid(images)).double()
    if model.of_pixels:
        target = normalized(target, model.mean.double(), model.std.double())
    side = target.shape[2] // model._grid(images)[0]
    if prediction.dim() == 3:
        prediction = model._shuffle(prediction, images, side)
    if model.target_norm is not None:
        mean, deviation = local_statistics(target, model.target_norm, side)
        target = (target - mean) / deviation
    difference = (prediction.double() - target).abs()
    if model.loss == "mse":
        difference = difference.square()
    elif model.loss == "smooth_l1":
        small = difference < 1
        difference = torch.where(small, difference.square() / 2, difference - 0.5)
    cell = SIDE // target.shape[2]
    whole = with_data().unflatten(1, (-1, cell)).unflatten(0, (-1, cell)).all(3).all(1)
    scored = (on_grid(mask, *target.shape[2:]) & whole)[:, None]
    count = scored.sum((1, 2, 3)) * target.shape[1]
    return (difference * scored).sum((1, 2, 3)), count


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_pixels_without_data_are_neither_scored_nor_counted(options, stats, tmp_path):
    trainer = train(stats, tmp_path / "run", *options)
    batch = collate([trainer.train_set[0, sample] for sample in range(4)])
    model = trainer.model.module.eval()
    mask = trainer.masking(batch.ids, seed=trainer.config.seed, epoch=0)
    with torch.no_grad():
        tokens = model.predict_tokens(batch.images, mask)
        sums, counts = expected_loss(model, tokens, batch.images, mask)
        assert counts.min() > 0
        found = trainer.pass_loss(batch, 0)
    torch.testing.assert_close(found.double(), sums.sum() / counts.sum(), rtol=1e-5, atol=0)


def test_validation_and_its_baseline_leave_them_out(stats, tmp_path):
    trainer = train(stats, tmp_path / "run")
    model, expected = trainer.model.module.eval(), []
    batch = collate([trainer.val_set[0, sample] for sample in range(2)])
    mask = trainer.masking(batch.ids, seed=VALIDATION_SEED, epoch=0)
    with torch.no_grad():
        tokens = model.predict_tokens(batch.images, mask)
        pixels = normalized(batch.images, model.mean, model.std).double()
        seen = (~on_grid(mask, SIDE, SIDE) & with_data())[:, None]
        guess = ((pixels * seen).sum((2, 3)) / seen.sum((2, 3)))[..., None, None]
        for prediction in (tokens, guess.expand(-1, -1, SIDE, SIDE)):
            sums, counts = expected_loss(model, prediction, batch.images, mask)
            expected.append((sums / counts).mean().item())
    counters = trainer.counters
    assert [counters.last_validation, counters.baseline] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "options", [("--seed", 1), MAE, ("--target", "hog")], ids=["simmim", "mae", "hog"]
)
def test_several_passes_are_one_batch(options, stats, tmp_path):
    """However many pixels of each pass are scored: losses, gradients, and the means of rows."""
    rows = {}
    for name, batch in {"one": (4,), "two": (2, "--accumulate", 2)}.items():
        train(stats, tmp_path / name, *options, "--log-every", 1, "--batch-size", *batch)
        rows[name] = read_metrics(tmp_path / name / "metrics.csv")
    assert_alike(*rows.values())


@pytest.mark.slow
def test_several_processes_are_one_batch(stats, tmp_path):
    config = train(stats, tmp_path / "one", "--seed", 1, "--log-every", 1, "--batch-size", 4).config
    two = replace(config, out=tmp_path / "two", batch_size=2, resume=False)
    assert train_together(two, 2) == [0, 0]
    assert_alike(*(read_metrics(out / "metrics.csv") for out in (config.out, two.out)))


def assert_alike(ones, others):
    for one, other in zip(ones, others, strict=True):
        for column in ("loss", "grad_norm"):
            assert (one[column] == other[column] == "") or (
                float(other[column]) == pytest.approx(float(one[column]), rel=1e-4)
            )


@pytest.mark.parametrize("plain", [(), ("--plain",)], ids=["kernels", "published arithmetic"])
def test_updates_that_score_nothing_are_in_no_mean(plain, tmp_path):
    """A training image without any data beside three whole ones, each an update of its own."""
    pixels = np.random.default_rng(0).integers(0, 3000, (6, SIDE, SIDE)).astype(np.int16)
    (tmp_path / "data").mkdir()
    for number, image in enumerate(pixels):
        image[number == 0] = NODATA
        tifffile.imwrite(tmp_path / "data" / f"{number}.tif", image)
    stats = measure(tmp_path / "data", tmp_path / "stats.json", "--nodata", NODATA)
    rows = {}
    for every in (1, 0):
        out = tmp_path / str(every)
        train(stats, out, *MAE, *plain, "--batch-size", 1, "--log-every", every)
        rows[every] = [r for r in read_metrics(out / "metrics.csv") if r["split"] == "train"]
    losses = [float(row["loss"]) for row in rows[1]]
    assert len(losses) == 3 and min(losses) > 0
    assert float(rows[0][0]["loss"]) == pytest.approx(sum(losses) / 3)
