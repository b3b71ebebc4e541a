"""``make learn`` end to end with a tiny encoder, and what its page says."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import learn, learn_data, learn_page
from simmim.config.pretrain import PretrainConfig
from simmim.training.metrics import read_metrics
from simmim.training.pretrain import Trainer
from tests.budget import assert_within_budget

pytestmark = pytest.mark.slow


class OneProcess:
    """Runs the tasks here, where the settings are changed."""

    map = staticmethod(map)

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> OneProcess:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    args = {"patch_size": 12, "embed_dim": 16, "depth": 1, "num_heads": 2}
    monkeypatch.setitem(learn.ENCODER, "encoder_args", args)
    for settings in (*learn.METHODS.values(), learn.PRETRAIN, learn.FINETUNE):
        for name, value in (("mask_unit", 12), ("decoder_width", 16), ("epochs", 1)):
            if name in settings:
                monkeypatch.setitem(settings, name, value)
    monkeypatch.setattr(
        learn_data, "PARTS", {name: (*part[:2], 12) for name, part in PARTS.items()}
    )
    monkeypatch.setattr(learn, "RESULTS", tmp_path / "page")
    monkeypatch.setattr(learn, "ProcessPoolExecutor", OneProcess)
    monkeypatch.setattr("sys.argv", ["learn", "--seeds", "1", "--out", str(tmp_path / "runs")])
    return tmp_path


PARTS = learn_data.PARTS


def test_the_page_is_made_from_what_was_measured(tiny):
    learn.main()
    page = (tiny / "page" / "README.md").read_text()
    assert (tiny / "page" / "learn.png").stat().st_size > 1000
    records = json.loads((tiny / "page" / "learn.json").read_text())["records"]
    assert [r["start"] for r in records] == list(learn_page.STARTS)
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    for record, row in zip(records, rows, strict=False):
        assert f" {100 * record['linear']:.1f} |" in row
        assert (record["finetuned"] is None) == (record["start"] in learn_data.FEATURES)
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


def test_parts_share_no_pixel_and_settings_are_not_chosen_on_the_test(tmp_path):
    ends = [part[:2] for part in PARTS.values()]
    assert all(here[1] <= following[0] for here, following in itertools.pairwise(ends))
    train, choose = learn_data.write_crops(tmp_path / "crops", ("train", "choose"))
    assert not (tmp_path / "crops" / "test").exists()
    for folder, count in ((train, 200), (choose, 60)):
        assert sorted(path.name for path in folder.iterdir()) == sorted(learn_data.PICTURES)
        assert len(list(folder.glob("*/*.png"))) == count * 17
    crop = np.asarray(Image.open(train / "cell" / "000.png"), np.float64)
    # the noise moves the mean, by a deviation of NOISE / SIDE
    assert abs(crop.mean() - learn_data.MEAN) < 5 * learn_data.NOISE / learn_data.SIDE


def test_choosing_writes_no_page(tiny, monkeypatch, capsys):
    monkeypatch.setattr(learn, "STARTS", ("random", "pixels"))
    monkeypatch.setattr("sys.argv", [*sys.argv, "--choose"])
    learn.main()
    assert "| random weights |" in capsys.readouterr().out
    assert not (tiny / "page").exists()


def test_spread_over_seeds():
    common = {"neighbours": 0.5, "linear_all": 0.5, "neighbours_all": 0.5}
    common |= {"validation": 1.0, "seconds": 1.0, "finetuned": None}
    records = [
        learn_page.Record(start=start, seed=seed, linear=linear, **common)
        for start, base in (("simmim", 0.5), ("random", 0.35))
        for seed, linear in enumerate((base, base + 0.1, base + 0.2))
    ]
    mine, random = (learn_page.values_of(records, s, "linear") for s in ("simmim", "random"))
    assert learn_page.cell(mine) == "60.0 ± 10.0"
    assert learn_page.cell(learn_page.values_of(records, "simmim", "finetuned")) == ""
    assert learn_page.difference(mine, random) == "+15.0"  # the spreads are 20 together
    assert learn_page.difference(mine, [30.0, 35.0, 40.0]) == "**+25.0**"
    assert learn_page.best_without_training(records, "linear") == ("random", random)
