"""Box masks: one rectangle per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._seed import BOX_STREAM, resolve_seed
from simmim_kernels.backends.reference._philox import draw, uniform
from simmim_kernels.backends.reference.random_mask import index_lists


def box_mask(
    ids: Tensor,
    grid_h: int,
    grid_w: int,
    box_h: int,
    box_w: int,
    center: bool,
    seed: int | None,
    epoch: int,
) -> tuple[Tensor, Tensor, Tensor]:
    spare_h, spare_w = grid_h - box_h, grid_w - box_w
    if center:
        top, left = torch.full_like(ids, spare_h // 2), torch.full_like(ids, spare_w // 2)
    else:
        first = torch.tensor([BOX_STREAM], device=ids.device)
        words = draw(ids, first, resolve_seed(seed, ids.device), epoch)
        top, left = uniform(words[:, 0], spare_h + 1), uniform(words[:, 1], spare_w + 1)
    mask = rectangle(top, left, box_h, box_w, grid_h, grid_w)
    flat, masked, visible = index_lists(mask.flatten(1), box_h * box_w)
    return flat.view(-1, grid_h, grid_w), masked, visible


def rectangle(
    top: Tensor, left: Tensor, h: int | Tensor, w: int | Tensor, grid_h: int, grid_w: int
) -> Tensor:
    """`bool (B, grid_h, grid_w)`: True inside each sample's rectangle."""
    y = torch.arange(grid_h, device=top.device)
    x = torch.arange(grid_w, device=top.device)
    rows = (y >= top[:, None]) & (y < (top + h)[:, None])
    columns = (x >= left[:, None]) & (x < (left + w)[:, None])
    return rows[:, :, None] & columns[:, None, :]
