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
LONG = 2e6  # microseconds that a contender is measured for, before it drops out of the rounds
LEAST = 5  # rounds of every contender, however slow


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


def peak_bytes(work: Callable[[], Any], device: str) -> int | None:
    """GPU memory that a call takes beyond what is allocated before it."""
    if device != "cuda":
        work()
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before


def spread(values: list[float]) -> dict[str, float]:
    low, _, high = quantiles(values, n=4)
    return {"median": median(values), "low": low, "high": high, "rounds": len(values)}


def time_contenders(
    contenders: dict[str, Callable],
    make: Callable[[], tuple],
    device: str,
    rounds: int,
    calls: int = CALLS,
) -> dict[str, dict[str, Any]]:
    """Median and quartiles in microseconds a call, and peak memory in bytes; a contender that fails
    is left out, with its error in place of its times."""
    sets, clock = input_sets(make, device), Clock(device)
    results: dict[str, Any] = {}
    alive, peaks = {}, {}
    for name, run in contenders.items():
        try:
            run(*sets[0])
            peaks[name] = peak_bytes(lambda run=run: run(*sets[1]), device)
            seconds = clock(lambda run=run: run(*sets[0]))
            alive[name] = run, calls if seconds < LONG / 100 else 1
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
    samples: dict[str, list[float]] = {name: [] for name in alive}
    taken = dict.fromkeys(alive, 0.0)
    turn = 0
    for number in range(-1, rounds):
        for name, (run, times) in alive.items():
            if number >= LEAST and taken[name] > LONG:
                continue

            def work(run=run, turn=turn, times=times):
                for call in range(times):
                    run(*sets[(turn + call) % len(sets)])

            elapsed = clock(work)
            turn += times
            taken[name] += elapsed
            if number >= 0:
                samples[name].append(elapsed / times)
    for name, values in samples.items():
        results[name] = spread(values)
        if peaks[name] is not None:
            results[name]["peak_bytes"] = peaks[name]
    return results
