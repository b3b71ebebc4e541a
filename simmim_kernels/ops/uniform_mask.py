"""Uniform masks: the same number of masked units in every 2 x 2, so that the visible ones form a grid."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._results import empty_lists
from simmim_kernels.masks import PatchMask
from simmim_kernels.ops._sampling import check_sampling, checked_ratio, define_mask, draw, sides


def _check(ids, grid_h, grid_w, hidden, seed, epoch) -> None:
    check_sampling(ids, grid_h, grid_w, epoch)
    if grid_h % 2 or grid_w % 2:
        raise ValueError(f"grid is {grid_h} x {grid_w}; allowed: even numbers of units")
    if not 0 <= hidden <= 4:
        raise ValueError(f"hidden is {hidden}; allowed: 0 to 4 units of every 2 x 2")


def _fake(ids, grid_h, grid_w, hidden, seed, epoch):
    return empty_lists(ids, grid_h, grid_w, grid_h * grid_w // 4 * hidden)


_uniform_mask = define_mask("uniform_mask", "int hidden", check=_check, fake=_fake)


def uniform_mask(
    n_or_ids: int | Tensor,
    grid: tuple[int, int],
    ratio: float = 0.75,
    *,
    seed: int | None = None,
    epoch: int = 0,
    device: torch.device | str | None = None,
) -> PatchMask:
    """Mask exactly `4 * ratio` units of every 2 x 2, chosen at random.

    With the default one unit of every 2 x 2 stays visible, and the visible units form a grid of half
    the side, which a hierarchical encoder can take as a small image. Unit `(2 y + dy, 2 x + dx)` of a
    sample scores word `2 dy + dx` of the Philox4x32-10 block with key `(seed_lo, seed_hi)` and counter
    `(0xA0000000 + y * gw/2 + x, epoch, id_lo, id_hi)`; of each four, those with the smallest
    `(score, word)` are masked.

    Args:
        n_or_ids: a batch size (sample ids `0 .. n-1`), or `int64 (B,)` dataset indices.
        grid: mask units `(gh, gw)`, both even.
        ratio: part of the units to mask: 0, 0.25, 0.5, 0.75 or 1.
        seed: any 64-bit number; `None` draws one from PyTorch's default CPU generator.
        epoch: `0 .. 2^32 - 1`; another epoch gives another mask.
        device: where the mask is made; default: where the ids are, or PyTorch's default device.

    Returns:
        A `PatchMask`: `mask bool (B, gh, gw)`, `masked int32 (B, K)`, `visible int32 (B, N - K)`.

    Raises:
        TypeError: ids that are not int64; other numbers of the wrong type.
        ValueError: a size, ratio, seed or epoch out of range; an odd grid.
        RuntimeError: no seed while a CUDA graph is captured.

    Source: UM-MAE (Li et al., 2022).
    """
    grid_h, grid_w = sides(grid)
    hidden = 4 * checked_ratio(ratio)
    if hidden != int(hidden):
        raise ValueError(f"ratio is {ratio}; allowed: 0, 0.25, 0.5, 0.75, 1")
    return draw(_uniform_mask, n_or_ids, device, seed, epoch, grid_h, grid_w, int(hidden))
