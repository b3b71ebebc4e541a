"""Checks of plain numbers, which the ops' arguments and their configuration share."""

from __future__ import annotations

import sys
from numbers import Integral, Real

import torch

# Most numbers are of these types, and looking an abstract class up takes ten times as long.
_WHOLE = {int, bool}
_REAL = {float, *_WHOLE}
_LARGEST = sys.float_info.max


def is_number(name: str, value: object) -> None:
    """`TypeError` unless `value` is a real number: Python's, NumPy's, or one of a traced shape."""
    if type(value) not in _REAL and not isinstance(value, (Real, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"{name} is beyond the range of a float")


def is_whole(name: str, value: object) -> None:
    """`TypeError` unless `value` is a whole number by its type."""
    if type(value) not in _WHOLE and not isinstance(value, (Integral, torch.SymInt)):
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__}")
