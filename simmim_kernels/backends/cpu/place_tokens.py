"""Compact token rows in one pass each way: csrc/cpu/place_tokens.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends.cpu import address, element, kernels, threads

_BLOCK = 8  # samples in one partial sum of the token


def hold(found: int, count: int) -> None:
    """`ValueError` where the mask has more visible tokens than it was said to have."""
    if found > count:
        raise ValueError(
            f"mask has {found} visible tokens, but {count} rows were expected; "
            "the index lists of a PatchMask must be those of its mask"
        )


def starts(mask: Tensor) -> Tensor:
    """Scratch for the number of visible units before each row of units."""
    return torch.empty(mask.shape[0] * mask.shape[1] + 1, dtype=torch.int64, device="cpu")


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
    batch, width, count = mask.shape[0], rows.shape[1], rows.shape[0]
    out = torch.empty((batch, prefix_tokens + h * w, width), dtype=dtype, device="cpu")
    mask, scratch = mask.contiguous(), starts(mask)
    token = None if token is None else token.contiguous()
    pos_embed = None if pos_embed is None else pos_embed.contiguous()
    found = kernels.place_tokens(
        rows.data_ptr(),
        element(rows),
        *rows.stride(),
        mask.data_ptr(),
        *mask.shape[1:],
        scratch.data_ptr(),
        address(token),
        element(token),
        address(pos_embed),
        element(pos_embed),
        out.data_ptr(),
        element(out),
        count,
        batch,
        prefix_tokens,
        h,
        w,
        width,
        threads(),
    )
    hold(found, count)
    return out


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
    batch, _, width = x.shape
    # Sums over the batch must meet in one place, so they are not cut into blocks of samples.
    block = max(batch, 1) if pos_dtype else _BLOCK
    pieces = max((batch + block - 1) // block, 1) * h
    rows = torch.empty((count, width), dtype=rows_dtype, device="cpu") if rows_dtype else None
    token = torch.zeros((pieces, width), dtype=torch.float64, device="cpu") if token_dtype else None
    pos = torch.zeros((h * w, width), dtype=torch.float64, device="cpu") if pos_dtype else None
    mask, scratch = mask.contiguous(), starts(mask)
    found = kernels.take_tokens(
        x.data_ptr(),
        element(x),
        *x.stride(),
        mask.data_ptr(),
        *mask.shape[1:],
        scratch.data_ptr(),
        address(rows),
        element(rows),
        address(token),
        address(pos),
        block,
        count,
        batch,
        prefix_tokens,
        h,
        w,
        width,
        threads(),
    )
    hold(found, count)
    return (
        torch.empty(0, dtype=rows_dtype or x.dtype, device="cpu") if rows is None else rows,
        torch.empty(0, dtype=token_dtype or x.dtype, device="cpu")
        if token is None
        else token[0].to(token_dtype),
        torch.empty(0, dtype=pos_dtype or x.dtype, device="cpu")
        if pos is None
        else pos.to(pos_dtype),
    )
