"""Compact token rows in one pass each way: csrc/cpu/place_tokens.cpp."""

from __future__ import annotations

import torch

from simmim_kernels.backends._results import contiguous, empty_gradients, wanted
from simmim_kernels.backends.cpu import kernels, threads


def check_found(found: int, count: int) -> None:
    """`ValueError` where the mask has more visible tokens than it was said to have."""
    if found > count:
        raise ValueError(
            f"mask has {found} visible tokens, but {count} rows were expected; "
            "the index lists of a PatchMask must be those of its mask"
        )


def place_tokens(rows, mask, token, pos_embed, prefix_tokens, prefixed, h, w, dtype):
    shape = mask.shape[0], prefix_tokens + h * w, rows.shape[1]
    out = torch.empty(shape, dtype=dtype, device="cpu")
    mask, token, pos_embed = contiguous(mask, token, pos_embed)
    found = kernels.place_tokens(
        rows, mask, token, pos_embed, out, prefix_tokens, prefixed, h, w, threads()
    )
    check_found(found, rows.shape[0])
    return out


def take_tokens(
    x, mask, prefix_tokens, prefixed, h, w, count, rows_dtype, token_dtype, pos_rows, pos_dtype
):
    width = x.shape[2]
    results = empty_gradients(
        x, ((count, width), rows_dtype), ((width,), token_dtype), ((pos_rows, width), pos_dtype)
    )
    written = wanted(results, rows_dtype, token_dtype, pos_dtype)
    layout = prefix_tokens, prefixed, h, w
    found = kernels.take_tokens(x, mask.contiguous(), *written, *layout, count, threads())
    check_found(found, count)
    return results
