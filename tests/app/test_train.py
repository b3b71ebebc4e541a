"""The trainer: one update from several passes, clipping, records, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.storage import checkpoint
from simmim.training.metrics import MetricsFile, read_metrics
from simmim.training.pretrain import Trainer
from simmim.training.progress import Progress

from ..budget import assert_within_budget
from .conftest import TINY
from .runs import stop_at

#: every source of randomness inside the model turned off
STILL = {**TINY, "drop_path": 0.0, "encoder_args": {**TINY["encoder_args"], "proj_drop_rate": 0.0}}


def config_of(photographs: Path, out: Path, **changes) -> PretrainConfig:
    settings = {"data": photographs, "out": out, "batch_size": 8, "epochs": 1, "log_every": 1}
    return PretrainConfig(**{**settings, **STILL, **changes})


def first_gradients(config: PretrainConfig, clipped: list) -> list[torch.Tensor]:
    """Gradients as the optimiser sees them in the first update."""
    trainer = Trainer(config)
    genuine = trainer.fabric.clip_gradients
    seen = []

    def clip(*args, **options):
        clipped.append(1)
        return genuine(*args, **options)

    trainer.fabric.clip_gradients = clip
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (
        seen.extend(p.grad.clone() for p in trainer.model.parameters()),
        step(),
    )
    trainer.fit()
    return seen


def test_accumulating_equals_one_large_batch_and_clips_once(photographs, tmp_path):
    """Clipped hard: to clip each pass's part would give another direction."""
    clips: list[list] = [[], [], []]
    whole = config_of(photographs, tmp_path / "a", clip=0.01, plain=True)
    parts = config_of(photographs, tmp_path / "b", clip=0.01, batch_size=2, accumulate=4)
    wide = dataclasses.replace(whole, out=tmp_path / "c", precision="64-true")
    configs = (parts, whole, wide)
    ours, plain, exact = (
        torch.cat([g.flatten() for g in first_gradients(c, n)])
        for c, n in zip(configs, clips, strict=True)
    )
    assert clips == [[1], [1], [1]]
    # relative to the whole gradient, since parts of it are near zero
    assert 0 < (ours - exact).norm() <= 2 * (plain - exact).norm()
    rows = [read_metrics(c.out / "metrics.csv")[0] for c in configs]
    norm = float(rows[-1]["grad_norm"])
    assert exact.norm().item() == pytest.approx(0.01 * norm / (norm + 1e-6))
    numbers = [torch.tensor([float(r["loss"]), float(r["grad_norm"])]) for r in rows]
    assert_within_budget(*numbers)
    assert len({row["lr"] for row in rows}) == 1


def test_the_run_is_the_same_for_any_number_of_workers(photographs, tmp_path):
    weights = []
    for workers in (0, 2, "auto"):
        config = config_of(
            photographs, tmp_path / str(workers), workers=workers, batch_size=2, epochs=2
        )
        Trainer(config).fit()
        weights.append(checkpoint.load(config.out / "checkpoints" / checkpoint.LAST)["model"])
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
        assert torch.equal(value, weights[2][name]), name


def test_training_in_bfloat16_lowers_the_loss(photographs, tmp_path):
    config = config_of(
        photographs,
        tmp_path / "run",
        val_count=2,
        val_crops=4,
        crops_per_image=16,
        precision="bf16-mixed",
        epochs=5,
        val_every=5,
    )
    summary = Trainer(config).fit()
    counters = summary.counters
    assert counters.last_validation < 0.9 * counters.first_validation
    assert summary.updates == 5 * 6 * 16 // 8
    state = checkpoint.load(summary.checkpoint)
    assert {v.dtype for v in state["model"].values()} == {torch.float32}


def test_records(photographs, tmp_path):
    config = config_of(
        photographs, tmp_path / "run", val_count=2, batch_size=3, epochs=5, log_every=4, val_every=2
    )
    Trainer(config).fit()
    rows = read_metrics(config.out / "metrics.csv")
    assert [(r["split"], int(r["update"])) for r in rows] == [
        ("val", 0),
        ("train", 4),
        ("val", 4),
        ("train", 8),
        ("val", 8),
        ("train", 10),
        ("val", 10),
    ]
    for row in rows:
        assert float(row["loss"]) > 0
        if row["split"] == "train":
            assert float(row["images_per_second"]) > 0
    assert list((config.out / "tensorboard").glob("events.*"))
    assert PretrainConfig.from_json((config.out / "config.json").read_text()) == config


def test_smaller_batches_weigh_less_in_the_log(photographs, tmp_path, monkeypatch):
    """3, 3 and 2 images an epoch: the mean of the updates' means would be another number."""
    counted, genuine = [], Progress.since_last

    def since_last(progress: Progress, update: int) -> tuple[int, float]:
        counted.append(genuine(progress, update))
        return counted[-1]

    monkeypatch.setattr(Progress, "since_last", since_last)
    common = {"batch_size": 3, "epochs": 2, "keep_rest": True}
    config = config_of(photographs, tmp_path / "each", **common)
    Trainer(config).fit()
    each = read_metrics(config.out / "metrics.csv")
    assert [images for images, _ in counted] == [3, 3, 2, 3, 3, 2]
    assert [row["epoch"] for row in each] == ["1", "1", "1", "2", "2", "2"]
    losses = [float(row["loss"]) for row in each]
    # resumed in the middle of a row, too
    config = dataclasses.replace(config, out=tmp_path / "epochs", log_every=0)
    stop_at(trainer := Trainer(config), 5)
    trainer.fit()
    Trainer(dataclasses.replace(config, resume=True)).fit()
    assert counted[6] == (8, counted[6][1])
    for epoch, row in enumerate(read_metrics(config.out / "metrics.csv")):
        first, second, rest = losses[3 * epoch : 3 * epoch + 3]
        assert float(row["loss"]) == pytest.approx((3 * first + 3 * second + 2 * rest) / 8)


def test_rows_and_validations_of_an_epoch_have_its_number(photographs, tmp_path):
    config = config_of(photographs, tmp_path / "run", val_count=2, batch_size=3, epochs=2)
    Trainer(dataclasses.replace(config, log_every=0)).fit()
    rows = read_metrics(config.out / "metrics.csv")
    assert [(r["split"], r["epoch"]) for r in rows] == [
        ("val", "0"),
        *(("train", "1"), ("val", "1")),
        *(("train", "2"), ("val", "2")),
    ]


def test_learning_rate_follows_the_update(photographs, tmp_path):
    config = config_of(
        photographs,
        tmp_path / "run",
        batch_size=2,
        epochs=4,
        warmup_epochs=1,
        warmup_lr=0.0,
        lr=1.0,
        schedule="step",
    )
    Trainer(config).fit()
    peak = 2 / 512
    rates = [float(r["lr"]) for r in read_metrics(config.out / "metrics.csv")]
    assert rates[:5] == pytest.approx([0, peak / 4, peak / 2, 3 * peak / 4, peak])
    assert rates[13:] == pytest.approx([peak, peak / 10, peak / 10])


def test_a_lost_loss_stops_the_run_and_saves_nothing(photographs, tmp_path):
    config = config_of(photographs, tmp_path / "run", epochs=3, save_every=1, log_every=50)
    trainer = Trainer(config)
    step = trainer.optimizer.step

    def poison():
        step()
        if trainer.update == 1:
            with torch.no_grad():
                trainer.model.module.head.bias.fill_(float("nan"))

    trainer.optimizer.step = poison
    with pytest.raises(UserError, match="no longer finite"):
        trainer.fit()
    state = checkpoint.load(checkpoint.numbered(config.out / "checkpoints")[-1])
    assert state["update"] == 1


def test_bad_images_are_counted_once(photographs, tmp_path, capfd):
    (photographs / "part0" / "2.png").write_bytes(b"nothing")
    (photographs / "part1" / "3.png").write_bytes(b"nothing")
    config = config_of(photographs, tmp_path / "run", epochs=3)
    summary = Trainer(config).fit()
    assert len(summary.counters.bad) == 2
    log = capfd.readouterr().err
    assert log.count("2.png") == 1
    assert log.count("3.png") == 1
    with pytest.raises(UserError, match="cannot read"):
        Trainer(dataclasses.replace(config, out=tmp_path / "b", on_bad_image="error")).fit()


def test_too_few_images_for_a_batch(photographs, tmp_path):
    with pytest.raises(UserError, match="lower --batch-size or raise --crops-per-image"):
        Trainer(config_of(photographs, tmp_path / "run", batch_size=9))


def test_metrics_file_drops_what_will_be_written_again(tmp_path):
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path, 0)
    for update in (5, 10, 15):
        first.write(update=update, epoch=0, split="train", loss=1.5)
    first.close()
    with path.open("a") as file:
        file.write("20,0,train,1.")
    again = MetricsFile(path, 10)
    again.write(update=15, epoch=0, split="train", loss=2.5)
    again.close()
    assert [(r["update"], r["loss"]) for r in read_metrics(path)] == [
        ("5", "1.5"),
        ("10", "1.5"),
        ("15", "2.5"),
    ]
