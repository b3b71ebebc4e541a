"""Masked losses and their gradient in one pass over the masked pixels: csrc/cuda/masked_loss.cu."""

from __future__ import annotations

import torch
from torch import Tensor

<<<<<<< HEAD
from simmim_kernels.backends._loss_options import KINDS, REDUCTIONS, check_options
from simmim_kernels.backends.cuda import address, device_and_stream, element, kernels
=======
from simmim_kernels.backends.cuda import address, device_and_stream, element, kernels, stream
>>>>>>> 70fd6f5 (Hand tensors to the kernels of patches and targets)
from simmim_kernels.backends.cuda.normalize_patches import patch_normalized
from simmim_kernels.backends.cuda.normalize_targets import window_normalized
from simmim_kernels.grid import prediction_patch, prediction_strides

_NO_STRIDES = (0,) * 6
_NUMBERS = 32  # of a row of the prediction, in each thread
_COUNTED = 1 << 15  # mask units that a block counts


def _pieces(numbers: int) -> tuple[int, int]:
    """Threads of a block, and blocks for a row of the prediction: few idle threads in short rows."""
    threads = min(256, max(32, 1 << max(-(-numbers // _NUMBERS) - 1, 0).bit_length()))
    return threads, -(-numbers // (_NUMBERS * threads))


def _scored(index: Tensor, batch: int, h: int, w: int) -> Tensor:
    """`bool (B, h, w)`: the units that a list names."""
    scored = torch.zeros((batch, h, w), dtype=torch.bool, device=index.device)
    device, queue = device_and_stream(index)
    kernels.mark_listed(
        device,
        index.data_ptr(),
        index.numel(),
        index.shape[1] if index.dim() == 2 else 0,
        batch,
        h * w,
        scored.data_ptr(),
        queue,
    )
    return scored


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
    dtype = torch.float64 if torch.float64 in (pred.dtype, target.dtype) else torch.float32
    batch, channels, height, width = target.shape
    patch, place, mask = prediction_patch(pred.shape, target.shape), pred.device, mask.contiguous()
    index = None if index is None else index.contiguous()
    scored = mask
    if norm != "none" and index is not None:  # a list may name units that the mask does not
        scored = _scored(index, batch, height // patch, width // patch)
    if norm == "window":
        target = window_normalized(target, norm_side, norm_eps, std, dtype, scored)
    elif norm == "patch":
        target = patch_normalized(target, norm_side, norm_eps, mean, std, dtype, scored)
    if norm != "none":  # done already
        mean = std = None
    mean, std = (None if t is None else t.contiguous() for t in (mean, std))
    shape = (batch,) if reduction == "none" else ()
    loss = torch.empty(shape, dtype=dtype, device=place)
    if grad is None:
        if with_grad and index is None:
            grad = torch.empty_like(pred)
        else:
            grad = torch.empty(pred.shape if with_grad else 0, dtype=pred.dtype, device=place)
    unscaled = with_grad and pred.dtype == torch.float16
    scale_out = torch.empty(shape if unscaled else (0,), dtype=dtype, device=place)
    numbers, slopes, tokens_in_row = pred, grad, width // patch
    rows, per_sample, row_length = batch, 0, channels * height * width
    if index is not None:
        numbers = pred.reshape(-1, pred.shape[-1])
        slopes = grad.view(numbers.shape) if with_grad else grad
        rows, per_sample = index.numel(), index.shape[1] if index.dim() == 2 else 0
        index = index if rows else index.new_zeros(1)  # no address would mean that there is no list
        tokens_in_row, row_length = 0, numbers.shape[1]
    threads, tiles = _pieces(row_length)
    results, counts = loss.numel(), -(-mask.numel() // _COUNTED)
    # Factors of the results, of pixels, and partial sums; masked units counted in pieces.
    sums = torch.empty(results + 2 * channels + rows * tiles, dtype=torch.float64, device=place)
    counted = torch.empty(counts, dtype=torch.int64, device=place) if counts > 1 else None
    scale = sums.data_ptr()
    affine = scale + 8 * results
    device, queue = device_and_stream(pred)
    kernels.masked_loss(
        device,
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
        element(mean),
        address(std),
        element(std),
        mask.data_ptr(),
        mask.shape[1],
        mask.shape[2],
        address(index),
        rows,
        per_sample,
        KINDS[kind],
        beta,
        eps,
        REDUCTIONS[reduction],
        loss.data_ptr(),
        element(loss),
        scale_out.data_ptr() if unscaled else None,
        scale,
        affine,
        address(counted),
        affine + 16 * channels,
        batch,
        channels,
        height,
        width,
        patch,
        threads,
        tiles,
        queue,
    )
    return loss, grad, scale_out


def masked_loss_(pred: Tensor, *options) -> tuple[Tensor, Tensor]:
    """The same; the gradient takes the place of `pred`: a thread reads its numbers before it
    writes them."""
    loss, _, scale = masked_loss(pred, *options, True, grad=pred)
    return loss, scale


def scale_gradient_(grad: Tensor, factor: Tensor) -> None:
    """csrc/cuda/scale_gradient.cu"""
    kernels.scale_gradient(grad, factor, stream(grad))
