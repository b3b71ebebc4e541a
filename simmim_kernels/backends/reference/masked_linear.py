"""Which tokens a head on masked tokens predicts, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_kernels.grid import refine


def masked_positions(mask: Tensor, h: int, w: int, count: int) -> Tensor:
    fine = refine(mask, (h, w))
    # Sorting instead of looking for the masked tokens: it needs no synchronisation.
    order = torch.argsort(~fine.flatten(), stable=True)[:count]
    positions = torch.where(fine.flatten()[order], order, -1).int()
    if mask.device.type == "cpu" and fine.count_nonzero() > count:
        raise ValueError(f"count is {count}, but mask has more masked tokens")
    return F.pad(positions, (0, count - positions.shape[0]), value=-1)
