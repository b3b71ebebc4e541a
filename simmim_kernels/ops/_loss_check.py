"""Argument checks of the masked losses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simmim_kernels.backends._loss_spec import check_names
from simmim_kernels.grid import prediction_patch, scale_of, whole_scale
from simmim_kernels.ops._channels import check_channel_stats
from simmim_kernels.ops._check import FLOATS, PIXELS, has_dims, is_mask, is_tensor, same_device
from simmim_kernels.target_norm import check_eps, check_window

PREDICTIONS = {2: "(R, C*p*p)", 3: "(B, L, C*p*p)", 4: "(B, C, H, W) or (B, C*p*p, h, w)"}
SMALLEST_BETA = 1e-30  # below it smooth L1 and L1 are the same float32 numbers


def check(pred, target, mask, index, mean, std, spec, with_grad) -> None:
    check_tensors(pred, target, mask)
    height, width = target.shape[2:]
    unit_h = whole_scale("image height", height, "mask grid height", mask.shape[1])
    unit_w = whole_scale("image width", width, "mask grid width", mask.shape[2])
    check_names(spec)
    if not 0.0 <= spec.eps < math.inf:
        raise ValueError(f"eps is {spec.eps}; allowed: a finite number >= 0")
    if not SMALLEST_BETA <= spec.beta < math.inf:
        raise ValueError(f"beta is {spec.beta}; allowed: a finite number >= {SMALLEST_BETA}")
    if not 0.0 < spec.factor < math.inf:
        raise ValueError(f"factor is {spec.factor}; allowed: a finite number > 0")
    check_channel_stats(target, mean, std)
    if index is None:
        _check_dense(pred, target)
    else:
        _check_listed(pred, target, index, unit_h, unit_w)
    _check_norm(target, spec.norm, spec.norm_side, spec.norm_eps)
    same_device(pred=pred, target=target, mask=mask, index=index, mean=mean, std=std)


def check_tensors(pred: Tensor, target: Tensor, mask: Tensor) -> None:
    """What must hold before a shape is computed with."""
    is_tensor("pred", pred, FLOATS)
    is_tensor("target", target, PIXELS)
    has_dims("target", target, {4: "(B, C, H, W) or (B, L, N)"})
    if target.shape[1] < 1:
        raise ValueError(f"target has shape {tuple(target.shape)}; allowed: at least one channel")
    is_mask(mask, target.shape[0])


def _check_norm(target: Tensor, norm: str, side: int, eps: float) -> None:
    if norm == "none":
        return
    check_eps(eps)
    if norm == "window":
        check_window(side)
    elif side < 1 or target.shape[2] % side or target.shape[3] % side:
        raise ValueError(
            f"PatchNorm over patches of {side} pixels does not fit a target of shape "
            f"{tuple(target.shape)}"
        )


def _check_dense(pred: Tensor, target: Tensor) -> None:
    batch, channels, height, width = target.shape
    if pred.dim() not in (3, 4) or pred.shape[0] != batch:
        fits = False
    elif pred.dim() == 4 and pred.shape == target.shape:
        fits = True
    else:
        patch = prediction_patch(pred.shape, target.shape)
        fits = patch >= 1 and height % patch == 0 and width % patch == 0
        if fits:
            tokens = scale_of((height, width), (patch, patch))
            numbers = channels * patch * patch
            if pred.dim() == 4:
                fits = pred.shape[1:] == (numbers, *tokens)
            else:
                fits = pred.shape[1:] == (tokens[0] * tokens[1], numbers)
    if not fits:
        raise ValueError(
            f"pred has shape {tuple(pred.shape)}; allowed for a target of shape "
            f"{tuple(target.shape)} and patches of p pixels: the target's shape, tokens "
            f"({batch}, {height}/p * {width}/p, {channels}*p*p), a map "
            f"({batch}, {channels}*p*p, {height}/p, {width}/p), or with a PatchMask the masked "
            f"units only ({batch}, K, {channels}*p*p), p being the mask unit"
        )


def _check_listed(pred: Tensor, target: Tensor, index: Tensor, unit_h: int, unit_w: int) -> None:
    is_tensor("index", index, (torch.int32,))
    batch, channels, height, width = target.shape
    if index.dim() not in (1, 2) or (index.dim() == 2 and index.shape[0] != batch):
        raise ValueError(f"index has shape {tuple(index.shape)}; allowed: (B, K) or (R,)")
    fits = pred.shape[:-1] == index.shape
    patch = prediction_patch(pred.shape, target.shape) if fits else 0
    fits = fits and patch > 0 and pred.shape[-1] == channels * patch * patch
    if index.dim() == 2:
        fits = fits and (patch, patch) == (unit_h, unit_w)
    else:
        fits = fits and height % patch == 0 and width % patch == 0
    if not fits:
        raise ValueError(
            f"pred has shape {tuple(pred.shape)}; allowed for {tuple(index.shape)} masked units of "
            f"{unit_h} x {unit_w} pixels and {channels} channels: "
            f"{(*index.shape, channels * unit_h * unit_w)}, or the tokens of the whole image, "
            "without class tokens"
        )
