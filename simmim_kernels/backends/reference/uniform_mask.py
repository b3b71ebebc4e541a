"""Uniform masks by sorting the four Philox scores of every 2 x 2."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._seed import UNIFORM_STREAM, resolve_seed
from simmim_kernels.backends.reference._philox import draw
from simmim_kernels.backends.reference.random_mask import index_lists


def uniform_mask(
    ids: Tensor, grid_h: int, grid_w: int, hidden: int, seed: int | None, epoch: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, cells = ids.shape[0], grid_h * grid_w // 4
    blocks = UNIFORM_STREAM + torch.arange(cells, device=ids.device)
    scores = draw(ids, blocks, resolve_seed(seed, ids.device), epoch).view(batch, cells, 4)
    smallest = torch.argsort(scores, dim=2, stable=True)[..., :hidden]
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=ids.device)
    mask.scatter_(2, smallest, True)
    mask = mask.view(batch, grid_h // 2, grid_w // 2, 2, 2).transpose(2, 3)
    mask, masked, visible = index_lists(mask.reshape(batch, grid_h * grid_w), cells * hidden)
    return mask.view(batch, grid_h, grid_w), masked, visible
