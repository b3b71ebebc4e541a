"""Mask-token substitution in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.grid import refine, token_grid


def _token_mask(x: Tensor, mask: Tensor, prefix_tokens: int) -> Tensor:
    """`bool (B, L, 1)`: the mask on the token grid, False for the prefix."""
    batch, grid_h, grid_w = mask.shape
    if x.dim() == 4:
        h, w = x.shape[1:3]
    else:
        h, w = token_grid(x.shape[1] - prefix_tokens, grid_h, grid_w)
    fine = refine(mask, (h, w))
    prefix = torch.zeros((batch, prefix_tokens), dtype=torch.bool, device=mask.device)
    return torch.cat((prefix, fine.flatten(1)), 1)[..., None]


def mask_tokens_forward(
    x: Tensor,
    mask: Tensor,
    token: Tensor,
    pos_embed: Tensor | None,
    prefix_tokens: int,
    keep_dtype: bool,
) -> Tensor:
    dtype = x.dtype if keep_dtype else torch.promote_types(x.dtype, token.dtype)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    batch, width = x.shape[0], x.shape[-1]
    masked = _token_mask(x, mask, prefix_tokens)
    flat = x.reshape(batch, masked.shape[1], width)
    out = torch.where(masked, token.reshape(width).to(compute), flat.to(compute))
    if pos_embed is not None:
        pos = pos_embed.reshape(pos_embed.shape[:-1].numel(), width).to(compute)
        missing = masked.shape[1] - pos.shape[0]
        out = out + torch.cat((pos.new_zeros((missing, width)), pos))
    return out.to(dtype).reshape(x.shape).contiguous()


def mask_tokens_backward(
    grad: Tensor,
    mask: Tensor,
    prefix_tokens: int,
    x_dtype: torch.dtype | None,
    token_dtype: torch.dtype | None,
    pos_rows: int,
    pos_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    masked = _token_mask(grad, mask, prefix_tokens)
    compute = torch.float64 if grad.dtype == torch.float64 else torch.float32
    flat = grad.reshape(grad.shape[0], masked.shape[1], grad.shape[-1]).to(compute)
    dx = dtoken = dpos = None
    if x_dtype:
        dx = flat.masked_fill(masked, 0).to(x_dtype).reshape(grad.shape)
    if token_dtype:
        dtoken = flat.masked_fill(~masked, 0).sum((0, 1)).to(token_dtype)
    if pos_dtype:
        dpos = flat[:, masked.shape[1] - pos_rows :].sum(0).to(pos_dtype)
    empty = (x_dtype, token_dtype, pos_dtype)
    return tuple(
        grad.new_empty((0,), dtype=dtype) if part is None else part
        for part, dtype in zip((dx, dtoken, dpos), empty, strict=True)
    )
