"""Random patch masks: exactly K of N units, a pure function of (seed, epoch, sample id)."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.masks import PatchMask
from simmim_kernels.ops._sampling import check_count, define_mask, draw, masked_count, sides

_random_mask = define_mask("random_mask", "SymInt count", check=check_count)


def random_mask(
    n_or_ids: int | Tensor,
    grid: tuple[int, int],
    ratio: float,
    *,
    seed: int | None = None,
    epoch: int = 0,
    device: torch.device | str | None = None,
) -> PatchMask:
    """Mask exactly `K = ceil(N * ratio)` of the `N = gh * gw` units of every sample.

    Unit `i` of a sample scores word `i % 4` of the Philox4x32-10 block with key
    `(seed_lo, seed_hi)` and counter `(i // 4, epoch, id_lo, id_hi)`; the `K` smallest
    `(score, i)` are masked. The mask is therefore the same for every batch size, order of
    samples, number of workers or ranks, and on every backend.

    Args:
        n_or_ids: a batch size (sample ids `0 .. n-1`), or `int64 (B,)` dataset indices.
        grid: mask units `(gh, gw)`: image height and width over the mask unit.
        ratio: part of the units to mask, in `[0, 1]`. The product is taken in float64 and rounded
            up, as the published generator does: `0.55 * 100 -> 56`.
        seed: any 64-bit number; `None` draws one from PyTorch's default CPU generator, so that
            `torch.manual_seed` governs.
        epoch: `0 .. 2^32 - 1`; another epoch gives another mask.
        device: where the mask is made; default: where the ids are, or PyTorch's default device.

    Returns:
        A `PatchMask`: `mask bool (B, gh, gw)`, `masked int32 (B, K)`, `visible int32 (B, N - K)`.

    Raises:
        TypeError: ids that are not int64; other numbers of the wrong type.
        ValueError: a size, ratio, seed or epoch out of range.
        RuntimeError: no seed while a CUDA graph is captured.

    Source: SimMIM (Xie et al., CVPR 2022) for the strategy; Salmon et al., SC'11, for Philox.
    """
    grid_h, grid_w = sides(grid)
    count = masked_count(grid_h * grid_w, ratio)
    return draw(_random_mask, n_or_ids, device, seed, epoch, grid_h, grid_w, count)
