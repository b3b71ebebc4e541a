"""Checks of arguments that several ops share. Each error names the argument, what came, and what is
allowed; all run before any kernel, in the fake kernels too."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PIXELS = (*FLOATS, torch.uint8, torch.uint16, torch.int16)


def is_refused_kind(value: Tensor) -> bool:
    """Whether a tensor is sparse, nested or a DTensor, which `is_tensor` refuses with a plainer message
    than PyTorch's dispatch of our ops would give."""
    if value.layout is not torch.strided or value.is_nested:
        return True
    if type(value) is Tensor or torch.compiler.is_compiling():
        return False
    return type(value).__name__ == "DTensor"


def is_tensor(name: str, value: object, dtypes: tuple[torch.dtype, ...]) -> None:
    """`TypeError` unless `value` is a tensor of one of `dtypes`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if is_refused_kind(value):
        if value.layout is not torch.strided or value.is_nested:
            layout = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
            raise TypeError(f"{name} has layout {layout}; allowed: a dense tensor (strided)")
        raise TypeError(
            f"{name} is a DTensor; allowed: a plain tensor, such as its to_local(), or the parameter of a "
            "module that fully_shard was applied to, within that module's own forward"
        )
    if value.dtype not in dtypes:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        came = str(value.dtype).removeprefix("torch.")
        raise TypeError(f"{name} has dtype {came}; allowed: {allowed}")


def has_dims(name: str, value: Tensor, layouts: dict[int, str]) -> None:
    """`ValueError` unless `value` has one of the numbers of dimensions in `layouts`."""
    if value.dim() not in layouts:
        allowed = " or ".join(layouts.values())
        raise ValueError(f"{name} has shape {tuple(value.shape)}; allowed: {allowed}")


def is_token(token: object, width: int) -> None:
    """Checks a mask token: `(D,)` or `(1, 1, D)`."""
    is_tensor("token", token, FLOATS)
    if token.shape != (width,) and token.shape != (1, 1, width):
        raise ValueError(
            f"token has shape {tuple(token.shape)}; allowed: ({width},), (1, 1, {width})"
        )


def is_mask(mask: object, batch: int) -> None:
    """Checks a mask grid: `bool (B, gh, gw)` with at least one unit."""
    is_tensor("mask", mask, (torch.bool,))
    has_dims("mask", mask, {3: "(B, gh, gw)"})
    if mask.shape[0] != batch:
        raise ValueError(f"mask has batch size {mask.shape[0]}, the other tensors have {batch}")
    if mask.shape[1] < 1 or mask.shape[2] < 1:
        raise ValueError(f"mask has an empty grid: {tuple(mask.shape)}")


def same_device(**tensors: Tensor | None) -> None:
    """`RuntimeError` unless all tensors that are given lie on one device."""
    first_name, first = None, None
    for name, value in tensors.items():
        if value is None:
            continue
        device = value.device
        if first is None:
            first_name, first = name, device
        elif device != first:
            raise RuntimeError(f"{name} is on {device}, but {first_name} is on {first}")
