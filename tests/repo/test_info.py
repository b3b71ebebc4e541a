"""`python -m simmim_kernels.info` where something is wrong; tests/repo/test_packaging.py shows it installed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def info(path=ROOT, **environment):
    command = [sys.executable, "-m", "simmim_kernels.info"]
    environment = os.environ | {"PYTHONPATH": str(path)} | environment
    return subprocess.run(command, cwd=path, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("backend", "status", "served"),
    [
        ("reference", 0, r"reference   \(asked for by SIMMIM_KERNELS_BACKEND\)"),
        ("cuda", 1, r"nothing   \(asked for by SIMMIM_KERNELS_BACKEND; cuda: "),
    ],
)
def test_forced_backend_is_the_one_that_serves(backend, status, served):
    ran = info(SIMMIM_KERNELS_BACKEND=backend)
    cpu = ran.stdout.partition("cpu tensors are served by")[2].partition("cuda tensors")[0]
    rows = cpu.strip().splitlines()
    assert rows and all(re.search(rf"\w+ +{served}", row) for row in rows), ran.stdout
    assert ran.returncode == status, ran.stderr


def test_unknown_backend_is_named():
    ran = info(SIMMIM_KERNELS_BACKEND="gpu")
    assert ran.returncode == 1
    assert "SIMMIM_KERNELS_BACKEND is 'gpu'; allowed: reference, cpu, triton, cuda" in ran.stderr


def test_a_reader_that_stops_early_meets_no_traceback():
    command = f"'{sys.executable}' -m simmim_kernels.info | head -1"
    ran = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.startswith("simmim-kernels ")
    assert not ran.stderr


def test_module_that_was_cut_short(tmp_path):
    whole = next((ROOT / "simmim_kernels").glob("_cpu.*.so"), None)
    if whole is None:
        pytest.skip("no compiled module to cut")
    package = tmp_path / "simmim_kernels"
    shutil.copytree(ROOT / "simmim_kernels", package, ignore=shutil.ignore_patterns("*.so"))
    (package / whole.name).write_bytes(whole.read_bytes()[:100_000])
    ran = info(tmp_path)
    if ran.returncode < 0:  # the loader read past the end, which kills a process
        assert "Fatal Python error" in ran.stderr and "in _compiled_cpu" in ran.stderr
        assert "build  " in ran.stdout.splitlines()[-1]
    else:
        assert re.search(r"cpu kernels +failed: ImportError", ran.stdout), ran.stdout
