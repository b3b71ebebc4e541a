"""The options of a masked loss as its kernels take them: one LossSpec of Python's own numbers."""

from __future__ import annotations

import math

from torch import Tensor

from simmim_kernels._numbers import to_float
from simmim_kernels.backends._loss_spec import LossSpec
from simmim_kernels.grid import prediction_patch, scale_of
from simmim_kernels.ops._loss_check import SMALLEST_BETA
from simmim_kernels.target_norm import PatchNorm, TargetNorm, WindowNorm


def with_norm(
    spec: LossSpec, target_norm: TargetNorm, pred: Tensor, target: Tensor, mask: Tensor
) -> LossSpec:
    """`spec` with the normalisation that `target_norm` asks for."""
    if isinstance(target_norm, WindowNorm):
        # Past the image's other end a window gains nothing.
        side = min(target_norm.window, 2 * max(target.shape[2:]) - 1)
        return spec._replace(norm="window", norm_side=side, norm_eps=target_norm.eps)
    if not isinstance(target_norm, PatchNorm):
        raise TypeError(
            f"target_norm is {type(target_norm).__name__}; allowed: WindowNorm, PatchNorm, None"
        )
    if pred.shape != target.shape:
        side = prediction_patch(pred.shape, target.shape)
        return spec._replace(norm="patch", norm_side=side, norm_eps=target_norm.eps)
    unit = scale_of(target.shape[2:], mask.shape[1:])
    if unit[0] != unit[1]:
        raise ValueError(
            f"the mask's units are {unit[0]} x {unit[1]} pixels, and PatchNorm normalises an image's "
            "target by them; allowed: square units, or a prediction of tokens"
        )
    return spec._replace(norm="patch", norm_side=unit[0], norm_eps=target_norm.eps)


def with_numbers(spec: LossSpec, largest: float) -> LossSpec:
    """`spec` with Python's own numbers and a parameter in its range. Huber is beta times smooth L1:
    of the two the one whose values keep their precision is computed.

    `largest`: number of the type that losses are computed in.
    """
    if type(spec.beta) is not float or type(spec.eps) is not float:
        spec = spec._replace(beta=to_float("beta", spec.beta), eps=to_float("eps", spec.eps))
    if largest < spec.beta < math.inf:
        spec = spec._replace(beta=largest)
    if spec.kind == "huber":
        if not 0.0 < spec.beta < math.inf:
            raise ValueError(f"delta is {spec.beta}; allowed: a finite number > 0")
        if spec.beta < 1.0:  # the slopes of Huber would vanish in float16
            spec = spec._replace(kind="smooth_l1", factor=spec.beta)
    elif spec.kind == "smooth_l1":
        if not 0.0 <= spec.beta < math.inf:
            raise ValueError(f"beta is {spec.beta}; allowed: a finite number >= 0")
        if spec.beta > 1.0:  # in units of beta, differences and their squares would vanish
            spec = spec._replace(kind="huber", factor=1.0 / spec.beta)
    if spec.kind == "smooth_l1" and spec.beta < SMALLEST_BETA:  # no difference is that small
        return spec._replace(kind="l1", beta=1.0)
    return spec
