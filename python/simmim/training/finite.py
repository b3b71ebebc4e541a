"""Numbers that are no longer finite end a run before they are saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from simmim.errors import UserError


class NotFiniteError(UserError):
    """A loss, a gradient, a weight or a validation became infinite or not a number."""


def first_not_finite(state: Mapping[str, Any]) -> str | None:
    """The name of the first tensor in nested ``state`` that holds an infinity or a NaN.

    The host waits for the device once, however many tensors there are.
    """
    names, tensors = [], []
    for name, value in _tensors(state, ""):
        if value.is_floating_point() and value.numel():
            names.append(name)
            tensors.append(torch.isfinite(value).all())
    if not tensors:
        return None
    device = max((t.device for t in tensors), key=lambda d: d.type != "cpu")
    finite = torch.stack([t.to(device, non_blocking=True) for t in tensors]).tolist()
    return next((name for name, ok in zip(names, finite, strict=True) if not ok), None)


def _tensors(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _tensors(inner, f"{name}.{place}")
