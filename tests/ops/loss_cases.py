"""Inputs of the masked losses in every layout, and the published arithmetic that they are held to."""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F

import simmim_kernels as sk
from simmim_kernels.backends._loss_spec import KINDS
from tests.ops.integer_images import INTEGERS, as_float, integers

LOSSES = KINDS
LAYOUTS = ("image", "channels_last", "cyx", "yxc", "map", "map_last", "units")
BETA = 0.7
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def numbers_of(kind, beta):
    """`beta` under the name that it has for this loss, where the loss takes one."""
    given, common = (
        inspect.signature(getattr(sk, f"masked_{name}")).parameters for name in (kind, "l1")
    )
    return dict.fromkeys(given.keys() - common.keys(), beta)


def ours(kind, pred, target, mask, layout, **options):
    function = getattr(sk, f"masked_{kind}")
    options = numbers_of(kind, options.pop("beta", BETA)) | options
    order = "yxc" if layout == "yxc" else "cyx"
    return function(pred, target, mask, order=order, **options)


def lay_out(image, patch, layout, mask=None):
    """An image `(B, C, H, W)` as the prediction of one of LAYOUTS."""
    if layout == "image":
        return image
    if layout == "channels_last":
        return image.contiguous(memory_format=torch.channels_last)
    small = F.pixel_unshuffle(image, patch)
    if layout == "map":
        return small
    if layout == "map_last":
        return small.contiguous(memory_format=torch.channels_last)
    tokens = small.flatten(2).transpose(1, 2).contiguous()
    if layout == "cyx":
        return tokens
    if layout == "yxc":
        cells = tokens.unflatten(2, (image.shape[1], patch * patch))
        return cells.transpose(2, 3).flatten(2).contiguous()
    rows = mask.masked.long()[..., None].expand(-1, -1, tokens.shape[2])
    return torch.gather(tokens, 1, rows)


def as_image(pred, like, patch, layout, mask=None):
    """The inverse of `lay_out`, differentiable, with nothing where a unit is not listed."""
    batch, channels, height, width = like.shape
    if layout in ("image", "channels_last"):
        return pred
    if layout in ("map", "map_last"):
        return F.pixel_shuffle(pred, patch)
    if layout == "units":
        rows = mask.masked.long()[..., None].expand_as(pred)
        empty = pred.new_zeros(batch, (height // patch) * (width // patch), pred.shape[2])
        pred = empty.scatter(1, rows, pred)
    if layout == "yxc":
        pred = pred.unflatten(2, (patch * patch, channels)).transpose(2, 3).flatten(2)
    small = pred.transpose(1, 2).unflatten(2, (height // patch, width // patch))
    return F.pixel_shuffle(small, patch)


def normalised(target, mean=None, std=None, dtype=torch.float32):
    """An image as the published transforms make it: uint8 divided by 255, then `mean` and `std`."""
    target = as_float(target, dtype)
    if mean is None:
        return target
    mean, std = (torch.tensor(values, dtype=dtype)[:, None, None] for values in (mean, std))
    return (target - mean) / std


def loss_of_numbers(kind, pred, target, beta=BETA):
    """PyTorch's own loss of every number."""
    if kind in ("mse", "huber"):  # their gradients take one type
        wide = torch.promote_types(pred.dtype, target.dtype)
        pred, target = pred.to(wide), target.to(wide)
    function = getattr(F, f"{kind}_loss")
    return function(pred, target, reduction="none", **numbers_of(kind, beta))


def published(kind, image, target, mask, eps=1e-5, reduction="mean", beta=BETA):
    """SimMIM's `(loss_recon * mask).sum() / (mask.sum() + 1e-5) / in_chans` on a full image."""
    scale_y, scale_x = (a // b for a, b in zip(image.shape[2:], mask.shape[1:], strict=True))
    pixels = mask.repeat_interleave(scale_y, 1).repeat_interleave(scale_x, 2)[:, None]
    loss = loss_of_numbers(kind, image, target, beta)
    loss, pixels = (
        loss * pixels,
        pixels.to(loss.dtype if image.dtype.itemsize == 8 else torch.float32),
    )
    if reduction == "sum":
        return loss.sum()
    dims = (1, 2, 3) if reduction == "none" else (0, 1, 2, 3)
    return loss.sum(dims) / (pixels.sum(dims) + eps) / image.shape[1]


def window_target(image, window, eps):
    """Swin-Transformer's `norm_targets` in float64: means over squares cut at the border."""
    window = min(window, 2 * max(image.shape[2:]) - 1)
    pad = window // 2
    size = image.new_ones(1, 1, *image.shape[2:])

    def box(x):
        x = F.pad(x, (pad,) * 4)
        return F.avg_pool2d(x, window, 1) * window**2

    n = box(size)
    mean, square = box(image) / n, box(image.square()) / n
    var = (square - mean.square()) * torch.where(n > 1, n / (n - 1), 0.0)
    return (image - mean) / torch.sqrt(var.clamp(min=0) + eps)


def patch_target(image, patch, eps):
    """MAE's `norm_pix_loss` in float64, over pixels and channels of a patch."""
    rows = F.unfold(image, patch, stride=patch).transpose(1, 2)
    mean, var = rows.mean(-1, keepdim=True), rows.var(-1, keepdim=True)
    rows = (rows - mean) / torch.sqrt(var + eps)
    return F.fold(rows.transpose(1, 2), image.shape[2:], patch, stride=patch)


def problem(
    batch, channels, grid, unit, patch, layout, dtype, target_dtype, seed=1, normalized=None
):  # fmt: skip
    """Prediction and target no closer than 0.02, so that rounding turns no sign of theirs."""
    height, width = grid[0] * unit, grid[1] * unit
    mask = sk.random_mask(batch, grid, 0.6, seed=seed)
    if layout == "units":
        mask = mask.on_grid((height // patch, width // patch))
    target = torch.randn(batch, channels, height, width)
    statistics = {}
    if target_dtype in INTEGERS:
        target = integers(target.shape, target_dtype)
    if normalized is None:
        normalized = target_dtype == torch.uint8 and channels == 3
    large = target_dtype in (torch.uint16, torch.int16)
    if normalized or (large and dtype == torch.float16):  # which ends at 65504
        largest = 65535 if large else 1
        statistics = {
            name: [value * largest for value in (values * (channels // 3 + 1))[:channels]]
            for name, values in (("mean", MEAN), ("std", STD))
        }
    target = target if target_dtype in INTEGERS else target.to(target_dtype)
    wide = normalised(target, *statistics.values(), dtype=torch.float64).double()
    away = torch.randn(target.shape, dtype=torch.float64)
    image = (wide + away + 0.1 * away.sign()).to(dtype)
    return lay_out(image, patch, layout, mask), target, mask, statistics
