"""Peak memory of a contender on a CPU, in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def peak_of_process(make: Callable[..., Callable[[], Any]], *arguments: Any) -> float:
    """Growth of a process's peak memory over three calls of what `make(*arguments)` returns, in MiB.

    The process is a new one: memory that others have freed must not count. `make` is a function of a
    module, so that the process can import it.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_growth_of_peak, make, arguments).result()


def _growth_of_peak(make: Callable[..., Callable[[], Any]], arguments: tuple) -> float:
    step = make(*arguments)
    before = peak()
    for _ in range(3):
        step()
    return peak() - before


def peak(process: int | str = "self") -> float:
    """VmHWM in MiB: `getrusage` starts with the peak of the process this one was forked from."""
    with open(f"/proc/{process}/status") as status:
        return int(status.read().split("VmHWM:")[1].split()[0]) / 1024
