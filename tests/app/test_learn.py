"""``make learn`` end to end with a tiny encoder, and what its page says."""

from __future__ import annotations

import dataclasses
import gzip
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import learn, learn_data, learn_page
from simmim.config.pretrain import PretrainConfig
from simmim.training.metrics import read_metrics
from simmim.training.pretrain import Trainer
from tests.budget import assert_within_budget

pytestmark = pytest.mark.slow

FEW = {"train": (True, 0, 100), "choose": (True, 1200, 6), "test": (False, 0, 12)}


class OneProcess:
    """Runs the tasks here, where the settings are changed."""

    map = staticmethod(map)

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> OneProcess:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def photographs(monkeypatch, tmp_path):
    """Fashion-MNIST's four files as Debian's package has them, with few photographs of noise."""
    folder = tmp_path / "debian"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("train", 1400), ("t10k", 200)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, numbers in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">4B{numbers.ndim}I", 0, 0, 8, numbers.ndim, *numbers.shape)
            packed = gzip.compress(header + numbers.tobytes())
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(packed)
    monkeypatch.setattr(learn_data, "INSTALLED", folder)
    return tmp_path / "photographs"


@pytest.fixture
def tiny(monkeypatch, tmp_path, photographs):
    args = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    monkeypatch.setitem(learn.ENCODER, "encoder_args", args)
    for settings in (*learn.METHODS.values(), learn.PRETRAIN, learn.FINETUNE):
        for name, value in (("decoder_width", 16), ("epochs", 1), ("warmup_epochs", 0)):
            if name in settings:
                monkeypatch.setitem(settings, name, value)
    monkeypatch.setattr(learn, "EPOCHS", dict.fromkeys(learn.EPOCHS, 1))
    monkeypatch.setattr(learn, "CHOICES", {"svc__C": (1,)})
    monkeypatch.setattr(learn_data, "PARTS", FEW)
    monkeypatch.setattr(learn, "RESULTS", tmp_path / "page")
    monkeypatch.setattr(learn, "ProcessPoolExecutor", OneProcess)
    folders = ["--out", str(tmp_path / "runs"), "--photographs", str(photographs)]
    monkeypatch.setattr("sys.argv", ["learn", "--seeds", "1", *folders])
    return tmp_path


def test_the_page_is_made_from_what_was_measured(tiny):
    learn.main()
    page = (tiny / "page" / "README.md").read_text()
    assert (tiny / "page" / "learn.png").stat().st_size > 1000
    records = json.loads((tiny / "page" / "learn.json").read_text())["records"]
    assert [r["start"] for r in records] == list(learn_page.STARTS)
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    for record, row in zip(records, rows, strict=False):
        assert list(record["right"]) == list(learn_page.MEASURES)
        assert row.endswith("".join(f" {100 * r:.1f} |" for r in record["right"].values()))
        assert (record["validation"] is None) == (record["start"] not in learn_page.PRETRAINED)
    # the two ways of computing the loss differ by rounding, and weights of the same seed agree
    runs = tiny / "runs"
    for method in learn.METHODS:
        plain = runs / f"{method}-plain-0"
        config = PretrainConfig.from_json((plain / "pretrain" / "config.json").read_text())
        exact = runs / f"{method}-exact" / "pretrain"
        Trainer(dataclasses.replace(config, out=exact, precision="64-true")).fit()
        assert_within_budget(
            losses(runs / f"{method}-0").float(),
            losses(plain).float(),
            losses(exact.parent),
            f"losses of {method}",
        )


def losses(run: Path) -> torch.Tensor:
    """What a pre-training found before, during and after its epoch."""
    rows = read_metrics(run / "pretrain" / "metrics.csv")
    return torch.tensor([float(row["loss"]) for row in rows], dtype=torch.float64)


def test_no_photograph_is_in_two_parts(tmp_path, photographs, monkeypatch):
    monkeypatch.setattr(learn_data, "PARTS", FEW)
    train, choose = learn_data.write_images(tmp_path / "images", photographs, ("train", "choose"))
    assert not (tmp_path / "images" / "test").exists()
    assert len({path.name for path in train.glob("*/*.png")}) == 1000
    assert not {p.name for p in train.glob("*/*.png")} & {p.name for p in choose.glob("*/*.png")}
    assert len(list(choose.glob("T-shirt or top/*.png"))) == 6


def test_parts_of_the_real_photographs(tmp_path, monkeypatch):
    monkeypatch.setattr(learn_data.FashionMNIST, "mirrors", [])  # Debian's package or none
    try:
        sources = learn_data.get_photographs(tmp_path)
    except RuntimeError as error:
        pytest.skip(f"not to be had here: {str(error).splitlines()[0]}")
    shapes = [tuple(sources[train].data.shape) for train in (True, False)]
    assert shapes == [(60_000, 28, 28), (10_000, 28, 28)]
    labels = {train: source.targets.numpy() for train, source in sources.items()}
    for train, first, count in learn_data.PARTS.values():
        assert np.bincount(labels[train][first:]).min() >= count
    # the last photograph to train on lies before the first to choose settings on
    _, first, count = learn_data.PARTS["train"]
    used = [first + np.flatnonzero(labels[True] == c)[count - 1] for c in range(10)]
    assert max(used) < learn_data.PARTS["choose"][1]
    image = learn_data.distort(sources[True].data[0].numpy(), np.random.default_rng(0))
    assert image.shape == (learn_data.SIDE, learn_data.SIDE) and image.dtype == np.uint8


def test_photographs_are_moved_and_get_noise(monkeypatch):
    black = np.zeros((28, 28), np.uint8)
    noise = learn_data.distort(black, np.random.default_rng(0)).astype(float)
    # half of it is below black and cut off, a part above white
    assert 0.4 < (noise == 0).mean() < 0.6 and 0.02 < (noise == 255).mean() < 0.12
    monkeypatch.setattr(learn_data, "NOISE", 0.0)
    dot = black.copy()
    dot[10:18, 10:18] = 255
    seen = [learn_data.distort(dot, np.random.default_rng(seed)) for seed in range(20)]
    rows, columns = zip(*(np.argwhere(image > 127).mean(0) for image in seen), strict=True)
    for places in (rows, columns):
        assert 1 < np.ptp(places) < 2 * learn_data.SHIFT + 1
    areas = [(image > 127).sum() / 64 for image in seen]
    assert 0.5 < min(areas) < 0.9 and 1 < max(areas) < 1.5


def test_choosing_writes_no_page(tiny, monkeypatch, capsys):
    monkeypatch.setattr(learn, "STARTS", ("random", "pixels"))
    monkeypatch.setattr("sys.argv", [*sys.argv, "--choose"])
    learn.main()
    assert "| random weights |" in capsys.readouterr().out
    assert not (tiny / "page").exists()


def test_spread_over_seeds():
    records = [
        learn_page.Record(start, seed, dict.fromkeys(learn_page.MEASURES, right), None, 1.0)
        for start, base in (("simmim", 0.5), ("mae", 0.6), ("random", 0.35), ("pixels", 0.2))
        for seed, right in enumerate((base, base + 0.1, base + 0.2))
    ]
    records[-1].right["neighbours, 10"] = 1.0
    mine, random = (learn_page.values_of(records, s, "linear, 10") for s in ("simmim", "random"))
    assert learn_page.cell(mine) == "60.0 ± 10.0"
    assert learn_page.difference(mine, random) == "+15.0"  # the spreads are 20 together
    assert learn_page.difference(mine, [30.0, 35.0, 40.0]) == "**+25.0**"
    assert learn_page.best_of(records, ["pixels"], 10) == ("pixels", "neighbours, 10")
    assert learn_page.best_of(records, ["pixels", "mae"], 100) == ("mae", "linear, 100")
