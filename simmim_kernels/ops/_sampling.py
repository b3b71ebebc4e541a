"""What every mask strategy shares: its arguments' checks, and the shapes of what it returns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from simmim_kernels._numbers import is_number, is_whole
from simmim_kernels.ops._check import has_dims, is_tensor

_WORD = 1 << 32


def check_sampling(ids: Tensor, grid_h: int, grid_w: int, epoch: int) -> None:
    """Checks the ids, the grid and the epoch of a mask op."""
    is_tensor("n_or_ids", ids, (torch.int64,))
    has_dims("n_or_ids", ids, {1: "(B,)"})
    is_whole("epoch", epoch)
    if grid_h < 1 or grid_w < 1 or grid_h * grid_w >= 1 << 31:
        raise ValueError(f"grid is {grid_h} x {grid_w}; allowed: 1 to 2^31 - 1 units")
    if not 0 <= epoch < _WORD:
        raise ValueError(f"epoch is {epoch}; allowed: 0 to 2^32 - 1")


def check_count(
    ids: Tensor, grid_h: int, grid_w: int, count: int, seed: int | None, epoch: int
) -> None:
    """The checks of an op that masks exactly `count` units of each sample."""
    check_sampling(ids, grid_h, grid_w, epoch)
    if not 0 <= count <= grid_h * grid_w:
        raise ValueError(f"count is {count}; allowed: 0 to {grid_h * grid_w} units")


def empty_lists(ids: Tensor, grid_h: int, grid_w: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mask and the index lists that an op returns, for its fake kernel."""
    batch, units = ids.shape[0], grid_h * grid_w
    return (
        ids.new_empty((batch, grid_h, grid_w), dtype=torch.bool),
        ids.new_empty((batch, count), dtype=torch.int32),
        ids.new_empty((batch, units - count), dtype=torch.int32),
    )


def sides(grid: tuple[int, int]) -> tuple[int, int]:
    """The two sides of a grid of units; `TypeError` where they are something else."""
    if not isinstance(grid, Sequence) or len(grid) != 2:
        raise TypeError(f"grid is {grid!r}; allowed: two whole numbers, (gh, gw)")
    for side in grid:
        is_whole("grid", side)
    return tuple(grid)


def sample_ids(n_or_ids: int | Tensor, device: torch.device | str | None) -> Tensor:
    """`int64 (B,)` sample ids from a batch size or a tensor of dataset indices."""
    if isinstance(n_or_ids, Tensor):
        is_tensor("n_or_ids", n_or_ids, (torch.int64,))
        return n_or_ids if device is None else n_or_ids.to(device)
    is_whole("n_or_ids", n_or_ids)
    if n_or_ids < 0:
        raise ValueError(f"n_or_ids is {n_or_ids}; allowed: a batch size >= 0 or int64 sample ids")
    return torch.arange(n_or_ids, dtype=torch.int64, device=device)


def checked_ratio(ratio: float) -> float:
    """The masked part as a float64 in `[0, 1]`."""
    is_number("ratio", ratio)
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"ratio is {ratio}; allowed: 0 to 1")
    return float(ratio)


def masked_count(units: int, ratio: float) -> int:
    """`ceil(units * ratio)` of the float64 product, as the published generator computes it."""
    return math.ceil(units * checked_ratio(ratio))


def signed_seed(seed: int | None) -> int | None:
    """The seed as the signed 64-bit number that a `torch.library` schema carries."""
    if seed is None:
        return None
    is_whole("seed", seed)
    if not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"seed is {seed}; allowed: any 64-bit number")
    return seed - (1 << 64) if seed >= 1 << 63 else seed
