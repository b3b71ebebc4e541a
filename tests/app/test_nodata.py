"""Pixels without data, and values beyond the percentiles, in crops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tifffile
import torch

from simmim.cli import main
from simmim.config.images import Reading
from simmim.config.pretrain import PretrainConfig
from simmim.data.cropping import Cropping
from simmim.data.crops import Crops
from simmim.training.pretrain import Trainer

from .test_cli import FAST
from .test_stats import measure, run, scenes

SETTINGS = {"size": (16, 16), "scale": (0.05, 0.1), "ratio": (1.0, 1.0), "flip": 0.5, "seed": 3}


@pytest.mark.parametrize(("dtype", "nodata"), [("int16", -9999), ("float32", math.nan)])
def test_crops_with_too_little_data_are_drawn_anew(dtype, nodata):
    image = torch.full((2, 96, 96), 5.0)
    image[:, :, :64] = nodata
    image = image.to(getattr(torch, dtype))
    cropping = Cropping(**SETTINGS, nodata=nodata, nodata_share=0.2, fill=(1.0, 2.0))
    alone = Cropping(**SETTINGS, nodata=nodata, nodata_share=1.0, fill=(1.0, 2.0))

    def with_data(how: Cropping, sample: int) -> float:
        crop, whole = how(image, 0, sample, 0)
        assert crop.dtype == image.dtype
        crop = crop.double().round(decimals=4)
        assert (crop[:, whole] == 5).all()
        # what remains is the channel's mean
        assert crop[0].min() >= 1 and crop[1].min() >= 2 and crop.max() <= 5
        return (crop == 5).float().mean().item()

    drawn = [with_data(cropping, sample) for sample in range(40)]
    assert np.mean(drawn) > 0.85 > 0.45 > np.mean([with_data(alone, s) for s in range(40)])
    assert torch.equal(cropping(image, 1, 7, 0).pixels, cropping(image, 1, 7, 0).pixels)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_what_any_pixel_without_data_adds_to_is_marked(interpolation):
    """Holes in single channels: just the pixels that depend on what is put there, flipped or not."""
    image = torch.rand(3, 90, 70)
    image[0, 20:31, 40:43] = image[2, 60, 10] = image[1, 75:, :9] = math.nan
    settings = SETTINGS | {"scale": (0.5, 1.0), "interpolation": interpolation, "nodata": math.nan}
    one, other = (Cropping(**settings, fill=(fill,) * 3) for fill in (0.0, 1e4))
    for sample in range(8):
        (pixels, marked), (others, again) = one(image, 0, sample, 0), other(image, 0, sample, 0)
        assert torch.equal(marked, (pixels == others).all(0)) and torch.equal(marked, again)
        assert 0 < marked.float().mean() < 1


def test_nothing_is_drawn_anew_where_all_hold_data():
    image = torch.randint(0, 255, (3, 60, 60), dtype=torch.uint8)
    one, other = Cropping(**SETTINGS), Cropping(**SETTINGS, nodata=256.0, fill=(0.0,) * 3)
    for sample in range(20):
        (pixels, none), (found, with_data) = one(image, 2, sample, 0), other(image, 2, sample, 0)
        assert torch.equal(pixels, found) and none is None and with_data.all()


@pytest.mark.parametrize("nodata", [0, 255, 32767, 32768, 65535, -1, -32768, -0.5, 7e9, math.nan])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_integers_without_data_are_told_in_their_own_type(dtype, nodata):
    """As in exact numbers: a large scene has no room for a copy in another type."""
    limits = torch.iinfo(getattr(torch, dtype))
    ends = [limits.min, limits.min + 1, 0, 7, 255, limits.max - 1, limits.max]
    image = torch.tensor(ends, dtype=torch.int64).to(getattr(torch, dtype)).expand(2, 3, 7)
    cropping = Cropping(**SETTINGS, nodata=float(nodata), fill=(0.0, 0.0))
    lacking = cropping._without_data(image)
    assert lacking.tolist() == (image.double() == nodata).tolist()


def test_numbers_that_are_none_are_refused_by_the_crop(tmp_path):
    for number in range(3):
        pixels = np.full((2, 64, 64), 5, np.float32)
        pixels[0, :32, :32] = np.nan if number == 1 else 5
        tifffile.imwrite(
            tmp_path / f"{number}.tif", pixels, planarconfig="separate", photometric="minisblack"
        )
    paths = sorted(tmp_path.iterdir())
    crops = Crops(paths, Cropping(**SETTINGS), Reading(2, dtype="float32"), crops=20)
    samples = [crops[0, sample] for sample in range(1, 60, 3)]
    passed_over = [sample for sample in samples if sample.source == 2]
    assert 0 < len(passed_over) < 20
    for sample in samples:
        assert sample.image.isfinite().all()
        assert bool(sample.bad) == (sample.source == 2)
    assert "--nodata names what holds no data" in passed_over[0].bad[0][1]


def test_values_are_clipped_after_resizing():
    image = torch.randint(-3000, 3000, (2, 60, 60), dtype=torch.int16)
    clip = (-100.0, -200.0), (100.0, 200.0)
    free, clipped = Cropping(**SETTINGS), Cropping(**SETTINGS, clip=clip)
    for sample in range(5):
        expected = free(image, 0, sample, 0).pixels.float()
        for channel, (low, high) in enumerate(zip(*clip, strict=True)):
            expected[channel].clamp_(low, high)
        assert torch.equal(clipped(image, 0, sample, 0).pixels, expected.to(torch.int16))


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_integers_are_rounded_once(dtype):
    """Resized in float32 and rounded, never more than half a step from the exact result."""
    limits = torch.iinfo(getattr(torch, dtype))
    image = torch.randint(limits.min, limits.max + 1, (2, 60, 60)).to(getattr(torch, dtype))
    got = Cropping(**SETTINGS)(image, 0, 1, 0).pixels
    exact = Cropping(**SETTINGS)(image.double().float(), 0, 1, 0).pixels
    assert got.dtype == image.dtype
    assert (got.float() - exact).abs().max() <= 0.5


def test_a_run_with_pixels_without_data(tmp_path, capsys):
    scenes(tmp_path / "data", "float32", 8, bands=3)
    for path in sorted((tmp_path / "data").iterdir())[:4]:
        pixels = tifffile.imread(path)
        pixels[:, :10] = np.nan
        tifffile.imwrite(
            path,
            pixels,
            photometric="minisblack",
            planarconfig="separate",
        )
    stats = measure(tmp_path / "data", tmp_path / "stats.json", "--nodata", "nan")
    arguments = ("pretrain", "--data", tmp_path / "data", "--stats", stats, *FAST, "--epochs", 2)
    out = tmp_path / "run"
    assert run(*arguments, "--out", out, "--clip-percentile", 1, 99, "--val-count", 2) == 0
    assert "skipped" not in capsys.readouterr().err
    config = PretrainConfig.from_json((out / "config.json").read_text())
    assert (config.nodata, config.clip_percentile) == ("nan", (1.0, 99.0))
    # the same settings, read back from the run
    assert Trainer(config.__class__(**{**vars(config), "resume": True})).update == 2
    assert main(["reconstruct", "--checkpoint", str(out / "checkpoints/last.pt"),
                 "--out", str(tmp_path / "a.png"), "--show-bands", "3", "1", "2"]) == 0  # fmt: skip
