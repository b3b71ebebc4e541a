"""A run that is killed and resumed ends with the bits of one that is not."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from simmim.config.labels import FinetuneConfig
from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.storage import checkpoint
from simmim.training.metrics import read_metrics
from simmim.training.pretrain import Trainer
from simmim.training.resume_rules import refused_changes

from .conftest import TINY, write_photographs
from .runs import start, train

pytestmark = pytest.mark.slow

UPDATES = 84


def config_of(photographs: Path, out: Path, **changes) -> PretrainConfig:
    settings = {
        "data": photographs,
        "out": out,
        "val_count": 2,
        "crops_per_image": 4,
        "batch_size": 2,
        "accumulate": 2,
        "epochs": 14,
        "log_every": 3,
        "val_every": 2,
        "save_every": 1,
        **TINY,
        **changes,
    }
    return PretrainConfig(**settings)


def assert_same_run(one: Path, other: Path, kind: str = "pretrain") -> None:
    """Weights, optimiser, generators and counters bit for bit; the log row for row."""
    a, b = (checkpoint.load(path / "checkpoints" / checkpoint.LAST, kind) for path in (one, other))
    for key in ("config",):
        a.pop(key), b.pop(key)
    assert_equal(a, b, "")
    rows = [read_metrics(path / "metrics.csv") for path in (one, other)]
    for row in rows[0] + rows[1]:
        row.pop("images_per_second")
        row.pop("waiting")
    assert rows[0] == rows[1]


def assert_equal(a, b, where: str) -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("uninterrupted")
    out = place / "whole"
    config = config_of(write_photographs(place / "photographs"), out, save_every=1000)
    assert train(config) == 0
    state = checkpoint.load(out / "checkpoints" / checkpoint.LAST)
    assert state["update"] == UPDATES
    return out


def test_killed_at_random_moments(photographs, tmp_path, uninterrupted):
    out = tmp_path / "killed"
    config = config_of(photographs, out, resume=True)
    rng = random.Random(0)
    reached = -1
    for turn in range(5):
        process = start(dataclasses.replace(config, workers=turn % 2))
        wait_for_checkpoint(out, after=reached, process=process)
        # with a checkpoint at every update, most of the time is spent in writing them
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        reached = step_of(out)
        assert reached < UPDATES, "the run ended before it could be killed"
    assert train(config) == 0
    assert_same_run(uninterrupted, out)


@pytest.mark.parametrize("moment", ["half-written", "before-rename", "before-link"])
def test_killed_while_a_checkpoint_is_written(photographs, tmp_path, uninterrupted, moment):
    out = tmp_path / "killed"
    config = config_of(photographs, out, resume=True, save_every=4)
    assert train(config, f"{moment}:4") == -signal.SIGKILL
    assert step_of(out) == (16 if moment == "before-link" else 12)
    checkpoint.load(out / "checkpoints" / checkpoint.LAST)
    assert train(config) == 0
    assert_same_run(uninterrupted, out)
    assert not list((out / "checkpoints").glob("*.tmp"))


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_signals_save_and_leave(photographs, tmp_path, uninterrupted, number, status):
    out = tmp_path / "stopped"
    config = config_of(photographs, out, resume=True, save_every=1000, workers=1)
    process = start(config)
    while not (out / "metrics.csv").exists() or len(read_metrics(out / "metrics.csv")) < 3:
        assert process.exitcode is None
        time.sleep(0.005)
    os.kill(process.pid, number)
    process.join(300)
    assert process.exitcode == status
    assert 0 < step_of(out) < UPDATES
    assert train(config) == 0
    assert_same_run(uninterrupted, out)


def test_ctrl_c_on_the_command_line(photographs, tmp_path, start_simmim):
    """The whole process group gets the signal, data-loader workers too, as from a terminal."""
    out = tmp_path / "run"
    process = start_simmim(
        *("pretrain", "--data", photographs, "--out", out, "--encoder", "cnn"),
        *("--img-size", 32, "--mask-unit", 8, "--batch-size", 4, "--epochs", 100000),
        *("--workers", 2, "--device", "cpu", "--save-every", 1000000, "--val-count", 1),
        *("--compile", "off"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (out / "metrics.csv").exists() or len(read_metrics(out / "metrics.csv")) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert output.count("\n") == 1 and "stopped by signal 2 at update" in output
    assert "Traceback" not in errors
    assert "--resume" in output
    assert step_of(out) > 0


def test_resume_asks_for_the_same_settings(photographs, tmp_path):
    config = config_of(photographs, tmp_path / "run", epochs=1)
    Trainer(config).fit()
    again = dataclasses.replace(config, resume=True)
    with pytest.raises(UserError, match="4 images an update, not 8 "):
        Trainer(dataclasses.replace(again, batch_size=4))
    with pytest.raises(UserError, match=r"--weight-decay 0\.05, not 0\.2"):
        Trainer(dataclasses.replace(again, weight_decay=0.2))
    Trainer(dataclasses.replace(again, batch_size=4, accumulate=1))
    with pytest.raises(UserError, match="--resume"):
        Trainer(config)
    finished = Trainer(dataclasses.replace(again, workers=1, keep=5, val_crops=2))
    assert finished.fit().updates == 6
    (photographs / "part0" / "0.png").unlink()
    with pytest.raises(UserError, match="the images are not those"):
        Trainer(again)
    Trainer(dataclasses.replace(config, overwrite=True))
    assert not checkpoint.numbered(config.out / "checkpoints")


def test_crops_to_test_on_may_change():
    config = FinetuneConfig(per_class=2)
    changed = dataclasses.replace(config, test_crop=0.875, per_class=3)
    assert refused_changes(changed, config) == ["--per-class 2, not 3"]


def test_only_the_newest_checkpoints_stay(photographs, tmp_path):
    config = config_of(photographs, tmp_path / "run", epochs=2, keep=3)
    Trainer(config).fit()
    names = sorted(p.name for p in (config.out / "checkpoints").iterdir())
    assert names == ["last.pt", *(f"step-{n:08d}.pt" for n in (10, 11, 12))]


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not a checkpoint"):
        checkpoint.load(path)
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "y.pt")


def wait_for_checkpoint(out: Path, after: int, process) -> None:
    deadline = time.monotonic() + 300
    while step_of(out) <= after:
        assert process.exitcode is None, "the run ended early"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def step_of(out: Path) -> int:
    return max(map(checkpoint.step_of, checkpoint.numbered(out / "checkpoints")), default=-1)
