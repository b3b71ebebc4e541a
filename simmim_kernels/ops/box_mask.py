"""Box masks: one rectangle of each sample, at a random place or in the middle."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels._numbers import to_bool
from simmim_kernels.backends._results import empty_lists
from simmim_kernels.masks import PatchMask
from simmim_kernels.ops._sampling import check_sampling, checked_ratio, define_mask, draw, sides


def _check(ids, grid_h, grid_w, box_h, box_w, center, seed, epoch) -> None:
    check_sampling(ids, grid_h, grid_w, epoch)
    if not (0 <= box_h <= grid_h and 0 <= box_w <= grid_w):
        raise ValueError(
            f"the box is {box_h} x {box_w} units; allowed: up to the grid's {grid_h} x {grid_w}"
        )


def _fake(ids, grid_h, grid_w, box_h, box_w, center, seed, epoch):
    return empty_lists(ids, grid_h, grid_w, box_h * box_w)


_box_mask = define_mask(
    "box_mask", "SymInt box_h, SymInt box_w, bool center", check=_check, fake=_fake
)


def box_mask(
    n_or_ids: int | Tensor,
    grid: tuple[int, int],
    ratio: float,
    *,
    seed: int | None = None,
    epoch: int = 0,
    device: torch.device | str | None = None,
    center: bool = False,
) -> PatchMask:
    """Mask one rectangle of `int(gh * ratio) x int(gw * ratio)` units of every sample.

    Its upper left unit comes from the first two words of one Philox4x32-10 block with key
    `(seed_lo, seed_hi)` and counter `(0x81000000, epoch, id_lo, id_hi)`:

        top  = word0 * (gh - box_h + 1) // 2^32
        left = word1 * (gw - box_w + 1) // 2^32

    so that no two places differ in probability by more than `2^-32` along either axis, and every
    backend finds the same place. Like every mask it is a pure function of `(seed, epoch, sample
    id)`.

    Args:
        n_or_ids: a batch size (sample ids `0 .. n-1`), or `int64 (B,)` dataset indices.
        grid: mask units `(gh, gw)`; the image's height and width for a mask of pixels.
        ratio: the rectangle's part of each side, in `[0, 1]`; the float64 products are cut to whole
            units, so a small ratio may mask nothing.
        seed: any 64-bit number; `None` draws one from PyTorch's default CPU generator.
        epoch: `0 .. 2^32 - 1`; another epoch gives another place.
        device: where the mask is made; default: where the ids are, or PyTorch's default device.
        center: put the rectangle in the middle, at `((gh - box_h) // 2, (gw - box_w) // 2)`;
            nothing is drawn then.

    Returns:
        A `PatchMask`: `mask bool (B, gh, gw)`, `masked int32 (B, K)`, `visible int32 (B, N - K)`,
        `K` the units of the rectangle.

    Raises:
        TypeError: ids that are not int64; other numbers of the wrong type.
        ValueError: a size, ratio, seed or epoch out of range.
        RuntimeError: no seed while a CUDA graph is captured.

    Source: SimMIM's square mask (Xie et al., CVPR 2022) with `center`; without it the single random
    box of inpainting tutorials.
    """
    grid_h, grid_w = sides(grid)
    part = checked_ratio(ratio)
    box = int(grid_h * part), int(grid_w * part)
    return draw(
        _box_mask, n_or_ids, device, seed, epoch, grid_h, grid_w, *box, to_bool("center", center)
    )
