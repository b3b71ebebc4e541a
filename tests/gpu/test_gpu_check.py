"""`make gpu-check` as far as a machine without a GPU can run it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run(module, *arguments):
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_in_one_line_that_there_is_no_gpu(tmp_path):
    result = run("gpu_check", tmp_path)
    assert result.returncode == 2
    assert result.stdout.count("\n") == 1 and "needs a GPU" in result.stdout


@pytest.mark.parametrize("module", ["gpu_ops", "gpu_step"])
def test_every_row_of_the_benchmarks_runs(module, tmp_path):
    if module == "gpu_step":
        pytest.importorskip("timm")
        pytest.importorskip("transformers")
    result = run(module, tmp_path, "--dry-run", "--rounds", 2)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "their times mean nothing" in result.stdout
