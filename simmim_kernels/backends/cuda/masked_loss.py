"""Masked losses and their gradient in one pass over the masked pixels: csrc/cuda/masked_loss.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._loss_spec import LossSpec, check_names
from simmim_kernels.backends._results import as_rows, contiguous, empty_loss
from simmim_kernels.backends.cuda import kernels, stream
from simmim_kernels.backends.cuda.normalize_patches import patch_normalized
from simmim_kernels.backends.cuda.normalize_targets import window_normalized
from simmim_kernels.grid import prediction_patch, scale_of


def _normalized(
    target: Tensor,
    mask: Tensor,
    index: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    spec: LossSpec,
    patch: int,
    dtype: torch.dtype,
) -> Tensor:
    """The target as the loss wants it, where it is scored. `patch`: side of a token of the
    prediction."""
    if index is not None:  # a list may name units that the mask does not
        grid = target.shape[0], *scale_of(target.shape[2:], (patch, patch))
        mask = torch.zeros(grid, dtype=torch.bool, device=target.device)
        kernels.mark_listed(index, mask, stream(index))
    if spec.norm == "window":
        return window_normalized(target, spec.norm_side, spec.norm_eps, std, dtype, mask)
    return patch_normalized(target, spec.norm_side, spec.norm_eps, mean, std, dtype, mask)


def masked_loss(pred, target, mask, index, mean, std, spec, with_grad, grad=None):
    check_names(spec)
    loss, grad, scale = empty_loss(pred, target, index, spec, with_grad, grad)
    mask, index, mean, std = contiguous(mask, index, mean, std)
    if spec.norm != "none":
        patch = prediction_patch(pred.shape, target.shape)
        target = _normalized(target, mask, index, mean, std, spec, patch, loss.dtype)
        mean = std = None
    numbers, slopes = as_rows(pred, grad if with_grad else None, index)
    size = kernels.masked_loss_scratch(numbers, slopes, target, mask, index, std, spec)
    scratch = torch.empty(size, dtype=torch.float64, device=pred.device)
    written = loss, slopes, scale if with_grad and pred.dtype == torch.float16 else None
    options = target, mask, index, mean, std, spec
    kernels.masked_loss(numbers, *options, *written, scratch, stream(pred))
    return loss, grad, scale


def masked_loss_(pred: Tensor, *args) -> tuple[Tensor, Tensor]:
    """The same; the gradient takes the place of `pred`: a thread reads its numbers before it
    writes them."""
    loss, _, scale = masked_loss(pred, *args, True, grad=pred)
    return loss, scale


def scale_gradient_(grad: Tensor, factor: Tensor) -> None:
    """csrc/cuda/scale_gradient.cu"""
    kernels.scale_gradient(grad, factor, stream(grad))
