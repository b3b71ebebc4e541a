"""`make bench`: every row on the CPU, one test a row, under pytest-benchmark.

`-k mask_tokens` picks an op, `--rounds N` how often each contender runs, `--results` where to.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.rows.shapes import CPU
from benchmarks.run import Store, describe, passes, time_row
from benchmarks.timing import clock_of
from simmim_kernels import keep_freed_memory


@pytest.fixture(scope="session")
def store(request):
    # Else most contenders' time is the system's, which hands out and takes back every large tensor.
    keep_freed_memory()
    folder = request.config.getoption("--results")
    return Store(Path(folder) if folder else None, "cpu")


@pytest.mark.parametrize("row", [row for row, _ in passes(CPU)], ids=str)
def test_row(row, store, benchmark, request):
    arguments = (row, clock_of("cpu"), request.config.getoption("--rounds"))
    result = benchmark.pedantic(time_row, arguments, rounds=1)
    benchmark.extra_info.update(result.as_dict())
    store.add(result)  # after every row: a long run may be cut
    print(f"\n{describe(result)}")
    assert not result.errors
