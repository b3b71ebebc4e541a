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
    prefixed: bool,
    h: int,
    w: int,
    dtype: torch.dtype,
) -> Tensor:
    batch, width = mask.shape[0], rows.shape[1]
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    prefix = rows.new_zeros((batch, prefix_tokens, width))
    if prefixed and batch:
        prefix, rows = _split_prefix(rows, batch, prefix_tokens)
    order, visible = visible_order(mask, h, w, rows.shape[0])
    blank = rows.new_zeros(width) if token is None else token.reshape(width)
    blank = blank.to(compute)
    out = blank.expand(batch * h * w, width).clone()
    out[order] = torch.where(visible, rows.to(compute), blank)
    out = torch.cat((prefix.to(compute), out.view(batch, h * w, width)), 1)
    if pos_embed is not None:
        pos_embed = pos_embed.reshape(pos_embed.shape[:-1].numel(), width)
        out[:, out.shape[1] - len(pos_embed) :] += pos_embed.to(compute)
    return out.to(dtype)


def _split_prefix(rows: Tensor, batch: int, prefix_tokens: int) -> tuple[Tensor, Tensor]:
    """The prefix tokens `(B, prefix, D)` and the rows after them, of rows that hold both."""
    samples = rows.unflatten(0, (batch, -1))
    return samples[:, :prefix_tokens], samples[:, prefix_tokens:].flatten(0, 1)


def take_tokens(
    x: Tensor,
    mask: Tensor,
    prefix_tokens: int,
    prefixed: bool,
    h: int,
    w: int,
    count: int,
    rows_dtype: torch.dtype | None,
    token_dtype: torch.dtype | None,
    pos_rows: int,
    pos_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    patches = x[:, prefix_tokens:]
    flat = patches.flatten(0, 1)
    rows = token = pos = None
    if rows_dtype:
        listed = count - len(x) * prefix_tokens if prefixed else count
        order, visible = visible_order(mask, h, w, listed)
        rows = flat[order].masked_fill(~visible, 0)
        if prefixed and len(x):
            rows = torch.cat((x[:, :prefix_tokens], rows.unflatten(0, (len(x), -1))), 1)
            rows = rows.flatten(0, 1)
        rows = rows.to(rows_dtype)
    if token_dtype:
        order, visible = visible_order(mask, h, w, len(flat))
        token = flat[order].to(compute).masked_fill(visible, 0).sum(0).to(token_dtype)
    if pos_dtype:
        pos = x[:, x.shape[1] - pos_rows :].to(compute).sum(0).to(pos_dtype)
    dtypes = (rows_dtype, token_dtype, pos_dtype)
    return tuple(
        x.new_empty((0,), dtype=dtype) if part is None else part
        for part, dtype in zip((rows, token, pos), dtypes, strict=True)
    )
