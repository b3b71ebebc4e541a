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
    """Loss and gradient norm summed over the updates since the last row of the training log, on the device,
    read only when they are needed.

    Attributes:
        count: updates that were summed, skipped ones among them until they are taken out.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.norm = torch.zeros_like(self.loss)
        self.skipped = torch.zeros_like(self.loss)
        self.count = 0

    def add(self, loss: Tensor, norm: Tensor, skipped: Tensor | None = None) -> None:
        """Add those of one update, without waiting for the device.

        Args:
            skipped: other than 0 where the update was skipped, so that its numbers do not count.
        """
        if skipped is not None:
            loss, norm = (value.masked_fill(skipped > 0, 0) for value in (loss, norm))
            self.skipped += skipped > 0
        self.loss += loss
        self.norm += norm
        self.count += 1

    def stack(self) -> Tensor:
        """Both sums and the number of skipped updates, ``float64 (3,)``."""
        return torch.stack([self.loss, self.norm, self.skipped])

    def take_out(self, skipped: int) -> None:
        """Remove the skipped updates that ``stack`` reported from the counts."""
        self.count -= skipped
        self.skipped.zero_()

    def clear(self) -> None:
        """Begin the next row."""
        self.restore(0.0, 0.0, 0)

    def restore(self, loss: float, norm: float, count: int) -> None:
        """Continue from sums that were saved."""
        self.loss.fill_(loss)
        self.norm.fill_(norm)
        self.count = count
