"""Whether the fields of a dataclass hold values of the types that they are declared with."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal, Union


def wrong_fields(instance: Any) -> list[str]:
    """The fields of a dataclass whose values are of other types, as ``name value``."""
    hints = typing.get_type_hints(type(instance))
    values = {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
    return [f"{n} {v!r}" for n, v in values.items() if not matches(v, hints[n])]


def matches(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of the type ``hint``: a class, ``Any``, ``Literal``, a union, or a
    ``dict``, ``list`` or ``tuple`` of such. An ``int`` is also a ``float``, a ``bool`` neither of them."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(matches(value, argument) for argument in arguments)
    if origin is Literal:
        return any(value == a and type(value) is type(a) for a in arguments)
    if origin is dict:
        return isinstance(value, dict) and all(
            matches(key, arguments[0]) and matches(entry, arguments[1])
            for key, entry in value.items()
        )
    if origin is list:
        return isinstance(value, list) and all(matches(entry, arguments[0]) for entry in value)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1:] == (...,):
            return all(matches(entry, arguments[0]) for entry in value)
        return len(value) == len(arguments) and all(map(matches, value, arguments))
    if hint in (int, float):
        numbers = (int, float) if hint is float else (int,)
        return isinstance(value, numbers) and not isinstance(value, bool)
    return isinstance(value, hint if hint is not None else type(None))
