"""Targets that are tokens, for the masked losses: an image whose pixels are tokens and whose channels
are a token's numbers, without a copy."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._loss_spec import LossSpec
from simmim_kernels.grid import whole_root
from simmim_kernels.masks import PatchMask, mask_grid
from simmim_kernels.ops._channels import Channels
from simmim_kernels.ops._check import FLOATS, has_dims, is_tensor
from simmim_kernels.target_norm import TargetNorm, WindowNorm


def tokens_as_image(
    target: Tensor, mask: PatchMask | Tensor, target_norm: TargetNorm, mean: Channels, std: Channels
) -> Tensor:
    """Target tokens `(B, L, N)` as the view `(B, N, h, w)` that the kernels take: a patch of such an
    image is one pixel, so that `PatchNorm` normalises a token and the mask's sums count tokens.

    Raises:
        TypeError: a target of no floating type: bytes of an image are divided by 255, and whether
            those of a token should be is not known.
        ValueError: tokens without numbers, or that do not form a grid under the mask's; `mean` and
            `std`, which belong to an image's channels; a `target_norm` that needs neighbours.
    """
    grid = mask_grid(mask)
    is_tensor("mask", grid, (torch.bool,))
    has_dims("mask", grid, {3: "(B, gh, gw)"})
    batch, tokens, numbers = shape = tuple(target.shape)
    rows, columns = grid.shape[1:]
    scale = whole_root(tokens // max(rows * columns, 1))
    if batch != grid.shape[0] or numbers < 1 or scale < 1 or scale**2 * rows * columns != tokens:
        raise ValueError(
            f"target has shape {shape}; allowed under a mask of shape {tuple(grid.shape)}: an image "
            f"({grid.shape[0]}, C, H, W), or tokens ({grid.shape[0]}, L, N) with "
            f"L = {rows}*s * {columns}*s and N >= 1"
        )
    is_tensor("target", target, FLOATS)
    if mean is not None or std is not None:
        raise ValueError(
            f"mean and std are given beside target tokens of shape {shape}; allowed: None, they "
            "are an image's, one number a channel"
        )
    if isinstance(target_norm, WindowNorm):
        raise ValueError(
            f"target_norm is WindowNorm beside target tokens of shape {shape}; allowed: PatchNorm, "
            "which normalises every token, or None"
        )
    return target.transpose(1, 2).unflatten(2, (rows * scale, columns * scale))


def check_tokens(pred: Tensor, target: Tensor, mask: PatchMask | Tensor) -> None:
    """Checks that `pred` predicts the target tokens `(B, L, N)`: all of them, or those that a
    PatchMask on their own grid lists."""
    batch, tokens, numbers = target.shape
    allowed = {"the target's shape": (batch, tokens, numbers)}
    if not isinstance(mask, PatchMask):
        allowed["with a PatchMask the masked tokens only"] = None
    elif mask.mask.shape[1:].numel() == tokens:
        allowed["the masked tokens only"] = (batch, mask.masked.shape[1], numbers)
    else:
        allowed["with mask.on_grid((h, w)), the tokens' grid, the masked tokens only"] = None
    if all(pred.shape != shape for shape in allowed.values()):
        words = ", or ".join(
            f"{name} {shape or (batch, 'K', numbers)}" for name, shape in allowed.items()
        )
        raise ValueError(
            f"pred has shape {tuple(pred.shape)}; allowed for target tokens of shape "
            f"{tuple(target.shape)}: {words}".replace("'", "")
        )


def as_interleaved(spec: LossSpec) -> LossSpec:
    """`spec` in MAE's order, in which a token's numbers follow each other as the channels of one pixel
    of such an image do; of one pixel the other order is the same, and an unknown one stays."""
    return spec._replace(order="yxc") if spec.order == "cyx" else spec
