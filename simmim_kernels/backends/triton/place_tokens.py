"""Compact token rows to their positions in the grid, and back.

Each way is two launches: the tokens' places among the visible ones, then one pass over tiles of rows
by features. The sums of masked tokens and over the batch are those of `mask_tokens`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from simmim_kernels.backends._results import contiguous
from simmim_kernels.backends.triton import OPTIONS, cdiv, on_device_of
from simmim_kernels.backends.triton._pixels import store
from simmim_kernels.backends.triton._places import listed_tokens, visible_places
from simmim_kernels.backends.triton.mask_tokens import (
    compute_type,
    mask_tokens_backward,
    tile_shape,
)


@triton.jit(do_not_specialize=["prefix", "count", "per_sample", "pos_first"])
def _place(
    rows, r_n, r_d, places, token, pos, out, length, prefix, width, total, count, per_sample,
    pos_first, HAS_TOKEN: tl.constexpr, HAS_POS: tl.constexpr, PREFIXED: tl.constexpr,
    COMPUTE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """With PREFIXED each sample has `per_sample` rows, those of its prefix first."""
    blocks = tl.cdiv(width, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    patch = row % length - prefix
    exists = (row < total) & (patch >= 0)
    source = row // length * (length - prefix) + patch
    place = tl.load(places + source, mask=exists, other=-1)
    if PREFIXED:
        sample, ahead = row // length, row % length
        place = tl.where(place >= 0, place + prefix * (sample + 1), place)
        place = tl.where(ahead < prefix, sample * per_sample + ahead, place)
        exists = row < total
    visible = (place >= 0)[:, None]
    kept = (exists & (place >= 0) & (place < count))[:, None] & (column < width)[None, :]
    at = place[:, None] * r_n + column.to(tl.int64)[None, :] * r_d
    value = tl.load(rows + at, mask=kept, other=0.0).to(COMPUTE)
    if HAS_TOKEN:
        shared = tl.load(token + column, mask=column < width, other=0.0).to(COMPUTE)
        value = tl.where(visible, value, shared[None, :])
    there = exists[:, None] & (column < width)[None, :]
    if HAS_POS:
        added = row % length - pos_first
        at = pos + added[:, None] * width + column[None, :]
        value += tl.load(at, mask=there & (added >= 0)[:, None], other=0.0).to(COMPUTE)
    value = tl.where(exists[:, None], value, 0.0)
    inside = (row < total)[:, None] & (column < width)[None, :]
    store(out + row[:, None] * width + column[None, :], value, inside)


@triton.jit(do_not_specialize=["prefix", "per_sample"])
def _take(
    x, x_b, x_l, x_d, tokens, rows, prefix, length, width, count, per_sample,
    PREFIXED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """With PREFIXED each sample has `per_sample` rows, those of its prefix first."""
    blocks = tl.cdiv(width, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    listed, own = row, row < count
    if PREFIXED:
        sample, ahead = row // per_sample, row % per_sample
        own = own & (ahead >= prefix)
        listed = row - prefix * (sample + 1)
    token = tl.load(tokens + listed, mask=own, other=-1)
    source, place = token // length, token % length + prefix
    if PREFIXED:
        source, place = tl.where(own, source, sample), tl.where(own, place, ahead)
        token = tl.where(own | (row >= count), token, 0)
    at = source * x_b + place * x_l
    kept = (token >= 0)[:, None] & (column < width)[None, :]
    value = tl.load(x + at[:, None] + column.to(tl.int64)[None, :] * x_d, mask=kept, other=0.0)
    inside = (row < count)[:, None] & (column < width)[None, :]
    store(rows + row[:, None] * width + column[None, :], value, inside)


def place_tokens(rows, mask, token, pos_embed, prefix_tokens, prefixed, h, w, dtype):
    batch, (count, width), length = mask.shape[0], rows.shape, prefix_tokens + h * w
    out = torch.empty((batch, length, width), dtype=dtype, device=rows.device)
    if not out.numel():
        return out
    token, pos_embed = contiguous(token, pos_embed)
    places = visible_places(mask, h, w)
    height, block = tile_shape(width, batch * length)
    with on_device_of(rows):
        _place[(cdiv(batch * length, height) * cdiv(width, block),)](
            rows, *rows.stride(), places, token, pos_embed, out, length, prefix_tokens, width,
            batch * length, count, count // batch,
            0 if pos_embed is None else length - pos_embed.numel() // width,
            HAS_TOKEN=token is not None, HAS_POS=pos_embed is not None, PREFIXED=prefixed,
            COMPUTE=compute_type(dtype), ROWS=height, BLOCK=block, num_warps=4, **OPTIONS,
        )  # fmt: skip
    return out


def take_tokens(
    x, mask, prefix_tokens, prefixed, h, w, count, rows_dtype, token_dtype, pos_rows, pos_dtype
):
    batch, width = x.shape[0], x.shape[2]
    shape = (count, width) if rows_dtype else (0,)
    rows = torch.empty(shape, dtype=rows_dtype or x.dtype, device=x.device)
    if rows.numel():
        listed = count - batch * prefix_tokens if prefixed else count
        tokens = listed_tokens(mask, h, w, listed, False, torch.int64)
        height, block = tile_shape(width, count)
        with on_device_of(x):
            _take[(cdiv(count, height) * cdiv(width, block),)](
                x, *x.stride(), tokens, rows, prefix_tokens, h * w, width, count,
                max(count // max(batch, 1), 1), PREFIXED=prefixed, ROWS=height, BLOCK=block, num_warps=4, **OPTIONS,
            )  # fmt: skip
    patches = x[:, prefix_tokens:].unflatten(1, (h, w))
    _, token, pos = mask_tokens_backward(
        patches, mask, 0, None, token_dtype, h * w if pos_dtype else 0, pos_dtype
    )
    if pos_rows > h * w:
        sums = torch.float64 if x.dtype == torch.float64 else torch.float32
        pos = torch.cat((x[:, :prefix_tokens].sum(0, dtype=sums).to(pos_dtype), pos))
    return rows, token, pos
