"""Masked losses and their gradient in one pass over the masked pixels: csrc/cpu/masked_loss.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends.cpu import address, element, kernels, threads
from simmim_kernels.grid import prediction_patch, prediction_strides

_KINDS = {"l1": 0, "mse": 1, "smooth_l1": 2}
_REDUCTIONS = {"mean": 0, "sum": 1, "none": 2}
_ROWS = 16  # of pixels in one partial sum; a row of larger tokens is one partial sum
_NO_STRIDES = (0,) * 6


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
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = target.shape
    patch = prediction_patch(pred.shape, target.shape)
    band = patch * max(1, _ROWS // patch)
    dtype = torch.float64 if torch.float64 in (pred.dtype, target.dtype) else torch.float32
    tokens_in_row = width // patch if index is None else 0
    shape = (batch,) if reduction == "none" else ()
    loss = torch.empty(shape, dtype=dtype, device="cpu")
    grad = torch.empty_like(pred) if with_grad else torch.empty(0, dtype=pred.dtype, device="cpu")
    scale = torch.empty(
        shape if with_grad and pred.dtype == torch.float16 else (0,), dtype=dtype, device="cpu"
    )
    rows = per_sample = 0
    if index is not None:
        index = index.contiguous()
        rows, per_sample = index.numel(), index.shape[1] if index.dim() == 2 else 0
    mask = mask.contiguous()
    mean = None if mean is None else mean.double().contiguous()
    std = None if std is None else std.double().contiguous()
    pieces = rows if index is not None else batch * (-(-height // band))
    scratch = torch.empty(pieces + 2 * max(batch, 1), dtype=torch.float64, device="cpu")
    wrong = kernels.masked_loss(
        pred.data_ptr(),
        element(pred),
        *prediction_strides(pred.stride(), channels, patch, tokens_in_row, order),
        grad.data_ptr() if with_grad else None,
        *(
            prediction_strides(grad.stride(), channels, patch, tokens_in_row, order)
            if with_grad
            else _NO_STRIDES
        ),
        target.data_ptr(),
        element(target),
        *target.stride(),
        address(mean),
        address(std),
        mask.data_ptr(),
        mask.shape[1],
        mask.shape[2],
        address(index),
        rows,
        per_sample,
        _KINDS[kind],
        beta,
        eps,
        _REDUCTIONS[reduction],
        loss.data_ptr(),
        element(loss),
        scale.data_ptr() if scale.numel() else None,
        band,
        scratch.data_ptr(),
        batch,
        channels,
        height,
        width,
        patch,
        threads(),
    )
    if wrong >= 0:
        raise ValueError(f"index names no mask unit in row {wrong}")
    return loss, grad, scale
