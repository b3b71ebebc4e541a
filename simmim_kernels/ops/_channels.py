"""The `mean` and `std` of an image's channels, which several ops apply on the way in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from simmim_kernels.ops._check import is_tensor

Channels = Sequence[float] | Tensor | None


def channel_stats(
    image: Tensor, mean: Channels, std: Channels
) -> tuple[Tensor | None, Tensor | None]:
    """`mean` and `std` as tensors on `image`'s device; tensors pass as they are.

    Raises `ValueError` where only one of them is given, or a listed `std` is not positive, and
    `TypeError` where something else than numbers is listed.
    """
    if mean is None and std is None:
        return None, None
    if mean is None or std is None:
        raise ValueError("mean and std go together: give both or neither")
    if not isinstance(std, Tensor):
        std = _listed("std", std)
        if not all(0.0 < value < math.inf for value in std):
            raise ValueError(f"std is {std}; allowed: positive numbers")
        std = _tensor(std, image.device)
    if not isinstance(mean, Tensor):
        mean = _tensor(_listed("mean", mean), image.device)
    return mean, std


def _listed(name: str, values: Sequence[float]) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} is {values!r}; allowed: one number a channel") from error


def is_channels(name: str, value: Tensor | None, channels: int) -> None:
    """Checks one number a channel: None, or a float32 or float64 tensor `(C,)`."""
    if value is None:
        return
    is_tensor(name, value, (torch.float32, torch.float64))
    if value.shape != (channels,):
        raise ValueError(f"{name} has shape {tuple(value.shape)}; allowed: ({channels},)")


def are_channel_stats(name: str, image: Tensor, mean: Tensor | None, std: Tensor | None) -> None:
    """Checks the `mean` and `std` that normalise `image`: both or neither, for uint8 only."""
    if mean is None and std is None:
        return
    if mean is None or std is None:
        raise ValueError("mean and std go together: give both or neither")
    if image.dtype != torch.uint8:
        raise ValueError(
            "mean and std normalise a uint8 image; "
            f"{name} has dtype {str(image.dtype).removeprefix('torch.')} and is taken as it is"
        )
    is_channels("mean", mean, image.shape[1])
    is_channels("std", std, image.shape[1])


def _tensor(values: tuple[float, ...], device: torch.device) -> Tensor:
    # A tensor made under compilation or a dispatch mode may be a fake one, and must not be kept.
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return torch.tensor(values, dtype=torch.float64, device=device)
    return _kept(values, device)


@lru_cache(maxsize=64)
def _kept(values: tuple[float, ...], device: torch.device) -> Tensor:
    # Built outside inference mode and without gradient, so that the kept tensor serves everywhere.
    with torch.inference_mode(False), torch.no_grad():
        return torch.tensor(values, dtype=torch.float64, device=device)
