"""``make learn`` end to end with a tiny encoder, and what its page says."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from experiments import learn, learn_page
from simmim.config.pretrain import PretrainConfig
from simmim.training.pretrain import Trainer
from simmim.training.records import read_metrics
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
    monkeypatch.setitem(learn.ENCODER, "encoder_args", {"patch_size": 8, "embed_dim": 16} | HEADS)
    monkeypatch.setitem(learn.PRETRAIN, "mask_unit", 8)
    monkeypatch.setitem(learn.PRETRAIN, "epochs", 1)
    monkeypatch.setitem(learn.FINETUNE, "epochs", 1)
    monkeypatch.setattr(learn, "RESULTS", tmp_path / "page")
    monkeypatch.setattr(learn, "ProcessPoolExecutor", OneProcess)
    monkeypatch.setattr("sys.argv", ["learn", "--seeds", "1", "--out", str(tmp_path / "runs")])
    return tmp_path


HEADS = {"depth": 1, "num_heads": 2}


def test_the_page_is_made_from_what_was_measured(tiny):
    learn.main()
    page = (tiny / "page" / "README.md").read_text()
    assert (tiny / "page" / "learn.png").stat().st_size > 1000
    records = json.loads((tiny / "page" / "learn.json").read_text())["records"]
    assert [r["start"] for r in records] == ["kernels", "plain", "random", "pixels"]
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    for record, row in zip(records, rows, strict=True):
        assert f" {100 * record['linear']:.1f} |" in row
    # the two ways of computing the loss differ by rounding, and weights of the same seed agree
    _, _, random, pixels = records
    runs = tiny / "runs"
    config = PretrainConfig.from_json((runs / "plain-0" / "pretrain" / "config.json").read_text())
    config = dataclasses.replace(config, out=runs / "exact" / "pretrain", precision="64-true")
    Trainer(config).fit()
    assert_within_budget(
        losses(runs / "kernels-0").float(),
        losses(runs / "plain-0").float(),
        losses(runs / "exact"),
        "losses",
    )
    assert random["validation"] is None
    assert pixels["finetuned"] is None
    assert pixels["linear"] > 0.8
    classes = sorted(path.name for path in (tiny / "runs" / "digits" / "test").iterdir())
    assert classes == [str(digit) for digit in range(10)]
    assert len(list((tiny / "runs" / "digits").glob("*/*/*.png"))) == 1797


def losses(run: Path) -> torch.Tensor:
    """What a pre-training found before, during and after its epoch."""
    rows = read_metrics(run / "pretrain" / "metrics.csv")
    return torch.tensor([float(row["loss"]) for row in rows], dtype=torch.float64)


def numbers(folder: Path) -> set[int]:
    return {int(path.stem) for path in folder.glob("*/*.png")}


def test_settings_are_not_chosen_on_the_digits_of_the_test(tmp_path):
    chosen = [numbers(part) for part in learn.write_digits(tmp_path, choosing=True)]
    train, test = (numbers(part) for part in learn.write_digits(tmp_path, choosing=False))
    assert (len(train), len(test)) == (1348, 449)
    assert not train & test and not chosen[0] & chosen[1]
    assert chosen[0] | chosen[1] == train
    assert len(chosen[1]) == 450


def test_choosing_writes_no_page(tiny, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [*sys.argv, "--choose"])
    learn.main()
    assert "| random weights |" in capsys.readouterr().out
    assert not (tiny / "page").exists()


def test_spread_over_seeds():
    common = {"neighbours": 0.5, "linear_all": 0.5, "validation": 1.0, "seconds": 1.0}
    records = [
        learn_page.Record(start="kernels", seed=seed, linear=linear, finetuned=None, **common)
        for seed, linear in enumerate((0.5, 0.6, 0.7))
    ]
    assert learn_page.cell(learn_page.values_of(records, "kernels", "linear")) == "60.0 ± 10.0"
    assert learn_page.cell(learn_page.values_of(records, "kernels", "finetuned")) == ""
