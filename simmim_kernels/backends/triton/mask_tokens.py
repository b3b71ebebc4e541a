"""Mask-token substitution in one pass each way.

A program handles a tile of consecutive tokens by consecutive features of one sample (forward) or of
a run of samples (backward, which adds up what the samples share).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from simmim_kernels.backends._results import contiguous, empty_gradients
from simmim_kernels.backends.triton import OPTIONS, cdiv, on_device_of, power_of_two
from simmim_kernels.backends.triton._grid import unit_of
from simmim_kernels.backends.triton._sums import add_rows
from simmim_kernels.grid import scale_of, token_grid

_TILE = 4096  # elements: four 16-byte loads of 16-bit numbers in flight in each of 128 threads
_PROGRAMS = 1024  # about two full waves on 132 multiprocessors before a program takes more samples
_PARTIAL = 16  # at least as many samples for each partial row of position sums


@triton.jit
def _tile(pid, length, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Sample (or run of samples), tokens and features of a tile; features vary fastest."""
    blocks = tl.cdiv(width, BLOCK)
    tiles = tl.cdiv(length, ROWS)
    tile = pid // blocks
    token = (tile % tiles) * ROWS + tl.arange(0, ROWS)
    feature = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    return tile // tiles, token, feature


@triton.jit
def _cell_and_offset(token, prefix, w, sy, sx, grid_w, s_y, s_x):
    """The mask unit of each token and its offset within a sample; the unit of a prefix token is
    undefined."""
    patch = tl.maximum(token - prefix, 0)
    y = patch // w
    x = patch - y * w
    offset = y.to(tl.int64) * s_y + (tl.minimum(token, prefix) + x).to(tl.int64) * s_x
    return unit_of(y, x, sy, sx, grid_w), offset


@triton.jit(do_not_specialize=["prefix", "w", "sy", "sx", "grid_w"])
def _forward(
    x, mask, token, pos, out, s_b, s_y, s_x, s_d, cells, prefix, w, sy, sx, grid_w, length, width,
    pos_skip, HAS_POS: tl.constexpr, COMPUTE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample, row, column = _tile(tl.program_id(0), length, width, ROWS, BLOCK)
    sample = sample.to(tl.int64)
    cell, offset = _cell_and_offset(row, prefix, w, sy, sx, grid_w, s_y, s_x)
    exists = row < length
    masked = tl.load(mask + sample * cells + cell, mask=exists & (row >= prefix), other=0) != 0
    inside = exists[:, None] & (column < width)[None, :]
    kept = inside & (masked == 0)[:, None]
    value = tl.load(
        x + sample * s_b + offset[:, None] + column.to(tl.int64)[None, :] * s_d,
        mask=kept,
        other=0.0,
    ).to(COMPUTE)
    shared = tl.load(token + column, mask=column < width, other=0.0).to(COMPUTE)
    value = tl.where(masked[:, None], shared[None, :], value)
    if HAS_POS:
        place = (row - pos_skip).to(tl.int64)[:, None] * width + column[None, :]
        there = inside & (row >= pos_skip)[:, None]
        value += tl.load(pos + place, mask=there, other=0.0).to(COMPUTE)
    target = (sample * length + row)[:, None] * width + column[None, :]
    tl.store(out + target, value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["prefix", "w", "sy", "sx", "grid_w", "batch", "run"])
def _backward(
    grad, mask, dx, token_sums, pos_sums, s_b, s_y, s_x, s_d, cells, prefix, w, sy, sx, grid_w,
    length, width, pos_skip, batch, run,
    WANTS_X: tl.constexpr, WANTS_TOKEN: tl.constexpr, WANTS_POS: tl.constexpr,
    COMPUTE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    piece, row, column = _tile(tl.program_id(0), length, width, ROWS, BLOCK)
    cell, offset = _cell_and_offset(row, prefix, w, sy, sx, grid_w, s_y, s_x)
    exists = row < length
    inside = exists[:, None] & (column < width)[None, :]
    source = offset[:, None] + column.to(tl.int64)[None, :] * s_d
    token_sum = tl.zeros((ROWS, BLOCK), COMPUTE)
    pos_sum = tl.zeros((ROWS, BLOCK), COMPUTE)
    for index in range(tl.minimum(run, batch - piece * run)):
        sample = (piece * run).to(tl.int64) + index
        masked = tl.load(mask + sample * cells + cell, mask=exists & (row >= prefix), other=0) != 0
        wanted = inside
        if not WANTS_POS and not WANTS_TOKEN:
            wanted = inside & (masked == 0)[:, None]
        if not WANTS_POS and not WANTS_X:
            wanted = inside & masked[:, None]
        value = tl.load(grad + sample * s_b + source, mask=wanted, other=0.0)
        if WANTS_X:
            target = (sample * length + row)[:, None] * width + column[None, :]
            kept = tl.where(masked[:, None], 0.0, value)
            if kept.dtype == tl.float64 and dx.dtype.element_ty != tl.float64:
                kept = kept.to(tl.float32)  # no GPU narrows float64 to 16 bits in one step
            tl.store(dx + target, kept.to(dx.dtype.element_ty), mask=inside)
        if WANTS_TOKEN:
            token_sum += tl.where(masked[:, None], value.to(COMPUTE), 0.0)
        if WANTS_POS:
            pos_sum += value.to(COMPUTE)
    if WANTS_TOKEN:
        tiles = tl.cdiv(length, ROWS)
        partial = (piece * tiles + tl.program_id(0) // tl.cdiv(width, BLOCK) % tiles).to(tl.int64)
        tl.store(token_sums + partial * width + column, tl.sum(token_sum, 0), mask=column < width)
    if WANTS_POS:
        rows = length - pos_skip
        place = (piece.to(tl.int64) * rows + row - pos_skip)[:, None] * width + column[None, :]
        tl.store(pos_sums + place, pos_sum, mask=inside & (row >= pos_skip)[:, None])


def _layout(x: Tensor, mask: Tensor, prefix_tokens: int) -> tuple[tuple[int, ...], int, int]:
    """Strides (batch, row, column, feature) of tokens `x`, and the token grid."""
    if x.dim() == 4:
        return x.stride(), x.shape[1], x.shape[2]
    h, w = token_grid(x.shape[1] - prefix_tokens, mask.shape[1], mask.shape[2])
    batch, row, feature = x.stride()
    return (batch, w * row, row, feature), h, w


def tile_shape(width: int, length: int) -> tuple[int, int]:
    """Tokens and features of a tile. Features: the largest power of two that divides the width, so
    that no lane idles (768 = 3 x 256), unless that is too narrow for wide loads."""
    block = min(width & -width, 1024)
    if block < 64:
        block = power_of_two(width, 1024)
    return power_of_two(length, max(_TILE // block, 1)), block


def compute_type(*dtypes: torch.dtype) -> tl.dtype:
    return tl.float64 if torch.float64 in dtypes else tl.float32


def mask_tokens_forward(x, mask, token, pos_embed, prefix_tokens, keep_dtype):
    dtype = x.dtype if keep_dtype else torch.promote_types(x.dtype, token.dtype)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    strides, h, w = _layout(x, mask, prefix_tokens)
    batch, width, length = x.shape[0], x.shape[-1], prefix_tokens + h * w
    if not out.numel():
        return out
    mask, token, pos_embed = contiguous(mask, token, pos_embed)
    rows, block = tile_shape(width, length)
    with on_device_of(x):
        _forward[(batch * cdiv(length, rows) * cdiv(width, block),)](
            x, mask, token, pos_embed, out, *strides, mask.shape[1] * mask.shape[2], prefix_tokens, w,
            *scale_of((h, w), mask.shape[1:]), mask.shape[2], length, width,
            0 if pos_embed is None else length - pos_embed.numel() // width,
            HAS_POS=pos_embed is not None, COMPUTE=compute_type(dtype), ROWS=rows, BLOCK=block,
            num_warps=4, **OPTIONS,
        )  # fmt: skip
    return out


def mask_tokens_backward(grad, mask, prefix_tokens, x_dtype, token_dtype, pos_rows, pos_dtype):
    strides, h, w = _layout(grad, mask, prefix_tokens)
    batch, width, length = grad.shape[0], grad.shape[-1], prefix_tokens + h * w
    mask, device = mask.contiguous(), grad.device
    rows, block = tile_shape(width, length)
    tiles, blocks = cdiv(length, rows), cdiv(width, block)
    run = max(cdiv(batch * tiles * blocks, _PROGRAMS), _PARTIAL if pos_dtype else 1)
    pieces = cdiv(batch, run)
    compute = compute_type(grad.dtype)
    sums = torch.float64 if compute is tl.float64 else torch.float32
    dx, dtoken, dpos = empty_gradients(
        grad, (grad.shape, x_dtype), ((width,), token_dtype), ((pos_rows, width), pos_dtype)
    )
    token_sums = pos_sums = None
    if token_dtype:
        token_sums = torch.empty((pieces * tiles, width), dtype=sums, device=device)
    if pos_dtype:
        pos_sums = torch.empty((pieces, pos_rows, width), dtype=sums, device=device)
    with on_device_of(grad):
        if pieces and width and (x_dtype or token_dtype or pos_dtype):
            _backward[(pieces * tiles * blocks,)](
                grad, mask, dx, token_sums, pos_sums, *strides, mask.shape[1] * mask.shape[2],
                prefix_tokens, w, *scale_of((h, w), mask.shape[1:]), mask.shape[2], length, width,
                length - pos_rows, batch, run, WANTS_X=x_dtype is not None,
                WANTS_TOKEN=token_dtype is not None, WANTS_POS=pos_dtype is not None,
                COMPUTE=compute, ROWS=rows, BLOCK=block, num_warps=4, **OPTIONS,
            )  # fmt: skip
        if token_dtype:
            add_rows(token_sums, dtoken)
        if pos_dtype:
            add_rows(pos_sums, dpos)
    return dx, dtoken, dpos
