"""`make bench`: every row on the CPU, one test a row, under pytest-benchmark.

`-k mask_tokens` picks an op, `--rounds N` how often each contender runs, `--results` where to. Without
`--results` nothing is stored of an op that runs with a part of its rows, for the others would be lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from benchmarks.rows.common import Row
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


def ops_in_full(rows: Iterable[Row]) -> set[str]:
    """The ops of which `rows` are all that can run."""
    wanted = Counter(row.op for row, _ in passes(CPU))
    return {op for op, count in Counter(row.op for row in rows).items() if count == wanted[op]}


@pytest.mark.parametrize("row", [row for row, _ in passes(CPU)], ids=str)
def test_row(row, store, benchmark, request):
    arguments = (row, clock_of("cpu"), request.config.getoption("--rounds"))
    result = benchmark.pedantic(time_row, arguments, rounds=1)
    benchmark.extra_info.update(result.as_dict())
    print(f"\n{describe(result)}")
    running = [item.callspec.params["row"] for item in request.session.items]
    if request.config.getoption("--results") or row.op in ops_in_full(running):
        store.add(result)  # after every row: a long run may be cut
    else:
        print("a part of the op's rows: not stored")
    assert not result.errors
