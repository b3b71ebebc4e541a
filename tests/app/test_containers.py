"""The limits of containers: cores, which PyTorch's threads and readers keep to, and shared memory."""

import contextlib
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from simmim import cores
from simmim.training.metrics import read_metrics

from .conftest import command, environment

SAY = "import simmim, torch, simmim.cores as c; print(c.core_limit(), torch.get_num_threads())"

PRETRAIN = ("pretrain", "--encoder", "vit_tiny_patch16_224", "--encoder-args", "depth", 1)
PRETRAIN += ("--img-size", 192, "--device", "cpu", "--epochs", 1)
PRETRAIN += ("--batch-size", 4, "--log-every", 1)


def limits(version: int, micros: int, period: int = 100_000) -> dict[str, str]:
    """Files of a control group, as the kernel's documentation has them; -1: no limit."""
    if version == 1:
        return {"cpu.cfs_quota_us": f"{micros}\n", "cpu.cfs_period_us": f"{period}\n"}
    return {"cpu.max": f"{'max' if micros < 0 else micros} {period}\n"}


@pytest.fixture(params=[1, 2])
def laid_out(request, tmp_path):
    """Lay out control groups of either version; returns their place and the list of our own ones."""

    def lay_out(path: str, groups: dict[str, int]) -> tuple[Path, Path]:
        version = request.param
        own = tmp_path / "cgroup"
        lines = {1: f"3:cpuset:/\n2:cpu,cpuacct:{path}\n0::/\n", 2: f"0::{path}\n"}
        own.write_text(lines[version])
        mounted = tmp_path / "mounted" / {1: "cpu,cpuacct", 2: ""}[version]
        for group, micros in groups.items():
            place = mounted / group
            place.mkdir(parents=True, exist_ok=True)
            for name, text in limits(version, micros).items():
                (place / name).write_text(text)
        return tmp_path / "mounted", own

    return lay_out


def test_the_least_limit_of_all_groups_around_counts(laid_out):
    assert cores.core_limit(*laid_out("/a/b", {"a": 250_000, "a/b": -1})) == 2.5
    assert cores.core_limit(*laid_out("/a/b", {"a": 250_000, "a/b": 150_000})) == 1.5
    assert cores.core_limit(*laid_out("/a/b", {"a": -1, "a/b": -1})) == math.inf


def test_in_a_container_the_path_may_be_the_hosts(laid_out):
    assert cores.core_limit(*laid_out("/docker/3f9c", {"": 400_000})) == 4


def test_without_control_groups(tmp_path):
    assert cores.core_limit(tmp_path, tmp_path / "nothing") == math.inf


def test_cores_are_whole_and_shared(monkeypatch):
    monkeypatch.setattr(cores, "visible_cores", lambda: 64)
    for limit, world, expected in ((1.5, 1, 2), (0.2, 1, 1), (math.inf, 2, 32), (6, 4, 1)):
        monkeypatch.setattr(cores, "core_limit", lambda limit=limit: limit)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world))
        assert cores.usable_cores() == expected


@pytest.mark.slow
def test_a_real_limit():
    """A control group of one core, as root may make it."""
    groups = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup"))
    group = next((g for g in groups if (g / "cgroup.procs").exists()), groups[0]) / "simmim-test"
    try:
        group.mkdir()
        for name, text in limits(1 if group.parent.name == "cpu" else 2, 100_000).items():
            (group / name).write_text(text)
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    free = {k: v for k, v in environment().items() if k != "OMP_NUM_THREADS"}
    try:
        for given, threads in ((free, 1), (free | {"OMP_NUM_THREADS": "2"}, 2)):
            enter = lambda: (group / "cgroup.procs").write_text(str(os.getpid()))  # noqa: E731
            said = subprocess.run(
                [sys.executable, "-c", SAY],
                env=given,
                preexec_fn=enter,
                text=True,
                capture_output=True,
            )
            assert said.stdout.split() == ["1.0", str(threads)], said.stderr
    finally:
        group.rmdir()


@pytest.mark.slow
def test_small_shared_memory(photographs, tmp_path):
    """A real /dev/shm of 64 KiB, too small for a batch: Docker's has 64 MB, for all batches ahead."""
    small = "mount -t tmpfs -o size=64k tmpfs /dev/shm && exec"
    if subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{small} true"], capture_output=True
    ).returncode:
        pytest.skip("this machine does not let us mount a file system")
    losses = {}
    for workers in (0, 2):
        out = tmp_path / str(workers)
        words = command(*PRETRAIN, "--data", photographs, "--out", out, "--workers", workers)
        script = f"{small} {shlex.join(words)}"
        subprocess.run(
            ["unshare", "-m", "sh", "-c", script], env=environment(), check=True, timeout=300
        )
        losses[workers] = [row["loss"] for row in read_metrics(out / "metrics.csv")]
    assert losses[0] and losses[0] == losses[2]
