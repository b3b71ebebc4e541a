"""Mask-token substitution in one pass each way: csrc/cuda/mask_tokens.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends.cuda import contiguous, kernels, stream


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
    mask, token, pos_embed = contiguous(mask, token, pos_embed)
    kernels.mask_tokens_forward(x, mask, token, pos_embed, out, prefix_tokens, stream(x))
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
    mask, width, device = mask.contiguous(), grad.shape[-1], grad.device
    # Without a dtype a result is empty, and not computed.
    shapes = (
        (grad.shape if x_dtype else 0, x_dtype),
        (width if token_dtype else 0, token_dtype),
        ((pos_rows, width) if pos_dtype else 0, pos_dtype),
    )
    dx, dtoken, dpos = (
        torch.empty(shape, dtype=dtype or grad.dtype, device=device) for shape, dtype in shapes
    )
    wanted_x = dx if x_dtype else None
    wanted = dtoken if token_dtype else None, dpos if pos_dtype else None
    size = kernels.mask_tokens_scratch(grad, mask, *wanted, prefix_tokens)
    scratch = torch.empty(size, dtype=torch.float64, device=device)
    kernels.mask_tokens_backward(
        grad, mask, wanted_x, *wanted, prefix_tokens, scratch, stream(grad)
    )
    return dx, dtoken, dpos
