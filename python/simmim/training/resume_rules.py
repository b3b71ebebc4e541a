"""Rules for changed settings of a resumed run, and the lines that report them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from simmim.config.numbers import flag
from simmim.config.run import RunConfig
from simmim.data.order import Order
from simmim.errors import UserError

#: settings that have no influence on the weights, or none of their own: of --batch-size and
#: --accumulate only the product with the number of processes must stay, which the loop checks, as it
#: does the labels, whatever their column is called
_WITHOUT_INFLUENCE = frozenset(
    {
        *("data", "out", "resume", "overwrite", "val_data", "on_bad_image", "workers", "cache"),
        *("batch_size", "accumulate", "device", "shard", "log_every", "val_every", "save_every"),
        *("keep", "picture", "stats", "show_bands", "init_from", "label_column"),
        *("val_crops", "test_crop"),
    }
)
#: settings that act anew at every update: from the resumed update on the new value counts
_PER_UPDATE = frozenset(
    {
        *("lr", "warmup_lr", "min_lr", "warmup_epochs", "schedule", "epochs"),
        *("milestones", "gamma"),
        *("late_rate", "fixed_ends", "clip", "precision", "attention", "compile"),
    }
)


def refused_changes(new: RunConfig, old: RunConfig) -> list[str]:
    """Settings whose change makes another run of it, as ``--flag old, not new``."""
    return [
        f"{flag(name)} {before}, not {after}"
        for name, before, after in _changes(new, old)
        if name not in _WITHOUT_INFLUENCE | _PER_UPDATE and (name, after) != ("checkpoint", None)
    ]


def accepted_changes(path: Path, new: RunConfig, old: RunConfig, update: int, order: Order) -> str:
    """Which settings of a run that goes on from the checkpoint ``path`` count from ``update`` on,
    in one line; empty where none changed. Raises ``UserError`` where the run was to end before."""
    if update > order.updates:
        least = math.ceil(update / order.updates_per_epoch)
        raise UserError(
            f"{path} has done {update} updates, but --epochs {new.epochs} ends after "
            f"{order.updates}: give at least --epochs {least}"
        )
    text = ", ".join(
        f"{flag(name)} {after} instead of {before}"
        for name, before, after in _changes(new, old)
        if name in _PER_UPDATE
    )
    if new.epochs != old.epochs:
        text += f"; the schedule is now that of a run of {new.epochs} epochs from its start"
    return f"from update {update} on: {text}" if text else ""


def _changes(new: RunConfig, old: RunConfig) -> list[tuple[str, object, object]]:
    pairs = (
        (field.name, getattr(old, field.name), getattr(new, field.name))
        for field in dataclasses.fields(new)
    )
    return [(name, before, after) for name, before, after in pairs if before != after]
