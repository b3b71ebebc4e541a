"""Collects the rows of a run and writes them with versions and commit."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
from pathlib import Path

import pytest
import torch

import simmim_kernels
from benchmarks.harness import Row, time_row
from simmim.memory import keep_freed_memory

ROOT = Path(__file__).parents[1]
_rows: list[Row] = []


def processor() -> str:
    """The processor's model, which names the folder of the results."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def environment() -> dict[str, str | int]:
    """What the figures depend on; nothing that names the machine or its user."""
    from simmim_kernels.backends import cpu

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "instruction_set": getattr(cpu.kernels, "isa", "none"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "simmim_kernels": simmim_kernels.__version__,
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def pytest_addoption(parser):
    parser.addoption("--rounds", type=int, default=25, help="rounds of every comparison")
    parser.addoption("--results", default=None, help="folder of the results (default: by machine)")


@pytest.fixture
def compare(benchmark, request):
    """`compare(row, contenders, inputs)`: time one row, print it and keep it for the results."""

    def run(row, contenders, inputs, **options):
        if not options.pop("keep_compiled", False):
            torch._dynamo.reset()  # a function compiled for many shapes meets its recompile limit
        rounds = options.pop("rounds", request.config.getoption("--rounds"))
        benchmark.pedantic(
            time_row, (row, contenders, inputs), {"rounds": rounds, **options}, rounds=1
        )
        _rows.append(row)
        ours = row.timings["ours"].median
        shown = "  ".join(
            f"{name} {t.median:.0f} us ({t.median / ours:.2f}x)" for name, t in row.timings.items()
        )
        print(f"\n{row.op} {row.shape} {row.what}: {shown}")

    return run


def pytest_sessionstart(session):
    # Else most contenders' time is the system's, which hands out and takes back every large tensor.
    keep_freed_memory()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    """Store the rows so far after every test: a long run may be cut."""
    result = yield
    _store(item.config.getoption("--results"))
    return result


def _store(folder):
    if not _rows:
        return
    name = f"{processor()} {torch.get_num_threads()} threads"
    slug = "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
    folder = Path(folder or ROOT / "benchmarks" / "results" / slug)
    folder.mkdir(parents=True, exist_ok=True)
    for op in sorted({row.op for row in _rows}):
        rows = [row.as_dict() for row in _rows if row.op == op]
        content = {"environment": environment(), "rows": rows}
        (folder / f"{op}.json").write_text(json.dumps(content, indent=1) + "\n")
