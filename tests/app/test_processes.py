"""Several processes give the run of one: the same weights, resumed on any number, and clear ends."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simmim.config.labels import FinetuneConfig
from simmim.config.pretrain import PretrainConfig
from simmim.storage import checkpoint
from simmim.training.metrics import read_metrics

from ..budget import assert_within_budget
from .conftest import environment, write_photographs
from .runs import start_together, train, train_together
from .test_train import STILL

pytestmark = pytest.mark.slow

#: 6 images to train on, 3 crops of each: updates of 8, 8 and 2, the last of which two processes
#: with two passes each cannot fill
UPDATES = 6
ENDLESS = {"epochs": 10**6, "save_every": 10**6, "compile": "off"}


def config_of(photographs: Path, out: Path, **changes) -> PretrainConfig:
    settings = {
        "data": photographs,
        "out": out,
        "val_count": 2,
        "crops_per_image": 3,
        "keep_rest": True,
        "batch_size": 8,
        "epochs": 2,
        "log_every": 1,
        "save_every": 1,
        "keep": 100,
        **STILL,
        **changes,
    }
    return PretrainConfig(**settings)


def weights(out: Path, kind: str = "pretrain") -> Tensor:
    state = checkpoint.load(out / "checkpoints" / f"step-{UPDATES:08d}.pt", kind)
    return torch.cat([value.double().flatten() for value in state["model"].values()])


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> dict[str, Path]:
    """One process, all of a batch at once, the published arithmetic: in float64 and in float32."""
    place = tmp_path_factory.mktemp("single")
    runs = {"photographs": write_photographs(place / "photographs")}
    for name, precision in (("exact", "64-true"), ("plain", "32-true")):
        runs[name] = place / name
        config = config_of(runs["photographs"], runs[name], precision=precision, plain=True)
        assert train(config) == 0
    return runs


def assert_same_weights(out: Path, single: dict[str, Path], kind: str = "pretrain") -> None:
    """The error rule, for all weights together: AdamW makes much of a tiny gradient's sign."""
    ours, plain, exact = (weights(p, kind) for p in (out, single["plain"], single["exact"]))
    error, allowed = (ours - exact).norm(), 2 * (plain - exact).norm()
    assert 0 < error <= allowed, f"error {error:.3e}, allowed {allowed:.3e}"


TOGETHER = {
    "two": {"batch_size": 4},
    "two passes each": {"batch_size": 2, "accumulate": 2},
    "compiled": {"batch_size": 4, "compile": "on", "workers": "auto"},
    "sharded": {"batch_size": 4, "shard": True},
}


# with what is compiled for the whole updates; the rest of an epoch runs as it is
@pytest.mark.parametrize("changes", TOGETHER.values(), ids=TOGETHER)
def test_two_processes_end_with_the_weights_of_one(single, tmp_path, changes):
    config = config_of(single["photographs"], tmp_path / "together", **changes)
    assert train_together(config, 2) == [0, 0]
    assert_same_weights(config.out, single)

    alone, rows = (read_metrics(p / "metrics.csv") for p in (single["plain"], config.out))
    assert len(alone) == len(rows)
    for one, other in zip(alone, rows, strict=True):
        assert (one["split"], one["update"]) == (other["split"], other["update"])
    losses = (
        torch.tensor([float(row["loss"]) for row in read_metrics(p / "metrics.csv")]).to(dtype)
        for p, dtype in (
            (config.out, torch.float32),
            (single["plain"], torch.float32),
            (single["exact"], torch.float64),
        )
    )
    assert_within_budget(*losses, "losses")


def test_fine_tuning_in_two_processes(single, tmp_path):
    """12 images in updates of 8 and 4, and 4 to test on."""
    folder = tmp_path / "labelled"
    for number, path in enumerate(sorted(single["photographs"].rglob("*.png")) * 2):
        target = folder / f"class{number % 2}" / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    config = FinetuneConfig(
        data=folder,
        val_share=0.3,
        epochs=3,
        batch_size=8,
        mixup=0.0,
        cutmix=0.0,
        drop_path=0.0,
        **{n: STILL[n] for n in ("encoder", "encoder_args", "img_size", "device", "workers")},
        warmup_epochs=0,
    )
    runs = {"exact": ("64-true", 1), "plain": ("32-true", 1), "two": ("32-true", 2)}
    outs = {name: tmp_path / name for name in runs}
    for name, (precision, world) in runs.items():
        changes = {"out": outs[name], "precision": precision, "batch_size": 8 // world}
        assert train_together(dataclasses.replace(config, **changes), world) == [0] * world
    assert_same_weights(outs["two"], outs, "finetune")
    accuracy = [read_metrics(outs[n] / "metrics.csv")[-1]["accuracy"] for n in ("plain", "two")]
    assert accuracy[0] == accuracy[1]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)], ids=["2 to 1", "1 to 2"])
def test_resuming_on_another_number(single, tmp_path, before, after):
    config = config_of(single["photographs"], tmp_path / "run", batch_size=8 // before)
    assert train_together(config, before) == [0] * before
    for late in (4, 5, 6):
        (config.out / "checkpoints" / f"step-{late:08d}.pt").unlink()
    config = dataclasses.replace(config, batch_size=8 // after, resume=True)
    assert train_together(config, after) == [0] * after
    assert_same_weights(config.out, single)


def test_a_signal_to_one_process_stops_all_at_the_same_update(single, tmp_path):
    config = config_of(single["photographs"], tmp_path / "run", batch_size=4, **ENDLESS)
    processes = start_together(config, 2)
    metrics = config.out / "metrics.csv"
    wait_for(lambda: metrics.exists() and len(read_metrics(metrics)) > 5, processes)
    os.kill(processes[1].pid, signal.SIGTERM)
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [143, 143]
    state = checkpoint.load(config.out / "checkpoints" / checkpoint.LAST)
    assert state["update"] == int(read_metrics(metrics)[-1]["update"])


@pytest.mark.slow
def test_images_that_vanish_stop_all_at_the_same_update_and_are_saved(single, tmp_path):
    """Also where only one process cannot read: the other learns of it before its update."""
    folder = tmp_path / "photographs"
    shutil.copytree(single["photographs"], folder)
    config = config_of(folder, tmp_path / "run", batch_size=4, **ENDLESS)
    processes = start_together(config, 2)
    metrics = config.out / "metrics.csv"
    wait_for(lambda: metrics.exists() and len(read_metrics(metrics)) > 5, processes)
    shutil.rmtree(folder)
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [1, 1]
    newest = checkpoint.load(checkpoint.numbered(config.out / "checkpoints")[-1])
    assert newest["update"] == int(read_metrics(metrics)[-1]["update"]) > 0


def test_a_process_that_dies_ends_the_job_with_a_usable_checkpoint(single, tmp_path):
    out = tmp_path / "run"
    flags = {"encoder": "cnn", "img-size": 32, "mask-unit": 8, "batch-size": 3, "epochs": 10**6}
    flags |= {
        "device": "cpu",
        "precision": "32-true",
        "workers": 0,
        "save-every": 1,
        "compile": "off",
    }
    arguments = [str(part) for name, value in flags.items() for part in ("--" + name, value)]
    job = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "simmim", "pretrain"),
            *("--data", str(single["photographs"]), "--out", str(out), *arguments),
        ],
        env={**environment(), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not checkpoint.numbered(out / "checkpoints"):
            assert job.poll() is None, job.stderr.read()
            time.sleep(0.05)
        os.kill(second_process(job.pid), signal.SIGKILL)
        _, errors = job.communicate(timeout=300)
    finally:
        job.terminate()  # which torchrun hands on to those that it started
    assert job.returncode != 0
    line = next(line for line in errors.splitlines() if "lost another" in line)
    newest = checkpoint.numbered(out / "checkpoints")[-1]
    assert line.startswith("process 0 of 2")
    assert f"the newest checkpoint is {newest}, from which --resume goes on" in line
    assert checkpoint.load(newest)["update"] > 0


def second_process(parent: int) -> int:
    """The child of ``parent`` that torchrun gave rank 1."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    environments = {int(pid): Path(f"/proc/{pid}/environ").read_bytes() for pid in children}
    return next(pid for pid, env in environments.items() if b"\0RANK=1\0" in env)


def wait_for(ready, processes) -> None:
    deadline = time.monotonic() + 300
    while not ready():
        assert all(process.is_alive() for process in processes), "the run ended early"
        assert time.monotonic() < deadline
        time.sleep(0.01)
