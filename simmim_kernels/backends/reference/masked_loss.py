"""Masked losses in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simmim_kernels.backends._loss_spec import LossSpec, check_names
from simmim_kernels.backends._pixel_loss import HALF_SLOPE, PIXEL_LOSSES
from simmim_kernels.backends.reference.normalize_patches import normalize_patches
from simmim_kernels.backends.reference.normalize_targets import normalize_targets, normalized_pixels
from simmim_kernels.grid import prediction_patch, refine, scale_of


def _as_image(numbers: Tensor, image: torch.Size, patch: int, order: str) -> Tensor:
    """Tokens or a map as the image `(B, C, H, W)` that they predict."""
    batch, channels, height, width = image
    if numbers.dim() == 4 and patch == 1:
        return numbers
    if numbers.dim() == 4:
        numbers = numbers.flatten(2).transpose(1, 2)
    inner = (channels, patch, patch) if order == "cyx" else (patch, patch, channels)
    cells = numbers.reshape(batch, *scale_of((height, width), (patch, patch)), *inner)
    places = (0, 3, 1, 4, 2, 5) if order == "cyx" else (0, 5, 1, 3, 2, 4)
    return cells.permute(places).reshape(image)


def _as_prediction(pixels: Tensor, pred: Tensor, patch: int, order: str) -> Tensor:
    """The inverse of `_as_image`, in the layout of `pred`."""
    batch, channels, height, width = pixels.shape
    if pred.dim() == 4 and patch == 1:
        return pixels
    h, w = scale_of((height, width), (patch, patch))
    places = (0, 2, 4, 1, 3, 5) if order == "cyx" else (0, 2, 4, 3, 5, 1)
    cells = pixels.reshape(batch, channels, h, patch, w, patch).permute(places)
    tokens = cells.reshape(batch, h * w, channels * patch * patch)
    return tokens.transpose(1, 2).reshape(pred.shape) if pred.dim() == 4 else tokens


def _listed(index: Tensor, batch: int, units: int) -> tuple[Tensor, Tensor]:
    """Sample and position of every listed row; position -1 where a row of a flat list is padding."""
    place = index.long().flatten()
    if index.dim() == 2:
        sample = torch.arange(batch, device=index.device).repeat_interleave(index.shape[1])
        wrong = (place < 0) | (place >= units)
    else:
        wrong = (place < -1) | (place >= batch * units)
        padding = place < 0
        sample = (place // units).clamp(min=0)
        place = (place % units).masked_fill(padding, -1)
    named = (sample * units + place)[place >= 0]
    if wrong.any() or named.unique().numel() != named.numel():
        raise ValueError("index names no mask unit, or one twice")
    return sample, place


def masked_loss(
    pred: Tensor,
    target: Tensor,
    mask: Tensor,
    index: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    spec: LossSpec,
    with_grad: bool,
    grad: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    check_names(spec)
    cost, derivative = PIXEL_LOSSES[spec.kind]
    image = target.shape
    batch, channels, height, width = image
    patch = prediction_patch(pred.shape, image)
    dtype = torch.float64 if torch.float64 in (pred.dtype, target.dtype) else torch.float32
    wanted = normalized_pixels(target, mean, std)
    if spec.norm == "window":
        wanted = normalize_targets(wanted, spec.norm_side, spec.norm_eps, None, None)
    elif spec.norm == "patch":
        wanted = normalize_patches(wanted, spec.norm_side, spec.norm_eps, None, None)
    wanted = wanted.to(dtype)
    if index is None:
        sample = None
        masked = refine(mask, (height, width))
        difference = _as_image(pred.to(dtype), image, patch, spec.order) - wanted
        difference = difference.masked_fill(~masked[:, None], 0)
        value = cost(difference, spec.beta).flatten(1).sum(1, dtype=torch.float64)
        count = masked.flatten(1).sum(1, dtype=torch.float64)
    else:
        units = math.prod(scale_of((height, width), (patch, patch)))
        sample, place = _listed(index, batch, units)
        rows = pred.new_empty((batch, units, pred.shape[-1]), device="meta")
        wanted = _as_prediction(wanted, rows, patch, spec.order)[sample, place.clamp(min=0)]
        difference = pred.to(dtype).reshape(wanted.shape) - wanted
        difference = difference.masked_fill((place < 0)[:, None], 0)
        value = torch.zeros(batch, dtype=torch.float64, device=pred.device)
        value.index_add_(0, sample, cost(difference, spec.beta).sum(1, dtype=torch.float64))
        count = torch.bincount(sample[place >= 0], minlength=batch).double() * patch**2
    if spec.reduction != "none":
        value, count = value.sum(), count.sum()
    # 0 where nothing is masked: the reciprocal of a tiny spec.eps has no place in float32.
    denominator = torch.where(count == 0, 0, (count + spec.eps) * channels)
    if spec.reduction == "sum":
        denominator = torch.ones_like(count)
    scale = torch.where(denominator == 0, 0, spec.factor / denominator)
    loss = torch.where(denominator == 0, 0, value * spec.factor / denominator).to(dtype)
    if not with_grad:
        return loss, pred.new_empty((0,)), loss.new_empty((0,))
    slope = derivative(difference, spec.beta)
    scale = scale.to(dtype)
    unscaled = pred.dtype == torch.float16
    if unscaled:
        slope, scale = slope * HALF_SLOPE, scale / HALF_SLOPE
    elif spec.reduction == "none":
        each = scale if sample is None else scale[sample]
        slope = slope * each.view(-1, *(1,) * (slope.dim() - 1))
    else:
        slope = slope * scale
    slope = slope if index is not None else _as_prediction(slope, pred, patch, spec.order)
    if grad is None:
        grad = torch.empty_like(pred) if index is None else pred.new_empty(pred.shape)
    grad.copy_(slope.reshape(pred.shape))
    return loss, grad, scale if unscaled else scale.new_empty((0,))


def masked_loss_(pred: Tensor, *args) -> tuple[Tensor, Tensor]:
    """The same; the gradient takes the place of `pred`."""
    loss, _, scale = masked_loss(pred, *args, True, grad=pred)
    return loss, scale


def scale_gradient_(grad: Tensor, factor: Tensor) -> None:
    grad.mul_(factor.view(-1, *(1,) * (grad.dim() - 1)) if factor.dim() else factor)
