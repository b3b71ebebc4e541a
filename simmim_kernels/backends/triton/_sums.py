"""Sums over programs: each stores one row of partial sums, and a small kernel adds the rows in order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from simmim_kernels.backends.triton import OPTIONS, cdiv, power_of_two
from simmim_kernels.backends.triton._pixels import store


@triton.jit
def _add_rows(partial, out, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    lane = tl.arange(0, ROWS).to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), tl.float64)
    for start in range(0, rows, ROWS):
        row = start + lane
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        offset = row[:, None] * columns + column[None, :]
        total += tl.load(partial + offset, mask=inside, other=0.0).to(tl.float64)
    store(out + column, tl.sum(total, 0), column < columns)


def add_rows(partial: Tensor, out: Tensor) -> Tensor:
    """`out` = the sum of `partial`'s rows in float64, in an order that depends on the shape alone."""
    rows, columns = partial.shape[0], out.numel()
    if columns:
        # Few columns a program, so that even one token's 768 columns occupy many multiprocessors.
        height = power_of_two(rows, 64)
        width = max(32, 1024 // height)
        _add_rows[(cdiv(columns, width),)](
            partial, out, rows, columns, ROWS=height, COLUMNS=width, num_warps=4, **OPTIONS
        )
    return out
