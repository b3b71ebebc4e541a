"""Compact token rows to their places and back, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.grid import refine


def visible_order(mask: Tensor, h: int, w: int, count: int) -> tuple[Tensor, Tensor]:
    """Flat positions `(count,)` in `(B, h, w)` of the visible tokens, ascending, then of as many
    masked ones as are needed to make `count`; and which of them are visible, `bool (count, 1)`."""
    fine = refine(mask, (h, w))
    flat = fine.flatten()
    order = torch.argsort(flat, stable=True)[:count]
    return order, ~flat[order][:, None]


def place_tokens(
    rows: Tensor,
    mask: Tensor,
    token: Tensor | None,
    pos_embed: Tensor | None,
    prefix_tokens: int,
    h: int,
    w: int,
    dtype: torch.dtype,
) -> Tensor:
    batch, width = mask.shape[0], rows.shape[1]
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    order, visible = visible_order(mask, h, w, rows.shape[0])
    blank = rows.new_zeros(width) if token is None else token.reshape(width)
    blank = blank.to(compute)
    out = blank.expand(batch * h * w, width).clone()
    out[order] = torch.where(visible, rows.to(compute), blank)
    out = out.view(batch, h * w, width)
    if pos_embed is not None:
        out = out + pos_embed.reshape(h * w, width).to(compute)
    prefix = out.new_zeros((batch, prefix_tokens, width))
    return torch.cat((prefix, out), 1).to(dtype)


def take_tokens(
    x: Tensor,
    mask: Tensor,
    prefix_tokens: int,
    h: int,
    w: int,
    count: int,
    rows_dtype: torch.dtype | None,
    token_dtype: torch.dtype | None,
    pos_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    patches = x[:, prefix_tokens:]
    flat = patches.flatten(0, 1)
    rows = token = pos = None
    if rows_dtype:
        order, visible = visible_order(mask, h, w, count)
        rows = flat[order].masked_fill(~visible, 0).to(rows_dtype)
    if token_dtype:
        order, visible = visible_order(mask, h, w, len(flat))
        token = flat[order].to(compute).masked_fill(visible, 0).sum(0).to(token_dtype)
    if pos_dtype:
        pos = patches.to(compute).sum(0).to(pos_dtype)
    dtypes = (rows_dtype, token_dtype, pos_dtype)
    return tuple(
        x.new_empty((0,), dtype=dtype) if part is None else part
        for part, dtype in zip((rows, token, pos), dtypes, strict=True)
    )
