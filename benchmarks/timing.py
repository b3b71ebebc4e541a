"""Interleaved timing: every contender once per round, medians over the rounds, in one process run.

Each call gets one of several sets of fresh random inputs in turn, so that no contender finds its
inputs in the cache because it was the last to touch them. The rounds are the same for a CPU and a GPU;
what differs is the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from benchmarks import interrupt

LEAST = 5  # rounds of every contender, however slow
SLOW = 2e4  # microseconds of a call that is timed alone


@dataclass
class Timing:
    """Microseconds of one contender: median and quartiles over the rounds."""

    median: float
    low: float
    high: float


@dataclass
class Run:
    """A contender while it is timed.

    Attributes:
        sets: sets of inputs, used in turn.
        calls: between two readings of the clock.
        samples: microseconds of a call, one for each round.
        launches: microseconds of Python for a call on a GPU, one for each round.
        delay: microseconds for which the GPU is kept busy before the calls.
        waits: whether a call waits for the GPU itself, so that nothing can be queued before it.
        notes: what the clock has to say beside the times.
    """

    name: str
    function: Callable[..., Any]
    sets: list[tuple]
    calls: int = 1
    samples: list[float] = field(default_factory=list)
    launches: list[float] = field(default_factory=list)
    delay: float = 200.0
    waits: bool = False
    notes: dict[str, Any] = field(default_factory=dict)

    def call(self, turn: int) -> None:
        for number in range(self.calls):
            self.function(*self.sets[(turn + number) % len(self.sets)])


class CpuClock:
    """The processor's clock; every call is timed by itself."""

    device = "cpu"
    calls = 1
    warm_up = 2
    most = float("inf")

    def input_sets(self, inputs: Callable[[], tuple]) -> list[tuple]:
        return [inputs() for _ in range(3)]

    def measure(self, run: Run, turn: int, queued: bool) -> tuple[float, float]:
        """Microseconds of a call; there are no launches on a CPU."""
        start = time.perf_counter()
        run.call(turn)
        return (time.perf_counter() - start) * 1e6 / run.calls, 0.0

    def peak_memory(self, run: Run) -> dict[str, float]:
        """Nothing: a process's peak can't be reset, see `peak_of_process`."""
        return {}

    def launch_notes(self, run: Run) -> dict[str, Any]:
        return {}


class CudaClock:
    """Events on a GPU, between which several calls run.

    The calls are queued while the GPU is kept busy, so that the time between the events is that of
    the kernels; what Python took to queue them is measured apart. A call that waits for the GPU, or a
    row about the cost of a call, is timed without: the GPU then waits for Python, as a user would see.
    """

    device = "cuda"
    calls = 4
    warm_up = 1
    most = 2e6  # microseconds that a contender is timed for, before it leaves the rounds
    caches = 4  # times the L2 that the sets of inputs fill together
    most_sets = 16
    longest_delay = 2e5  # microseconds

    def __init__(self) -> None:
        self._cycles = self._cycles_of_a_microsecond()

    def input_sets(self, inputs: Callable[[], tuple]) -> list[tuple]:
        """As many sets as no cache holds."""
        first = inputs()
        size = sum(t.numel() * t.element_size() for t in tensors(first)) or 1
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        count = min(self.most_sets, max(2, -(-self.caches * cache // size)))
        return [first, *(inputs() for _ in range(count - 1))]

    def measure(self, run: Run, turn: int, queued: bool) -> tuple[float, float]:
        """Microseconds of a call on the GPU, and of Python to launch it."""
        while True:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            delayed = queued and not run.waits
            if delayed:
                torch.cuda._sleep(int(run.delay * self._cycles))
            begin.record()
            start = time.perf_counter()
            run.call(turn)
            launch = (time.perf_counter() - start) * 1e6
            late = delayed and begin.query()  # the GPU ran dry before all was queued
            end.record()
            end.synchronize()
            if not late:
                return begin.elapsed_time(end) * 1e3 / run.calls, launch / run.calls
            if run.delay >= self.longest_delay:
                run.waits = True
            run.delay = min(2 * max(run.delay, launch), self.longest_delay)

    def peak_memory(self, run: Run) -> dict[str, float]:
        """GPU memory in MiB that a call takes beyond what is allocated before it."""
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run.call(1)
        return {"peak_mib": (torch.cuda.max_memory_allocated() - before) / 2**20}

    def launch_notes(self, run: Run) -> dict[str, Any]:
        notes: dict[str, Any] = {"launch_us": median(run.launches), "rounds": len(run.samples)}
        return notes | ({"waits_for_gpu": True} if run.waits else {})

    def _cycles_of_a_microsecond(self) -> float:
        cycles = 10_000_000
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(cycles)
        begin.record()
        torch.cuda._sleep(cycles)
        end.record()
        end.synchronize()
        return cycles / (begin.elapsed_time(end) * 1e3)


Clock = CpuClock | CudaClock


def clock_of(device: str) -> Clock:
    return CudaClock() if device == "cuda" else CpuClock()


def take_rounds(
    runs: dict[str, Run], clock: Clock, rounds: int, queued: bool
) -> dict[str, Exception]:
    """Time the contenders in turn; their samples and notes are left in `runs`.

    Returns the errors of those that failed, which are taken out of `runs`.
    """
    errors = {}
    for name, run in list(runs.items()):
        try:
            run.notes |= clock.peak_memory(run)
            run.calls = clock.calls if clock.measure(run, 0, queued)[0] < SLOW else 1
        except Exception as error:
            errors[name] = error
            del runs[name]
    for number in range(-clock.warm_up, rounds):
        for place, run in enumerate(runs.values()):
            interrupt.raise_if_asked()
            if number >= LEAST and sum(run.samples) * run.calls > clock.most:
                continue
            elapsed, launch = clock.measure(run, number + place, queued)
            if number >= 0:
                run.samples.append(elapsed)
                run.launches.append(launch)
    for run in runs.values():
        run.notes |= clock.launch_notes(run)
    return errors


def spread(values: list[float]) -> Timing:
    if len(values) < 2:
        return Timing(values[0], values[0], values[0])
    low, _, high = quantiles(values, n=4)
    return Timing(median(values), low, high)


def largest_difference(theirs: Sequence[Tensor], ours: Sequence[Tensor]) -> float:
    """Over all tensors, the largest difference relative to the largest number of theirs."""
    if len(theirs) != len(ours):
        raise ValueError(f"returns {len(theirs)} tensors, ours {len(ours)}")
    worst = torch.zeros((), dtype=torch.float64, device="cpu")
    for their, our in zip(theirs, ours, strict=True):
        if their.shape != our.shape:
            raise ValueError(f"returns {tuple(their.shape)}, ours {tuple(our.shape)}")
        if their.numel():
            scale = their.double().abs().max().clamp_min(1e-30)
            error = (their.double() - our.double()).abs().max() / scale
            worst = torch.maximum(worst, error.cpu())  # NaN where either is
    return float(worst)


def tensors(result: Any) -> list[Tensor]:
    """All tensors of nested tuples and lists."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, (tuple, list)):
        return [t for part in result for t in tensors(part)]
    return []
