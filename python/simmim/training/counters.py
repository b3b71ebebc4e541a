"""What a training run has found out, and how it ended."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Counters:
    """What a run has found out so far; travels with the checkpoint.

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
