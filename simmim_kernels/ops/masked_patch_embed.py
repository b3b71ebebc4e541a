"""Patch embedding of the visible patches alone, with or without the mask token in the others."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from simmim_kernels.grid import scale_of, whole_scale
from simmim_kernels.masks import PatchMask, count_tokens, mask_grid
from simmim_kernels.ops._channels import (
    Channels,
    channel_stats,
    check_channel_stats,
    check_channels,
)
from simmim_kernels.ops._check import FLOATS, PIXELS, has_dims, is_tensor, same_device
from simmim_kernels.ops._define import apply, define, differentiate, first_order, needs_grad
from simmim_kernels.ops.place_tokens import check_grid, check_patch_mask, place_tokens, take_tokens


def _token_grid(image: Tensor, patch_h: int, patch_w: int) -> tuple[int, int]:
    return (
        whole_scale("image height", image.shape[2], "patch height", patch_h),
        whole_scale("image width", image.shape[3], "patch width", patch_w),
    )


def _check_gather(image, mask, mean, std, patch_h, patch_w, count, dtype) -> None:
    is_tensor("image", image, PIXELS)
    has_dims("image", image, {4: "(B, C, H, W)"})
    is_tensor("mask", mask, (torch.bool,))
    check_grid(mask, image.shape[0], *_token_grid(image, patch_h, patch_w), count)
    check_channel_stats(image, mean, std)
    if dtype not in FLOATS:
        raise TypeError(f"dtype is {dtype}; allowed: floating types")
    same_device(image=image, mask=mask, mean=mean, std=std)


def _fake_gather(image, mask, mean, std, patch_h, patch_w, count, dtype):
    return image.new_empty((count, image.shape[1] * patch_h * patch_w), dtype=dtype)


def _check_gather_backward(grad, mask, std, channels, h, w, patch_h, patch_w, dtype) -> None:
    is_tensor("grad", grad, FLOATS)
    has_dims("grad", grad, {2: "(n, C * patch_h * patch_w)"})
    is_tensor("mask", mask, (torch.bool,))
    check_grid(mask, mask.shape[0], h, w, grad.shape[0])
    if min(channels, patch_h, patch_w) < 0 or grad.shape[1] != channels * patch_h * patch_w:
        raise ValueError(
            f"grad has rows of {grad.shape[1]}, not {channels} x {patch_h} x {patch_w}"
        )
    check_channels("std", std, channels)
    if dtype not in FLOATS:
        raise TypeError(f"dtype is {dtype}; allowed: floating types")
    same_device(grad=grad, mask=mask, std=std)


def _fake_gather_backward(grad, mask, std, channels, h, w, patch_h, patch_w, dtype):
    return grad.new_empty((mask.shape[0], channels, h * patch_h, w * patch_w), dtype=dtype)


# Rows in ascending order of the visible patches, sample after sample, each (channel, dy, dx); rows
# beyond the last visible patch are zeros.
_gather = define(
    "gather_patches(Tensor image, Tensor mask, Tensor? mean, Tensor? std, SymInt patch_h,"
    " SymInt patch_w, SymInt count, ScalarType dtype) -> Tensor",
    module="masked_patch_embed",
    check=_check_gather,
    fake=_fake_gather,
    gradient=lambda *args: apply(_GatherPatches, *args),
)

_gather_backward = define(
    "gather_patches_backward(Tensor grad, Tensor mask, Tensor? std, SymInt channels, SymInt h,"
    " SymInt w, SymInt patch_h, SymInt patch_w, ScalarType dtype) -> Tensor",
    module="masked_patch_embed",
    check=_check_gather_backward,
    fake=_fake_gather_backward,
)


class _GatherPatches(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, mask, mean, std, patch_h, patch_w, count, dtype):
        ctx.save_for_backward(mask, std)
        h, w = scale_of(image.shape[2:], (patch_h, patch_w))
        ctx.layout = image.shape[1], h, w, patch_h, patch_w, image.dtype
        return _gather(image, mask, mean, std, patch_h, patch_w, count, dtype)

    @first_order
    def backward(ctx, grad):
        mask, std = ctx.saved_tensors
        return _gather_backward(grad, mask, std, *ctx.layout), *(None,) * 7


def _check_weights(image: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    is_tensor("weight", weight, FLOATS)
    has_dims("weight", weight, {4: "(D, C, patch_h, patch_w)"})
    if weight.shape[1] != image.shape[1]:
        raise ValueError(f"weight takes {weight.shape[1]} channels, but image has {image.shape[1]}")
    if bias is not None:
        is_tensor("bias", bias, (weight.dtype,))
        if bias.shape != (weight.shape[0],):
            raise ValueError(
                f"bias has shape {tuple(bias.shape)}; allowed: ({weight.shape[0]},), None"
            )
    same_device(image=image, weight=weight, bias=bias)


def masked_patch_embed(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: PatchMask | Tensor,
    token: Tensor,
    *,
    pos_embed: Tensor | None = None,
    mean: Channels = None,
    std: Channels = None,
    norm: Callable[[Tensor], Tensor] | None = None,
    keep_dtype: bool = False,
) -> Tensor:
    """Embed the visible patches of an image and put the mask token in every other place.

        out = where(masked, token, norm(conv(image, weight, bias))) (+ pos_embed)

    to rounding, where `conv` has the patch as kernel and stride. Masked pixels are not read: the
    visible patches alone are gathered into the rows of one matrix product. A NaN in a masked pixel
    reaches neither the result nor a gradient.

    Args:
        image: `(B, C, H, W)`, any strides; a floating type, uint16, int16, or uint8, which is
            divided by 255 first.
        weight: `(D, C, patch_h, patch_w)`, that of the patch embedding's `Conv2d`.
        bias: `(D,)` in `weight`'s type, or None.
        mask: `PatchMask` or `bool (B, gh, gw)`; the grid of patches must be a whole multiple of
            its grid. With a plain bool mask, whose samples may have different counts, there is no
            saving in compiled code and on the GPU: the product then runs over padding too, because
            counting would synchronise.
        token: the mask token, `(D,)` or `(1, 1, D)`.
        pos_embed: added to the result: `(h*w, D)`, `(1, h*w, D)`, `(h, w, D)` or `(1, h, w, D)`.
        mean, std: one number a channel, sequences or float tensors `(C,)`, `std` positive: the
            image that is embedded is `(image - mean) / std`, made as it is gathered. Both or neither.
        norm: applied to the visible embeddings `(n, D)` before they are placed: Swin's LayerNorm.
            It must treat every row alone.
        keep_dtype: return the type of the embeddings instead of the promoted one.

    Returns:
        Contiguous `(B, h*w, D)`. The product runs in `weight`'s type, under autocast in autocast's;
        the result has `torch.result_type(embeddings, token)`, as the published substitution gives.

    Gradients: for `image` (zero where masked; float images only), `weight`, `bias`, `token` (sum
    over masked tokens), `pos_embed` (sum over the batch), and the parameters of `norm`.

    Raises:
        TypeError: wrong dtypes.
        ValueError: shapes that don't fit, a mask finer than the patches.
        RuntimeError: tensors on different devices; a second derivative.

    Source: SimMIM's patch embedding followed by `x * (1 - w) + mask_token * w`.
    """
    if norm is not None and not callable(norm):
        raise TypeError(f"norm must be callable, got {type(norm).__name__}")
    rows, grid = _embed_visible(image, weight, bias, mask, mean, std)
    if norm is not None:
        rows = _normed(norm, rows)
    return place_tokens(
        rows, mask_grid(mask), token, grid, pos_embed=pos_embed, keep_dtype=keep_dtype
    )


def visible_patch_embed(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: PatchMask,
    *,
    pos_embed: Tensor | None = None,
    mean: Channels = None,
    std: Channels = None,
) -> Tensor:
    """The embeddings of the visible patches alone, MAE's encoder input.

        out[b, i] = conv(image, weight, bias) (+ pos_embed) at the i-th visible patch of sample b

    to rounding, where `conv` has the patch as kernel and stride. Masked pixels are not read, and
    what would be dropped is not embedded.

    Args:
        image, weight, bias, mean, std: as in `masked_patch_embed`.
        mask: a `PatchMask`; the grid of patches must be a whole multiple of its grid.
        pos_embed: the position of every patch, masked ones too: `(h*w, D)`, `(1, h*w, D)`,
            `(h, w, D)` or `(1, h, w, D)`.

    Returns:
        `(B, V, D)`, the `V` visible patches of each sample in ascending order; in `weight`'s type,
        under autocast in autocast's, promoted with `pos_embed`'s.

    Gradients: for `image` (zero where masked; float images only), `weight`, `bias` and `pos_embed`
    (sum over the batch, zero where every sample is masked).

    Raises:
        TypeError: a plain bool mask; wrong dtypes.
        ValueError: shapes that don't fit, a mask finer than the patches.
        RuntimeError: tensors on different devices; a second derivative.

    Source: MAE (He et al., 2022).
    """
    check_patch_mask(mask)
    rows, (h, w) = _embed_visible(image, weight, bias, mask, mean, std)
    if pos_embed is not None:
        is_tensor("pos_embed", pos_embed, FLOATS)
        width = weight.shape[0]
        if pos_embed.shape[-1:] != (width,) or pos_embed.numel() != h * w * width:
            raise ValueError(
                f"pos_embed has shape {tuple(pos_embed.shape)}; allowed: one row of {width} for each "
                f"of the {h} x {w} patches"
            )
        everywhere = pos_embed.reshape(1, h * w, width).expand(image.shape[0], -1, -1)
        rows = rows + take_tokens(everywhere, mask.mask, (h, w), rows.shape[0])
    visible = mask.visible.shape[1] * math.prod(scale_of((h, w), mask.mask.shape[1:]))
    return rows.view(image.shape[0], visible, weight.shape[0])


def _normed(norm: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    normed = norm(rows)
    shape = getattr(normed, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != rows.shape[0]:
        made = f"a {type(normed).__name__}" if shape is None else tuple(shape)
        raise ValueError(
            f"norm made {made} of rows of shape {tuple(rows.shape)}; allowed: one row of each"
        )
    return normed


def _embed_visible(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: PatchMask | Tensor,
    mean: Channels,
    std: Channels,
) -> tuple[Tensor, tuple[int, int]]:
    """The embeddings `(n, D)` of the visible patches, sample after sample, and the grid of patches.

    The product is a plain PyTorch op behind one of ours: autograd, autocast and Inductor treat it as
    they treat any linear layer. One Function over both took the same time in eager mode (best of 15,
    vit-b and swin-b, batch 16: 23.1 ms for 23.0, 11.9 for 11.9, 55.4 for 55.8).
    """
    is_tensor("image", image, PIXELS)
    has_dims("image", image, {4: "(B, C, H, W)"})
    _check_weights(image, weight, bias)
    patch_h, patch_w = weight.shape[2:]
    h, w = _token_grid(image, patch_h, patch_w)
    grid = mask_grid(mask)
    check_grid(grid, image.shape[0], h, w, 0)
    count = count_tokens(mask, math.prod(scale_of((h, w), grid.shape[1:])), masked=False)
    dtype, device = weight.dtype, image.device.type
    if dtype != torch.float64 and device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    mean, std = channel_stats(image, mean, std)
    gathered = image, grid, mean, std, patch_h, patch_w, count, dtype
    if needs_grad(image):
        rows = differentiate(_GatherPatches, *gathered)
    else:
        rows = _gather(*gathered)
    return F.linear(rows, weight.flatten(1), bias), (h, w)
