"""Prediction head and masked loss on the masked tokens alone."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_kernels._numbers import to_float
from simmim_kernels.backends._loss_spec import LossSpec
from simmim_kernels.grid import scale_of, whole_root, whole_scale
from simmim_kernels.masks import PatchMask, count_tokens, mask_grid
from simmim_kernels.ops._channels import Channels
from simmim_kernels.ops._check import FLOATS, PIXELS, has_dims, is_mask, is_tensor, same_device
from simmim_kernels.ops._define import define
from simmim_kernels.ops._target_tokens import as_interleaved, tokens_as_image
from simmim_kernels.ops.masked_loss import loss_of
from simmim_kernels.ops.place_tokens import check_grid, take_tokens
from simmim_kernels.target_norm import TargetNorm


def _check_positions(mask: Tensor, h: int, w: int, count: int) -> None:
    is_tensor("mask", mask, (torch.bool,))
    has_dims("mask", mask, {3: "(B, gh, gw)"})
    check_grid(mask, mask.shape[0], h, w, count)
    tokens = mask.shape[0] * h * w
    # A symbolic one would bound the batch sizes of an exported program; its op looks when it runs.
    if not isinstance(tokens, torch.SymInt) and tokens >= 1 << 31:
        raise ValueError(f"{mask.shape[0]} samples of {h} x {w} tokens; allowed: 2^31 - 1 tokens")


# Positions (b * h + y) * w + x of the masked tokens, ascending; -1 where there is none left.
_masked_positions = define(
    "masked_positions(Tensor mask, SymInt h, SymInt w, SymInt count) -> Tensor",
    module="masked_linear",
    check=_check_positions,
    fake=lambda mask, h, w, count: mask.new_empty((count,), dtype=torch.int32),
)


def _check_head(tokens: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> int:
    """The side of a patch."""
    is_tensor("tokens", tokens, FLOATS)
    has_dims("tokens", tokens, {3: "(B, h*w, D)"})
    # autocast brings these together, and what follows; otherwise a product takes one type
    kind = tokens.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)
    allowed = FLOATS if autocast else (tokens.dtype,)
    is_tensor("weight", weight, allowed)
    has_dims("weight", weight, {2: "(C*p*p, D)"})
    is_tensor("target", target, PIXELS)
    has_dims("target", target, {4: "(B, C, H, W) or (B, h*w, N)"})
    batch, channels, height, width = target.shape
    patch = whole_root(weight.shape[0] // max(channels, 1))
    if patch < 1 or weight.shape != (channels * patch * patch, tokens.shape[2]):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; allowed: ({channels}*p*p, {tokens.shape[2]})"
        )
    if bias is not None:
        is_tensor("bias", bias, allowed)
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"bias has shape {tuple(bias.shape)}; allowed: ({weight.shape[0]},), None"
            )
    h = whole_scale("image height", height, "patch", patch)
    w = whole_scale("image width", width, "patch", patch)
    if tokens.shape[:2] != (batch, h * w):
        raise ValueError(
            f"tokens has shape {tuple(tokens.shape)}; allowed for a target of shape "
            f"{tuple(target.shape)} and patches of {patch}: ({batch}, {h * w}, D)"
        )
    same_device(tokens=tokens, weight=weight, bias=bias, target=target)
    return patch


def _loss(spec: LossSpec, tokens, weight, bias, target, mask, target_norm, mean, std) -> Tensor:
    """The loss of `spec`; arguments are those of `masked_linear_l1`."""
    if isinstance(target, Tensor) and target.dim() == 3:
        numbers = target.shape[2]
        target = tokens_as_image(target, mask, target_norm, mean, std)
        if isinstance(weight, Tensor) and weight.shape[:1] != (numbers,):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}; allowed for target tokens of {numbers} "
                f"numbers: ({numbers}, D)"
            )
        spec = as_interleaved(spec)
    patch = _check_head(tokens, weight, bias, target)
    h, w = scale_of(target.shape[2:], (patch, patch))
    grid = mask_grid(mask)
    is_mask(grid, target.shape[0])
    check_grid(grid, target.shape[0], h, w, 0)
    count = count_tokens(mask, math.prod(scale_of((h, w), grid.shape[1:])), masked=True)
    rows = take_tokens(tokens, ~grid, (h, w), count)
    # The product is a plain PyTorch op: autograd, autocast and Inductor treat it as any linear
    # layer, and its backward sees no visible token and reads no prediction.
    pred = F.linear(rows, weight, bias)
    index = _masked_positions(grid, h, w, count)
    return loss_of(spec, pred, target, grid, target_norm, mean, std, index=index, consume=True)


def masked_linear_l1(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor | None,
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
    """The linear prediction head and `masked_l1` on the masked tokens alone.

        masked_l1(tokens @ weight.T + bias, target, mask)

    to rounding, in the loss and in every gradient: what the head would predict for visible tokens
    is neither computed nor differentiated, and nothing of the size of the image is made.

    Args:
        tokens: `(B, h*w, D)`, row-major, without class or register tokens.
        weight: `(C*p*p, D)`, rows in `order`; that of SimMIM's 1x1 convolution is
            `conv.weight.flatten(1)`. The layer itself is not called: of one that does more than a
            product (LoRA, float8, a fake quantisation, hooks) give `masked_l1` the output.
        bias: `(C*p*p,)` or None.
        target: `(B, C, h*p, w*p)`, or tokens `(B, h*w, N)` beside a `weight` of `(N, D)`, as in
            `masked_l1`.
        mask: a `PatchMask`, or `bool (B, gh, gw)` on a grid that divides the token grid. With a plain
            tensor, whose samples may have different counts, there is no saving in compiled code and
            on the GPU: the product then runs over padding too, because counting would synchronise.
        order, target_norm, mean, std, eps, reduction: as in `masked_l1`.

    Returns:
        As `masked_l1`. The product runs in the tensors' type, under autocast in autocast's.

    Gradients: for `tokens` (zero where visible), `weight` and `bias`.

    Raises:
        TypeError: wrong dtypes.
        ValueError: shapes that don't fit, a mask finer than the tokens, values out of range.
        RuntimeError: tensors on different devices; a second derivative.
    """
    spec = LossSpec("l1", 1.0, order, eps, reduction)
    return _loss(spec, tokens, weight, bias, target, mask, target_norm, mean, std)


def masked_linear_mse(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor | None,
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
    """The linear prediction head and `masked_mse` on the masked tokens alone.

    Arguments, result, gradients and errors are those of `masked_linear_l1`.
    """
    spec = LossSpec("mse", 1.0, order, eps, reduction)
    return _loss(spec, tokens, weight, bias, target, mask, target_norm, mean, std)


def masked_linear_smooth_l1(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor | None,
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
    """The linear prediction head and `masked_smooth_l1` on the masked tokens alone.

    Arguments, result, gradients and errors are those of `masked_linear_l1`, `beta` is that of
    `masked_smooth_l1`.
    """
    spec = LossSpec("smooth_l1", beta, order, eps, reduction)
    return _loss(spec, tokens, weight, bias, target, mask, target_norm, mean, std)


def masked_linear_huber(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor | None,
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
    """The linear prediction head and `masked_huber` on the masked tokens alone.

    Arguments, result, gradients and errors are those of `masked_linear_l1`, `delta` is that of
    `masked_huber`.
    """
    spec = LossSpec("huber", to_float("delta", delta), order, eps, reduction)
    return _loss(spec, tokens, weight, bias, target, mask, target_norm, mean, std)
