"""Ranges of the numbers in a command's settings.

A NaN fails every comparison, so none of these conditions holds for it; numbers without a rule must
be finite.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from simmim.errors import UserError

#: what must hold for numbers, in words and as a condition, and the settings that hold them
_RULES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "at least 1",
        lambda number: number >= 1,
        "epochs batch_size accumulate crops_per_image val_crops val_every save_every keep neighbours count "
        "channels img_size mask_unit top target_window decoder_width decoder_depth decoder_heads "
        "source_img_size source_window",
    ),
    (
        "at least 0",
        lambda number: 0 <= number < math.inf,
        "log_every workers val_count picture per_class lr warmup_lr min_lr warmup_epochs weight_decay clip "
        "mixup cutmix head_scale milestones shortest_side",
    ),
    (
        "between 0 and 1",
        lambda number: 0 <= number <= 1,
        "flip drop_path erase mask_ratio nodata_share",
    ),
    ("at least 0 and less than 1", lambda number: 0 <= number < 1, "smoothing second_ratio betas"),
    (
        "greater than 0 and at most 1",
        lambda number: 0 < number <= 1,
        "layer_decay test_crop gamma",
    ),
    ("greater than 0 and less than 1", lambda number: 0 < number < 1, "val_share"),
    ("greater than 0", lambda number: 0 < number < math.inf, "strength"),
    # each is a process
    ("at most 1024", lambda number: number <= 1024, "workers"),
    # samples of an epoch are listed in memory
    ("at most 1000000", lambda number: number <= 10**6, "crops_per_image val_crops"),
    # what the masks' seed can hold
    ("between 0 and 2**63 - 1", lambda number: 0 <= number < 2**63, "seed"),
)
#: largest value of the second of two numbers
_RANGES = {"crop_scale": 1.0, "crop_ratio": math.inf}


def check_numbers(config: object) -> None:
    """Raise ``UserError`` for a number in a field of ``config`` that the field's rule does not
    allow."""
    for words, holds, names in _RULES:
        for name in names.split():
            for value in _numbers(getattr(config, name, None)):
                if not holds(value):
                    raise UserError(f"{flag(name)} must be {words}, not {value}")
    for name, largest in _RANGES.items():
        if not hasattr(config, name):
            continue
        low, high = getattr(config, name)
        if not 0 < low <= high <= largest or math.isinf(high):
            limit = f", at most {largest:g}" if largest < math.inf else ""
            raise UserError(
                f"{flag(name)} takes two numbers greater than 0{limit}, the smaller one first, "
                f"not {low:g} {high:g}"
            )

    for field in dataclasses.fields(config):
        for value in _numbers(getattr(config, field.name)):
            if not math.isfinite(value):
                raise UserError(f"{flag(field.name)} must be finite, not {value}")


def _numbers(value: object) -> Iterator[float]:
    """The numbers in a setting: itself, or those of a tuple or a dictionary."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _numbers(inner)
    elif isinstance(value, dict):
        yield from _numbers(list(value.values()))


def flag(name: str) -> str:
    """The command line's name of a field."""
    return "--" + name.replace("_", "-")
