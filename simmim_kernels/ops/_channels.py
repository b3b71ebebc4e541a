"""The `mean` and `std` of an image's channels, which every op that takes an image applies on the way
in: a uint8 image is divided by 255, an image of any other type is taken as the numbers it holds, and
then `(value - mean) / std` per channel where the two are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from simmim_kernels._numbers import UNORDERED, to_float
from simmim_kernels.ops._check import FLOATS, is_tensor
from simmim_kernels.ops._define import needs_grad

Channels = Sequence[float] | Tensor | None

_MOST = 64  # listed numbers that are remembered, with their tensors
#: name, numbers and device of what passed the checks: tuples of floats alone, which do not change
_passed: set[tuple[str, tuple[float, ...], torch.device]] = set()


def channel_stats(
    image: Tensor, mean: Channels, std: Channels
) -> tuple[Tensor | None, Tensor | None]:
    """`mean` and `std` as float32 or float64 tensors: listed numbers on `image`'s device, in float64;
    tensors where they are, 16-bit ones widened.

    Raises `ValueError` where only one of them is given, or a listed number is not finite, a listed
    `std` not positive, and `TypeError` where something else than numbers is listed.
    """
    if mean is None and std is None:
        return None, None
    check_pair(mean, std)
    return _as_tensor("mean", mean, image), _as_tensor("std", std, image)


def _as_tensor(name: str, values: Sequence[float] | Tensor, image: Tensor) -> Tensor:
    if isinstance(values, Tensor):
        is_tensor(name, values, FLOATS)
        if needs_grad(values):
            raise ValueError(f"{name} requires grad; allowed: a tensor that gets none, detach it")
        return values.float() if values.dtype.itemsize == 2 else values
    device = image.device
    plain = (
        not torch.compiler.is_compiling()
        and type(values) is tuple
        and set(map(type, values)) == {float}
    )
    if plain and (name, values, device) in _passed:
        return _tensor(values, device)
    listed = listed_channels(name, values)
    if plain and len(_passed) < _MOST:
        _passed.add((name, values, device))
    return _tensor(listed, device)


def listed_channels(name: str, values: Sequence[float]) -> tuple[float, ...]:
    """`mean` or `std` as Python floats. `TypeError` for what is no sequence of numbers, `ValueError` for
    one that is not finite, and for a `std` that is not positive."""
    try:
        if isinstance(values, UNORDERED):
            raise TypeError
        listed = tuple(to_float(name, value) for value in values)
    except TypeError:
        # Written here and not before: symbolic numbers can't be shown while they are traced.
        raise TypeError(f"{name} is {values!r}; allowed: one number a channel") from None
    least = 0.0 if name == "std" else -math.inf
    if not all(least < value < math.inf for value in listed):
        allowed = "positive" if name == "std" else "finite"
        raise ValueError(f"{name} is {listed}; allowed: {allowed} numbers")
    return listed


def check_pair(mean: Channels, std: Channels) -> None:
    """`ValueError` where one of `mean` and `std` is given without the other."""
    if (mean is None) != (std is None):
        raise ValueError("mean and std go together: give both or neither")


def check_channels(name: str, value: Tensor | None, channels: int) -> None:
    """Checks one number a channel: None, or a float32 or float64 tensor `(C,)`."""
    if value is None:
        return
    is_tensor(name, value, (torch.float32, torch.float64))
    if value.shape != (channels,):
        raise ValueError(f"{name} has shape {tuple(value.shape)}; allowed: ({channels},)")


def check_channel_stats(image: Tensor, mean: Tensor | None, std: Tensor | None) -> None:
    """Checks the `mean` and `std` that normalise `image`: both or neither, one number a channel."""
    check_pair(mean, std)
    check_channels("mean", mean, image.shape[1])
    check_channels("std", std, image.shape[1])


def _tensor(values: tuple[float, ...], device: torch.device) -> Tensor:
    # A tensor made under compilation or a dispatch mode may be a fake one, and must not be kept.
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return torch.tensor(values, dtype=torch.float64, device=device)
    return _kept(values, device)


@lru_cache(maxsize=_MOST)
def _kept(values: tuple[float, ...], device: torch.device) -> Tensor:
    # Built outside inference mode and without gradient, so that the kept tensor serves everywhere.
    with torch.inference_mode(False), torch.no_grad():
        return torch.tensor(values, dtype=torch.float64, device=device)
