"""The wheel that the packaging tests share: built once for all of pytest's workers."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def call(*command, cwd="/", **environment) -> subprocess.CompletedProcess[str]:
    """Run a command, by default far from the sources, which Python would import before a wheel."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=inherited | environment,
        text=True,
        capture_output=True,
    )


def shared_folder(tmp_path_factory) -> Path:
    """A folder that all workers of this run of pytest see."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def build(folder: Path) -> Path:
    """The wheel in `folder`, with every instruction set and, where nvcc is, with CUDA for one GPU;
    and beside it `site`, where it is installed.

    It is built from this tree, by pip in isolation. The objects stay in build/, so that only what
    has changed is compiled again.
    """
    with (folder / "wheel.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "wheel.json"
        if not done.exists():
            done.write_text(json.dumps(_build(folder / "wheel", folder / "site")))
    found = json.loads(done.read_text())
    assert "error" not in found, found["error"]
    return Path(found["wheel"])


def _build(out: Path, site: Path) -> dict[str, str]:
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build/.lock").open("w") as lock:  # `make build` takes the same
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in (ROOT / "build").glob("lib*"):  # setuptools would pack what it finds there
            shutil.rmtree(stale)
        pip = [sys.executable, "-m", "pip"]
        architectures = os.environ.get("SIMMIM_CUDA_ARCHS", "90")  # all: `make wheels`
        command = (*pip, "wheel", "-q", "--no-deps", "-w", out, ROOT)
        built = call(*command, SIMMIM_CUDA_ARCHS=architectures)
    if built.returncode:
        return {"error": built.stderr[-4000:]}
    wheel = next(out.glob("simmim_kernels-*.whl"))
    installed = call(*pip, "install", "-q", "--no-deps", "--target", site, wheel)
    return {"error": installed.stderr} if installed.returncode else {"wheel": str(wheel)}
