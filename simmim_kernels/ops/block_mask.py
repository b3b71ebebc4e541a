"""Block-wise masks: rectangles added until exactly K units of a sample are masked."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.masks import PatchMask
from simmim_kernels.ops._sampling import check_count, define_mask, draw, masked_count, sides

_block_mask = define_mask("block_mask", "SymInt count", check=check_count)


def block_mask(
    n_or_ids: int | Tensor,
    grid: tuple[int, int],
    ratio: float,
    *,
    seed: int | None = None,
    epoch: int = 0,
    device: torch.device | str | None = None,
) -> PatchMask:
    """Mask exactly `K = ceil(N * ratio)` units of every sample with BEiT's rectangles.

    Attempt `j = 0, 1, ... 255` of a sample takes the four words of one Philox4x32-10 block with key
    `(seed_lo, seed_hi)` and counter `(0x82000000 + j, epoch, id_lo, id_hi)`. With `uniform(word,
    n) = word * n // 2^32`, all in whole numbers:

        short   = min(gh, gw);  widest = short * (10 * short // 3)
        least   = max(1, min(16, 16 * N // 196, widest))
        most    = max(least, min(K - masked so far, widest))
        area    = least + uniform(word0, most - least + 1)
        side    = floor(sqrt(2^16 * area))
        a       = word1 // 2^26, one of 64 aspect ratios r(a) = 0.3^(1 - (2 a + 1)/64)
        h       = (side * root(a) + 2^23) // 2^24,  root(a) = round(2^16 * sqrt(r(a)))
        w       = (side * root(63 - a) + 2^23) // 2^24
        top     = uniform(word2, gh - h + 1);  left = uniform(word3, gw - w + 1)

    so `h` and `w` are `sqrt(area * r)` and `sqrt(area / r)`, rounded, with `r` log-uniform.
    An attempt is passed over where the rounded rectangle does not fit into the grid, has fewer than
    `least` units, or an aspect ratio `h / w` outside `[0.3, 1/0.3]`. Otherwise its units are masked in
    row-major order until `K` are, which trims the last rectangle. If 256 attempts leave units
    wanting (a ratio near 1), the first visible ones in row-major order are masked.

    `least` is 16 units from BEiT's own grid of 14 x 14 upwards and the same part of a smaller one,
    and never more than the widest rectangle that a narrow grid holds.

    Args:
        n_or_ids: a batch size (sample ids `0 .. n-1`), or `int64 (B,)` dataset indices.
        grid: mask units `(gh, gw)`.
        ratio: part of the units to mask, in `[0, 1]`, rounded up as `random_mask` does.
        seed: any 64-bit number; `None` draws one from PyTorch's default CPU generator.
        epoch: `0 .. 2^32 - 1`; another epoch gives another mask.
        device: where the mask is made; default: where the ids are, or PyTorch's default device.

    Returns:
        A `PatchMask`: `mask bool (B, gh, gw)`, `masked int32 (B, K)`, `visible int32 (B, N - K)`.

    Raises:
        TypeError: ids that are not int64; other numbers of the wrong type.
        ValueError: a size, ratio, seed or epoch out of range.
        RuntimeError: no seed while a CUDA graph is captured.

    Source: BEiT (Bao et al., 2022), algorithm 1, which stops at or above a count and not at one.
    """
    grid_h, grid_w = sides(grid)
    count = masked_count(grid_h * grid_w, ratio)
    return draw(_block_mask, n_or_ids, device, seed, epoch, grid_h, grid_w, count)


def inverse_block_mask(
    n_or_ids: int | Tensor,
    grid: tuple[int, int],
    ratio: float,
    *,
    seed: int | None = None,
    epoch: int = 0,
    device: torch.device | str | None = None,
) -> PatchMask:
    """Leave blocks visible and mask exactly `K = ceil(N * ratio)` units around them.

    The complement of the `block_mask` of `N - K` units with the same seed, epoch and sample ids, so
    that what stays visible is compact. Arguments, result and errors are those of `block_mask`.

    Source: the strategy of data2vec 2.0 (Baevski et al., 2022), used by CAPI (Darcet et al., 2025).
    """
    grid_h, grid_w = sides(grid)
    count = grid_h * grid_w - masked_count(grid_h * grid_w, ratio)
    block = draw(_block_mask, n_or_ids, device, seed, epoch, grid_h, grid_w, count)
    return PatchMask(~block.mask, block.visible, block.masked)
