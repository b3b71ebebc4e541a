"""Random patch masks: exactly K of N units, a pure function of (seed, epoch, sample id)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simmim_kernels.ops._check import has_dims, is_tensor
from simmim_kernels.ops._define import define
from simmim_kernels.patch_mask import PatchMask

_WORD = 1 << 32


def check(ids: Tensor, grid_h: int, grid_w: int, count: int, seed: int | None, epoch: int) -> None:
    """The checks that all mask strategies share."""
    is_tensor("n_or_ids", ids, (torch.int64,))
    has_dims("n_or_ids", ids, {1: "(B,)"})
    if grid_h < 1 or grid_w < 1 or grid_h * grid_w >= 1 << 31:
        raise ValueError(f"grid is {grid_h} x {grid_w}; allowed: 1 to 2^31 - 1 units")
    if not 0 <= count <= grid_h * grid_w:
        raise ValueError(f"count is {count}; allowed: 0 to {grid_h * grid_w} units")
    if not 0 <= epoch < _WORD:
        raise ValueError(f"epoch is {epoch}; allowed: 0 to 2^32 - 1")


def fake(
    ids: Tensor, grid_h: int, grid_w: int, count: int, seed: int | None, epoch: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, units = ids.shape[0], grid_h * grid_w
    return (
        ids.new_empty((batch, grid_h, grid_w), dtype=torch.bool),
        ids.new_empty((batch, count), dtype=torch.int32),
        ids.new_empty((batch, units - count), dtype=torch.int32),
    )


_random_mask = define(
    "random_mask(Tensor ids, int grid_h, int grid_w, int count, int? seed, int epoch)"
    " -> (Tensor mask, Tensor masked, Tensor visible)",
    room="random_mask",
    check=check,
    fake=fake,
    tags=(torch.Tag.nondeterministic_seeded,),
)


def sample_ids(n_or_ids: int | Tensor, device: torch.device | str | None) -> Tensor:
    """`int64 (B,)` sample ids from a batch size or a tensor of dataset indices."""
    if isinstance(n_or_ids, Tensor):
        is_tensor("n_or_ids", n_or_ids, (torch.int64,))
        return n_or_ids if device is None else n_or_ids.to(device)
    if n_or_ids < 0:
        raise ValueError(f"n_or_ids is {n_or_ids}; allowed: a batch size >= 0 or int64 sample ids")
    return torch.arange(n_or_ids, dtype=torch.int64, device=device)


def masked_count(units: int, ratio: float) -> int:
    """`ceil(units * ratio)` of the float64 product, as the published generator computes it."""
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"ratio is {ratio}; allowed: 0 to 1")
    return math.ceil(units * float(ratio))


def signed_seed(seed: int | None) -> int | None:
    """The seed as the signed 64-bit number that a `torch.library` schema carries."""
    if seed is None:
        return None
    if not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"seed is {seed}; allowed: any 64-bit number")
    return seed - (1 << 64) if seed >= 1 << 63 else seed


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
        device: where the mask is made; default: where the ids are, or the CPU.

    Returns:
        A `PatchMask`: `mask bool (B, gh, gw)`, `masked int32 (B, K)`, `visible int32 (B, N - K)`.

    Raises:
        TypeError: ids that are not int64.
        ValueError: a size, ratio, seed or epoch out of range.

    Source: SimMIM (Xie et al., CVPR 2022) for the strategy; Salmon et al., SC'11, for Philox.
    """
    grid_h, grid_w = grid
    count = masked_count(grid_h * grid_w, ratio)
    ids = sample_ids(n_or_ids, device)
    return PatchMask(*_random_mask(ids, grid_h, grid_w, count, signed_seed(seed), epoch))
