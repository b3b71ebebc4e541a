"""AvgDist by a distance transform on the pixel grid."""

from __future__ import annotations

import torch
from torch import Tensor


def avg_dist(mask: Tensor, unit: int) -> Tensor:
    masked = mask.repeat_interleave(unit, 1).repeat_interleave(unit, 2)
    _, height, width = masked.shape
    far = 1 << 30  # beyond any image side
    y = torch.arange(height, device=mask.device)[None, :, None]
    above = torch.where(masked, -far, y).cummax(1).values
    below = torch.where(masked, 2 * far, y).flip(1).cummin(1).values.flip(1)
    square = torch.minimum(y - above, below - y).clamp(max=far).square()
    x = torch.arange(width, device=mask.device)
    nearest = torch.full_like(square, far * far)
    for column in range(width):
        across = square[:, :, column, None] + (x - column).square()
        nearest = torch.minimum(nearest, across)
    distance = nearest.double().sqrt().masked_fill(nearest >= far * far, torch.inf)
    total = distance.masked_fill(~masked, 0).sum()
    return total / masked.sum().clamp(min=1)
