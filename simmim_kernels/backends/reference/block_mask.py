"""Block-wise masks, one attempt at a time for the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._block import BLOCK_ATTEMPTS, ROOT_ASPECT, block_areas
from simmim_kernels.backends._seed import BLOCK_STREAM, resolve_seed
from simmim_kernels.backends.reference._philox import draw, uniform
from simmim_kernels.backends.reference.box_mask import rectangle
from simmim_kernels.backends.reference.random_mask import index_lists


def _whole_root(n: Tensor) -> Tensor:
    """`floor(sqrt(n))` for `0 <= n < 2^48`."""
    root = torch.zeros_like(n)
    for bit in reversed(range(24)):
        candidate = root | (1 << bit)
        root = torch.where(candidate * candidate <= n, candidate, root)
    return root


def _take(mask: Tensor, units: Tensor, count: int) -> Tensor:
    """`mask` with those of `units` added, in row-major order, that still fit into `count`."""
    new = units & ~mask
    wanting = count - mask.sum(1, keepdim=True)
    return mask | (new & (new.cumsum(1) <= wanting))


def block_mask(
    ids: Tensor, grid_h: int, grid_w: int, count: int, seed: int | None, epoch: int
) -> tuple[Tensor, Tensor, Tensor]:
    units, (least, widest) = grid_h * grid_w, block_areas(grid_h, grid_w)
    root_aspect = torch.tensor(ROOT_ASPECT, device=ids.device)
    mask = torch.zeros((ids.shape[0], units), dtype=torch.bool, device=ids.device)
    seed = resolve_seed(seed, ids.device)
    for attempt in range(BLOCK_ATTEMPTS):
        wanting = count - mask.sum(1)
        if not (wanting > 0).any():
            break
        first = torch.tensor([BLOCK_STREAM + attempt], device=ids.device)
        words = draw(ids, first, seed, epoch)
        area = least + uniform(words[:, 0], wanting.clamp(max=widest).clamp(min=least) - least + 1)
        side, aspect = _whole_root(area << 16), words[:, 1] >> 26
        h = (side * root_aspect[aspect] + (1 << 23)) >> 24
        w = (side * root_aspect[63 - aspect] + (1 << 23)) >> 24
        fits = (h <= grid_h) & (w <= grid_w) & (h * w >= least)
        fits &= (10 * h >= 3 * w) & (10 * w >= 3 * h)
        top = uniform(words[:, 2], grid_h - h + 1)
        left = uniform(words[:, 3], grid_w - w + 1)
        block = rectangle(top, left, h, w, grid_h, grid_w).flatten(1) & fits[:, None]
        mask = _take(mask, block, count)
    mask = _take(mask, torch.ones_like(mask), count)
    mask, masked, visible = index_lists(mask, count)
    return mask.view(-1, grid_h, grid_w), masked, visible
