"""Counters and sums of a training run, and its summary."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass
class Counters:
    """Counters of a run, saved in its checkpoints.

    Attributes:
        first_validation, last_validation: validation losses.
        validated: update of the newest validation, -1 before the first.
        bad: files that could not be read, with the reasons.
        partly: files that were used in part, with what was left.
        changes: settings that were changed when the run was resumed, a line each.
        skipped: updates whose gradient overflowed float16, so that they changed nothing.
        compiled: whether the model is compiled, ``None`` before that is decided.
    """

    first_validation: float | None = None
    last_validation: float | None = None
    validated: int = -1
    bad: dict[str, str] = dataclasses.field(default_factory=dict)
    partly: dict[str, str] = dataclasses.field(default_factory=dict)
    changes: list[str] = dataclasses.field(default_factory=list)
    skipped: int = 0
    compiled: bool | None = None

    def are_finite(self) -> bool:
        """Whether every number among them is."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return all(math.isfinite(value) for value in values if isinstance(value, float))


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        updates: updates done in all.
        images_per_second: training speed of all processes together.
        counters: what validations found, unreadable files.
        checkpoint: the newest one.
        signal: number of the signal that ended the run early, else 0.
    """

    updates: int
    images_per_second: float
    counters: Counters
    checkpoint: Path
    signal: int


class RunningSums:
    """Sums over the updates since the last row of the training log, on the device, read only when they
    are needed.

    Attributes:
        totals: ``float64 (4,)``: loss times weight, gradient norm, weight, number of skipped updates.
        count: updates that were summed, skipped ones among them until they are taken out.
    """

    def __init__(self, device: torch.device) -> None:
        self.totals = torch.zeros(4, dtype=torch.float64, device=device)
        self.count = 0

    def add(self, loss: Tensor, norm: Tensor, weight: float, skipped: Tensor | None = None) -> None:
        """Add those of one update, without waiting for the device; they do not count where
        ``skipped`` is other than 0.

        Args:
            weight: the weight of this update's loss in the mean over updates: 1 for a full batch,
                less for a smaller one or where not all pixels were scored.
        """
        found = torch.stack([loss * weight, norm.to(loss), torch.full_like(loss, weight)])
        if skipped is not None:
            found = found.masked_fill(skipped > 0, 0)
            self.totals[3] += skipped > 0
        self.totals[:3] += found
        self.count += 1

    def take_out(self, skipped: int) -> None:
        """Remove the skipped updates from the counts."""
        self.count -= skipped
        self.totals[3] = 0

    def restore(self, loss: float, norm: float, weight: float, count: int) -> None:
        """Continue from sums that were saved, or anew from zeros."""
        self.totals[0], self.totals[1], self.totals[2], self.count = loss, norm, weight, count
