"""Masked losses and their gradient in one pass over the masked pixels: csrc/cpu/masked_loss.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._results import as_rows, contiguous, empty_loss
from simmim_kernels.backends.cpu import kernels, threads

_MOST_MULTIPLIED = 1 << 16  # numbers


def masked_loss(pred, target, mask, index, mean, std, spec, with_grad, grad=None):
    loss, grad, scale = empty_loss(pred, target, index, spec, with_grad, grad)
    numbers, slopes = as_rows(pred, grad if with_grad else None, index)
    options = (*contiguous(mask, index, mean, std), spec)
    unscaled = scale if with_grad and pred.dtype == torch.float16 else None
    wrong = kernels.masked_loss(numbers, target, *options, loss, slopes, unscaled, threads())
    if wrong >= 0:
        raise ValueError(f"row {wrong} of index names no mask unit, or one named before")
    return loss, grad, scale


def masked_loss_(pred: Tensor, *args) -> tuple[Tensor, Tensor]:
    """The same; the gradient takes the place of `pred`."""
    loss, _, scale = masked_loss(pred, *args, True, grad=pred)
    return loss, scale


def scale_gradient_(grad: Tensor, factor: Tensor) -> None:
    if not factor.dim():
        if (number := factor.item()) != 1.0:
            grad.mul_(number)
        return
    # PyTorch makes the product in the wider of the two types, in memory: of a few rows at a time.
    rows = max(_MOST_MULTIPLIED // max(grad.shape[1:].numel(), 1), 1)
    for part, factors in zip(grad.split(rows), factor.split(rows), strict=True):
        part.mul_(factors.view(-1, *(1,) * (grad.dim() - 1)))
