"""The losses, in plain PyTorch; the C++ twin is csrc/common/pixel_loss.h, Triton's is in
triton/_loss_pass.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _smooth_l1(d: Tensor, beta: float) -> Tensor:
    size = d.abs()
    return torch.where(size < beta, size.square() / (2 * beta), size - beta / 2)


def _huber(d: Tensor, delta: float) -> Tensor:
    size = d.abs()
    return torch.where(size < delta, size.square() / 2, delta * (size - delta / 2))


Function = Callable[[Tensor, float], Tensor]

# Float16 gradients are kept times this before they are divided by the pixels: no slope of a difference of
# two numbers of 16 bits is then beyond float16.
HALF_SLOPE = 0.25

# By name: a pixel's loss as a function of the difference and `LossSpec.beta`, and its derivative with
# respect to the difference. In the order of SIMMIM_LOSSES in C++.
PIXEL_LOSSES: dict[str, tuple[Function, Function]] = {
    "l1": (lambda d, beta: d.abs(), lambda d, beta: torch.sign(d)),
    "mse": (lambda d, beta: d.square(), lambda d, beta: 2 * d),
    "smooth_l1": (_smooth_l1, lambda d, beta: (d / beta).clamp(-1, 1)),
    "huber": (_huber, lambda d, delta: d.clamp(-delta, delta)),
}
