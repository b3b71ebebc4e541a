"""Masked losses and their gradient in one pass over the masked pixels: csrc/cpu/masked_loss.cpp."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from simmim_kernels.backends.cpu import address, element, kernels, threads
from simmim_kernels.grid import prediction_patch, prediction_strides

_KINDS = {"l1": 0, "mse": 1, "smooth_l1": 2}
_REDUCTIONS = {"mean": 0, "sum": 1, "none": 2}
_NORMS = {"none": 0, "window": 1, "patch": 2}
_NO_STRIDES = (0,) * 6


@lru_cache(maxsize=256)
def _scratch(
    code: int, norm: int, side: int, channels: int, height: int, width: int, patch: int
) -> tuple[int, int]:
    """Partial sums of a sample, and bytes of scratch of a thread."""
    shape = (code, norm, side, channels, height, width, patch)
    return kernels.masked_loss_scratch(*shape, True), kernels.masked_loss_scratch(*shape, False)


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
    norm: str,
    norm_side: int,
    norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = target.shape
    patch = prediction_patch(pred.shape, target.shape)
    dtype = torch.float64 if torch.float64 in (pred.dtype, target.dtype) else torch.float32
    shape = (batch,) if reduction == "none" else ()
    loss = torch.empty(shape, dtype=dtype, device="cpu")
    if not with_grad:
        grad = torch.empty(0, dtype=pred.dtype, device="cpu")
    elif index is None:
        grad = torch.empty_like(pred)
    else:
        grad = torch.empty(pred.shape, dtype=pred.dtype, device="cpu")
    scale = torch.empty(
        shape if with_grad and pred.dtype == torch.float16 else (0,), dtype=dtype, device="cpu"
    )
    numbers, slopes, tokens_in_row = pred, grad, width // patch
    rows = per_sample = 0
    row_of = present = None
    if index is not None:
        numbers = pred.reshape(-1, pred.shape[-1])
        slopes = grad.view(numbers.shape) if with_grad else grad
        index = index.contiguous()
        rows, per_sample = index.numel(), index.shape[1] if index.dim() == 2 else 0
        cells = batch * (height // patch) * tokens_in_row
        row_of = torch.empty(cells, dtype=torch.int32, device="cpu")
        present = torch.empty(cells, dtype=torch.uint8, device="cpu")
        tokens_in_row = 0
    mask = mask.contiguous()
    mean = None if mean is None else mean.double().contiguous()
    std = None if std is None else std.double().contiguous()
    norm_code = _NORMS[norm]
    code, team = element(loss), threads()
    pieces, size = _scratch(code, norm_code, norm_side, channels, height, width, patch)
    sums = torch.empty(pieces * batch + 2 * max(batch, 1), dtype=torch.float64, device="cpu")
    scratch = torch.empty(team * size, dtype=torch.uint8, device="cpu") if size else None
    wrong = kernels.masked_loss(
        numbers.data_ptr(),
        element(numbers),
        *prediction_strides(numbers.stride(), channels, patch, tokens_in_row, order),
        slopes.data_ptr() if with_grad else None,
        *(
            prediction_strides(slopes.stride(), channels, patch, tokens_in_row, order)
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
        address(row_of),
        address(present),
        norm_code,
        norm_side,
        norm_eps,
        _KINDS[kind],
        beta,
        eps,
        _REDUCTIONS[reduction],
        loss.data_ptr(),
        code,
        scale.data_ptr() if scale.numel() else None,
        sums.data_ptr(),
        address(scratch),
        batch,
        channels,
        height,
        width,
        patch,
        team,
    )
    if wrong >= 0:
        raise ValueError(f"row {wrong} of index names no mask unit, or one named before")
    return loss, grad, scale
