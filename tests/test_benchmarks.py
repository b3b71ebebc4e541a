"""What `make bench` runs: every file of benchmarks/."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_every_benchmark_is_collected():
    command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-q"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stdout[-2000:]
    files = {path.name for path in (ROOT / "benchmarks").glob("bench_*.py")}
    assert files == {f for f in files if f"benchmarks/{f}" in listed.stdout}
