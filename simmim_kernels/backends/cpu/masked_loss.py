"""Masked losses and their gradient in one pass over the masked pixels: csrc/cpu/masked_loss.cpp."""

from __future__ import annotations

from array import array
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from simmim_kernels.backends._loss_options import KINDS, NORMS, REDUCTIONS, check_options
from simmim_kernels.backends.cpu import address, element, kernels, threads
from simmim_kernels.grid import prediction_patch, prediction_strides

_SUMS_ON_STACK = 256  # twin: kSumsOnStack in csrc/cpu/masked_loss.cpp


class _Plan(NamedTuple):
    """What follows from shapes, strides and types alone."""

    layout: int  # address of `struct Layout` in csrc/cpu/masked_loss.cpp
    patch: int
    sums: int  # partial sums in all
    scratch: int  # bytes for each thread
    memory: array  # holds the layout


@lru_cache(maxsize=256)
def _plan(
    pred: tuple[int, ...],
    pred_strides: tuple[int, ...],
    grad_strides: tuple[int, ...] | None,
    image: tuple[int, ...],
    image_strides: tuple[int, ...],
    elements: tuple[int, ...],
    order: str,
    listed: bool,
    norm: str,
    norm_side: int,
) -> _Plan:
    batch, channels, _, width = image
    patch = prediction_patch(pred, image)
    in_row = 0 if listed else width // patch
    strides = prediction_strides(pred_strides, channels, patch, in_row, order)
    slopes = (0,) * 6
    if grad_strides is not None:
        slopes = prediction_strides(grad_strides, channels, patch, in_row, order)
    numbers = (*image, patch, *elements, NORMS[norm], norm_side, *strides, *slopes, *image_strides)
    memory = array("q", numbers)
    layout = memory.buffer_info()[0]
    sums = kernels.masked_loss_scratch(layout, True) * batch + 2 * max(batch, 1)
    return _Plan(layout, patch, sums, kernels.masked_loss_scratch(layout, False), memory)


def masked_loss(
    pred: Tensor,
    target: Tensor,
    mask: Tensor,
    index: Tensor | None,
    order: str,
    mean: Tensor | None,
    std: Tensor | None,
    kind: str,
    beta: float,
    eps: float,
    reduction: str,
    norm: str,
    norm_side: int,
    norm_eps: float,
    with_grad: bool,
    grad: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    check_options(kind, order, reduction, norm)
    batch, _, height, width = target.shape
    dtype = torch.float64 if torch.float64 in (pred.dtype, target.dtype) else torch.float32
    shape = (batch,) if reduction == "none" else ()
    loss = torch.empty(shape, dtype=dtype, device="cpu")
    if not with_grad:
        grad = torch.empty(0, dtype=pred.dtype, device="cpu")
    elif grad is None and index is None:
        grad = torch.empty_like(pred)
    elif grad is None:
        grad = torch.empty(pred.shape, dtype=pred.dtype, device="cpu")
    unscaled = with_grad and pred.dtype == torch.float16
    scale = torch.empty(shape if unscaled else (0,), dtype=dtype, device="cpu")
    numbers, slopes = pred, grad
    rows = per_sample = 0
    row_of = present = None
    if index is not None:
        numbers = pred.reshape(-1, pred.shape[-1])
        slopes = grad.view(numbers.shape) if with_grad else grad
        index = index.contiguous()
        rows, per_sample = index.numel(), index.shape[1] if index.dim() == 2 else 0
        index = index if rows else index.new_zeros(1)  # no address would mean that there is no list
    team = threads()
    plan = _plan(
        numbers.shape,
        numbers.stride(),
        slopes.stride() if with_grad else None,
        target.shape,
        target.stride(),
        (element(pred), element(target), element(loss)),
        order,
        index is not None,
        norm,
        norm_side,
    )
    if index is not None:
        cells = batch * (height // plan.patch) * (width // plan.patch)
        row_of = torch.empty(cells, dtype=torch.int32, device="cpu")
        present = torch.empty(cells, dtype=torch.uint8, device="cpu")
    mask = mask.contiguous()
    mean = None if mean is None else mean.double().contiguous()
    std = None if std is None else std.double().contiguous()
    sums = scratch = None
    if plan.sums > _SUMS_ON_STACK:
        sums = torch.empty(plan.sums, dtype=torch.float64, device="cpu")
    if plan.scratch:
        scratch = torch.empty(team * plan.scratch, dtype=torch.uint8, device="cpu")
    wrong = kernels.masked_loss(
        plan.layout,
        numbers.data_ptr(),
        slopes.data_ptr() if with_grad else None,
        target.data_ptr(),
        address(mean),
        address(std),
        mask.data_ptr(),
        mask.shape[1],
        mask.shape[2],
        address(index),
        rows,
        per_sample,
        address(row_of),
        address(present),
        norm_eps,
        KINDS[kind],
        beta,
        eps,
        REDUCTIONS[reduction],
        loss.data_ptr(),
        scale.data_ptr() if unscaled else None,
        address(sums),
        address(scratch),
        team,
    )
    if wrong == -2:
        raise ValueError("masked_loss: a kind, reduction or norm that the kernel does not know")
    if wrong >= 0:
        raise ValueError(f"row {wrong} of index names no mask unit, or one named before")
    return loss, grad, scale


def masked_loss_(pred: Tensor, *options) -> tuple[Tensor, Tensor]:
    """The same; the gradient takes the place of `pred`."""
    loss, _, scale = masked_loss(pred, *options, True, grad=pred)
    return loss, scale
