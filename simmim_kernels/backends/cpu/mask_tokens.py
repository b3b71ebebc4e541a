"""Mask-token substitution in one pass each way: csrc/cpu/mask_tokens.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends.cpu import address, element, kernels, threads
from simmim_kernels.grid import token_grid

_BLOCK = 8  # samples in one partial sum of the token gradient


def _layout(x: Tensor, mask: Tensor, prefix_tokens: int) -> tuple[tuple[int, ...], int, int]:
    """Strides (batch, row, column, feature) of tokens `x`, and the token grid."""
    if x.dim() == 4:
        return x.stride(), x.shape[1], x.shape[2]
    h, w = token_grid(x.shape[1] - prefix_tokens, mask.shape[1], mask.shape[2])
    batch, row, feature = x.stride()
    return (batch, w * row, row, feature), h, w


def mask_tokens_forward(
    x: Tensor,
    mask: Tensor,
    token: Tensor,
    pos_embed: Tensor | None,
    prefix_tokens: int,
    keep_dtype: bool,
) -> Tensor:
    dtype = x.dtype if keep_dtype else torch.promote_types(x.dtype, token.dtype)
    out = torch.empty(x.shape, dtype=dtype, device="cpu")
    strides, h, w = _layout(x, mask, prefix_tokens)
    mask, token = mask.contiguous(), token.contiguous()
    pos_embed = None if pos_embed is None else pos_embed.contiguous()
    width = x.shape[-1]
    pos_skip = 0
    if pos_embed is not None and width:
        pos_skip = prefix_tokens + h * w - pos_embed.numel() // width
    kernels.mask_tokens_forward(
        x.data_ptr(),
        element(x),
        *strides,
        mask.data_ptr(),
        mask.shape[1],
        mask.shape[2],
        token.data_ptr(),
        element(token),
        address(pos_embed),
        element(pos_embed),
        pos_skip,
        out.data_ptr(),
        element(out),
        x.shape[0],
        prefix_tokens,
        h,
        w,
        width,
        threads(),
    )
    return out


def mask_tokens_backward(
    grad: Tensor,
    mask: Tensor,
    prefix_tokens: int,
    x_dtype: torch.dtype | None,
    token_dtype: torch.dtype | None,
    pos_rows: int,
    pos_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    strides, h, w = _layout(grad, mask, prefix_tokens)
    mask, team = mask.contiguous(), threads()
    batch, width = grad.shape[0], grad.shape[-1]
    # Sums over the batch must meet in one place, so they are not cut into blocks of samples.
    block = max(batch, 1) if pos_dtype else _BLOCK
    pieces = max((batch + block - 1) // block, 1) * h
    # Without a dtype a part is empty, and not written.
    dx = torch.empty(grad.shape if x_dtype else 0, dtype=x_dtype or grad.dtype, device="cpu")
    dtoken = (
        torch.zeros((pieces, width), dtype=torch.float64, device="cpu") if token_dtype else None
    )
    make = torch.empty if batch else torch.zeros
    dpos = make((pos_rows, width) if pos_dtype else 0, dtype=pos_dtype or grad.dtype, device="cpu")
    row = (prefix_tokens + w) * width if pos_dtype else 0
    scratch = torch.empty((team, row), dtype=torch.float64, device="cpu")
    kernels.mask_tokens_backward(
        grad.data_ptr(),
        element(grad),
        *strides,
        mask.data_ptr(),
        mask.shape[1],
        mask.shape[2],
        dx.data_ptr() if x_dtype else None,
        element(dx),
        address(dtoken),
        dpos.data_ptr() if pos_dtype else None,
        element(dpos),
        prefix_tokens + h * w - pos_rows,
        scratch.data_ptr(),
        block,
        batch,
        prefix_tokens,
        h,
        w,
        width,
        team,
    )
    if dtoken is None:
        return dx, grad.new_empty((0,)), dpos
    return dx, dtoken[0].to(token_dtype), dpos
