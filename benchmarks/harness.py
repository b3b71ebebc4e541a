"""Interleaved timing: every contender once per round, medians over rounds, in one process run.

A row compares contenders that compute the same thing. Their results are compared before anything
is timed. Each call gets one of several sets of fresh random inputs in turn, so that no contender
finds its inputs in the cache because it was the last to touch them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

INPUT_SETS = 3
OURS = "ours"


@dataclass
class Timing:
    """Microseconds of one contender: median and quartiles over the rounds."""

    median: float
    low: float
    high: float


@dataclass
class Row:
    """One comparison: what was run, and how long each contender took.

    Attributes:
        op: the op, and name of the results file.
        shape: name of the shape, batch and element type.
        what: what was timed, for instance `forward + backward`.
        moved: bytes that the op must move: each needed input once, each output once.
        timings: contender -> `Timing`; the contender `copy` moves as many bytes with a clone.
        notes: contender -> whatever else was measured.
        targets: peer -> the ratio that must be reached, where it is this row's own.
    """

    op: str
    shape: str
    what: str
    moved: int
    timings: dict[str, Timing] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)

    def ratio(self, peer: str) -> float | None:
        """How many times faster ours is than `peer`; None where the peer did not run."""
        if peer not in self.timings:
            return None
        return self.timings[peer].median / self.timings[OURS].median

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def time_row(
    row: Row,
    contenders: dict[str, Callable[..., Any]],
    inputs: Callable[[], Sequence[Any]],
    *,
    rounds: int,
    tolerance: float | None = 1e-3,
) -> Row:
    """Time `contenders` (name -> function of the inputs) on fresh `inputs()` and fill in `row`."""
    sets = [inputs() for _ in range(INPUT_SETS)]
    if tolerance is not None:
        _same_results(contenders, sets[0], tolerance)
    contenders = dict(contenders)
    sources = []
    if row.moved:  # half of the bytes are read, half written
        sources = [(torch.rand(row.moved // 8),) for _ in range(INPUT_SETS)]
        contenders["copy"] = torch.clone
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-2, rounds):  # two rounds to warm up
        for place, (name, run) in enumerate(contenders.items()):
            arguments = (sources if name == "copy" else sets)[(number + place) % INPUT_SETS]
            start = time.perf_counter()
            run(*arguments)
            elapsed = time.perf_counter() - start
            if number >= 0:
                samples[name].append(elapsed * 1e6)
    for name, values in samples.items():
        low, _, high = quantiles(values, n=4)
        row.timings[name] = Timing(median(values), low, high)
    return row


def forward_backward(function: Callable[..., Tensor], differentiable: Sequence[int]) -> Callable:
    """A step: `function` of the inputs, then gradients for those at the `differentiable` places.

    A result that is no scalar is given a gradient of ones, made once outside the timing.
    """
    ones: dict[tuple, Tensor] = {}

    def step(*arguments: Any) -> list[Tensor]:
        wanted = [arguments[i] for i in differentiable]
        out = function(*arguments)
        key = (tuple(out.shape), out.dtype)
        if key not in ones:
            ones[key] = torch.ones(out.shape, dtype=out.dtype)
        return [out.detach(), *torch.autograd.grad(out, wanted, ones[key])]

    return step


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under `torch.compile`, with a compilation cache of its own."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def _same_results(contenders: dict[str, Callable], arguments: Sequence, tolerance: float) -> None:
    flat = {name: _tensors(run(*arguments)) for name, run in contenders.items()}
    expected = flat.pop(OURS)
    for name, results in flat.items():
        if name == "copy":
            continue
        assert len(results) == len(expected), f"{name} returns {len(results)} tensors"
        for theirs, ours in zip(results, expected, strict=True):
            scale = theirs.double().abs().max().clamp_min(1e-30) if theirs.numel() else 1.0
            error = (theirs.double() - ours.double()).abs().max() / scale if ours.numel() else 0.0
            assert error <= tolerance, f"{name} and ours differ by {float(error):.2e}"


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [t for part in result for t in _tensors(part)] if result is not None else []
