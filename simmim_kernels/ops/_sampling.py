"""What every mask strategy shares: the checks of its arguments, and how it is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from simmim_kernels._numbers import to_float, to_int, to_sides
from simmim_kernels.backends._results import empty_lists
from simmim_kernels.masks import PatchMask
from simmim_kernels.ops._check import has_dims, is_tensor
from simmim_kernels.ops._define import Op, define

_WORD = 1 << 32

# A replayed CUDA graph would give the mask of its capture for ever: seed and epoch are baked in.
TAGS = (torch.Tag.nondeterministic_seeded, torch.Tag.cudagraph_unsafe)


def define_mask(
    name: str, sizes: str, *, check: Callable[..., None], fake: Callable[..., Any] = empty_lists
) -> Op:
    """Register the op that draws a mask; `sizes` are its arguments between the grid and the seed."""
    return define(
        f"{name}(Tensor ids, SymInt grid_h, SymInt grid_w, {sizes}, SymInt? seed, SymInt epoch)"
        " -> (Tensor mask, Tensor masked, Tensor visible)",
        module=name,
        check=check,
        fake=fake,
        tags=TAGS,
    )


def check_sampling(ids: Tensor, grid_h: int, grid_w: int, epoch: int) -> None:
    """Checks the ids, the grid and the epoch of a mask op."""
    is_tensor("n_or_ids", ids, (torch.int64,))
    has_dims("n_or_ids", ids, {1: "(B,)"})
    check_grid(grid_h, grid_w)
    checked_epoch(epoch)


def check_count(ids, grid_h, grid_w, count, seed, epoch) -> None:
    """The checks of an op that masks exactly `count` units of each sample."""
    check_sampling(ids, grid_h, grid_w, epoch)
    if not 0 <= count <= grid_h * grid_w:
        raise ValueError(f"count is {count}; allowed: 0 to {grid_h * grid_w} units")


def draw(
    op: Op,
    n_or_ids: int | Tensor,
    device: torch.device | str | None,
    seed: int | None,
    epoch: int,
    *sizes: int,
) -> PatchMask:
    """The mask that `op` draws for each sample; `sizes` are its arguments between ids and seed."""
    ids = sample_ids(n_or_ids, device)
    return PatchMask(*op(ids, *sizes, signed_seed(seed), checked_epoch(epoch)))


def check_grid(grid_h: int, grid_w: int) -> None:
    """`ValueError` unless a grid has 1 to 2^31 - 1 units, whose positions are int32."""
    if grid_h < 1 or grid_w < 1 or grid_h * grid_w >= 1 << 31:
        raise ValueError(f"grid is {grid_h} x {grid_w}; allowed: 1 to 2^31 - 1 units")


def sides(grid: tuple[int, int]) -> tuple[int, int]:
    """The two sides of a grid of units."""
    grid_h, grid_w = to_sides("grid", grid)
    check_grid(grid_h, grid_w)
    return grid_h, grid_w


def sample_ids(n_or_ids: int | Tensor, device: torch.device | str | None) -> Tensor:
    """`int64 (B,)` sample ids from a batch size or a tensor of dataset indices."""
    if isinstance(n_or_ids, Tensor) and n_or_ids.dim() > 0:
        is_tensor("n_or_ids", n_or_ids, (torch.int64,))
        return n_or_ids if device is None else _moved(n_or_ids, torch.device(device))
    try:
        count = to_int("n_or_ids", n_or_ids)
    except TypeError as error:
        raise TypeError(f"{error}; sample ids are a tensor int64 (B,)") from None
    if not 0 <= count < 1 << 31:
        raise ValueError(
            f"n_or_ids is {count}; allowed: a batch size from 0 to 2^31 - 1 or int64 sample ids"
        )
    return torch.arange(count, dtype=torch.int64, device=device)


def _moved(ids: Tensor, device: torch.device) -> Tensor:
    """`ids` on `device`, without waiting for what the device does: a copy from pageable memory would."""
    if device.type == "cuda" and ids.device.type == "cpu" and not torch.compiler.is_compiling():
        ids = ids.pin_memory()
    return ids.to(device, non_blocking=True)


def checked_ratio(ratio: float) -> float:
    """The masked part as a float64 in `[0, 1]`."""
    ratio = to_float("ratio", ratio)
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"ratio is {ratio}; allowed: 0 to 1")
    return ratio


def masked_count(units: int, ratio: float) -> int:
    """`ceil(units * ratio)` of the float64 product, as the published generator computes it."""
    return math.ceil(units * checked_ratio(ratio))


def checked_epoch(epoch: int) -> int:
    """The epoch as a 32-bit word."""
    epoch = to_int("epoch", epoch)
    if not 0 <= epoch < _WORD:
        raise ValueError(f"epoch is {epoch}; allowed: 0 to 2^32 - 1")
    return epoch


def signed_seed(seed: int | None) -> int | None:
    """The seed as the signed 64-bit number that a `torch.library` schema carries."""
    if seed is None:
        return None
    seed = to_int("seed", seed)
    if not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"seed is {seed}; allowed: any 64-bit number")
    return seed - (1 << 64) if seed >= 1 << 63 else seed
