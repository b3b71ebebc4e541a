"""Which mask unit holds a position of a finer grid: twin of simmim_kernels/grid.py."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  the interpreter looks for it


@triton.jit
def unit_of(y, x, unit_h, unit_w, grid_w, z=0, unit_d=1, grid_h=0):
    """The unit's position among its sample's. Units are `unit_d x unit_h x unit_w` cells of the
    finer grid, `grid_h x grid_w` of them in a layer; an image has depth 1."""
    return (z // unit_d * grid_h + y // unit_h) * grid_w + x // unit_w
