"""Random masks by sorting the Philox scores."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._seed import resolve_seed
from simmim_kernels.backends.reference._philox import draw


def index_lists(mask: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """A flat mask `bool (B, N)` with `count` masked units each, and its two index lists."""
    order = torch.argsort(~mask, dim=1, stable=True).int()
    return mask, order[:, :count].contiguous(), order[:, count:].contiguous()


def random_mask(
    ids: Tensor, grid_h: int, grid_w: int, count: int, seed: int | None, epoch: int
) -> tuple[Tensor, Tensor, Tensor]:
    units = grid_h * grid_w
    blocks = torch.arange((units + 3) // 4, device=ids.device)
    scores = draw(ids, blocks, resolve_seed(seed, ids.device), epoch)[:, :units]
    smallest = torch.argsort(scores, dim=1, stable=True)[:, :count]
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=ids.device)
    mask.scatter_(1, smallest, True)
    mask, masked, visible = index_lists(mask, count)
    return mask.view(-1, grid_h, grid_w), masked, visible
