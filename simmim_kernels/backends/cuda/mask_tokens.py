"""Mask-token substitution in one pass each way: csrc/cuda/mask_tokens.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends.cuda import address, device_and_stream, element, kernels
from simmim_kernels.grid import token_grid

_TOKENS = 32  # fewest tokens whose sum over a run of samples one block leaves
_FEATURES = 256  # features that a block covers where the width allows
_BLOCKS = 1024  # about two full waves on 132 multiprocessors before a block takes more samples
_RUN = 16  # at least as many samples for each partial row of position sums


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
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    strides, h, w = _layout(x, mask, prefix_tokens)
    mask, token = mask.contiguous(), token.contiguous()
    pos_embed = None if pos_embed is None else pos_embed.contiguous()
    width = x.shape[-1]
    pos_skip = 0
    if pos_embed is not None and width:
        pos_skip = prefix_tokens + h * w - pos_embed.numel() // width
    device, stream = device_and_stream(x)
    kernels.mask_tokens_forward(
        device,
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
        stream,
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
    batch, width, length = grad.shape[0], grad.shape[-1], prefix_tokens + h * w
    mask, place = mask.contiguous(), grad.device
    tiles = -(-length // _TOKENS)
    run = -(-batch * tiles * -(-width // _FEATURES) // _BLOCKS)
    run = max(run, _RUN if pos_dtype else 1)
    runs = -(-batch // run)
    dx = torch.empty(grad.shape if x_dtype else (0,), dtype=x_dtype, device=place)
    dtoken = torch.empty((width if token_dtype else 0,), dtype=token_dtype, device=place)
    dpos = torch.empty((pos_rows, width) if pos_dtype else (0,), dtype=pos_dtype, device=place)
    token_sums = pos_sums = None
    if token_dtype:
        token_sums = torch.empty((runs * tiles, width), dtype=torch.float64, device=place)
    if pos_dtype:
        pos_sums = torch.empty((runs, pos_rows, width), dtype=torch.float64, device=place)
    device, stream = device_and_stream(grad)
    kernels.mask_tokens_backward(
        device,
        grad.data_ptr(),
        element(grad),
        *strides,
        mask.data_ptr(),
        mask.shape[1],
        mask.shape[2],
        address(dx if x_dtype else None),
        element(dx),
        address(dtoken if token_dtype else None),
        element(dtoken),
        address(token_sums),
        address(dpos if pos_dtype else None),
        element(dpos),
        address(pos_sums),
        pos_rows,
        run,
        batch,
        prefix_tokens,
        h,
        w,
        width,
        stream,
    )
    return dx, dtoken, dpos
