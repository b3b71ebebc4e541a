"""Positions of tokens in the list of a batch's visible (or masked) tokens, and that list."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from simmim_kernels.backends.triton import OPTIONS, on_device_of, power_of_two
from simmim_kernels.backends.triton._grid import unit_of
from simmim_kernels.grid import scale_of


@triton.jit(do_not_specialize=["batch", "grid_w", "sy", "sx", "w", "count"])
def _token_places(
    mask, places, tokens, batch, units, grid_w, sy, sx, w, length, count,
    MASKED: tl.constexpr, PLACES: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a sample. Each counts the samples before its own again, one byte a unit."""
    sample = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK).to(tl.int64)
    before = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, sample * units, BLOCK):
        at = start + lane
        here = (tl.load(mask + at, mask=at < sample * units, other=1 - MASKED) != 0) == MASKED
        before += here.to(tl.int64)
    place = tl.sum(before, 0) * sy * sx
    for start in range(0, length, BLOCK):
        token = start + lane
        cell = unit_of(token // w, token % w, sy, sx, grid_w)
        here = tl.load(mask + sample * units + cell, mask=token < length, other=1 - MASKED)
        here = (here != 0) == MASKED
        at = place + tl.cumsum(here.to(tl.int32), 0) - 1
        if PLACES:
            tl.store(places + sample * length + token, tl.where(here, at, -1), mask=token < length)
        if TOKENS:
            flat = (sample * length + token).to(tokens.dtype.element_ty)
            tl.store(tokens + at, flat, mask=here & (at < count))
        place += tl.sum(here.to(tl.int64), 0)
    if TOKENS and sample == batch - 1:
        for rest in range(place, count, BLOCK):
            at = rest + lane
            nothing = tl.full((BLOCK,), -1, tokens.dtype.element_ty)
            tl.store(tokens + at, nothing, mask=at < count)


def _run(mask: Tensor, h: int, w: int, masked: bool, places, tokens) -> None:
    batch, grid_h, grid_w = mask.shape
    with on_device_of(mask):
        _token_places[(batch,)](
            mask.contiguous().view(torch.uint8), places, tokens,
            batch, grid_h * grid_w, grid_w, *scale_of((h, w), (grid_h, grid_w)), w, h * w,
            0 if tokens is None else tokens.numel(),
            MASKED=int(masked), PLACES=places is not None, TOKENS=tokens is not None,
            BLOCK=power_of_two(h * w, 1024), num_warps=4, **OPTIONS,
        )  # fmt: skip


def visible_places(mask: Tensor, h: int, w: int) -> Tensor:
    """The position of each of the `(B, h, w)` tokens among the visible ones, -1 for masked tokens."""
    places = torch.empty(mask.shape[0] * h * w, dtype=torch.int64, device=mask.device)
    if places.numel():
        _run(mask, h, w, False, places, None)
    return places


def listed_tokens(
    mask: Tensor, h: int, w: int, count: int, masked: bool, dtype: torch.dtype
) -> Tensor:
    """The first `count` visible or masked tokens, ascending, as flat positions in `(B, h, w)`, padded
    with -1."""
    tokens = torch.empty(count, dtype=dtype, device=mask.device)
    if not mask.numel():
        return tokens.fill_(-1)
    if count:
        _run(mask, h, w, masked, None, tokens)
    return tokens
