"""Timing on a GPU: all contenders of a row in turn, on inputs that the caches no longer hold.

Each measurement runs a few calls between two events, so that the queue never runs empty where the
launches keep up; a row whose launches do not keep up shows their cost, as a user would see it. The
inputs rotate among as many sets as fill several times the L2.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

CALLS = 4  # between two events
CACHES = 4  # times the L2 that the sets of inputs fill together
MOST_SETS = 16


def tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, (tuple, list)):
        return [t for value in values for t in tensors(value)]
    return []


def input_sets(make: Callable[[], tuple], device: str) -> list[tuple]:
    first = make()
    size = sum(t.numel() * t.element_size() for t in tensors(first)) or 1
    cache = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 1 << 16
    count = min(MOST_SETS, max(2, -(-CACHES * cache // size)))
    return [first, *(make() for _ in range(count - 1))]


class Clock:
    """Microseconds of a piece of work: by events on a GPU, by the clock on the CPU."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def __call__(self, work: Callable[[], Any]) -> float:
        if not self.cuda:
            start = time.perf_counter()
            work()
            return (time.perf_counter() - start) * 1e6
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3


def time_contenders(
    contenders: dict[str, Callable], make: Callable[[], tuple], device: str, rounds: int
) -> dict[str, dict[str, float]]:
    """Median and quartiles in microseconds a call; a contender that fails is left out, with its
    error in place of its times."""
    sets, clock, calls = input_sets(make, device), Clock(device), CALLS if device == "cuda" else 1
    results: dict[str, Any] = {}
    alive = {}
    for name, run in contenders.items():
        try:
            for arguments in sets[:2]:
                run(*arguments)
            alive[name] = run
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
    samples: dict[str, list[float]] = {name: [] for name in alive}
    turn = 0
    for number in range(-1, rounds):
        for name, run in alive.items():

            def work(run=run, turn=turn):
                for call in range(calls):
                    run(*sets[(turn + call) % len(sets)])

            elapsed = clock(work) / calls
            turn += calls
            if number >= 0:
                samples[name].append(elapsed)
    for name, values in samples.items():
        low, _, high = quantiles(values, n=4)
        results[name] = {"median": median(values), "low": low, "high": high}
    return results
