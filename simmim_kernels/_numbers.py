"""The one conversion of plain numbers: whatever a caller gives as a size, seed, ratio or epsilon
becomes a Python number here, before anything is computed with it.

NumPy's integers wrap around at their width (`np.uint8(20) ** 2` is 144), so not even a product of two
sizes may be taken before. Symbolic numbers of traced shapes pass as they are.
"""

from __future__ import annotations

import operator
import sys
from numbers import Real

import torch

#: What can be iterated over and is no sequence of numbers.
UNORDERED = (str, bytes, set, frozenset, dict)
_SYMBOLIC = (torch.SymInt, torch.SymFloat)
_LARGEST = sys.float_info.max


def to_int(name: str, value: object) -> int:
    """`value` as a Python integer: Python's, NumPy's, a 0-dimensional tensor or array of an integer
    type, or symbolic.

    Raises `TypeError`, naming the argument, for anything else: bool and whole floats too.
    """
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    if not _is_bool(value) and _is_scalar(value):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be a whole number, got {_described(value)}")


def to_float(name: str, value: object) -> float:
    """`value` as a Python float: a real number of Python or NumPy, a 0-dimensional tensor or array, or
    symbolic.

    Raises `TypeError`, naming the argument, for anything else, bool too, and `ValueError` for an
    integer beyond the range of a float.
    """
    if type(value) is float or isinstance(value, _SYMBOLIC):
        return value
    if not _is_bool(value) and _is_scalar(value):
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, int) and abs(number) > _LARGEST:
            raise ValueError(f"{name} is beyond the range of a float")
        if isinstance(number, Real):
            return float(number)
    raise TypeError(f"{name} must be a number, got {_described(value)}")


def to_bool(name: str, value: object) -> bool:
    """`value` as a Python bool: Python's, NumPy's, a 0-dimensional tensor or array of bools; `TypeError`,
    naming the argument, for anything else."""
    if isinstance(value, bool) or (_is_bool(value) and _is_scalar(value)):
        return bool(value)
    raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def to_sides(name: str, value: object) -> tuple[int, int]:
    """Two whole numbers, the sides of a grid, from any sequence of two."""
    try:
        first, second = value if not isinstance(value, UNORDERED) else ()
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}; allowed: two whole numbers") from None
    return to_int(name, first), to_int(name, second)


def _is_scalar(value: object) -> bool:
    return getattr(value, "ndim", 0) == 0


def _is_bool(value: object) -> bool:
    dtype = getattr(value, "dtype", None)
    return isinstance(value, bool) or dtype is torch.bool or getattr(dtype, "kind", "") == "b"


def _described(value: object) -> str:
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    if not isinstance(shape, tuple):
        return kind
    dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
    return f"{kind} of type {dtype} and shape {tuple(shape)}"
