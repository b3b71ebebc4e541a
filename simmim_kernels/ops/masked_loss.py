"""Masked losses: L1, mean squared error, smooth L1 and Huber over the masked pixels alone."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels._numbers import to_float
from simmim_kernels.backends._loss_spec import LossSpec
from simmim_kernels.backends._results import empty_loss
from simmim_kernels.masks import PatchMask, mask_grid
from simmim_kernels.ops._channels import Channels, channel_stats
from simmim_kernels.ops._check import FLOATS, PIXELS, has_dims, is_tensor
from simmim_kernels.ops._define import (
    apply,
    are_plain,
    define,
    differentiate,
    first_order,
    needs_grad,
)
from simmim_kernels.ops._loss_check import PREDICTIONS, check, check_tensors
from simmim_kernels.ops._loss_options import with_norm, with_numbers
from simmim_kernels.ops._scaled_gradient import scaled
from simmim_kernels.ops._target_tokens import as_interleaved, check_tokens, tokens_as_image
from simmim_kernels.target_norm import TargetNorm

_saving_hooks = torch._C._autograd._top_saved_tensors_default_hooks


def _fake(pred, target, mask, index, mean, std, spec, with_grad) -> tuple[Tensor, Tensor, Tensor]:
    return empty_loss(pred, target, index, spec, with_grad)


# The gradient is that of pred, for a gradient of 1 of each result. In float16 it lacks the division
# by the denominator, which would leave it a few bits: it must still be multiplied by `scale`, of
# the loss's shape, which also takes back `HALF_SLOPE`; in every other type `scale` is empty. Without
# `with_grad` both are empty.
_masked_loss = define(
    "masked_loss(Tensor pred, Tensor target, Tensor mask, Tensor? index, Tensor? mean, Tensor? std,"
    " LossSpec spec, bool with_grad) -> (Tensor loss, Tensor grad, Tensor scale)",
    module="masked_loss",
    check=check,
    fake=_fake,
    gradient=lambda *args: apply(_MaskedLossOp, *args[:-1]),
)


def _check_in_place(pred: Tensor, *args) -> None:
    check(pred, *args, True)
    if not pred.is_contiguous():
        raise ValueError(f"pred has strides {pred.stride()}; allowed: a contiguous tensor")


def _fake_in_place(pred: Tensor, *args) -> tuple[Tensor, Tensor]:
    loss, _, scale = _fake(pred, *args, True)
    return loss, scale


# The same, with a gradient that takes the place of the prediction.
_masked_loss_in_place = define(
    "masked_loss_(Tensor(a!) pred, Tensor target, Tensor mask, Tensor? index, Tensor? mean,"
    " Tensor? std, LossSpec spec) -> (Tensor loss, Tensor scale)",
    module="masked_loss",
    check=_check_in_place,
    fake=_fake_in_place,
)


class _MaskedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pred, *args):
        loss, grad, scale = _masked_loss(pred, *args, True)
        return _MaskedLoss.keep(ctx, loss, grad, scale, *args[:3])

    @staticmethod
    def keep(ctx, loss, grad, scale, target, _, index):
        if index is not None:
            ctx.tokens = target.shape[1:].numel() // max(grad.shape[-1], 1)
        ctx.shared = not torch.compiler.is_compiling() and _saving_hooks(False) is not None
        ctx.save_for_backward(grad, scale, index)
        return loss

    @first_order
    def backward(ctx, grad_loss):
        grad, scale, index = ctx.saved_tensors
        factor = grad_loss * scale if scale.numel() else grad_loss
        if factor.dim() and index is not None and index.dim() == 1:  # rows of samples of any count
            factor = factor[(index // ctx.tokens).clamp(min=0)]
        return (scaled(grad, factor, ctx.shared), *(None,) * 6)


class _MaskedLossOp(_MaskedLoss):
    """All results of the op, of which the loss has a gradient."""

    @staticmethod
    def forward(ctx, pred, *args):
        results = _masked_loss(pred, *args, True)
        loss = _MaskedLoss.keep(ctx, *results, *args[:3])
        ctx.shared = True
        ctx.mark_non_differentiable(*results[1:])
        return loss, *results[1:]

    @first_order
    def backward(ctx, grad_loss, *_):
        return _MaskedLoss.backward(ctx, grad_loss)


class _MaskedLossInPlace(_MaskedLoss):
    """For a prediction that nobody else reads, neither now nor in a backward pass."""

    @staticmethod
    def forward(ctx, pred, *args):
        loss, scale = _masked_loss_in_place(pred, *args)
        return _MaskedLoss.keep(ctx, loss, pred.detach(), scale, *args[:3])


def _unit_index(pred: Tensor, target: Tensor, mask: PatchMask | Tensor) -> Tensor | None:
    """The index list where `pred` holds masked units only, None where it holds all tokens."""
    if not isinstance(mask, PatchMask) or pred.dim() != 3 or target.dim() != 4:
        return None
    count, numbers = pred.shape[1:]
    if count * numbers == target.shape[1:].numel():
        return None
    return mask.masked


def loss_of(
    spec: LossSpec,
    pred: Tensor,
    target: Tensor,
    mask: PatchMask | Tensor,
    target_norm: TargetNorm,
    mean: Channels,
    std: Channels,
    *,
    index: Tensor | None = None,
    consume: bool = False,
) -> Tensor:
    """The masked loss of `spec`, with its gradient, of a prediction of all tokens, of those in
    `index` or of the units that a PatchMask lists. With `consume` the gradient may take the place
    of the prediction's numbers."""
    if isinstance(target, Tensor) and target.requires_grad:
        raise ValueError("target requires grad; allowed: a target without gradient, detach it")
    is_tensor("pred", pred, FLOATS)
    is_tensor("target", target, PIXELS)
    if target.dim() == 3:
        image = tokens_as_image(target, mask, target_norm, mean, std)
        check_tokens(pred, target, mask)
        target, spec = image, as_interleaved(spec)
    wide = torch.float64 in (pred.dtype, target.dtype)
    spec = with_numbers(spec, torch.finfo(torch.float64 if wide else torch.float32).max)
    grid = mask_grid(mask)
    if index is None:
        index = _unit_index(pred, target, mask)
    mean, std = channel_stats(target, mean, std)
    if target_norm is not None:
        check_tensors(pred, target, grid)
        has_dims("pred", pred, PREDICTIONS)
        spec = with_norm(spec, target_norm, pred, target, grid)
    if torch.compiler.is_compiling():
        # With `dynamic=True` Dynamo makes a number an input of the graph in which it is first compared.
        # If that is an autograd Function's, the next Function can't find it: compare each one before.
        any(number is None for number in spec)
    args = (pred, target, grid, index, mean, std, spec)
    if needs_grad(pred):
        # Compiled code reuses memory on its own. A dispatch mode may have kept the prediction, as
        # that of selective checkpoints does.
        in_place = consume and pred.is_contiguous() and not torch.compiler.is_compiling()
        in_place = in_place and are_plain((pred,))
        return differentiate(_MaskedLossInPlace if in_place else _MaskedLoss, *args)
    return _masked_loss(*args, False)[0]


def masked_l1(
    pred: Tensor,
    target: Tensor,
    mask: PatchMask | Tensor,
    *,
    order: str = "cyx",
    target_norm: TargetNorm = None,
    mean: Channels = None,
    std: Channels = None,
    eps: float = 1e-5,
    reduction: str = "mean",
) -> Tensor:
    """The mean absolute error over the masked pixels, SimMIM's loss.

        L = sum_{b,c,y,x} M[b,y,x] * |pred - target|  /  ((sum_{b,y,x} M[b,y,x] + eps) * C)

    The sums run over the whole batch, `M` counts pixels. Visible pixels are not read: a NaN there
    reaches neither the loss nor the gradient.

    Args:
        pred: float32, float64, bfloat16 or float16, of any strides:
            an image `(B, C, H, W)`;
            tokens `(B, L, C*p*p)`, row-major, `L = H/p * W/p`;
            a map `(B, C*p*p, H/p, W/p)`, the head's output before PixelShuffle;
            the masked units only, `(B, K, C*p*p)` in the order of `PatchMask.masked`, `p` being the
            mask unit (for predictions on a finer grid pass `mask.on_grid((h, w))`).
        target: the image `(B, C, H, W)`, any strides; a floating type, uint16, int16, or uint8,
            which is divided by 255. Or tokens `(B, L, N)` of a floating type beside a `pred` of that
            shape, or of `(B, K, N)`, any `N`: features, histograms, codes. `L` is a whole multiple
            of the mask's grid in both directions, `M` counts tokens, and `C` is `N`.
        mask: a `PatchMask`, or `bool (B, gh, gw)`, `True` = masked, on any grid that divides the
            image; a plain tensor may mask a different number in every sample.
        order: how a token's numbers follow each other: `"cyx"` (channel, dy, dx), as `Conv2d` heads
            and PixelShuffle have them, or `"yxc"`, as in MAE. Images have no order.
        target_norm: `WindowNorm(window, eps)` or `PatchNorm(eps)`: the target is normalised as by
            `normalize_targets` or `normalize_patches`, where it is scored and nowhere else. It is
            computed from visible pixels too, which therefore are read. A patch of `PatchNorm` is a
            token of `pred`, or a mask unit where `pred` is an image. Target tokens take `PatchNorm`
            alone.
        mean, std: one number a channel, `std` positive; sequences or float tensors `(C,)`, both or
            neither: the target is `(value - mean) / std`, made in the kernel. Of images alone.
        eps: added to the number of masked pixels. With `eps=0` and nothing masked the loss is 0.
        reduction: `"mean"` as above; `"sum"`, the numerator; `"none"`, one value a sample, `(B,)`,
            its own numerator over its own denominator.

    Returns:
        A float32 scalar, or `(B,)`; float64 where `pred` or `target` is. Differences are taken in
        that type whatever the inputs and summed in float64, in an order that depends on neither
        threads nor instruction set.

    Gradient: for `pred`, in its type, formed in the forward pass; 0 where visible and where the
    difference is 0.

    Raises:
        TypeError: wrong dtypes.
        ValueError: shapes that don't fit, a target that requires grad, values out of range.
        RuntimeError: tensors on different devices; a second derivative.

    Source: SimMIM (Xie et al., CVPR 2022).
    """
    spec = LossSpec("l1", 1.0, order, eps, reduction)
    return loss_of(spec, pred, target, mask, target_norm, mean, std)


def masked_mse(
    pred: Tensor,
    target: Tensor,
    mask: PatchMask | Tensor,
    *,
    order: str = "cyx",
    target_norm: TargetNorm = None,
    mean: Channels = None,
    std: Channels = None,
    eps: float = 1e-5,
    reduction: str = "mean",
) -> Tensor:
    """The mean squared error over the masked pixels: `masked_l1` with `d^2` for `|d|`.

    MAE's loss is `masked_mse(pred, image, mask, order="yxc", target_norm=PatchNorm(), eps=0)`, with
    `mask` on the grid of patches: its mean over a patch's numbers, then over the hidden patches, has
    the same denominator, `C` times the masked pixels, but for `eps`.

    Arguments, result, gradient and errors are those of `masked_l1`.
    """
    spec = LossSpec("mse", 1.0, order, eps, reduction)
    return loss_of(spec, pred, target, mask, target_norm, mean, std)


def masked_smooth_l1(
    pred: Tensor,
    target: Tensor,
    mask: PatchMask | Tensor,
    *,
    beta: float = 1.0,
    order: str = "cyx",
    target_norm: TargetNorm = None,
    mean: Channels = None,
    std: Channels = None,
    eps: float = 1e-5,
    reduction: str = "mean",
) -> Tensor:
    """The smooth L1 error over the masked pixels: `masked_l1` with, for `|d|`,
    `d^2 / (2 beta)` where `|d| < beta`, else `|d| - beta / 2`.

    Args:
        beta: where the parabola ends, >= 0; 0 is `masked_l1`.

    Other arguments, result, gradient and errors are those of `masked_l1`.
    """
    spec = LossSpec("smooth_l1", beta, order, eps, reduction)
    return loss_of(spec, pred, target, mask, target_norm, mean, std)


def masked_huber(
    pred: Tensor,
    target: Tensor,
    mask: PatchMask | Tensor,
    *,
    delta: float = 1.0,
    order: str = "cyx",
    target_norm: TargetNorm = None,
    mean: Channels = None,
    std: Channels = None,
    eps: float = 1e-5,
    reduction: str = "mean",
) -> Tensor:
    """The Huber error over the masked pixels: `masked_l1` with, for `|d|`,
    `d^2 / 2` where `|d| < delta`, else `delta * (|d| - delta / 2)`.

    Args:
        delta: where the parabola ends, > 0 and finite.

    Other arguments, result, gradient and errors are those of `masked_l1`.
    """
    spec = LossSpec("huber", to_float("delta", delta), order, eps, reduction)
    return loss_of(spec, pred, target, mask, target_norm, mean, std)
